//! Image archives: docker's, and OCI layouts. Whatever is in one, it is loaded and can be used, or an error;
//! once its images are removed, nothing is left.

#![no_main]

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use image::{Digest, Store};
use libfuzzer_sys::fuzz_target;

/// What begins a file of an archive: the rest of the line is its name.
const MARK: &str = "\n=== ";

/// A store in memory, without waiting for a disk.
static STORE: LazyLock<Store> = LazyLock::new(|| {
    let memory = Path::new("/dev/shm");
    let parent = if memory.is_dir() { memory } else { fuzz::directory() };
    Store::open(&parent.join(format!("mvm-fuzz-images-{}", std::process::id()))).expect("a store")
});

/// The archive that a text describes. `$0` in it is the digest of the first file, without its algorithm, and `#0` the
/// length. A file `blob` gets the name that a layout has for it; `layer` is a tar archive of empty files, a line each.
fn archive(text: &str) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut known: Vec<(String, usize)> = Vec::new();
    for file in text.split(MARK).filter(|file| !file.is_empty()).take(20) {
        let (name, content) = file.split_once('\n').unwrap_or((file, ""));
        let mut content = content.to_owned();
        for (number, (hex, length)) in known.iter().enumerate() {
            content = content.replace(&format!("${number}"), hex);
            content = content.replace(&format!("#{number}"), &length.to_string());
        }
        let bytes = if name == "layer" { layer(&content) } else { content.into_bytes() };
        let hex = Digest::of(&bytes).hex();
        let name = if matches!(name, "blob" | "layer") { &format!("blobs/sha256/{hex}") } else { name };
        known.push((hex, bytes.len()));
        let _ = add(&mut builder, name, &bytes);
    }
    builder.into_inner().expect("it is in memory")
}

fn layer(names: &str) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for name in names.lines() {
        let _ = add(&mut builder, name, b"");
    }
    builder.into_inner().expect("it is in memory")
}

fn add(builder: &mut tar::Builder<Vec<u8>>, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    match name.split_once(" -> ") {
        Some((name, target)) => {
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            builder.append_link(&mut header, name, target)
        }
        None => builder.append_data(&mut header, name, bytes),
    }
}

/// What is in the store, without its own files.
fn entries() -> Vec<std::ffi::OsString> {
    let list = |name: &str| fs::read_dir(STORE.root().join(name)).expect("it is there");
    let names = ["images", "blobs", "layers", "merged", "partial", "tmp"];
    names.iter().flat_map(|name| list(name)).map(|entry| entry.expect("an entry").file_name()).collect()
}

fuzz_target!(|data: &[u8]| {
    let loaded = match std::str::from_utf8(data) {
        Ok(text) if text.starts_with(MARK) => STORE.load(&archive(text)[..]),
        _ => STORE.load(data),
    };
    match loaded {
        Err(error) => drop(error.to_string()),
        Ok(loaded) => {
            for image in loaded {
                let image = STORE.resolve(&image.id.hex()).expect("it can be read").expect("it is there");
                let disk = STORE.disk(&image).expect("it has a disk");
                assert_eq!(disk.parts.len(), 1 + image.layers.len());
                image.history();
            }
        }
    }
    for image in STORE.images().expect("they can be read") {
        for reference in image.references {
            STORE.remove(&reference.to_string()).expect("it is there");
        }
        let _ = STORE.remove(&image.id.hex());
    }
    assert_eq!(entries(), Vec::<std::ffi::OsString>::new());
});
