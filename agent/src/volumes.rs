//! Volumes, and folders and files of the host.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use agent_protocol::{Container, MountKind};
use rustix::fs::{
    CWD, FileType, FlockOperation, Mode, OFlags, RenameFlags, ResolveFlags, flock, openat2, renameat_with,
};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

use crate::copy::{copy_metadata, copy_tree};
use crate::disk;
use crate::error::{During, Result, failure};
use crate::mounts::{Kind, Root, path_of};
use crate::system::RUN;

/// The directory on a volume's disk that a container sees: beside it are lost+found and what is not complete.
const DATA: &str = "_data";
/// What gets the image's files.
const NEW: &str = "_new";
/// What [`NEW`] becomes when all of them are in it, from where they go to [`DATA`]: other containers of a pod may have
/// that already.
const FULL: &str = "_full";

/// Those of a container.
pub struct Volumes {
    /// A directory of the agent's for this container.
    place: String,
}

/// Whether `name` can be that of a file beside others.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
}

fn directory(path: &str) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Makes a directory; false where it is there.
fn make(path: &str) -> io::Result<bool> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        result => result.map(|()| true),
    }
}

fn is_empty(path: &str) -> io::Result<bool> {
    Ok(fs::read_dir(path)?.next().is_none())
}

/// Where the virtiofs `tag` is mounted for all containers of a pod.
fn of_pod(tag: &str) -> String {
    format!("{RUN}/pod-share-{tag}")
}

/// Mounts what a container of a pod has of the host where all its containers find it. It stays: a part that is mounted
/// in a container has a superblock of its own, which the kernel would take for that of the whole if that were gone.
pub fn mount_for_pod(container: &Container) -> Result<()> {
    for mounted in &container.mounts {
        let (MountKind::Part { tag, .. } | MountKind::Below { tag, .. }) = &mounted.kind else { continue };
        if !is_plain(tag) {
            return Err(failure(format!("cannot mount {tag:?}")));
        }
        let tree = of_pod(tag);
        if !make(&tree).during(format!("make {tree}"))? {
            continue;
        }
        let plain = MountFlags::NOSUID | MountFlags::NODEV;
        if let Err(failure) = mount(tag, &tree, "virtiofs", plain, c"").during(format!("mount {tag}")) {
            let _ = fs::remove_dir(&tree);
            return Err(failure);
        }
    }
    Ok(())
}

/// What the image has at `path`, if that is a directory with something in it.
fn of_image(root: &Root, path: &str) -> Option<OwnedFd> {
    // Its own mode and owner count too, even where it is empty.
    root.open(path, OFlags::RDONLY | OFlags::DIRECTORY).ok()
}

impl Volumes {
    /// Those of the container whose files are in `place`.
    pub fn new(place: &str) -> Self {
        Self { place: place.to_owned() }
    }

    /// Mounts `name` of the virtiofs `tag` on `path`.
    pub fn mount_part(
        &self,
        root: &Root,
        path: &str,
        flags: MountFlags,
        (tag, name): (&str, &str),
        fills: bool,
    ) -> Result<()> {
        let source = self.part(tag, name)?;
        let metadata = fs::metadata(&source).during(format!("look at what is mounted on {path}"))?;
        let kind = if metadata.is_dir() { Kind::Directory } else { Kind::File };
        if fills && metadata.is_dir() {
            let what = || format!("copy what the image has in {path} to the volume");
            let _alone = alone(&source).during(what())?;
            if is_empty(&source).during(what())?
                && let Some(image) = of_image(root, path)
            {
                // Without root on the host there is one user.
                copy_tree(&image, &directory(&source).during(what())?, false).during(what())?;
            }
        }
        root.bind_with(&source, path, kind, flags)
    }

    /// Mounts the disk `device` on `path`.
    pub fn mount_disk(
        &self,
        root: &Root,
        path: &str,
        flags: MountFlags,
        device: &str,
        fills: bool,
    ) -> Result<()> {
        let disk = self.disk(path, device)?;
        let data = format!("{disk}/{DATA}");
        let what = || format!("copy what the image has in {path} to the volume");
        let _alone = alone(&disk).during(what())?;
        // What was on its way when the VM was killed.
        move_in(&disk, &data).during(what())?;
        if fills
            && is_empty(&data).during(what())?
            && let Some(image) = of_image(root, path)
        {
            fill(&image, &disk, &data).during(what())?;
        }
        root.bind_with(&data, path, Kind::Directory, flags)
    }

    /// Mounts what is at `below` in the folder `name` of the virtiofs `tag` on `path`.
    pub fn mount_below(
        &self,
        root: &Root,
        path: &str,
        flags: MountFlags,
        (tag, name, below): (&str, &str, &str),
    ) -> Result<()> {
        bind_below(root, path, flags, &self.part(tag, name)?, below)
    }

    /// Mounts what is at `below` in the volume on the disk `device` on `path`.
    pub fn mount_below_disk(
        &self,
        root: &Root,
        path: &str,
        flags: MountFlags,
        device: &str,
        below: &str,
    ) -> Result<()> {
        let disk = self.disk(path, device)?;
        bind_below(root, path, flags, &format!("{disk}/{DATA}"), below)
    }

    /// The path of `name` in the virtiofs `tag`, which is mounted.
    fn part(&self, tag: &str, name: &str) -> Result<String> {
        if !is_plain(tag) || !is_plain(name) {
            return Err(failure(format!("cannot mount {name:?} of {tag:?}")));
        }
        let of_pod = of_pod(tag);
        if fs::exists(&of_pod).during(format!("look at {of_pod}"))? {
            return Ok(format!("{of_pod}/{name}"));
        }
        let tree = format!("{}/share-{tag}", self.place);
        // All have one.
        if make(&tree).during(format!("make {tree}"))? {
            let plain = MountFlags::NOSUID | MountFlags::NODEV;
            mount(tag, &tree, "virtiofs", plain, c"").during(format!("mount {tag}"))?;
        }
        Ok(format!("{tree}/{name}"))
    }

    /// The path of the disk `device`, which is mounted and has [`DATA`]. It is the volume of `path`.
    fn disk(&self, path: &str, device: &str) -> Result<String> {
        let name = device.strip_prefix("/dev/").filter(|name| is_plain(name));
        let name = name.ok_or_else(|| failure(format!("cannot mount {device:?}")))?;
        let disk = format!("{}/volume-{name}", self.place);
        // One volume may be in two places.
        if make(&disk).during(format!("make {disk}"))? {
            disk::mount(device, &disk, disk::Lasts::Yes)
                .during(format!("mount the volume of {path}, {device}"))?;
        }
        let data = format!("{disk}/{DATA}");
        let what = || format!("make the directory of the volume of {path}");
        make(&data).during(what())?;
        check_directory(&data).during(what())?;
        Ok(disk)
    }
}

/// Opens what is at `below` in the directory `top`: no part of the path is a link, so that it leads nowhere else. Nor
/// is `top`, which a VM that had the volume before may have replaced.
fn open_below(top: &str, below: &str) -> io::Result<(OwnedFd, Kind)> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let directory = OFlags::DIRECTORY | OFlags::NOFOLLOW;
    let top = rustix::fs::open(top, flags | directory, Mode::empty())?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let found = openat2(&top, below, flags, Mode::empty(), resolve)?;
    match FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode) {
        FileType::Directory => Ok((found, Kind::Directory)),
        FileType::RegularFile => Ok((found, Kind::File)),
        _ => Err(io::Error::other("it is neither a directory nor a regular file")),
    }
}

/// Mounts what is at `below` in the directory `top` on `path`.
fn bind_below(root: &Root, path: &str, flags: MountFlags, top: &str, below: &str) -> Result<()> {
    let what =
        || format!("open {below} of the volume of {path}, which has to exist without links on the way to it");
    let (found, kind) = open_below(top, below).during(what())?;
    root.bind_with(&path_of(found.as_fd()), path, kind, flags)
}

/// Refuses what is not a directory itself: a VM that had the volume before may have left a link that leads out of it.
fn check_directory(path: &str) -> io::Result<()> {
    if fs::symlink_metadata(path)?.is_dir() { Ok(()) } else { Err(Errno::NOTDIR.into()) }
}

/// Until it is dropped, no other container of the pod gets the image's files into the directory at `path`.
fn alone(path: &str) -> io::Result<OwnedFd> {
    let directory = directory(path)?;
    flock(&directory, FlockOperation::LockExclusive)?;
    Ok(directory)
}

/// Copies `image` to the empty directory `data` of the file system at `disk`: all of it, or nothing.
fn fill(image: &OwnedFd, disk: &str, data: &str) -> io::Result<()> {
    let new = format!("{disk}/{NEW}");
    // What was left when the VM was killed.
    match fs::remove_dir_all(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::create_dir(&new)?;
    let directory = directory(&new)?;
    copy_tree(image, &directory, true)?;
    rustix::fs::syncfs(&directory)?;
    fs::rename(&new, format!("{disk}/{FULL}"))?;
    move_in(disk, data)
}

/// Moves what is in [`FULL`] of `disk`, if that is there, to `data`, which stays the directory that it is. What another
/// container has made there meanwhile stays as well.
fn move_in(disk: &str, data: &str) -> io::Result<()> {
    let full = format!("{disk}/{FULL}");
    match check_directory(&full) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        checked => checked?,
    }
    for entry in fs::read_dir(&full)?.collect::<io::Result<Vec<_>>>()? {
        let to = Path::new(data).join(entry.file_name());
        match renameat_with(CWD, entry.path(), CWD, to, RenameFlags::NOREPLACE) {
            Err(error) if error != Errno::EXIST => return Err(error.into()),
            _ => {}
        }
    }
    copy_metadata(&directory(&full)?, &directory(data)?)?;
    fs::remove_dir_all(full)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_filled_whole_and_remains_of_others_go() {
        let place = tempfile::tempdir().unwrap();
        let path = |name: &str| place.path().join(name).to_str().unwrap().to_owned();
        fs::create_dir_all(path("image/sub")).unwrap();
        fs::write(path("image/sub/file"), "text").unwrap();
        fs::create_dir_all(path("disk/_data")).unwrap();
        fs::create_dir_all(path("disk/_new/half")).unwrap();
        fill(&directory(&path("image")).unwrap(), &path("disk"), &path("disk/_data")).unwrap();
        assert_eq!(fs::read_to_string(path("disk/_data/sub/file")).unwrap(), "text");
        assert!(!fs::exists(path("disk/_new")).unwrap() && !fs::exists(path("disk/_data/half")).unwrap());
        assert!(!is_empty(&path("disk/_data")).unwrap());
    }

    #[test]
    fn what_is_below_a_volume_is_found_and_links_lead_nowhere() {
        use std::os::unix::fs::symlink;
        let place = tempfile::tempdir().unwrap();
        let path = |name: &str| place.path().join(name).to_str().unwrap().to_owned();
        fs::create_dir_all(path("volume/a/b")).unwrap();
        fs::create_dir(path("secret")).unwrap();
        fs::write(path("volume/a/file"), "text").unwrap();
        for (target, link) in [("/", "root"), ("../secret", "out"), ("a", "in"), ("b", "a/last")] {
            symlink(target, path(&format!("volume/{link}"))).unwrap();
        }
        rustix::fs::mknodat(CWD, path("volume/fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        let open = |below: &str| open_below(&path("volume"), below);
        assert!(
            matches!(open("a/b"), Ok((_, Kind::Directory))) && matches!(open("a/file"), Ok((_, Kind::File)))
        );
        for (below, says) in [
            ("none", libc::ENOENT),
            ("a/none/b", libc::ENOENT),
            ("a/file/x", libc::ENOTDIR),
            ("root", libc::ELOOP),
            ("root/etc", libc::ELOOP),
            ("out", libc::ELOOP),
            ("in/b", libc::ELOOP),
            ("a/last", libc::ELOOP),
        ] {
            assert_eq!(open(below).err().unwrap().raw_os_error(), Some(says), "{below}");
        }
        assert!(open("fifo").is_err());
        symlink("secret", path("replaced")).unwrap();
        assert_eq!(open_below(&path("replaced"), ".").err().unwrap().raw_os_error(), Some(libc::ENOTDIR));
        // What a name leads above is the volume itself.
        let (top, _) = open("../..").unwrap();
        let same = rustix::fs::fstat(&top).unwrap().st_ino;
        assert_eq!(same, rustix::fs::fstat(directory(&path("volume")).unwrap()).unwrap().st_ino);
    }

    #[test]
    fn a_directory_that_another_container_has_is_filled_in_place() {
        use std::os::unix::fs::{MetadataExt, PermissionsExt};
        let place = tempfile::tempdir().unwrap();
        let path = |name: &str| place.path().join(name).to_str().unwrap().to_owned();
        fs::create_dir_all(path("image/sub")).unwrap();
        fs::write(path("image/file"), "of the image").unwrap();
        fs::set_permissions(path("image"), fs::Permissions::from_mode(0o711)).unwrap();
        fs::create_dir_all(path("disk/_data")).unwrap();
        let before = fs::metadata(path("disk/_data")).unwrap().ino();
        fill(&directory(&path("image")).unwrap(), &path("disk"), &path("disk/_data")).unwrap();
        let after = fs::metadata(path("disk/_data")).unwrap();
        assert_eq!((after.ino(), after.mode() & 0o777), (before, 0o711));
        // A VM that was killed on the way left some of it; what a container has made in between stays.
        fs::create_dir_all(path("disk/_full/late")).unwrap();
        fs::write(path("disk/_full/file"), "late").unwrap();
        for _ in 0..2 {
            move_in(&path("disk"), &path("disk/_data")).unwrap();
            assert_eq!(fs::read_to_string(path("disk/_data/file")).unwrap(), "of the image");
            assert!(fs::exists(path("disk/_data/late")).unwrap() && !fs::exists(path("disk/_full")).unwrap());
        }
        // Nor does a link lead out of the volume.
        std::os::unix::fs::symlink(path("image"), path("disk/_full")).unwrap();
        assert!(
            move_in(&path("disk"), &path("disk/_data")).is_err() && fs::exists(path("image/sub")).unwrap()
        );
    }

    #[test]
    fn names_are_plain() {
        for (name, expected) in
            [("mounts", true), ("12", true), ("", false), ("..", false), ("a/b", false), ("vd a", false)]
        {
            assert_eq!(is_plain(name), expected, "{name}");
        }
    }
}
