//! Images beside tools and a model that know nothing of this crate.

mod model;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Seek, SeekFrom};
use std::path::Path;
use std::process::Command;

use proptest::prelude::*;
use rstest::rstest;
use tar::{EntryType, Header};

use crate::layout::BLOCK;
use crate::merge::{MergeError, merge_bounded};
use crate::read::read_layer;
use crate::tree::{Kind, NodeId, ROOT, Tree};
use crate::{LayerError, Limits, merge, write_layer};

const UUID: [u8; 16] = *b"0123456789abcdef";

/// A tar stream in the making.
#[derive(Default)]
struct Archive(Vec<u8>);

impl Archive {
    fn add(mut self, kind: EntryType, name: &str, link: &str, mode: u32, data: &[u8]) -> Self {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(1000);
        header.set_gid(100);
        header.set_mtime(1_700_000_000);
        header.set_size(data.len() as u64);
        header.set_device_major(1).unwrap();
        header.set_device_minor(3).unwrap();
        for (place, text) in [(0, name), (157, link)] {
            header.as_mut_bytes()[place..place + text.len()].copy_from_slice(text.as_bytes());
        }
        header.set_cksum();
        self.0.extend(header.as_bytes());
        self.0.extend(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, name: &str, data: &[u8]) -> Self {
        self.add(EntryType::Regular, name, "", 0o644, data)
    }

    fn directory(self, name: &str, mode: u32) -> Self {
        self.add(EntryType::Directory, name, "", mode, b"")
    }

    fn link(self, kind: EntryType, name: &str, target: &str) -> Self {
        self.add(kind, name, target, 0o777, b"")
    }

    /// Records for the entry that follows.
    fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut body = Vec::new();
        for (name, value) in records {
            let content = [b" ", name.as_bytes(), b"=", value, b"\n"].concat();
            let length = (1..8)
                .map(|digits| content.len() + digits)
                .find(|all| format!("{all}").len() + content.len() == *all);
            body.extend(format!("{}", length.unwrap()).into_bytes());
            body.extend(content);
        }
        self.add(EntryType::XHeader, "pax", "", 0o644, &body)
    }

    fn finish(mut self) -> Vec<u8> {
        self.0.extend([0; 1024]);
        self.0
    }
}

fn layer(tar: &[u8]) -> Result<File, LayerError> {
    let out = tempfile::tempfile().unwrap();
    write_layer(tar, &out, UUID, &Limits::default())?;
    Ok(out)
}

fn tree(tar: &[u8]) -> Tree {
    read_layer(&layer(tar).unwrap(), 0).unwrap().0
}

fn find(tree: &Tree, path: &str) -> Option<NodeId> {
    path.split('/').filter(|part| !part.is_empty()).try_fold(ROOT, |at, part| tree.child(at, part.as_bytes()))
}

/// The flat disk of `layers`.
fn flat(directory: &Path, layers: &[File]) -> std::path::PathBuf {
    let path = directory.join("flat");
    let out = File::create_new(&path).unwrap();
    let merged = merge(layers, &out, UUID).unwrap();
    assert_eq!(out.metadata().unwrap().len(), u64::from(merged.blocks) * BLOCK);
    let mut out = out;
    for (mut layer, at) in layers.iter().zip(&merged.layers_at) {
        out.seek(SeekFrom::Start(u64::from(*at) * BLOCK)).unwrap();
        layer.seek(SeekFrom::Start(0)).unwrap();
        std::io::copy(&mut layer, &mut out).unwrap();
    }
    path
}

/// What `fsck.erofs` makes of an image: the content of its files and the targets of its links, by path.
fn extracted(image: &Path) -> Option<BTreeMap<String, String>> {
    let out = tempfile::tempdir().unwrap();
    let to = out.path().join("out");
    let extract = format!("--extract={}", to.display());
    let run = Command::new("fsck.erofs").args(["--force", "--no-preserve"]).arg(extract).arg(image).output();
    let Ok(run) = run else {
        eprintln!("skipped: there is no fsck.erofs (package erofs-utils)");
        return None;
    };
    assert!(
        run.status.success(),
        "{}{}",
        String::from_utf8_lossy(&run.stdout),
        String::from_utf8_lossy(&run.stderr)
    );
    let mut found = BTreeMap::new();
    let mut pending = vec![to.clone()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap();
            let kind = entry.file_type().unwrap();
            let path = entry.path().strip_prefix(&to).unwrap().to_str().unwrap().to_owned();
            let content = if kind.is_symlink() {
                format!("-> {}", fs::read_link(entry.path()).unwrap().display())
            } else if kind.is_dir() {
                pending.push(entry.path());
                "/".into()
            } else if kind.is_file() {
                String::from_utf8_lossy(&fs::read(entry.path()).unwrap()).into_owned()
            } else {
                "special".into()
            };
            found.insert(path, content);
        }
    }
    Some(found)
}

fn expected(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
    entries.iter().map(|(path, content)| ((*path).to_owned(), (*content).to_owned())).collect()
}

#[test]
fn every_kind_of_file_is_read_back_with_its_metadata() {
    let capability = b"\x01\x00\x00\x02\n\x00\x00\x00";
    let tar = Archive::default()
        .directory("./", 0o750)
        .directory("bin/", 0o1777)
        .pax(&[
            ("SCHILY.xattr.security.capability", capability),
            ("mtime", b"1.5"),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
        ])
        .file("bin/ping", b"data")
        .link(EntryType::Link, "ping", "/bin/ping")
        .link(EntryType::Symlink, "sh", "bin/ping")
        .add(EntryType::Char, "null", "", 0o666, b"")
        .add(EntryType::Block, "disk", "", 0o660, b"")
        .add(EntryType::Fifo, "pipe", "", 0o600, b"")
        .file("deep/er/file", b"")
        .finish();
    let tree = tree(&tar);
    let node = |path| tree.get(find(&tree, path).unwrap()).unwrap();
    assert_eq!((tree.get(ROOT).unwrap().mode(), node("bin").mode()), (0o40_750, 0o41_777));
    assert_eq!(find(&tree, "ping"), find(&tree, "bin/ping"));
    let ping = node("ping");
    assert_eq!((ping.meta.uid, ping.meta.gid, ping.meta.mtime), (1000, 100, (1, 500_000_000)));
    let [xattr] = &*ping.meta.xattrs else { panic!("{:?}", ping.meta.xattrs) };
    assert_eq!((&*xattr.name, &*xattr.value), (&b"security.capability"[..], &capability[..]));
    assert_eq!(ping.kind, Kind::File { size: 4, layer: 0, block: 1 });
    assert_eq!(node("sh").kind, Kind::Symlink((*b"bin/ping").into()));
    assert_eq!((&node("null").kind, &node("disk").kind), (&Kind::Character(0x103), &Kind::Block(0x103)));
    assert_eq!(node("pipe").mode(), 0o10_600);
    assert!(node("deep/er").directory().unwrap().is_implied && !node("bin").directory().unwrap().is_implied);
}

#[test]
fn the_same_stream_makes_the_same_image_and_fsck_accepts_it() {
    let many: Vec<String> = (0..3000).map(|number| format!("many/file-number-{number:05}")).collect();
    let mut archive = Archive::default().file("empty", b"").file("large", &[b'x'; 100_000]);
    for name in &many {
        archive = archive.file(name, name.as_bytes());
    }
    let long = "x".repeat(90);
    let tar = archive.link(EntryType::Symlink, "link", &long).finish();
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str| {
        let path = directory.path().join(name);
        write_layer(&*tar, &File::create_new(&path).unwrap(), UUID, &Limits::default()).unwrap();
        path
    };
    let (one, other) = (write("one"), write("other"));
    assert_eq!(fs::read(&one).unwrap(), fs::read(other).unwrap());
    let Some(found) = extracted(&one) else { return };
    assert_eq!(found.len(), many.len() + 4);
    assert!(many.iter().all(|name| found[name] == *name));
    assert_eq!((found["large"].len(), &found["link"]), (100_000, &format!("-> {long}")));
}

#[test]
fn upper_layers_hide_replace_and_add() {
    let lower = Archive::default()
        .directory("etc/", 0o700)
        .file("etc/a", b"lower a")
        .file("etc/b", b"lower b")
        .file("gone/x", b"x")
        .file("opaque/x", b"x")
        .file("replaced/x", b"x")
        .file("file", b"file")
        .finish();
    let upper = Archive::default()
        .file("etc/a", b"upper a")
        .file("etc/.wh.b", b"")
        .file(".wh.gone", b"")
        .file("opaque/y", b"y")
        .file("opaque/.wh..wh..opq", b"")
        .file(".wh.replaced", b"")
        .file("replaced/z", b"z")
        .file("file/now-a-directory", b"n")
        .file(".wh..wh.plnk", b"")
        .finish();
    let layers = [layer(&lower).unwrap(), layer(&upper).unwrap()];
    let directory = tempfile::tempdir().unwrap();
    let path = flat(directory.path(), &layers);
    let (merged, _) = read_merged(&layers);
    // The upper layer's stream does not have the directory itself, so that the lower one's mode stays.
    assert_eq!(merged.get(find(&merged, "etc").unwrap()).unwrap().mode(), 0o40_700);
    let Some(found) = extracted(&path) else { return };
    let files = [
        ("etc", "/"),
        ("etc/a", "upper a"),
        ("opaque", "/"),
        ("opaque/y", "y"),
        ("replaced", "/"),
        ("replaced/z", "z"),
        ("file", "/"),
        ("file/now-a-directory", "n"),
    ];
    assert_eq!(found, expected(&files));
}

fn read_merged(layers: &[File]) -> (Tree, usize) {
    let mut tree = Tree::default();
    for (number, layer) in (0..).zip(layers) {
        tree.overlay(&read_layer(layer, number).unwrap().0);
    }
    let count = tree.len();
    (tree, count)
}

#[rstest]
#[case::climbs(Archive::default().file("../x", b""), "invalid entry \"../x\"")]
#[case::climbs_later(Archive::default().file("a/../../x", b""), "invalid entry")]
#[case::through_a_file(Archive::default().file("a", b"").file("a/b", b""), "invalid entry")]
#[case::through_a_lost_link(Archive::default().link(EntryType::Symlink, "a", "/nothing").file("a/b", b""), "invalid entry")]
#[case::through_a_loop(Archive::default().link(EntryType::Symlink, "a", "a").file("a/b", b""), "invalid entry")]
#[case::link_to_outside(Archive::default().link(EntryType::Link, "a", "../../etc/passwd"), "is a hard link to")]
#[case::link_to_nothing(Archive::default().link(EntryType::Link, "a", "b"), "is a hard link to")]
#[case::link_to_directory(Archive::default().directory("b", 0o755).link(EntryType::Link, "a", "b"), "is a hard link to")]
#[case::long_name(Archive::default().pax(&[("path", &[b'x'; 5000])]).file("x", b""), "invalid entry")]
#[case::through_long_links(Archive::default().pax(&[("linkpath", &b"./".repeat(1100))]).link(EntryType::Symlink, "a", "x").file("a/b", b""), "invalid entry")]
#[case::many_extensions(Archive::default().pax(&[("comment", &[b'x'; 600_000])]).pax(&[("comment", &[b'x'; 600_000])]).file("x", b""), "the extended header at byte 600576 has more than 1 MiB")]
#[case::huge_file(Archive::default().pax(&[("size", b"99999999999999")]).file("x", b""), "more than 68719476736 bytes")]
#[case::no_tar(Archive(vec![b'x'; 2048]), "it is not a tar archive")]
#[case::damaged(Archive([Archive::default().file("x", b"").0[..512].to_vec(), vec![b'x'; 1024]].concat()), "damaged: the header at byte 512")]
#[case::cut_off(Archive(Archive::default().file("x", &[1; 2000]).0[..1024].to_vec()), "ends early")]
#[case::negative_sparse(Archive::default().pax(&[("GNU.sparse.size", b"10"), ("GNU.sparse.map", b"8,1,2,1")]).file("x", b"ab"), "invalid map")]
#[case::overlong_sparse(Archive::default().pax(&[("GNU.sparse.size", b"10"), ("GNU.sparse.map", b"8,9")]).file("x", b"123456789"), "invalid map")]
fn hostile_streams_are_refused(#[case] archive: Archive, #[case] says: &str) {
    let error = layer(&archive.finish()).unwrap_err();
    assert!(error.to_string().contains(says), "{error}");
}

#[test]
fn files_below_links_stay_inside_the_layer() {
    let tar = Archive::default()
        .directory("usr/lib", 0o755)
        .link(EntryType::Symlink, "lib", "/usr/../../usr/lib")
        .file("lib/x", b"x")
        .finish();
    let tree = tree(&tar);
    assert!(find(&tree, "usr/lib/x").is_some());
}

#[test]
fn sparse_files_of_all_formats_have_their_holes() {
    let old = [(0_u64, 4_u64), (8192, 3)];
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::GNUSparse);
    header.set_path("old").unwrap();
    header.set_size(7);
    let gnu = header.as_gnu_mut().unwrap();
    for (place, (start, length)) in gnu.sparse.iter_mut().zip(old) {
        place.offset[..12].copy_from_slice(format!("{start:011o}\0").as_bytes());
        place.numbytes[..12].copy_from_slice(format!("{length:011o}\0").as_bytes());
    }
    gnu.realsize.copy_from_slice(format!("{:011o}\0", 10_000).as_bytes());
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_cksum();
    let mut archive = Archive(header.as_bytes().to_vec());
    archive.0.extend(b"abcdefg");
    archive.0.resize(1024, 0);
    let mut mapped = b"2\n0\n4\n8192\n3\n".to_vec();
    mapped.resize(512, 0);
    mapped.extend(b"abcdefg");
    let blocks: &[(&str, &[u8])] = &[
        ("GNU.sparse.size", b"10000"),
        ("GNU.sparse.numblocks", b"2"),
        ("GNU.sparse.offset", b"0"),
        ("GNU.sparse.numbytes", b"4"),
        ("GNU.sparse.offset", b"8192"),
        ("GNU.sparse.numbytes", b"3"),
    ];
    let tar = archive
        .pax(blocks)
        .file("0.0", b"abcdefg")
        .pax(&[("GNU.sparse.size", b"10000"), ("GNU.sparse.map", b"0,4,8192,3"), ("GNU.sparse.name", b"0.1")])
        .file("GNUSparseFile/x", b"abcdefg")
        .pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.realsize", b"10000"),
            ("GNU.sparse.name", b"1.0"),
        ])
        .file("GNUSparseFile/y", &mapped)
        .finish();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    write_layer(&*tar, &File::create_new(&path).unwrap(), UUID, &Limits::default()).unwrap();
    let Some(found) = extracted(&path) else { return };
    let mut whole = vec![0; 10_000];
    whole[..4].copy_from_slice(b"abcd");
    whole[8192..8195].copy_from_slice(b"efg");
    let whole = String::from_utf8(whole).unwrap();
    assert_eq!(found, expected(&["old", "0.0", "0.1", "1.0"].map(|name| (name, &*whole))));
}

/// As some build tools leave the fields of owner and time.
#[test]
fn fields_that_are_not_filled_in_are_zero() {
    let mut tar = Archive::default().file("x", b"1");
    for field in [100..108, 108..116, 116..124, 136..148] {
        tar.0[field].fill(b' ');
    }
    tar.0[148..156].fill(b' ');
    let sum: u32 = tar.0[..512].iter().map(|byte| u32::from(*byte)).sum();
    tar.0[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let tree = tree(&tar.finish());
    let meta = &tree.get(find(&tree, "x").unwrap()).unwrap().meta;
    assert_eq!((meta.permissions, meta.uid, meta.gid, meta.mtime), (0, 0, 0, (0, 0)));
}

/// Many attributes are read in a moment, and the last of a name counts.
#[test]
fn a_header_full_of_attributes_is_read() {
    let names: Vec<String> =
        (0..20_000).map(|number| format!("SCHILY.xattr.user.{}", number % 10_000)).collect();
    let records: Vec<(&str, &[u8])> = names
        .iter()
        .enumerate()
        .map(|(n, name)| (&**name, if n < 10_000 { &b"old"[..] } else { b"new" }))
        .collect();
    let tree = tree(&Archive::default().pax(&records).file("x", b"").finish());
    let xattrs = &tree.get(find(&tree, "x").unwrap()).unwrap().meta.xattrs;
    assert_eq!(xattrs.len(), 10_000);
    assert!(xattrs.iter().all(|xattr| *xattr.value == *b"new"));
}

#[test]
fn limits_hold() {
    let tar = Archive::default().file("a", b"12345").file("b", b"12345").finish();
    let with = |limits| {
        write_layer(&*tar, &tempfile::tempfile().unwrap(), UUID, &limits).map_err(|error| error.to_string())
    };
    let limits = Limits { entries: 2, bytes: 10 };
    assert!(with(limits).is_ok());
    assert_eq!(with(Limits { entries: 1, ..limits }), Err("the layer has more than 1 entries".into()));
    assert_eq!(with(Limits { bytes: 9, ..limits }), Err("the layer has more than 9 bytes of files".into()));
}

/// Directories that are only in names count as entries, and layers have a bound together.
#[test]
fn trees_are_bounded() {
    let names: Vec<String> = (0..60).map(|number| format!("{number}/{}x", "a/".repeat(40))).collect();
    let tar = names.iter().fold(Archive::default(), |tar, name| tar.file(name, b"")).finish();
    let limits = Limits { entries: 100, bytes: 0 };
    let error = write_layer(&*tar, &tempfile::tempfile().unwrap(), UUID, &limits).unwrap_err();
    assert_eq!(error.to_string(), "the layer has more than 100 entries");
    let layers = [layer(&tar).unwrap(), layer(&tar).unwrap()];
    let out = tempfile::tempfile().unwrap();
    assert!(matches!(merge_bounded(&layers, &out, UUID, 4000), Err(MergeError::Entries)));
    assert!(merge_bounded(&layers, &out, UUID, 6000).is_ok());
}

#[test]
fn a_damaged_image_is_an_error() {
    let tar = Archive::default().file("a/b/c", b"12345").link(EntryType::Symlink, "l", "a").finish();
    let good = layer(&tar).unwrap();
    let size = usize::try_from(good.metadata().unwrap().len()).unwrap();
    let mut bytes = vec![0; size];
    std::os::unix::fs::FileExt::read_exact_at(&good, &mut bytes, 0).unwrap();
    for at in (0..size).step_by(3) {
        let damaged = tempfile::tempfile().unwrap();
        let mut copy = bytes.clone();
        copy[at] ^= 0xff;
        std::os::unix::fs::FileExt::write_all_at(&damaged, &copy, 0).unwrap();
        // It is refused, or something that is inside of the image.
        let _ = merge(&[damaged], &tempfile::tempfile().unwrap(), UUID);
    }
    let short = tempfile::tempfile().unwrap();
    std::os::unix::fs::FileExt::write_all_at(&short, &bytes[..size - 1], 0).unwrap();
    assert!(merge(&[short], &tempfile::tempfile().unwrap(), UUID).is_err());
}

proptest! {
    #[test]
    fn noise_in_a_stream_is_an_error_or_a_layer(at in 0..4096_usize, noise in any::<[u8; 4]>()) {
        let mut tar = Archive::default()
            .pax(&[("path", b"a/b"), ("SCHILY.xattr.user.x", b"1")])
            .file("x", b"12345")
            .link(EntryType::Symlink, "l", "a")
            .link(EntryType::Link, "h", "a/b")
            .finish();
        let length = tar.len();
        tar[at % (length - 4)..][..4].copy_from_slice(&noise);
        if let Ok(image) = layer(&tar) {
            merge(&[image], &tempfile::tempfile().unwrap(), UUID).unwrap();
        }
    }
}
