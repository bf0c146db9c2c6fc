//! What of the user's a container has below its root: folders, files and sockets of the host, volumes, and temporary
//! file systems.

mod error;
mod in_pod;
mod long;
mod make;
mod prepare;
mod settle;
mod short;
mod tmpfs;

use std::path::PathBuf;

use instance::{VolumeDriver, VolumeName};
use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use self::error::PrepareError;
pub use self::in_pod::{PodFolder, PodFolders, PodSource, PodVolume, prepare_in_pod};
pub use self::long::LongMount;
pub use self::make::{create, make_volumes};
pub use self::prepare::{Forward, Prepared, check_room, prepare, prepare_holding};
pub use self::settle::{record, settle};
pub use self::short::ShortMount;
pub use self::tmpfs::Tmpfs;

/// One thing that a container has below its root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountOption {
    /// Where the container has it.
    pub target: String,
    /// The container can only read it.
    #[serde(default)]
    pub read_only: bool,
    /// What it is.
    pub source: MountSource,
}

/// What a container has below its root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountSource {
    /// A folder, file or socket of the host.
    Bind {
        /// Its path.
        path: PathBuf,
        /// A folder is made where there is nothing.
        #[serde(default)]
        is_made: bool,
    },
    /// A volume.
    Volume(VolumeMount),
    /// A temporary file system with these options.
    Tmpfs(String),
}

/// A volume as a container has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeMount {
    /// Its name; one without gets one before the container is made.
    pub name: Option<VolumeName>,
    /// It goes with the container.
    #[serde(default)]
    pub is_anonymous: bool,
    /// It does not begin with what the image has at its place.
    #[serde(default)]
    pub is_empty: bool,
    /// What of it is mounted: a path without links in it; all of it if `None`.
    #[serde(default)]
    pub subpath: Option<String>,
    /// What it is made of, where it is new.
    #[serde(default)]
    pub driver: VolumeDriver,
    /// What it is made with, where it is new.
    #[serde(default)]
    pub options: Vec<(String, String)>,
    /// What it is called besides, where it is new.
    #[serde(default)]
    pub labels: Vec<(String, String)>,
}

/// What is wrong with a mount that a user asks for.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum MountError {
    /// Nothing of the form of `-v`.
    #[error(
        "invalid volume {0:?}: write HOSTPATH:PATH, NAME:PATH or PATH, and :ro behind it to read only; PATH begins \
        with /"
    )]
    Short(String),
    /// A mode of `-v` that does not exist.
    #[error("invalid mode {mode:?} of volume {volume:?}: use ro or rw, z or Z, and nocopy")]
    Mode {
        /// The volume.
        volume: String,
        /// The mode.
        mode: String,
    },
    /// A propagation that would need the host's mounts.
    #[error(
        "bind propagation {0:?} is not possible, as the VM has mounts of its own: leave it out, or use rprivate"
    )]
    Propagation(String),
    /// The container's root.
    #[error("invalid mount target {0:?}: it can't be the root")]
    Root(String),
    /// A path in the container that begins anywhere.
    #[error("invalid mount target {0:?}: begin it with /")]
    Target(String),
    /// Two at one place.
    #[error("duplicate mount point {0}: mount one thing there")]
    Duplicate(String),
    /// A name that no volume can have.
    #[error(transparent)]
    Name(#[from] instance::VolumeNameError),
    /// Not a list of `--mount`.
    #[error(
        "invalid mount {0:?}: write type=bind,source=HOSTPATH,target=PATH or type=volume,source=NAME,target=PATH"
    )]
    Quotes(String),
    /// A word of `--mount` without a value.
    #[error("invalid field {0:?} of --mount: write KEY=VALUE")]
    Field(String),
    /// A key that `--mount` does not have.
    #[error(
        "unknown key {0:?} of --mount: use type, source, target, readonly, volume-nocopy, volume-subpath, \
        volume-driver, volume-opt, volume-label, tmpfs-size, tmpfs-mode or bind-propagation"
    )]
    Key(String),
    /// A key that is for something else, or that has no use here.
    #[error("--mount with {key} {why}")]
    NoUse {
        /// The key.
        key: String,
        /// Why it has no use.
        why: &'static str,
    },
    /// A value that a key does not take.
    #[error("invalid value {value:?} of {key} in --mount: use {expected}")]
    Value {
        /// The key.
        key: &'static str,
        /// The value.
        value: String,
        /// What it takes.
        expected: &'static str,
    },
    /// A path that leads out of a volume.
    #[error(
        "invalid volume-subpath {0:?}: use a path in the volume, as in logs/web, without .. that leads out of it"
    )]
    Subpath(String),
    /// No target.
    #[error("--mount needs a target: add target=PATH")]
    NoTarget,
    /// No source.
    #[error("--mount of type bind needs a source: add source=HOSTPATH")]
    NoSource,
    /// A source that is not a path.
    #[error("invalid source {0:?} of --mount type=bind: begin it with / or ./, or use type=volume")]
    Source(String),
    /// An option of a temporary file system.
    #[error(
        "invalid tmpfs option {0:?}: use size=SIZE, mode=MODE, uid=ID, gid=ID, nr_inodes=N, nr_blocks=N, and rw, ro, \
        exec, noexec, suid, nosuid, dev or nodev"
    )]
    Tmpfs(String),
    /// An option of a volume.
    #[error("invalid volume option {0:?}: use size=SIZE, from 256M to 1T, with the driver local")]
    VolumeOption(String),
}

/// `path` without `.`, `..` and double slashes: where a container has something.
///
/// # Errors
///
/// [`MountError`] for the root, and for a path that is not absolute.
fn clean_target(path: &str) -> Result<String, MountError> {
    if !path.starts_with('/') {
        return Err(MountError::Target(path.to_owned()));
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    if parts.is_empty() {
        Err(MountError::Root(path.to_owned()))
    } else {
        Ok(format!("/{}", parts.join("/")))
    }
}

/// The path in a volume that `text` names, without `.`, `..` and double slashes; `None` for all of the volume.
///
/// # Errors
///
/// [`MountError::Subpath`].
fn clean_subpath(text: &str) -> Result<Option<String>, MountError> {
    let invalid = || MountError::Subpath(text.chars().take(200).collect());
    if text.is_empty() || text.starts_with('/') || text.len() > MAX_SUBPATH {
        return Err(invalid());
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop().ok_or_else(invalid)?),
            part => parts.push(part),
        }
    }
    Ok(Some(parts.join("/")).filter(|path| !path.is_empty()))
}

/// The most bytes of a path in a volume.
const MAX_SUBPATH: usize = 4096;

/// The size of a new volume's disk in bytes: that of `size=SIZE`, or else as much as a container's disk for changes
/// has.
///
/// # Errors
///
/// [`MountError::VolumeOption`].
pub fn volume_size<'a>(
    driver: VolumeDriver,
    options: impl IntoIterator<Item = (&'a String, &'a String)>,
) -> Result<u64, MountError> {
    use crate::options::Storage;
    let mut size = Storage::default();
    for (name, value) in options {
        let invalid = || MountError::VolumeOption(format!("{name}={value}"));
        if name != "size" || driver != VolumeDriver::Local {
            return Err(invalid());
        }
        size = format!("size={value}").parse().map_err(|_| invalid())?;
    }
    match size {
        Storage::Disk(bytes) => Ok(bytes),
        Storage::Memory => Err(MountError::VolumeOption("size=0".into())),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("/a", "/a")]
    #[case("/a//b/", "/a/b")]
    #[case("/a/./b/../c", "/a/c")]
    #[case("/../../a", "/a")]
    fn targets_are_cleaned(#[case] path: &str, #[case] expected: &str) {
        assert_eq!(clean_target(path).unwrap(), expected);
    }

    #[rstest]
    #[case("a", Some(Some("a")))]
    #[case("a//b/./c/", Some(Some("a/b/c")))]
    #[case("a/../b", Some(Some("b")))]
    #[case(".", Some(None))]
    #[case("a/..", Some(None))]
    #[case("..a/...", Some(Some("..a/...")))]
    #[case("", None)]
    #[case("/a", None)]
    #[case("..", None)]
    #[case("a/../../b", None)]
    fn a_subpath_stays_in_its_volume(#[case] text: &str, #[case] expected: Option<Option<&str>>) {
        let read = clean_subpath(text);
        let shown = read.as_ref().ok().map(|path| path.as_deref());
        assert_eq!(shown, expected);
        assert!(expected.is_some() || read.unwrap_err().to_string().contains("use a path in the volume"));
        assert!(clean_subpath(&"a/".repeat(3000)).is_err());
    }

    #[rstest]
    #[case("", "begin it with /")]
    #[case("a/b", "begin it with /")]
    #[case("/", "can't be the root")]
    #[case("/a/..", "can't be the root")]
    fn other_targets_are_refused(#[case] path: &str, #[case] says: &str) {
        let error = clean_target(path).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }

    #[rstest]
    #[case(VolumeDriver::Local, &[], Some(20 << 30))]
    #[case(VolumeDriver::Local, &[("size", "1G")], Some(1 << 30))]
    #[case(VolumeDriver::Local, &[("size", "0")], None)]
    #[case(VolumeDriver::Local, &[("size", "1M")], None)]
    #[case(VolumeDriver::Local, &[("size", "2T")], None)]
    #[case(VolumeDriver::Local, &[("type", "nfs")], None)]
    #[case(VolumeDriver::Shared, &[], Some(20 << 30))]
    #[case(VolumeDriver::Shared, &[("size", "1G")], None)]
    fn volumes_have_a_size(
        #[case] driver: VolumeDriver,
        #[case] options: &[(&str, &str)],
        #[case] expected: Option<u64>,
    ) {
        let options: Vec<_> = options.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        let size = volume_size(driver, options.iter().map(|(name, value)| (name, value)));
        assert_eq!(size.as_ref().ok(), expected.as_ref());
        assert!(expected.is_some() || size.unwrap_err().to_string().contains("invalid volume option"));
    }
}
