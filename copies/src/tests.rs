use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use proptest::prelude::*;
use rstest::rstest;
use rustix::fs::{CWD, FileType, Mode, XattrFlags, lgetxattr, mknodat, setxattr};
use tar::EntryType;

use super::*;
use crate::header::Head;

mod overlay;

fn open(path: &Path) -> OwnedFd {
    File::open(path).unwrap().into()
}

/// A line for each file of a tree, with all that is copied of it.
fn lines(top: &Path) -> Vec<String> {
    fn add(path: &Path, shown: &str, first: &mut Vec<(u64, String)>, lines: &mut Vec<String>) {
        let data = fs::symlink_metadata(path).unwrap();
        let mode = data.mode();
        let mut line = format!("{shown} {mode:o} {}:{}", data.uid(), data.gid());
        if !data.is_dir() || data.mtime() < 1_600_000_000 {
            line += &format!(" {}.{:09}", data.mtime(), data.mtime_nsec());
        }
        if data.is_symlink() {
            line += &format!(" -> {:?}", fs::read_link(path).unwrap());
        } else if data.is_file() {
            let content = fs::read(path).unwrap();
            let sum =
                content.iter().fold(7_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
            line += &format!(" {} bytes {sum}", content.len());
            let mut value = [0; 100];
            if let Ok(length) = lgetxattr(path, "user.note", &mut value[..]) {
                line += &format!(" note {:?}", &value[..length]);
            }
            match first.iter().find(|(inode, _)| *inode == data.ino()) {
                Some((_, name)) => line += &format!(" = {name}"),
                None => first.push((data.ino(), shown.to_owned())),
            }
        } else if !data.is_dir() {
            line += &format!(" device {}", data.rdev());
        }
        lines.push(line);
        if data.is_dir() {
            let mut names: Vec<_> =
                fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            for name in names {
                add(&path.join(&name), &format!("{shown}/{}", name.display()), first, lines);
            }
        }
    }
    let mut found = Vec::new();
    add(top, "", &mut Vec::new(), &mut found);
    found
}

fn packed(top: &Path, name: &str, shown: &str, options: PackOptions) -> Vec<u8> {
    let mut stream = Vec::new();
    pack(open(top).as_fd(), name.as_bytes(), shown.as_bytes(), options, &mut stream).unwrap();
    stream
}

fn unpacked(top: &Path, stream: &[u8], rules: &Rules) -> Result<Unpacked, UnpackError> {
    unpack(open(top).as_fd(), stream, rules)
}

#[derive(Clone, Debug)]
enum Node {
    File {
        content: Vec<u8>,
        hole: u32,
        mode: u32,
        time: (i64, u32),
        note: Option<Vec<u8>>,
    },
    Directory {
        children: Vec<(String, Node)>,
        mode: u32,
    },
    Link(String),
    Fifo,
    /// Another name of the file that was made first.
    Again,
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => "[a-z]{1,8}",
        1 => "[a-zäöü \\n'\"\\\\=]{1,12}",
        1 => "x{90,250}",
    ]
    .prop_filter("a name", |name| name != "." && name != ".." && name.len() <= 255)
}

fn node() -> impl Strategy<Value = Node> {
    let times = (prop_oneof![Just(-3_i64), 0..4_000_000_000_i64, Just(9_000_000_000)], 0..1_000_000_000_u32);
    let file = (
        prop::collection::vec(any::<u8>(), 0..2000),
        prop_oneof![3 => Just(0_u32), 1 => 1..5_000_000_u32],
        0..0o10000_u32,
        times,
        prop::option::of(prop::collection::vec(any::<u8>(), 0..60)),
    )
        .prop_map(|(content, hole, mode, time, note)| Node::File { content, hole, mode, time, note });
    let leaf = prop_oneof![
        6 => file,
        1 => "[a-z./]{1,150}".prop_map(Node::Link),
        1 => Just(Node::Fifo),
        1 => Just(Node::Again),
    ];
    leaf.prop_recursive(5, 40, 6, |inner| {
        (prop::collection::vec((name(), inner), 0..6), 0..0o1000_u32)
            .prop_map(|(children, mode)| Node::Directory { children, mode: mode | 0o700 })
    })
}

fn make(path: &Path, node: &Node, first: &mut Option<std::path::PathBuf>) {
    match node {
        Node::File { content, hole, mode, time: (seconds, nanoseconds), note } => {
            let file = File::create(path).unwrap();
            file.write_all_at(content, (*hole).into()).unwrap();
            file.set_len(u64::from(*hole) * 2 + content.len() as u64).unwrap();
            let bytes: &[u8] = note.as_deref().unwrap_or_default();
            if note.is_some() {
                setxattr(path, "user.note", bytes, XattrFlags::empty()).unwrap();
            }
            file.set_permissions(fs::Permissions::from_mode(*mode)).unwrap();
            let nanoseconds = Duration::from_nanos((*nanoseconds).into());
            let time = match *seconds < 0 {
                true => SystemTime::UNIX_EPOCH - Duration::from_secs(seconds.unsigned_abs()) + nanoseconds,
                false => SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.unsigned_abs()) + nanoseconds,
            };
            file.set_modified(time).unwrap();
            first.get_or_insert(path.to_owned());
        }
        Node::Directory { children, mode } => {
            fs::create_dir(path).unwrap();
            for (name, child) in children {
                let path = path.join(name);
                if fs::symlink_metadata(&path).is_err() {
                    make(&path, child, first);
                }
            }
            fs::set_permissions(path, fs::Permissions::from_mode(*mode)).unwrap();
        }
        Node::Link(target) => symlink(target, path).unwrap(),
        Node::Fifo => mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o644), 0).unwrap(),
        Node::Again => {
            if let Some(first) = first {
                fs::hard_link(first, path).unwrap();
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// All that is copied of a tree comes back, with holes as holes or as zeros, and GNU tar reads the same.
    #[test]
    fn a_tree_comes_back(children in prop::collection::vec((name(), node()), 0..6), sparse in any::<bool>()) {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        make(&from.path().join("top"), &Node::Directory { children, mode: 0o750 }, &mut None);
        let stream = packed(from.path(), "top", "new", PackOptions { sparse });
        let rules = Rules { owner: Owner::Kept, makes_devices: true, only: Some(b"new".to_vec()), ..Rules::default() };
        unpacked(to.path(), &stream, &rules).unwrap();
        let expected = lines(&from.path().join("top"));
        prop_assert_eq!(&lines(&to.path().join("new")), &expected);
        let theirs = tempfile::tempdir().unwrap();
        let mut tar = std::process::Command::new("tar")
            .args(["-x", "-p", "--xattrs", "--xattrs-include=user.*", "-f", "-", "-C"])
            .arg(theirs.path())
            .stdin(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        tar.stdin.take().unwrap().write_all(&stream).unwrap();
        prop_assert!(tar.wait().unwrap().success());
        prop_assert_eq!(lines(&theirs.path().join("new")), expected);
    }

    /// Whatever a stream contains, nothing is made outside of the directory.
    #[test]
    fn what_is_outside_stays(paths in prop::collection::vec(("[a-c./]{1,9}", "[a-c./]{0,9}", 0..6_u8), 1..30), follows_links: bool) {
        let top = tempfile::tempdir().unwrap();
        let inside = top.path().join("in");
        fs::create_dir_all(inside.join("a")).unwrap();
        fs::write(top.path().join("b"), "outside").unwrap();
        let mut stream = Vec::new();
        for (path, link, kind) in &paths {
            let kind = [EntryType::Regular, EntryType::Directory, EntryType::Symlink, EntryType::Link, EntryType::Fifo, EntryType::Char][usize::from(*kind)];
            head(kind, path, link).write(&mut stream).unwrap();
        }
        // In a root of its own, as the agent does it, links may be followed: not here.
        let _ = follows_links;
        let _ = unpacked(&inside, &stream, &Rules::default());
        let mut names: Vec<_> = fs::read_dir(top.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        prop_assert_eq!(names, ["b", "in"]);
        prop_assert_eq!(fs::read(top.path().join("b")).unwrap(), b"outside");
        prop_assert_eq!(fs::metadata(top.path().join("b")).unwrap().nlink(), 1);
    }
}

/// The header has room for 100 bytes of a name, and one that ends with a slash there was a directory's once.
#[test]
fn a_name_that_is_cut_off_at_a_slash_stays_that_of_a_file() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let below = format!("{}/file", "d".repeat(95));
    fs::create_dir_all(from.path().join("top").join(&below).parent().unwrap()).unwrap();
    fs::write(from.path().join("top").join(&below), "content").unwrap();
    let stream = packed(from.path(), "top", "new", PackOptions { sparse: false });
    let rules = Rules { only: Some(b"new".to_vec()), ..Rules::default() };
    unpacked(to.path(), &stream, &rules).unwrap();
    assert_eq!(fs::read_to_string(to.path().join("new").join(&below)).unwrap(), "content");
}

fn head<'a>(kind: EntryType, path: &'a str, link: &'a str) -> Head<'a> {
    Head {
        kind,
        path: path.as_bytes(),
        link: link.as_bytes(),
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: (1, 0),
        device: (0, 0),
        attributes: Vec::new(),
        size: 0,
        sparse: None,
    }
}

fn stream(entries: &[(EntryType, &str, &str)]) -> Vec<u8> {
    let mut stream = Vec::new();
    for (kind, path, link) in entries {
        head(*kind, path, link).write(&mut stream).unwrap();
    }
    header::finish(&mut stream).unwrap();
    stream
}

const FILE: EntryType = EntryType::Regular;
const DIRECTORY: EntryType = EntryType::Directory;
const LINK: EntryType = EntryType::Symlink;
const HARD: EntryType = EntryType::Link;

#[rstest]
#[case::above(&[(FILE, "../x", "")], "../x in the archive is outside")]
#[case::above_later(&[(FILE, "a/../../x", "")], "a/../../x in the archive is outside")]
#[case::through_a_link(&[(LINK, "l", ".."), (FILE, "l/x", "")], "cannot open l")]
#[case::through_an_absolute_link(&[(LINK, "l", "/tmp"), (FILE, "l/x", "")], "cannot open l")]
#[case::directory_over_link(&[(LINK, "l", "/tmp"), (DIRECTORY, "l", "")], "cannot overwrite l, which is not a directory")]
#[case::hard_link_above(&[(HARD, "x", "../file")], "../file in the archive is outside")]
#[case::hard_link_to_nothing(&[(HARD, "x", "y")], "x is a hard link to y, which is not there")]
#[case::hard_link_through_a_link(&[(LINK, "l", ".."), (HARD, "x", "l/file")], "x is a hard link to l/file")]
#[case::file_over_directory(&[(DIRECTORY, "d", ""), (FILE, "d", "")], "cannot overwrite directory d with")]
#[case::link_over_directory(&[(FILE, "d/x", ""), (LINK, "d", "/")], "cannot overwrite directory d with")]
#[case::directory_over_file(&[(FILE, "f", ""), (DIRECTORY, "f", "")], "cannot overwrite f, which")]
#[case::below_a_file(&[(FILE, "f", ""), (FILE, "f/x", "")], "cannot open f")]
#[case::control_characters(&[(FILE, "../\u{1b}[2J\n", "")], "../\\u{1b}[2J\\n in the archive")]
fn streams_that_lead_elsewhere_are_refused(#[case] entries: &[(EntryType, &str, &str)], #[case] says: &str) {
    let top = tempfile::tempdir().unwrap();
    let inside = top.path().join("in");
    fs::create_dir(&inside).unwrap();
    fs::write(top.path().join("file"), "x").unwrap();
    let error = unpacked(&inside, &stream(entries), &Rules::default()).unwrap_err().to_string();
    assert!(error.starts_with(says), "{error}");
    assert_eq!(fs::read_dir(top.path()).unwrap().count(), 2);
}

#[test]
fn only_what_was_asked_for_is_unpacked() {
    let top = tempfile::tempdir().unwrap();
    let rules = Rules { only: Some(b"a".to_vec()), ..Rules::default() };
    unpacked(top.path(), &stream(&[(DIRECTORY, "a", ""), (FILE, "./a/x", ""), (FILE, "/a/y", "")]), &rules)
        .unwrap();
    for entries in
        [[(FILE, ".bashrc", "")], [(FILE, "ab", "")], [(DIRECTORY, ".", "")], [(HARD, "a/z", "secret")]]
    {
        fs::write(top.path().join("secret"), "x").unwrap();
        let error = unpacked(top.path(), &stream(&entries), &rules).unwrap_err().to_string();
        assert!(error.contains("which was not asked for"), "{error}");
    }
    assert_eq!(fs::read_dir(top.path().join("a")).unwrap().count(), 2);
}

#[test]
fn a_file_replaces_what_is_there_and_follows_no_link() {
    let top = tempfile::tempdir().unwrap();
    fs::write(top.path().join("secret"), "x").unwrap();
    fs::hard_link(top.path().join("secret"), top.path().join("hard")).unwrap();
    symlink("secret", top.path().join("soft")).unwrap();
    unpacked(top.path(), &stream(&[(FILE, "hard", ""), (FILE, "soft", "")]), &Rules::default()).unwrap();
    assert_eq!(fs::read(top.path().join("secret")).unwrap(), b"x");
    assert!(top.path().join("soft").symlink_metadata().unwrap().is_file());
}

#[test]
fn device_nodes_are_made_where_they_may_be() {
    let top = tempfile::tempdir().unwrap();
    let stream = stream(&[(EntryType::Char, "null", ""), (EntryType::Block, "disk", ""), (FILE, "file", "")]);
    let rules = Rules::default();
    assert_eq!(unpacked(top.path(), &stream, &rules).unwrap(), Unpacked { entries: 3, devices: 2 });
    assert!(!top.path().join("null").exists() && top.path().join("file").exists());
}

#[test]
fn a_huge_claim_is_the_end_of_the_stream_or_a_hole() {
    let top = tempfile::tempdir().unwrap();
    let mut long = Vec::new();
    Head { size: 1 << 62, ..head(FILE, "long", "") }.write(&mut long).unwrap();
    let error = unpacked(top.path(), &long, &Rules::default()).unwrap_err();
    assert!(error.to_string().contains("ends early"), "{error}");
    let mut sparse = Vec::new();
    Head { size: 512, sparse: Some(1 << 40), ..head(FILE, "sparse", "") }.write(&mut sparse).unwrap();
    sparse.extend(b"0\n");
    sparse.resize(sparse.len().next_multiple_of(512), 0);
    unpacked(top.path(), &sparse, &Rules::default()).unwrap();
    let data = top.path().join("sparse").metadata().unwrap();
    assert!(data.len() == 1 << 40 && data.blocks() < 100, "{} blocks", data.blocks());
}

#[test]
fn a_tree_of_any_depth_is_an_error_or_copied() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut directory = open(from.path());
    let deepest = 600;
    for _ in 0..deepest {
        rustix::fs::mkdirat(&directory, "d", Mode::RWXU).unwrap();
        directory = rustix::fs::openat(&directory, "d", rustix::fs::OFlags::RDONLY, Mode::empty()).unwrap();
    }
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    let mut stream = Vec::new();
    let result = pack(open(from.path()).as_fd(), b"d", b"d", PackOptions::default(), &mut stream);
    match result {
        Ok(packed) => {
            assert_eq!(packed.entries, deepest);
            let unpacked = unpacked(to.path(), &stream, &Rules::default());
            assert!(unpacked.is_ok() || limit < 2 * deepest, "{unpacked:?}");
        }
        Err(error) => {
            assert!(error.to_string().contains("cannot open d/d") && limit < 2 * deepest + 100, "{error}")
        }
    }
}

/// A stream's target that fails after so many bytes.
struct Short(usize);

impl Write for Short {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 = self.0.checked_sub(bytes.len()).ok_or(io::ErrorKind::BrokenPipe)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_reader_that_goes_ends_the_work() {
    let top = tempfile::tempdir().unwrap();
    fs::write(top.path().join("file"), vec![1; 1 << 20]).unwrap();
    let error = pack(open(top.path()).as_fd(), b".", b".", PackOptions::default(), &mut Short(300 << 10));
    assert!(matches!(error, Err(PackError::Write(_))), "{error:?}");
}

/// Who copies from a container does not make its programs their own.
#[test]
fn set_id_bits_are_kept_with_the_owner_alone() {
    let from = tempfile::tempdir().unwrap();
    make(&from.path().join("top"), &Node::Directory { children: Vec::new(), mode: 0o755 }, &mut None);
    let program = from.path().join("top/program");
    fs::write(&program, "x").unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o6755)).unwrap();
    fs::set_permissions(from.path().join("top"), fs::Permissions::from_mode(0o3775)).unwrap();
    let stream = packed(from.path(), "top", "top", PackOptions::default());
    for (owner, expected) in [(Owner::Own, 0o755), (Owner::Kept, 0o6755)] {
        let to = tempfile::tempdir().unwrap();
        unpacked(to.path(), &stream, &Rules { owner, ..Rules::default() }).unwrap();
        let mode = |name: &str| fs::metadata(to.path().join(name)).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode("top"), mode("top/program")), (0o3775, expected));
    }
}
