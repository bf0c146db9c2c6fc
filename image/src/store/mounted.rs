//! Flat disks, mounted by Linux, beside what umoci makes of the same layout.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{lgetxattr, llistxattr};
use tar::EntryType;

use super::{FlatDisk, Store};
use crate::fixtures::{Fixture, gzip, noise};

/// A layer in the making.
struct Layer(tar::Builder<Vec<u8>>);

/// An entry of a layer: kind, name, mode, link, data, and extended records.
type Entry<'a> = (EntryType, &'a str, u32, &'a str, &'a [u8], &'a [(&'a str, &'a [u8])]);

impl Layer {
    fn of(entries: &[Entry<'_>]) -> Self {
        let layer = Self(tar::Builder::new(Vec::new()));
        entries.iter().fold(layer, |layer, entry| layer.with(entry))
    }

    fn with(mut self, &(kind, name, mode, link, data, records): &Entry<'_>) -> Self {
        self.0.append_pax_extensions(records.iter().copied()).unwrap();
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(1000);
        header.set_gid(100);
        header.set_mtime(1_600_000_000);
        header.set_size(data.len().try_into().unwrap());
        header.set_device_major(1).unwrap();
        header.set_device_minor(3).unwrap();
        if link.is_empty() {
            self.0.append_data(&mut header, name, data).unwrap();
        } else {
            self.0.append_link(&mut header, name, link).unwrap();
        }
        self
    }

    fn finish(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

fn fixture() -> Fixture {
    let large = noise(70_000, 3);
    let long = "n".repeat(255);
    let capability: &[u8] =
        b"\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
    let (file, directory) = (EntryType::Regular, EntryType::Directory);
    let lower = Layer::of(&[
        (directory, "./", 0o755, "", b"", &[("mtime", b"1600000001.25")]),
        (directory, "bin/", 0o1777, "", b"", &[]),
        (file, "bin/ping", 0o4755, "", b"ping", &[("SCHILY.xattr.security.capability", capability)]),
        (file, "bin/large", 0o755, "", &large, &[("mtime", b"1700000000.123456789")]),
        (EntryType::Link, "bin/again", 0o755, "bin/large", b"", &[]),
        (EntryType::Symlink, "sh", 0o777, "bin/ping", b"", &[("mtime", b"1700000001.000000001")]),
        (EntryType::Fifo, "pipe", 0o620, "", b"", &[]),
        (EntryType::Char, "null", 0o666, "", b"", &[]),
        (EntryType::Block, "disk", 0o660, "", b"", &[]),
        (directory, "etc/", 0o750, "", b"", &[("SCHILY.xattr.user.on.directory", b"\n=\0")]),
        (file, "etc/old", 0o600, "", b"", &[("mtime", b"-1.5"), ("uid", b"70000"), ("gid", b"4000000000")]),
        (
            file,
            "etc/conf",
            0o644,
            "",
            b"lower",
            &[("SCHILY.xattr.user.a", b"1"), ("SCHILY.xattr.user.b", b"")],
        ),
        (file, "etc/gone", 0o644, "", b"gone", &[]),
        (directory, "opaque/", 0o755, "", b"", &[]),
        (file, "opaque/below", 0o644, "", b"below", &[]),
        (file, "to-directory", 0o644, "", b"file", &[]),
        (directory, "to-file/", 0o755, "", b"", &[]),
        (file, "to-file/inside", 0o644, "", b"inside", &[]),
        (directory, "many/", 0o755, "", b"", &[]),
    ]);
    let names: Vec<String> =
        (0..400).map(|number| format!("many/{number}-{}", &long[..number % 200])).collect();
    let lower = names.iter().fold(lower, |layer, name| {
        layer.with(&(file, name, 0o644, "", &name.as_bytes()[..name.len() % 7], &[]))
    });
    let lower = lower.with(&(file, &format!("many/{long}"), 0o444, "", b"long", &[]));
    let upper = Layer::of(&[
        (directory, "etc/", 0o711, "", b"", &[]),
        (file, "etc/.wh.gone", 0o644, "", b"", &[]),
        (file, "etc/conf", 0o640, "", b"upper", &[]),
        (directory, "opaque/", 0o700, "", b"", &[]),
        (file, "opaque/.wh..wh..opq", 0o644, "", b"", &[]),
        (file, "opaque/above", 0o644, "", b"above", &[]),
        (EntryType::Link, "opaque/linked", 0o644, "opaque/above", b"", &[]),
        (directory, "to-directory/", 0o755, "", b"", &[]),
        (file, "to-directory/x", 0o644, "", b"x", &[]),
        (file, "to-file", 0o644, "", b"now a file", &[]),
        (directory, "bin/", 0o755, "", b"", &[]),
        (file, "bin/.wh.again", 0o644, "", b"", &[]),
    ]);
    Fixture::of_tars(vec![lower.finish(), upper.finish()])
}

/// All that is known of a file.
#[derive(Debug, PartialEq, Eq)]
struct Known {
    mode: u32,
    owner: (u32, u32),
    mtime: (i64, i64),
    /// Not of directories.
    links: u64,
    device: u64,
    /// The first name of the same file.
    first: PathBuf,
    content: Vec<u8>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

fn tree(root: &Path) -> BTreeMap<PathBuf, Known> {
    let (mut found, mut inodes) = (BTreeMap::new(), BTreeMap::new());
    let mut pending = vec![root.to_owned()];
    let mut paths = Vec::new();
    while let Some(path) = pending.pop() {
        if fs::symlink_metadata(&path).unwrap().is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        paths.push(path);
    }
    paths.sort();
    for path in paths {
        let data = fs::symlink_metadata(&path).unwrap();
        let name = path.strip_prefix(root).unwrap().to_owned();
        let first = inodes.entry(data.ino()).or_insert_with(|| name.clone()).clone();
        let content = if data.is_file() {
            fs::read(&path).unwrap()
        } else if data.is_symlink() {
            fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec()
        } else {
            Vec::new()
        };
        let known = Known {
            mode: data.mode(),
            owner: (data.uid(), data.gid()),
            mtime: (data.mtime(), data.mtime_nsec()),
            links: if data.is_dir() { 0 } else { data.nlink() },
            device: data.rdev(),
            first,
            content,
            xattrs: xattrs(&path),
        };
        found.insert(name, known);
    }
    found
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; 64 << 10];
    let length = llistxattr(path, &mut names[..]).unwrap();
    let names = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let value = |name: &[u8]| {
        let mut value = vec![0; 64 << 10];
        let length = lgetxattr(path, name, &mut value[..]).unwrap();
        value[..length].to_vec()
    };
    // What the host's security module adds to files of its own.
    let names = names.filter(|name| *name != b"security.selinux");
    names.map(|name| (name.to_vec(), value(name))).collect()
}

/// Writes the disk to a file.
fn write(disk: &FlatDisk, path: &Path) {
    let mut out = File::create_new(path).unwrap();
    for part in &disk.parts {
        out.seek(SeekFrom::Start(part.offset)).unwrap();
        assert_eq!(io::copy(&mut File::open(&part.path).unwrap(), &mut out).unwrap(), part.length);
    }
}

/// A mounted file system, until it is dropped.
struct Mounted(PathBuf);

impl Mounted {
    fn new(image: &Path, at: &Path) -> Result<Self, String> {
        fs::create_dir(at).unwrap();
        run(Command::new("mount").args(["-t", "erofs", "-o", "loop,ro"]).args([image, at]))?;
        Ok(Self(at.to_owned()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = run(Command::new("umount").arg(&self.0));
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{:?}: {error}", command.get_program()))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { Ok(()) } else { Err(format!("{:?}: {said}", command.get_program())) }
}

#[test]
fn linux_and_umoci_see_the_same_files() {
    if !rustix::process::getuid().is_root() {
        return eprintln!("skipped: mounting needs root");
    }
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let fixture = fixture();
    let archive = fixture.oci_archive("one", "+gzip", gzip);
    tar::Archive::new(&archive[..]).unpack(path("layout")).unwrap();
    let image = format!("{}:one", path("layout").display());
    let mut umoci = Command::new("umoci");
    if let Err(error) = run(umoci.args(["unpack", "--image", &image]).arg(path("bundle"))) {
        assert!(Command::new("umoci").arg("--version").output().is_err(), "{error}");
        return eprintln!("skipped: there is no umoci");
    }
    let store = Store::open(&path("store")).unwrap();
    store.load(&archive[..]).unwrap();
    let disk = store.disk(&store.resolve(&fixture.id().hex()).unwrap().unwrap()).unwrap();
    write(&disk, &path("disk"));
    let mounted = match Mounted::new(&path("disk"), &path("mount")) {
        Ok(mounted) => mounted,
        Err(error) => {
            let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
            assert!(!known.contains("erofs") || !Path::new("/dev/loop-control").exists(), "{error}");
            return eprintln!("skipped: this kernel mounts no EROFS: {error}");
        }
    };
    let (ours, theirs) = (tree(&mounted.0), tree(&path("bundle/rootfs")));
    let names = |tree: &BTreeMap<PathBuf, Known>| tree.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&ours), names(&theirs));
    for (name, known) in &ours {
        assert!(*known == theirs[name], "{name:?}: {known:?}, not {:?}", theirs[name]);
    }
    assert_eq!(ours[Path::new("bin/large")].links, 1);
    assert_eq!(ours[Path::new("opaque/linked")].first, Path::new("opaque/above"));
}
