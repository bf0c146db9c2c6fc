//! Merged trees beside a model that applies layers to a map.

use super::*;

/// What a layer does to a path.
#[derive(Clone, Debug)]
enum Change {
    File(String),
    Directory,
    Hide,
    Empty,
}

fn change() -> impl Strategy<Value = (Vec<u8>, Change)> {
    let path = prop::collection::vec(0..3_u8, 1..4);
    let change = prop_oneof![
        3 => "[a-z]{0,6}".prop_map(Change::File),
        2 => Just(Change::Directory),
        2 => Just(Change::Hide),
        1 => Just(Change::Empty),
    ];
    (path, change)
}

fn name(path: &[u8]) -> String {
    path.iter().map(|part| format!("{part}")).collect::<Vec<_>>().join("/")
}

/// A layer's own tree by path: content of files, `None` for directories. Entries that pass through a file are left out.
type Model = BTreeMap<String, Option<String>>;

fn is_below(path: &str, top: &str) -> bool {
    top.is_empty() || path.strip_prefix(top).is_some_and(|rest| rest.starts_with('/'))
}

fn add(model: &mut Model, path: &str, content: Option<String>) {
    for (at, _) in path.match_indices('/') {
        let parent = path[..at].to_owned();
        if model.get(&parent).is_some_and(Option::is_some) {
            model.remove(&parent);
        }
        model.entry(parent).or_insert(None);
    }
    if content.is_some() || model.get(path).is_some_and(Option::is_some) {
        model.retain(|known, _| known != path && !is_below(known, path));
    }
    model.insert(path.to_owned(), content);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Layers of changes beside a model which applies whiteouts first and then files, layer by layer.
    #[test]
    fn merged_trees_are_those_of_a_model(layers in prop::collection::vec(prop::collection::vec(change(), 0..8), 1..4)) {
        let mut model = Model::new();
        let mut images = Vec::new();
        for changes in layers {
            let mut archive = Archive::default();
            let mut own = Model::new();
            let mut hidden = Vec::new();
            for (path, change) in changes {
                let path = name(&path);
                let passes_file = path.match_indices('/').any(|(at, _)| own.get(&path[..at]).is_some_and(Option::is_some));
                if passes_file {
                    continue;
                }
                match change {
                    Change::File(text) => {
                        archive = archive.file(&path, text.as_bytes());
                        add(&mut own, &path, Some(text));
                    }
                    Change::Directory => {
                        archive = archive.directory(&path, 0o755);
                        add(&mut own, &path, None);
                    }
                    Change::Hide => {
                        let (parent, last) = path.rsplit_once('/').unwrap_or(("", &path));
                        let separator = if parent.is_empty() { "" } else { "/" };
                        archive = archive.file(&format!("{parent}{separator}.wh.{last}"), b"");
                        if !parent.is_empty() {
                            add(&mut own, parent, None);
                        }
                        hidden.push((path, true));
                    }
                    Change::Empty => {
                        archive = archive.file(&format!("{path}/.wh..wh..opq"), b"");
                        if own.get(&path).is_some_and(Option::is_some) {
                            prop_assume!(false);
                        }
                        add(&mut own, &path, None);
                        hidden.push((path, false));
                    }
                }
            }
            for (path, itself) in hidden {
                model.retain(|known, _| !(is_below(known, &path) || itself && *known == path));
            }
            for (path, content) in own {
                add(&mut model, &path, content);
            }
            images.push(layer(&archive.finish()).unwrap());
        }
        let (tree, _) = read_merged(&images);
        let mut found = Model::new();
        let mut pending = vec![(String::new(), ROOT)];
        while let Some((path, id)) = pending.pop() {
            for (name, &child) in &tree.directory(id).unwrap().entries {
                let name = String::from_utf8(name.to_vec()).unwrap();
                let path = if path.is_empty() { name } else { format!("{path}/{name}") };
                let node = tree.get(child).unwrap();
                if node.directory().is_some() {
                    found.insert(path.clone(), None);
                    pending.push((path, child));
                } else {
                    let Kind::File { size, layer, block } = node.kind else { panic!("{node:?}") };
                    let mut data = vec![0; usize::try_from(size).unwrap()];
                    let image = &images[usize::from(layer)];
                    std::os::unix::fs::FileExt::read_exact_at(image, &mut data, u64::from(block) * BLOCK).unwrap();
                    found.insert(path, Some(String::from_utf8(data).unwrap()));
                }
            }
        }
        prop_assert_eq!(found, model);
    }
}
