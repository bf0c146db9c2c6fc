//! Changes between the directories of an overlay.

use std::ffi::CString;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, XattrFlags, makedev, mknodat, setxattr};

use super::open;
use crate::*;

/// An upper and a lower directory as overlayfs has them; `None` where this user may not make whiteouts.
fn overlay() -> Option<(tempfile::TempDir, tempfile::TempDir)> {
    let (upper, lower) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for directory in ["etc/old", "same/sub", "opaque", "times"] {
        fs::create_dir_all(lower.path().join(directory)).unwrap();
    }
    for file in ["etc/passwd", "etc/gone", "etc/old/x", "same/sub/f", "opaque/hidden", "opaque/kept"] {
        fs::write(lower.path().join(file), "lower").unwrap();
    }
    let whiteout = |path: &str| {
        let path = CString::new(upper.path().join(path).as_os_str().as_bytes()).unwrap();
        mknodat(CWD, &path, FileType::CharacterDevice, Mode::empty(), makedev(0, 0)).is_ok()
    };
    for directory in ["etc", "same/sub", "opaque", "new/deep", "times", "proc", "mnt/a"] {
        fs::create_dir_all(upper.path().join(directory)).unwrap();
    }
    if !whiteout("etc/gone") || !whiteout("etc/old") {
        return None;
    }
    let opaque = setxattr(upper.path().join("opaque"), "trusted.overlay.opaque", b"y", XattrFlags::empty());
    opaque.ok()?;
    for (file, content) in [
        ("etc/passwd", "upper"),
        ("etc/hosts", ""),
        ("same/sub/f", "upper"),
        ("opaque/kept", "upper"),
        ("new/deep/f", "x"),
    ] {
        fs::write(upper.path().join(file), content).unwrap();
    }
    symlink(MTAB.1, upper.path().join(MTAB.0)).unwrap();
    for directory in ["etc", "same", "same/sub", "opaque", "times"] {
        let time = fs::metadata(lower.path().join(directory)).unwrap().modified().unwrap();
        let upper = File::open(upper.path().join(directory)).unwrap();
        upper.set_modified(if directory == "times" { time + Duration::from_secs(5) } else { time }).unwrap();
    }
    Some((upper, lower))
}

#[test]
fn changes_are_dockers() {
    let Some((upper, lower)) = overlay() else { return };
    let (upper, lower) = (open(upper.path()), open(lower.path()));
    let mounted = ["etc/hosts", MTAB.0, "proc", "mnt/a"].map(|path| path.as_bytes().to_vec());
    let changes = Changes { upper: upper.as_fd(), lower: lower.as_fd(), mounted: &mounted };
    let mut found = Vec::new();
    changes
        .each(&mut |change| {
            let letter = match change.kind {
                ChangeKind::Added => 'A',
                ChangeKind::Changed => 'C',
                ChangeKind::Deleted => 'D',
            };
            found.push(format!("{letter} /{}", String::from_utf8_lossy(change.path)));
            changes.hidden(change, &mut |path| {
                found.push(format!("D /{}", String::from_utf8_lossy(path)));
                Ok(())
            })
        })
        .unwrap();
    found.sort_by(|one, other| one[2..].cmp(&other[2..]));
    // `/mnt` was made to mount on what is in it, but is none of the paths themselves.
    assert_eq!(
        found,
        [
            "C /etc",
            "D /etc/gone",
            "D /etc/old",
            "C /etc/passwd",
            "A /mnt",
            "A /new",
            "A /new/deep",
            "A /new/deep/f",
            "C /opaque",
            "D /opaque/hidden",
            "C /opaque/kept",
            "C /same",
            "C /same/sub",
            "C /same/sub/f",
            "C /times",
        ]
    );
}

/// As long as the container leaves it as it was made.
#[test]
fn the_link_to_the_mounts_is_no_change() {
    let (upper_place, lower) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::create_dir(upper_place.path().join("etc")).unwrap();
    let (upper, lower) = (open(upper_place.path()), open(lower.path()));
    let mounted = ["etc", MTAB.0].map(|path| path.as_bytes().to_vec());
    let changes = Changes { upper: upper.as_fd(), lower: lower.as_fd(), mounted: &mounted };
    for (target, expected) in
        [(MTAB.1, &[][..]), ("/proc/self", &["etc", "etc/mtab"]), ("/proc/mountz", &["etc", "etc/mtab"])]
    {
        let link = upper_place.path().join(MTAB.0);
        let _ = fs::remove_file(&link);
        symlink(target, link).unwrap();
        let mut found = Vec::new();
        let mut note = |change: &Change<'_>| {
            found.push(String::from_utf8_lossy(change.path).into_owned());
            Ok(())
        };
        changes.each(&mut note).unwrap();
        found.retain(|path| path != ".");
        assert_eq!(found, expected, "{target}");
    }
}

#[test]
fn a_layer_has_whiteouts_and_opaque_directories() {
    let Some((upper, lower)) = overlay() else { return };
    let (upper, lower) = (open(upper.path()), open(lower.path()));
    let mounted = ["etc/hosts", MTAB.0, "proc", "mnt/a", "mnt"].map(|path| path.as_bytes().to_vec());
    let changes = Changes { upper: upper.as_fd(), lower: lower.as_fd(), mounted: &mounted };
    let mut layer = Vec::new();
    pack_changes(&changes, &mut layer).unwrap();
    let mut stream = erofs::Stream::new(&layer[..]);
    let mut names = Vec::new();
    while let Some(entry) = stream.next().unwrap() {
        names.push(String::from_utf8(entry.path).unwrap());
    }
    let place = |name: &str| {
        names.iter().position(|other| other == name).unwrap_or_else(|| panic!("{name}: {names:?}"))
    };
    assert!(place("etc/") < place("etc/.wh.gone") && place("etc/.wh.old") < names.len());
    assert!(
        place("opaque/") < place("opaque/.wh..wh..opq")
            && place("opaque/.wh..wh..opq") < place("opaque/kept")
    );
    assert!(place("new/deep/") < place("new/deep/f"));
    assert!(
        !names
            .iter()
            .any(|name| name.starts_with("proc") || name.starts_with("mnt") || name.contains("hosts"))
    );
    assert_eq!(names.len(), 14, "{names:?}");
}
