//! Volumes, and folders and files of the host.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{CWD, Mode, OFlags, RenameFlags, renameat_with};
use rustix::mount::{MountFlags, mount};

use crate::copy::copy_tree;
use crate::disk;
use crate::error::{During, Result, failure};
use crate::mounts::{Kind, Root};

/// The directory on a volume's disk that a container sees: beside it are lost+found and what is not complete.
const DATA: &str = "_data";
/// What becomes [`DATA`] when all of the image's files are in it.
const NEW: &str = "_new";

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
        if !is_plain(tag) || !is_plain(name) {
            return Err(failure(format!("cannot mount {name:?} of {tag:?}")));
        }
        let tree = format!("{}/share-{tag}", self.place);
        // All have one.
        if make(&tree).during(format!("make {tree}"))? {
            let plain = MountFlags::NOSUID | MountFlags::NODEV;
            mount(tag, &tree, "virtiofs", plain, c"").during(format!("mount {tag}"))?;
        }
        let source = format!("{tree}/{name}");
        let metadata = fs::metadata(&source).during(format!("look at what is mounted on {path}"))?;
        let kind = if metadata.is_dir() { Kind::Directory } else { Kind::File };
        if fills && metadata.is_dir() {
            let what = || format!("copy what the image has in {path} to the volume");
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
        let name = device.strip_prefix("/dev/").filter(|name| is_plain(name));
        let name = name.ok_or_else(|| failure(format!("cannot mount {device:?}")))?;
        let disk = format!("{}/volume-{name}", self.place);
        // One volume may be in two places.
        if make(&disk).during(format!("make {disk}"))? {
            disk::mount(device, &disk, disk::Lasts::Yes)
                .during(format!("mount the volume of {path}, {device}"))?;
        }
        let data = format!("{disk}/{DATA}");
        let what = || format!("copy what the image has in {path} to the volume");
        make(&data).during(what())?;
        if fills
            && is_empty(&data).during(what())?
            && let Some(image) = of_image(root, path)
        {
            fill(&image, &disk, &data).during(what())?;
        }
        root.bind_with(&data, path, Kind::Directory, flags)
    }
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
    Ok(renameat_with(CWD, &new, CWD, data, RenameFlags::empty())?)
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
    fn names_are_plain() {
        for (name, expected) in
            [("mounts", true), ("12", true), ("", false), ("..", false), ("a/b", false), ("vd a", false)]
        {
            assert_eq!(is_plain(name), expected, "{name}");
        }
    }
}
