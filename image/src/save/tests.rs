//! Tests of saving.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::process::Command;

use super::*;
use crate::fixtures::{Fixture, gzip, noise};

fn store() -> (tempfile::TempDir, Store) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("images")).unwrap();
    (directory, store)
}

fn fixture() -> Fixture {
    Fixture::new(&[&[("base", &noise(200_000, 1)), ("a/b", b"text")], &[("hello", b"#!/bin/sh\n")]])
}

fn save(store: &Store, names: &[&str], format: SaveFormat) -> Vec<u8> {
    let mut archive = Vec::new();
    store.save(names, format, &mut archive).unwrap();
    archive
}

fn files(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(archive).entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        let name = entry.path().unwrap().to_str().unwrap().to_owned();
        assert!(files.insert(name.clone(), bytes).is_none(), "{name} twice");
    }
    files
}

/// Runs a program of the machine's, which has to accept what it is given.
fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error} (tools/need {program})"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn layers_are_saved_byte_for_byte_and_once() {
    let (_directory, store) = store();
    let one = fixture();
    let two = Fixture::of_tars(vec![one.layers[0].clone()]);
    store.load(&one.docker_archive(&["one:1"])[..]).unwrap();
    store.load(&two.oci_archive("two:1", "+gzip", gzip)[..]).unwrap();
    let archive = save(&store, &["one:1", &one.id().hex(), "two:1"], SaveFormat::Docker);
    let saved = files(&archive);
    assert_eq!(saved.len(), 2 + 2 + 1);
    for layer in &one.layers {
        assert!(saved[&format!("{}.tar", Digest::of(layer).hex())] == *layer);
    }
    assert_eq!(
        archive,
        save(&store, &["one:1", "two:1"], SaveFormat::Docker),
        "the same images, the same bytes"
    );
    let (_directory, other) = self::store();
    let mut loaded = other.load(&archive[..]).unwrap();
    loaded.sort_by_key(|loaded| loaded.references.clone());
    assert_eq!(loaded.iter().map(|loaded| loaded.id).collect::<Vec<_>>(), [one.id(), two.id()]);
}

#[test]
fn a_layout_is_as_it_came_where_its_layers_are_kept() {
    let (_directory, store) = store();
    let small = Fixture::new(&[&[("hello", b"#!/bin/sh\n")]]);
    let (manifest, blobs) = small.oci("+gzip", gzip);
    store.load(&small.oci_archive("small:1", "+gzip", gzip)[..]).unwrap();
    let saved = files(&save(&store, &["small:1"], SaveFormat::Oci));
    for bytes in blobs.iter().chain([&manifest]) {
        assert!(saved[&blob_name(Digest::of(bytes))] == *bytes);
    }
    // Of an uncompressed layout everything is made again.
    let large = fixture();
    let (manifest, blobs) = large.oci("", <[u8]>::to_vec);
    store.load(&large.oci_archive("large:1", "", <[u8]>::to_vec)[..]).unwrap();
    let saved = files(&save(&store, &["large:1"], SaveFormat::Oci));
    for bytes in blobs.iter().chain([&manifest]) {
        assert!(saved[&blob_name(Digest::of(bytes))] == *bytes);
    }
}

#[test]
fn a_large_compressed_layer_is_saved_as_its_tar_stream() {
    let (_directory, store) = store();
    let large = fixture();
    store.load(&large.oci_archive("large:1", "+gzip", gzip)[..]).unwrap();
    let archive = save(&store, &["large:1"], SaveFormat::Oci);
    let saved = files(&archive);
    assert!(saved[&blob_name(Digest::of(&large.layers[0]))] == large.layers[0]);
    let kept = gzip(&large.layers[1]);
    assert!(saved[&blob_name(Digest::of(&kept))] == kept);
    let (_directory, other) = self::store();
    let loaded = other.load(&archive[..]).unwrap();
    assert_eq!((loaded[0].id, loaded[0].references[0].to_string()), (large.id(), "large:1".to_owned()));
}

#[test]
fn a_damaged_layer_is_not_saved() {
    let (_directory, store) = store();
    let fixture = fixture();
    store.load(&fixture.docker_archive(&["a"])[..]).unwrap();
    let image = store.layer_image(Digest::of(&fixture.layers[0]));
    let mut bytes = fs::read(&image).unwrap();
    bytes[4096 * 3] ^= 1;
    fs::write(&image, bytes).unwrap();
    for format in [SaveFormat::Docker, SaveFormat::Oci] {
        let error = store.save(&["a"], format, io::sink()).unwrap_err();
        let SaveError::Write(source) = error else { panic!("{error}") };
        assert!(source.to_string().contains("damaged"), "{source}");
    }
    assert!(matches!(
        store.save(&["b"], SaveFormat::Oci, io::sink()),
        Err(SaveError::Store(StoreError::NoImage(_)))
    ));
}

/// What others make of an archive: skopeo reads it, writes it anew in every form, and what it wrote is loaded.
#[test]
fn skopeo_and_umoci_take_what_is_saved_and_what_they_write_is_loaded() {
    let (directory, store) = store();
    let fixture = fixture();
    store.load(&fixture.docker_archive(&["hello:1"])[..]).unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("docker.tar"), save(&store, &["hello:1"], SaveFormat::Docker)).unwrap();
    fs::write(path("oci.tar"), save(&store, &["hello:1"], SaveFormat::Oci)).unwrap();
    let (docker, oci) = (path("docker.tar"), path("oci.tar"));
    for source in [format!("docker-archive:{docker}"), format!("oci-archive:{oci}")] {
        let config = run("skopeo", &["inspect", "--config", "--raw", &source]);
        assert_eq!(Digest::of(config.as_bytes()), fixture.id(), "{source}");
        for (number, target) in ["docker-archive", "oci-archive", "oci"].into_iter().enumerate() {
            let file = path(&format!("{number}-{}", source.len()));
            let name = if target == "docker-archive" { "again:2" } else { "again" };
            run("skopeo", &["--insecure-policy", "copy", "-q", &source, &format!("{target}:{file}:{name}")]);
            let (_directory, other) = self::store();
            let loaded = match target {
                "oci" => other.load_directory(Path::new(&file)).unwrap(),
                _ => other.load(fs::File::open(&file).unwrap()).unwrap(),
            };
            // skopeo writes the configuration anew where the kinds differ.
            let image = other.resolve(&loaded[0].id.hex()).unwrap().unwrap();
            let layers: Vec<Digest> = image.layers.iter().map(|layer| layer.diff_id).collect();
            let expected: Vec<Digest> = fixture.layers.iter().map(|layer| Digest::of(layer)).collect();
            assert_eq!(layers, expected, "{source} to {target}");
            assert_eq!(loaded[0].references.len(), usize::from(target == "docker-archive"));
        }
    }
    // umoci takes no names but tags.
    fs::create_dir(path("layout")).unwrap();
    tar::Archive::new(fs::File::open(&oci).unwrap()).unpack(path("layout")).unwrap();
    let index = fs::read_to_string(directory.path().join("layout/index.json")).unwrap();
    let index = index.replace("docker.io/library/hello:1", "tag");
    fs::write(directory.path().join("layout/index.json"), index).unwrap();
    run("umoci", &["unpack", "--image", &format!("{}:tag", path("layout")), &path("bundle")]);
    let base = fs::read(directory.path().join("bundle/rootfs/base")).unwrap();
    assert!(base == noise(200_000, 1));
    // The image's flat disk has the same files.
    let image = store.resolve("hello:1").unwrap().unwrap();
    let mut disk = fs::File::create(path("disk")).unwrap();
    for part in store.disk(&image).unwrap().parts {
        disk.seek(SeekFrom::Start(part.offset)).unwrap();
        io::copy(&mut fs::File::open(part.path).unwrap(), &mut disk).unwrap();
    }
    run("fsck.erofs", &[&format!("--extract={}", path("extracted")), &path("disk")]);
    run("diff", &["-r", &path("bundle/rootfs"), &path("extracted")]);
}
