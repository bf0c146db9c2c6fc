//! Tests of loading.

use std::fs;
use std::io::Read;

use rstest::rstest;
use serde_json::json;

use super::*;
use crate::documents::{OCI_INDEX, OCI_MANIFEST};
use crate::fixtures::{Fixture, descriptor, gzip, header, layout, noise, tar};

fn store() -> (tempfile::TempDir, Store) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("images")).unwrap();
    (directory, store)
}

fn fixture() -> Fixture {
    Fixture::new(&[&[("base", &noise(200_000, 1)), ("a/b", b"text")], &[("hello", b"#!/bin/sh\n")]])
}

/// What is in the store, without its own files.
fn entries(store: &Store) -> Vec<String> {
    let mut names = Vec::new();
    for directory in ["images", "blobs", "layers", "merged", "partial", "tmp"] {
        for entry in fs::read_dir(store.root().join(directory)).unwrap() {
            names.push(format!("{directory}/{}", entry.unwrap().file_name().into_string().unwrap()));
        }
    }
    names.sort();
    names
}

fn read_tar(store: &Store, layer: Digest) -> Vec<u8> {
    let mut bytes = Vec::new();
    store.layer_tar(layer).unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

fn is_whole(store: &Store, fixture: &Fixture) {
    let image = store.resolve(&fixture.id().hex()).unwrap().unwrap();
    assert_eq!(image.layers.len(), fixture.layers.len());
    for (layer, tar) in image.layers.iter().zip(&fixture.layers) {
        assert!(read_tar(store, layer.diff_id) == *tar);
    }
    let disk = store.disk(&image).unwrap();
    assert_eq!(disk.parts.len(), 1 + image.layers.len());
    let mut end = 0;
    for part in &disk.parts {
        assert!(part.offset >= end && part.offset % 4096 == 0, "{part:?}");
        assert_eq!(fs::metadata(&part.path).unwrap().len(), part.length);
        end = part.offset + part.length;
    }
}

#[test]
fn a_docker_archive_is_loaded() {
    let (_directory, store) = store();
    let fixture = fixture();
    let loaded = store.load(&fixture.docker_archive(&["hello:1", "quay.io/x/hello:2"])[..]).unwrap();
    let names: Vec<String> = loaded[0].references.iter().map(Reference::to_string).collect();
    assert_eq!(
        (loaded[0].id, names),
        (fixture.id(), vec!["hello:1".to_owned(), "quay.io/x/hello:2".to_owned()])
    );
    is_whole(&store, &fixture);
    for name in ["hello:1", "docker.io/library/hello:1", "quay.io/x/hello:2", &fixture.id().hex()[..6]] {
        assert_eq!(store.resolve(name).unwrap().unwrap().id, fixture.id(), "{name}");
    }
    assert!(store.resolve("hello").unwrap().is_none(), "hello:latest");
    let image = store.resolve("hello:1").unwrap().unwrap();
    assert_eq!(image.history()[1].created_by.as_deref(), Some("step 1"));
    assert_eq!(image.history()[0].size, u64::try_from(fixture.layers[0].len()).unwrap());
}

#[test]
fn a_compressed_archive_and_links_between_layers_are_read() {
    let (_directory, store) = store();
    let fixture = Fixture::new(&[&[("a", b"1")], &[("a", b"1")]]);
    let config = format!("{}.json", fixture.id().hex());
    let manifest =
        json!([{"Config": config, "RepoTags": null, "Layers": ["one/layer.tar", "two/layer.tar"]}])
            .to_string();
    let mut builder = tar::Builder::new(Vec::new());
    let mut link = header(0);
    link.set_entry_type(tar::EntryType::Symlink);
    builder.append_link(&mut link, "one/layer.tar", "../two/layer.tar").unwrap();
    for (name, bytes) in [
        ("./manifest.json", manifest.as_bytes()),
        (&config, &fixture.config),
        ("two/layer.tar", &fixture.layers[0]),
    ] {
        builder.append_data(&mut header(bytes.len()), name, bytes).unwrap();
    }
    let loaded = store.load(&gzip(&builder.into_inner().unwrap())[..]).unwrap();
    assert_eq!(loaded, [Loaded { id: fixture.id(), references: Vec::new() }]);
    is_whole(&store, &fixture);
}

#[rstest]
#[case::plain("", <[u8]>::to_vec)]
#[case::gzip("+gzip", gzip)]
fn an_oci_archive_is_loaded(#[case] suffix: &str, #[case] compress: fn(&[u8]) -> Vec<u8>) {
    let (_directory, store) = store();
    let fixture = fixture();
    let archive = fixture.oci_archive("localhost/hello:1", suffix, compress);
    let loaded = store.load(&archive[..]).unwrap();
    assert_eq!(loaded[0].references[0].to_string(), "localhost/hello:1");
    is_whole(&store, &fixture);
    // The same from a directory.
    let (directory, other) = self::store();
    let path = directory.path().join("layout");
    tar::Archive::new(&archive[..]).unpack(&path).unwrap();
    assert_eq!(other.load_directory(&path).unwrap(), loaded);
    is_whole(&other, &fixture);
    assert!(path.join("index.json").exists());
    // Small compressed layers are kept as they came, large ones are not.
    let kept = entries(&store).iter().filter(|name| name.starts_with("blobs/")).count();
    assert_eq!(kept, 2 + 1);
    assert_eq!(entries(&store), entries(&other));
}

/// An archive's last record is filled up, and may come late: who writes it must not find a closed pipe.
#[rstest]
#[case::plain(<[u8]>::to_vec)]
#[case::gzip(gzip)]
fn an_archive_is_read_to_the_end_of_its_stream(#[case] compress: fn(&[u8]) -> Vec<u8>) {
    let (_directory, store) = store();
    let mut archive = fixture().docker_archive(&["hello:1"]);
    archive.resize(archive.len() + (1 << 20), 0);
    let archive = compress(&archive);
    let mut input = &archive[..];
    store.load(&mut input).unwrap();
    assert_eq!(input.len(), 0);
}

#[test]
fn the_entry_for_this_platform_is_loaded() {
    let (_directory, store) = store();
    let fixture = fixture();
    let (manifest, mut blobs) = fixture.oci("+gzip", gzip);
    let mut ours = descriptor(OCI_MANIFEST, &manifest);
    ours["platform"] = json!({"os": "linux", "architecture": "amd64"});
    let mut other = descriptor(OCI_MANIFEST, b"another");
    other["platform"] = json!({"os": "linux", "architecture": "arm64", "variant": "v8"});
    let mut attestation = descriptor(OCI_MANIFEST, b"attestation");
    attestation["platform"] = json!({"os": "unknown", "architecture": "unknown"});
    let inner = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [other, ours, attestation]});
    let inner = serde_json::to_vec(&inner).unwrap();
    blobs.push(manifest);
    let index = json!({"schemaVersion": 2, "manifests": [descriptor(OCI_INDEX, &inner)]});
    blobs.push(inner);
    assert_eq!(store.load(&layout(&index, &blobs)[..]).unwrap()[0].id, fixture.id());
    let index = json!({"schemaVersion": 2, "manifests": [other, attestation]});
    let error = store.load(&layout(&index, &blobs)[..]).unwrap_err();
    assert_eq!(error.to_string(), "the image is for linux/arm64/v8, not for linux/amd64: use one that is");
}

#[test]
fn removing_the_last_reference_removes_all_that_no_other_image_needs() {
    let (_directory, store) = store();
    let one = fixture();
    let two = Fixture::of_tars(vec![one.layers[0].clone()]);
    store.load(&one.docker_archive(&["one:1", "one:2"])[..]).unwrap();
    store.load(&two.oci_archive("two:1", "+gzip", gzip)[..]).unwrap();
    assert!(matches!(store.remove(&one.id().hex()), Err(StoreError::Referenced { .. })));
    assert!(matches!(store.remove("three"), Err(StoreError::NoImage(_))));
    store.remove("one:1").unwrap();
    assert!(store.resolve("one:1").unwrap().is_none());
    is_whole(&store, &one);
    // What is held is not removed until it is not held any longer.
    let hold = store.hold().unwrap();
    let disk = store.disk(&store.resolve("one:2").unwrap().unwrap()).unwrap();
    store.remove("one:2").unwrap();
    assert!(disk.parts.iter().all(|part| part.path.exists()));
    drop(hold);
    let store = Store::open(store.root()).unwrap();
    assert!(!disk.parts[2].path.exists() && disk.parts[1].path.exists());
    is_whole(&store, &two);
    // One that is used keeps its content, and with force loses its names.
    let used = |id| id == two.id();
    let refused = store.remove_unused(&two.id().hex(), false, used);
    assert!(matches!(&refused, Err(StoreError::Used(_))), "{refused:?}");
    assert!(refused.unwrap_err().to_string().contains("`mvm rm` the container first"));
    let untagged = store.remove_unused(&two.id().hex(), true, used).unwrap();
    assert_eq!((untagged.references.is_empty(), untagged.image), (false, None));
    assert!(store.hold().unwrap().has(two.id()).unwrap());
    assert!(matches!(store.remove_unused(&two.id().hex(), true, used), Err(StoreError::Used(_))));
    store.remove(&two.id().hex()[..12]).unwrap();
    assert!(!store.hold().unwrap().has(two.id()).unwrap());
    assert_eq!(entries(&store), Vec::<String>::new());
    assert!(store.images().unwrap().is_empty());
}

#[test]
fn a_reference_moves_to_the_image_that_is_loaded_last() {
    let (_directory, store) = store();
    let one = fixture();
    let two = Fixture::new(&[&[("other", b"x")]]);
    store.load(&one.docker_archive(&["a:1"])[..]).unwrap();
    store.load(&two.docker_archive(&["a:1"])[..]).unwrap();
    assert_eq!(store.resolve("a:1").unwrap().unwrap().id, two.id());
    assert_eq!(store.images().unwrap().len(), 2);
    store.tag(&one.id().hex(), &"a:1".parse().unwrap()).unwrap();
    assert_eq!(store.resolve("a:1").unwrap().unwrap().id, one.id());
    assert!(matches!(store.tag("zz", &"c".parse().unwrap()), Err(StoreError::NoImage(_))));
    assert!(matches!(store.resolve("a:1@sha256:00"), Ok(None)));
}

#[test]
fn damage_is_found_and_loading_again_repairs_it() {
    let (_directory, store) = store();
    let fixture = fixture();
    let archive = fixture.docker_archive(&["a"]);
    store.load(&archive[..]).unwrap();
    let image = store.resolve("a").unwrap().unwrap();
    let disk = store.disk(&image).unwrap();
    fs::OpenOptions::new().write(true).open(&disk.parts[1].path).unwrap().set_len(4096).unwrap();
    fs::OpenOptions::new().write(true).open(&disk.parts[0].path).unwrap().set_len(0).unwrap();
    fs::write(store.blob_path(image.id), b"{}").unwrap();
    let error = store.disk(&image).unwrap_err().to_string();
    assert!(error.contains("is damaged") || error.contains("cannot merge"), "{error}");
    store.load(&archive[..]).unwrap();
    is_whole(&store, &fixture);
}

/// A layer that is named by its diff ID is not written again where the store has it, whatever the archive has by that
/// name; nor is it taken for another one.
#[test]
fn a_layer_that_the_store_has_is_not_read() {
    let (_directory, store) = store();
    let fixture = fixture();
    store.load(&fixture.docker_archive(&["a:1"])[..]).unwrap();
    let archive = |fixture: &Fixture, bytes: &[u8]| {
        let layers: Vec<String> =
            fixture.layers.iter().map(|layer| format!("{}.tar", Digest::of(layer).hex())).collect();
        let manifest = json!([{"Config": "config", "RepoTags": ["b:1"], "Layers": layers}]).to_string();
        let mut files: Vec<(&str, &[u8])> = layers.iter().map(|name| (name.as_str(), bytes)).collect();
        files.extend([("config", &*fixture.config), ("manifest.json", manifest.as_bytes())]);
        tar(&files)
    };
    assert_eq!(store.load(&archive(&fixture, b"not read")[..]).unwrap()[0].id, fixture.id());
    is_whole(&store, &fixture);
    let other = Fixture::of_tars(vec![fixture.layers[0].clone(), tar(&[("other", b"x")])]);
    let error = store.load(&archive(&other, b"not a layer")[..]).unwrap_err();
    assert!(error.to_string().contains("cannot store layer"), "{error}");
}

/// A small gzip stream of a layer with a file of 65 GiB, as far as anyone should read it.
fn bomb() -> Vec<u8> {
    let mut large = header(0);
    large.set_size(65 << 30);
    large.set_path("zeros").unwrap();
    large.set_cksum();
    gzip(&[large.as_bytes(), &vec![0; 1 << 20][..]].concat())
}

/// What is small until it is unpacked is given up when it becomes larger than is allowed, all layers together.
#[test]
fn what_may_be_unpacked_is_bounded() {
    let (_directory, mut store) = store();
    let layers = [1, 2].map(|number| tar(&[("zeros", &vec![0; 1 << 20]), ("number", &[number])]));
    let both: u64 = layers.iter().map(|layer| u64::try_from(layer.len()).unwrap()).sum();
    let fixture = Fixture::of_tars(layers.to_vec());
    let archive = fixture.oci_archive("a:1", "+gzip", gzip);
    assert!(archive.len() < 50_000);
    for most in [both - 1, both / 2 + 10, 100_000, 0] {
        store.set_max_unpacked(most);
        let error = store.load(&archive[..]).unwrap_err().to_string();
        let expected = format!("more than {most} bytes when they are unpacked");
        assert!(error.contains(&expected), "{error}");
        assert_eq!(entries(&store), Vec::<String>::new(), "{most}");
        // An archive that is compressed itself is not put aside without end either.
        let error = store.load(&gzip(&fixture.docker_archive(&["a:1"]))[..]).unwrap_err().to_string();
        assert!(error.contains(&expected), "{error}");
    }
    store.set_max_unpacked(both);
    store.load(&archive[..]).unwrap();
}

/// What the store writes it can read again, however many names its images have.
#[test]
fn names_that_the_store_has_no_room_for_are_refused() {
    let (_directory, store) = store();
    let tags = |image: u32| -> Vec<String> {
        (0..1024).map(|tag| format!("{}:{image}-{tag}-{}", "n".repeat(200), "t".repeat(100))).collect()
    };
    let load = |image: u32| {
        let fixture = Fixture::new(&[&[("a", &image.to_le_bytes())]]);
        let tags = tags(image);
        let tags: Vec<&str> = tags.iter().map(String::as_str).collect();
        store.load(&fixture.docker_archive(&tags)[..])
    };
    let error = (0..20).find_map(|image| load(image).err()).unwrap();
    assert!(error.to_string().contains("would have more than 4 MiB"), "{error}");
    assert!(store.resolve(&tags(0)[0]).unwrap().is_some());
    store.remove(&tags(0)[0]).unwrap();
}

/// Archives that are not what they seem, and what is said of them.
#[test]
fn hostile_archives_leave_nothing() {
    let (directory, store) = store();
    let good = fixture();
    let mut wrong = good.clone();
    wrong.layers[1] = tar(&[("other", b"layer")]);
    let of_config = |config: &[u8]| {
        let fixture = Fixture { layers: Vec::new(), config: config.to_vec() };
        fixture.docker_archive(&[])
    };
    let manifest =
        |entry: serde_json::Value| tar(&[("manifest.json", json!([entry]).to_string().as_bytes())]);
    let many: Vec<String> = (0..200).map(|_| Digest::of(b"").to_string()).collect();
    let many =
        json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": many}});
    let of_layer = |layer: &[u8]| Fixture::of_tars(vec![layer.to_vec()]).docker_archive(&[]);
    let bomb = bomb();
    let arm = json!({"architecture": "arm64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}});
    let path =
        json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": ["../x"]}});
    let mut loop_of_links = tar::Builder::new(Vec::new());
    for (name, target) in [("manifest.json", "a"), ("a", "manifest.json"), ("b", "../../../etc/passwd")] {
        let mut link = header(0);
        link.set_entry_type(tar::EntryType::Symlink);
        loop_of_links.append_link(&mut link, name, target).unwrap();
    }
    let large = vec![b' '; 5 << 20];
    let whole = good.docker_archive(&["a"]);
    let both = json!({"schemaVersion": 2, "manifests": [], "layers": [], "config": {}}).to_string();
    let both_index = json!({"schemaVersion": 2, "manifests": [descriptor(OCI_MANIFEST, both.as_bytes())]});
    let missing = json!({"schemaVersion": 2, "manifests": [descriptor(OCI_MANIFEST, b"gone")]});
    for (archive, expected) in [
        (b"not a tar archive".to_vec(), "cannot read the archive"),
        (vec![b'x'; 4096], "this is not an image"),
        (Vec::new(), "this is not an image"),
        (tar(&[("x", b"y")]), "this is not an image"),
        (tar(&[("repositories", b"{}")]), "has no manifest.json"),
        (whole[..whole.len() / 2].to_vec(), "cannot read the archive"),
        (wrong.docker_archive(&["a"]), "the layer has the digest"),
        (wrong.oci_archive("a:1", "+gzip", gzip), "the decompressed layer has the digest"),
        (good.docker_archive(&["../../etc"]), "invalid manifest.json"),
        (good.docker_archive(&["a"; 1025]), "more than 1024 names of an image"),
        (tar(&[("manifest.json", &vec![b' '; 100 << 20])]), "more than 4 MiB"),
        (of_layer(&bomb), "allow more by --max-unpacked SIZE"),
        (of_layer(&gzip(b"not a tar stream".repeat(1000).as_slice())), "cannot store layer"),
        (of_layer(&gzip(&tar(&[(&"n".repeat(5000), b"")]))), "cannot store layer"),
        (of_config(b"{}"), "invalid image configuration"),
        (of_config(&large), "more than 4 MiB"),
        (of_config(&serde_json::to_vec(&many).unwrap()), "invalid image configuration"),
        (of_config(&serde_json::to_vec(&arm).unwrap()), "invalid image configuration"),
        (of_config(&serde_json::to_vec(&path).unwrap()), "invalid image configuration"),
        (manifest(json!({"Config": "../../../../etc/passwd"})), "it has no ../../../../etc/passwd"),
        (manifest(json!({"Config": 5})), "invalid manifest.json"),
        (tar(&[("manifest.json", b"[]")]), "it has 0 images"),
        (tar(&[("manifest.json", &vec![b'['; 100_000])]), "invalid manifest.json"),
        (loop_of_links.into_inner().unwrap(), "this is not an image"),
        (layout(&both_index, &[both.clone().into_bytes()]), "both layers and manifests"),
        (layout(&missing, &[]), "it has no blobs/sha256/"),
    ] {
        let error = store.load(&archive[..]).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}, not {expected}");
        assert_eq!(entries(&store), Vec::<String>::new(), "{expected}");
    }
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
}

/// Any byte of an archive that is changed is an error, or does not matter.
#[test]
fn damaged_archives_are_errors_or_the_same_image() {
    let (_directory, store) = store();
    let fixture = Fixture::new(&[&[("hello", b"#!/bin/sh\n")]]);
    let archive = fixture.oci_archive("a:1", "+gzip", gzip);
    for at in (0..archive.len()).step_by(37) {
        let mut damaged = archive.clone();
        damaged[at] ^= 0x11;
        for loaded in store.load(&damaged[..]).into_iter().flatten() {
            assert_eq!(loaded.id, fixture.id());
        }
    }
}
