//! Several processes at once, and processes that are killed.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::*;
use crate::fixtures::{Fixture, gzip, noise};

/// Names the store to the test that is run as another process.
const STORE: &str = "MVM_TEST_STORE";

/// Three images that share their base.
fn images() -> Vec<(String, Fixture)> {
    let base = noise(600_000, 1);
    let image = |number: u8| {
        let own = [number; 5000];
        let files: [&[(&str, &[u8])]; 2] = [&[("base", &base)], &[("own", &own)]];
        (format!("image:{number}"), Fixture::new(&files))
    };
    (0..3).map(image).collect()
}

/// Loads, names, saves and removes images until it is killed or has done so a few times.
#[test]
#[ignore = "run by other tests as a process of its own"]
fn work() {
    let path = std::env::var_os(STORE).unwrap();
    let store = Store::open(Path::new(&path)).unwrap();
    for _ in 0..6 {
        for (name, fixture) in images() {
            store.load(&fixture.docker_archive(&[&name])[..]).unwrap();
            store.load(&fixture.oci_archive(&name, "+gzip", gzip)[..]).unwrap();
            // Others do the same: what is there one moment may be gone the next.
            let _ = store.tag(&name, &"other:1".parse().unwrap());
            let _ = store.resolve(&name).map(|image| image.map(|image| store.disk(&image)));
            let _ = store.save(&[&name], crate::SaveFormat::Docker, std::io::sink());
            let _ = store.remove("other:1");
            let _ = store.remove(&name);
        }
    }
}

fn start(store: &Path) -> std::process::Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "store::tests::work", "--ignored"])
        .env(STORE, store)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Every image is whole, and there is nothing that none of them needs.
fn check(store: &Store) {
    let mut layers = HashSet::new();
    let images = store.images().unwrap();
    assert_eq!(images.len(), fs::read_dir(store.root().join("images")).unwrap().count());
    for image in &images {
        store.save(&[&image.id.hex()], crate::SaveFormat::Oci, std::io::sink()).unwrap();
        store.disk(image).unwrap();
        layers.extend(image.layers.iter().map(|layer| layer.diff_id.hex()));
    }
    for (name, target) in store.references().unwrap().iter() {
        assert!(store.record(target.id).unwrap().is_some(), "{name} is of no image");
    }
    let count = |directory: &str| fs::read_dir(store.root().join(directory)).unwrap().count();
    assert_eq!(count("layers"), layers.len());
    assert_eq!((count("merged"), count("tmp")), (images.len(), 0));
    assert!(!store.root().join("unswept").exists());
}

#[test]
fn several_processes_work_on_one_store() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("images");
    let children: Vec<_> = (0..4).map(|_| start(&path)).collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    check(&Store::open(&path).unwrap());
}

#[test]
fn what_a_killed_process_leaves_is_cleaned_up_and_nothing_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("images");
    let kept = Fixture::new(&[&[("base", &noise(600_000, 1))], &[("kept", b"x")]]);
    Store::open(&path).unwrap().load(&kept.docker_archive(&["kept:1"])[..]).unwrap();
    let mut interrupted = 0;
    for round in 0..40_u64 {
        let mut children = [start(&path), start(&path)];
        // At another moment each time.
        std::thread::sleep(Duration::from_millis(5 + round * 37 % 140));
        for child in &mut children {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        interrupted += usize::from(path.join("unswept").exists());
        let store = Store::open(&path).unwrap();
        check(&store);
        assert_eq!(store.resolve("kept:1").unwrap().unwrap().id, kept.id());
    }
    assert!(interrupted > 5, "{interrupted} rounds left something");
}

/// Three images of a Debian base (of this machine's packages) and something small.
#[test]
fn what_was_left_is_counted_when_it_is_removed() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("images")).unwrap();
    assert_eq!(store.remains(), 0);
    let left = store.root().join("tmp/killed/0");
    fs::create_dir_all(&left).unwrap();
    fs::write(left.join("layer.erofs"), [7; 5000]).unwrap();
    fs::write(store.root().join("blobs/left"), [7; 100]).unwrap();
    for name in ["interrupted", "pulled now"] {
        fs::write(store.root().join("partial").join(name), [7; 2000]).unwrap();
    }
    store.mark_unswept().unwrap();
    let store = Store::open(store.root()).unwrap();
    assert_eq!((store.remains(), store.interrupted().unwrap()), (5100, 4000));
    let pull = FileLock::soon(&store.root().join("partial/pulled now")).unwrap();
    assert_eq!((store.remove_interrupted().unwrap(), store.interrupted().unwrap()), (2000, 2000));
    drop(pull);
    assert_eq!((store.remove_interrupted().unwrap(), store.interrupted().unwrap()), (2000, 0));
    assert!(!store.root().join("unswept").exists());
}

#[test]
fn images_that_share_a_base_take_little_more_than_their_layers() {
    let directory = tempfile::tempdir().unwrap();
    let base = directory.path().join("base.tar");
    // Directories of the root are links to those below /usr, through which no layer names files.
    let list = r#"dpkg-query -W -f '${Priority} ${Package}\n' | sed -n 's/^\(required\|important\) //p' |
        xargs dpkg -L | sed 's#^/\(s\?bin\|lib\|lib64\)/#/usr/&#; s#//#/#' | sort -u |
        tar --no-recursion --ignore-failed-read -cf "$0" -T - 2>/dev/null; test -s "$0""#;
    assert!(Command::new("sh").args(["-c", list]).arg(&base).status().unwrap().success());
    let base = fs::read(base).unwrap();
    let image = |number: u8| {
        let own = crate::fixtures::tar(&[("usr/bin/app", &noise(300_000, number.into())), ("etc/app", b"x")]);
        Fixture::of_tars(vec![base.clone(), own])
    };
    let path = directory.path().join("images");
    let store = Store::open(&path).unwrap();
    let mut unique = HashSet::new();
    for number in 0..3 {
        let image = image(number);
        store.load(&image.oci_archive(&format!("a:{number}"), "+gzip", gzip)[..]).unwrap();
        unique.extend(image.layers);
    }
    let sum: usize = unique.iter().map(Vec::len).sum();
    let output = Command::new("du").args(["-s", "--block-size=1"]).arg(&path).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let used: usize = text.split_whitespace().next().unwrap().parse().unwrap();
    println!("{used} bytes for layers of {sum}: {:.3}", used as f64 / sum as f64);
    assert!(used * 100 <= sum * 115, "{used} bytes for layers of {sum}");
}

#[test]
fn a_store_of_another_version_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    Store::open(directory.path()).unwrap();
    Store::open(directory.path()).unwrap();
    fs::write(directory.path().join("version"), "99\n").unwrap();
    let error = Store::open(directory.path()).unwrap_err().to_string();
    assert!(error.contains("has layout \"99\""), "{error}");
}

#[test]
fn the_beginning_of_an_id_names_an_image_if_it_is_of_one() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    // With 17 images, two IDs begin with the same digit.
    let fixtures: Vec<Fixture> = (0..17_u8).map(|number| Fixture::new(&[&[("a", &[number])]])).collect();
    for fixture in &fixtures {
        store.load(&fixture.docker_archive(&[])[..]).unwrap();
    }
    let digits = (0..16).map(|digit| format!("{digit:x}"));
    assert!(digits.into_iter().any(|digit| matches!(store.resolve(&digit), Err(StoreError::Ambiguous(_)))));
    for fixture in &fixtures {
        let id = fixture.id();
        for text in [id.hex(), id.to_string(), id.hex()[..12].to_owned(), id.to_string()[..19].to_owned()] {
            assert_eq!(store.resolve(&text).unwrap().unwrap().id, id, "{text}");
        }
    }
    // A name goes before an ID's beginning.
    let prefix = fixtures[0].id().hex()[..12].to_owned();
    store.tag(&fixtures[1].id().hex(), &prefix.parse().unwrap()).unwrap();
    assert_eq!(store.resolve(&prefix).unwrap().unwrap().id, fixtures[1].id());
    for text in ["", "sha256:", "../version", "UPPER", "g"] {
        assert!(store.resolve(text).unwrap().is_none(), "{text}");
    }
}

/// A process was killed after it had recorded an image and before it had named it.
#[test]
fn an_image_that_was_recorded_and_not_named_is_removed() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("images")).unwrap();
    let image = Fixture::new(&[&[("a", b"x")]]);
    store.load(&image.docker_archive(&["a:1"])[..]).unwrap();
    let (naming, references) = (store.root().join("naming"), store.root().join("references.json"));
    assert!(!naming.exists());
    fs::write(&naming, image.id().hex()).unwrap();
    fs::write(store.root().join("unswept"), "").unwrap();
    Store::open(store.root()).unwrap();
    assert!(!naming.exists() && store.images().unwrap().len() == 1, "it has its name");
    fs::write(&naming, image.id().hex()).unwrap();
    fs::write(store.root().join("unswept"), "").unwrap();
    fs::remove_file(&references).unwrap();
    Store::open(store.root()).unwrap();
    assert!(!naming.exists() && store.images().unwrap().is_empty());
    assert_eq!(fs::read_dir(store.root().join("layers")).unwrap().count(), 0);
}

#[test]
fn damaged_references_are_said_and_nothing_is_removed_for_them() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("images")).unwrap();
    let image = Fixture::new(&[&[("a", b"x")]]);
    store.load(&image.docker_archive(&["a:1"])[..]).unwrap();
    let references = store.root().join("references.json");
    let good = fs::read(&references).unwrap();
    for damaged in [&b"{"[..], b"", b"[1]", b"\xff", &good[..good.len() - 1]] {
        fs::write(&references, damaged).unwrap();
        fs::write(store.root().join("unswept"), "").unwrap();
        let store = Store::open(store.root()).unwrap();
        let resolved = store.resolve("a:1").unwrap_err().to_string();
        let loaded = store.load(&image.docker_archive(&["b:1"])[..]).unwrap_err().to_string();
        for error in [resolved, loaded] {
            assert!(error.contains("references.json is damaged: remove it"), "{error}");
        }
        assert_eq!(fs::read(&references).unwrap(), damaged);
    }
    fs::write(&references, good).unwrap();
    let found = store.resolve("a:1").unwrap().unwrap();
    store.disk(&found).unwrap();
    // As the message advises.
    fs::remove_file(&references).unwrap();
    assert!(store.resolve("a:1").unwrap().is_none());
    store.disk(&store.resolve(&image.id().hex()).unwrap().unwrap()).unwrap();
}
