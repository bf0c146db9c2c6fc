//! Tar streams of containers that the host unpacks: each is an error or a tree, in its directory and nowhere else,
//! which can be packed and unpacked again.

#![no_main]

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::OnceLock;

use copies::{Owner, PackOptions, Rules, pack, unpack};
use fuzz::tar_pieces::Piece;
use libfuzzer_sys::fuzz_target;

const MAX_PIECES: usize = 40;

/// A directory in memory, of this process alone.
fn place() -> &'static Path {
    static PLACE: OnceLock<std::path::PathBuf> = OnceLock::new();
    PLACE.get_or_init(|| {
        rustix::process::umask(rustix::fs::Mode::empty());
        let place = Path::new("/dev/shm").join(format!("fuzz-unpack-{}", std::process::id()));
        fs::create_dir(&place).expect("a directory");
        fs::write(place.join("outside"), "outside").expect("a file");
        place
    })
}

/// Removes a tree whatever its modes are.
fn remove(top: &Path) {
    let Ok(data) = fs::symlink_metadata(top) else { return };
    if data.is_dir() {
        let _ = fs::set_permissions(top, fs::Permissions::from_mode(0o700));
        for entry in fs::read_dir(top).expect("a directory").flatten() {
            remove(&entry.path());
        }
        fs::remove_dir(top).expect("an empty directory");
    } else {
        fs::remove_file(top).expect("a file");
    }
}

fuzz_target!(|input: (u8, Vec<Piece>)| {
    let (options, pieces) = input;
    let mut tar = Vec::new();
    pieces.iter().take(MAX_PIECES).for_each(|piece| piece.append(&mut tar));
    let (inside, again) = (place().join("in"), place().join("again"));
    for directory in [&inside, &again] {
        fs::create_dir(directory).expect("a directory");
    }
    let open = |path: &Path| File::open(path).expect("a directory");
    let only = (options & 1 != 0).then(|| b"a".to_vec());
    let owner = if options & 2 != 0 { Owner::Kept } else { Owner::Own };
    let rules = Rules { only: only.clone(), owner, ..Rules::default() };
    let unpacked = unpack(open(&inside).as_fd(), &tar[..], &rules);
    if only.is_some() {
        let others = fs::read_dir(&inside).expect("a directory").flatten().any(|entry| entry.file_name() != "a");
        assert!(!others, "what was not asked for");
    }
    // Sparse files may be huge, which costs their stream nothing.
    let mut stream = Vec::new();
    let options = PackOptions { sparse: true };
    if unpacked.is_ok() && pack(open(&inside).as_fd(), b".", b".", options, &mut stream).is_ok() {
        unpack(open(&again).as_fd(), &stream[..], &Rules::default()).expect("what was packed is unpacked");
    }
    let names = fs::read_dir(place()).expect("a directory").count();
    let outside = fs::metadata(place().join("outside")).expect("the file outside");
    assert!(names == 3 && outside.nlink() == 1 && outside.len() == 7, "something outside has changed");
    remove(&inside);
    remove(&again);
});
