use super::*;

/// A template of nothing in `base`.
fn fake(base: &Path, assets: &Assets, shape: Shape) -> PathBuf {
    let directory = base.join(shape.name());
    fs::create_dir_all(&directory).unwrap();
    let key = Key::new(assets, shape, None).unwrap();
    fs::write(directory.join(MANIFEST), serde_json::to_vec(&key).unwrap()).unwrap();
    fs::write(directory.join(STATE), "state").unwrap();
    fs::write(directory.join(MEMORY), "memory").unwrap();
    directory
}

#[test]
fn a_template_is_of_use_as_long_as_what_it_was_made_of_is_the_same() {
    let place = tempfile::tempdir().unwrap();
    let path = |name: &str| place.path().join(name);
    let assets = Assets { kernel: path("kernel"), root: path("root"), changes: PathBuf::new() };
    fs::write(&assets.kernel, "kernel").unwrap();
    fs::write(&assets.root, "root").unwrap();
    let templates = Templates { base: path("templates") };
    let shape = Shape { cpus: 1, memory: 1 << 30, ..Shape::default() };
    assert!(templates.open(&assets, shape, None).unwrap().is_none());
    let directory = fake(&templates.base, &assets, shape);
    // It is looked at, and its state is none.
    assert!(matches!(templates.open(&assets, shape, None), Err(TemplateError::State(_))));
    assert!(templates.open(&assets, Shape { cpus: 2, ..shape }, None).unwrap().is_none());
    fs::write(&assets.kernel, "another kernel").unwrap();
    assert!(templates.open(&assets, shape, None).unwrap().is_none());
    fake(&templates.base, &assets, shape);
    fs::remove_file(directory.join(STATE)).unwrap();
    assert!(templates.open(&assets, shape, None).unwrap().is_none());
    for manifest in [&b"{"[..], b"null", b"{\"format\":1}", &[b' '; (64 << 10) + 1]] {
        fs::write(directory.join(MANIFEST), manifest).unwrap();
        assert!(templates.open(&assets, shape, None).unwrap().is_none());
    }
}

#[test]
fn a_template_of_an_image_is_of_use_as_long_as_the_image_is_there() {
    let place = tempfile::tempdir().unwrap();
    let path = |name: &str| place.path().join(name);
    let assets = Assets { kernel: "/dev/null".into(), root: "/dev/null".into(), changes: path("disks") };
    fs::write(&assets.changes, "disks").unwrap();
    let layer = path("layer");
    fs::write(&layer, "layer").unwrap();
    let disk = vec![vmm::Piece { path: layer.clone(), start: 0 }];
    let image = crate::Image { id: format!("sha256:{:064}", 7), disk, ..crate::Image::default() };
    let templates = Templates { base: path("templates") };
    let shape = Shape { cpus: 1, memory: 1 << 30, ..Shape::default() };
    let options = RunOptions::default();
    let root = Root::of(&image, &options, true).unwrap();
    let other = Root::of(&image, &options, false).unwrap();
    let make = |root: &Root| {
        let directory = templates.base.join(name_of(shape, Some(root)));
        fs::create_dir_all(&directory).unwrap();
        let key = Key::new(&assets, shape, Some(root)).unwrap();
        let manifest = Manifest { key, digests: Vec::new() };
        fs::write(directory.join(MANIFEST), serde_json::to_vec(&manifest).unwrap()).unwrap();
        for name in [STATE, MEMORY, CHANGES] {
            fs::write(directory.join(name), name).unwrap();
        }
    };
    fake(&templates.base, &assets, shape);
    make(&root);
    assert_eq!(name_of(shape, Some(&root)), "1c-1024m-none-000000000000-rm");
    let open = |root| templates.open(&assets, shape, Some(root));
    // It is looked at, and its state is none.
    assert!(matches!(open(&root), Err(TemplateError::State(_))));
    assert!(open(&other).unwrap().is_none());
    make(&other);
    assert!(matches!(open(&other), Err(TemplateError::State(_))));
    let all = templates.all();
    let of_images = all.iter().filter(|template| template.image.as_ref() == Some(&image.id));
    assert_eq!((all.len(), of_images.count()), (3, 2));
    // Of each level so many are kept.
    assert_eq!(templates.forget(1).len(), 1);
    make(&root);
    make(&other);
    fs::remove_file(templates.base.join(name_of(shape, Some(&other))).join(CHANGES)).unwrap();
    assert!(open(&other).unwrap().is_none());
    // Another file in its place is another image.
    fs::write(&layer, "another layer").unwrap();
    assert!(open(&root).unwrap().is_none());
    assert_eq!(templates.forget(MOST).len(), 2);
    assert_eq!(templates.all().len(), 1);
    for options in [
        RunOptions { privileged: true, ..RunOptions::default() },
        RunOptions { read_only: true, ..RunOptions::default() },
        RunOptions { storage: crate::Storage::Disk(1 << 30), ..RunOptions::default() },
    ] {
        assert_eq!(Root::of(&image, &options, true), None);
    }
}

#[test]
fn what_was_altered_is_named() {
    let digest = |file: &mut File| {
        let mut content = String::new();
        file.read_to_string(&mut content)?;
        Ok(format!("digest of {content}"))
    };
    let place = tempfile::tempdir().unwrap();
    let assets = Assets { kernel: "/dev/null".into(), root: "/dev/null".into(), changes: PathBuf::new() };
    let templates = Templates { base: place.path().to_owned() };
    let shape = Shape { cpus: 1, memory: 1 << 30, ..Shape::default() };
    let directory = fake(&templates.base, &assets, shape);
    let verified = || templates.verify(&digest).into_iter().map(|(_, verified)| verified).collect::<Vec<_>>();
    // Without digests it is an older one.
    assert_eq!(verified(), [Verified::Unknown]);
    let write = |digests: &[&str]| {
        let digests = digests.iter().map(|digest| (*digest).to_owned()).collect();
        let manifest = Manifest { key: Key::new(&assets, shape, None).unwrap(), digests };
        fs::write(directory.join(MANIFEST), serde_json::to_vec(&manifest).unwrap()).unwrap();
    };
    write(&["digest of state", "digest of memory"]);
    assert_eq!(verified(), [Verified::Whole]);
    assert!(matches!(templates.open(&assets, shape, None), Err(TemplateError::State(_))));
    fs::write(directory.join(MEMORY), "memorx").unwrap();
    assert_eq!(verified(), [Verified::Altered(MEMORY)]);
    write(&["digest of state"]);
    assert_eq!(verified(), [Verified::Altered(MEMORY)]);
    fs::remove_file(directory.join(STATE)).unwrap();
    assert_eq!(verified(), [Verified::Altered(STATE)]);
    let too_long = [b' '; (64 << 10) + 1];
    let damaged: [&[u8]; 5] = [b"{", b"null", b"{}", b"{\"format\":1,\"digests\":7}", &too_long];
    for manifest in damaged {
        fs::write(directory.join(MANIFEST), manifest).unwrap();
        assert_eq!(verified(), [Verified::Altered(MANIFEST)]);
    }
    fs::write(directory.join(MANIFEST), b"{\"format\":2}").unwrap();
    assert_eq!(verified(), [Verified::Unknown]);
}

#[test]
fn those_that_were_used_last_are_kept() {
    let place = tempfile::tempdir().unwrap();
    let assets = Assets { kernel: "/dev/null".into(), root: "/dev/null".into(), changes: PathBuf::new() };
    let templates = Templates { base: place.path().to_owned() };
    for cpus in 1..=4 {
        let shape = Shape { cpus, memory: 1 << 30, has_network: true, ..Shape::default() };
        let directory = fake(&templates.base, &assets, shape);
        let used = SystemTime::UNIX_EPOCH + Duration::from_secs(100 * u64::from(cpus ^ 1));
        File::open(directory).unwrap().set_modified(used).unwrap();
    }
    let names = || templates.all().into_iter().map(|template| template.name).collect::<Vec<_>>();
    assert_eq!(
        names(),
        ["4c-1024m-user", "2c-1024m-user", "3c-1024m-user", "1c-1024m-user"].map(|name| name)
    );
    assert_eq!(templates.forget(2).len(), 2);
    assert_eq!(names().len(), 2);
    assert!(templates.forget(2).is_empty());
    assert_eq!(templates.forget(0).len(), 2);
    assert!(templates.all().is_empty());
}
