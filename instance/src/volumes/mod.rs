//! Volumes: what containers write and what stays when they are gone.
//!
//! ```text
//! $MVM_DATA_DIR/volumes/      0700; its lock is held while a volume is added
//! └── data/                   0700; its lock is held by the keeper of the container that uses it, and by who removes
//! it
//!     ├── volume.json         what it is, see [`VolumeRecord`]
//!     ├── disk.ext4           what is in it, a disk that one VM has at a time
//!     └── data/               or, of the driver `shared`, a directory
//! ```
//!
//! A directory without a record is what is left of one that was being made or removed by a process that was killed.
//! What a VM has written to a disk is never read here.

mod name;
mod removal;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use self::name::{VolumeName, VolumeNameError};

use crate::lock::DirectoryLock;
use crate::record::Format;
use crate::{Event, InstanceError, place, written};

const RECORD: &str = "volume.json";
const NEW_RECORD: &str = "volume.json.new";
const DISK: &str = "disk.ext4";
const DATA: &str = "data";
/// A record has labels of the user's.
const MAX_SIZE: u64 = 1 << 20;

/// What a volume is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VolumeDriver {
    /// A disk, which one VM has at a time.
    #[default]
    Local,
    /// A directory of the host, which any number of VMs share.
    Shared,
}

impl VolumeDriver {
    /// Its name, as `--driver` takes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Shared => "shared",
        }
    }
}

/// The record of a volume. Fields that another version of mvm has beyond these are passed over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeRecord {
    /// The version of the record.
    #[serde(default = "Format::first")]
    pub format: Format,
    /// What it is called.
    pub name: VolumeName,
    /// What it is made of.
    #[serde(default)]
    pub driver: VolumeDriver,
    /// When it was made, in milliseconds since 1970.
    pub created: u64,
    /// It was made for one container, without a name of the user's.
    #[serde(default)]
    pub is_anonymous: bool,
    /// What the user calls it besides.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// What the user asked for when it was made.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
}

/// Why a volume can't be used, made or removed.
#[derive(Debug, Error)]
pub enum VolumeError {
    /// Nothing is called so.
    #[error("there is no volume {0}: `mvm volume ls` lists them")]
    NotFound(VolumeName),
    /// A VM has it.
    #[error(
        "volume {0} is in use by another container: it is a disk, which one VM has at a time; stop that container, or \
        use a volume of `mvm volume create --driver shared`"
    )]
    Busy(VolumeName),
    /// Its record can't be used.
    #[error("the record of volume {name} is damaged: `mvm volume rm -f {name}` removes it")]
    Record {
        /// Whose.
        name: VolumeName,
        /// What is wrong with it.
        #[source]
        source: io::Error,
    },
    /// A link is in the place of its directory.
    #[error(
        "volume {name} is a symbolic link, which is not followed: replace {} by the directory that it leads to", .path.display()
    )]
    Link {
        /// Whose.
        name: VolumeName,
        /// The link.
        path: PathBuf,
    },
    /// It is there, and is something else.
    #[error("volume {0} exists with the driver {driver}: remove it first, or give another name", driver = .1.as_str())]
    OtherDriver(VolumeName, VolumeDriver),
    /// The directories of volumes.
    #[error(transparent)]
    Instance(#[from] InstanceError),
    /// A step of making or removing it failed.
    #[error("cannot {doing} volume {name}")]
    Host {
        /// What was being done.
        doing: &'static str,
        /// To which.
        name: VolumeName,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// A volume that is there.
#[derive(Clone, Debug)]
pub struct Volume {
    /// What it is.
    pub record: VolumeRecord,
    /// Its directory.
    pub directory: PathBuf,
}

impl Volume {
    /// What is in it: the file of a disk, or a directory.
    pub fn content(&self) -> PathBuf {
        content(&self.directory, self.record.driver)
    }

    /// Bytes on the host's disk.
    pub fn disk_usage(&self) -> u64 {
        usage(&self.content(), &mut 1_000_000)
    }
}

/// What is in a volume: the file of a disk, or a directory.
fn content(directory: &Path, driver: VolumeDriver) -> PathBuf {
    directory.join(if driver == VolumeDriver::Local { DISK } else { DATA })
}

/// Bytes on the disk of what is at `path`, where `left` counts how many more files are looked at.
fn usage(path: &Path, left: &mut usize) -> u64 {
    let (mut total, mut waiting) = (0_u64, vec![path.to_owned()]);
    while let Some(path) = waiting.pop() {
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        total = total.saturating_add(metadata.blocks().saturating_mul(512));
        *left = left.saturating_sub(1);
        if *left == 0 {
            break;
        }
        if metadata.is_dir() {
            // A guest may have made any number of them.
            let room = left.saturating_sub(waiting.len());
            let entries = fs::read_dir(&path).into_iter().flatten().flatten();
            waiting.extend(entries.map(|entry| entry.path()).take(room));
        }
    }
    total
}

/// A volume that a container has, which no other may remove, or, where it is a disk, use.
pub struct VolumeHold {
    /// The volume.
    pub volume: Volume,
    _lock: DirectoryLock,
}

/// All volumes of a user's.
#[derive(Clone, Debug)]
pub struct Volumes {
    base: PathBuf,
}

impl Volumes {
    /// Those of this process's user.
    ///
    /// # Errors
    ///
    /// [`InstanceError::NoDataDirectory`].
    pub fn of_user() -> Result<Self, InstanceError> {
        let data = place::data_directory().ok_or(InstanceError::NoDataDirectory)?;
        Ok(Self::beside(&data))
    }

    /// Those whose directory is in `data`.
    pub fn beside(data: &Path) -> Self {
        Self { base: data.join("volumes") }
    }

    /// All of them by name, and what is wrong with those that can't be read. What killed processes left is removed,
    /// unless that would have to wait.
    ///
    /// # Errors
    ///
    /// Those of reading the directory.
    pub fn all(&self) -> Result<(Vec<Volume>, Vec<VolumeError>), VolumeError> {
        let entries = match fs::read_dir(&self.base) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((Vec::new(), Vec::new())),
            Err(error) => return Err(InstanceError::directory("read", &self.base)(error).into()),
        };
        let mut names: Vec<VolumeName> =
            entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
        names.sort();
        let (mut all, mut damaged, mut remains) = (Vec::new(), Vec::new(), Vec::new());
        for name in names {
            match self.find(&name) {
                Ok(volume) => all.push(volume),
                Err(VolumeError::NotFound(name)) => remains.push(name),
                Err(error) => damaged.push(error),
            }
        }
        // One that is being made has no record yet either: the lock says that none is.
        if !remains.is_empty()
            && let Ok(Some(_adding)) = DirectoryLock::attempt(&self.base)
        {
            remains.iter().for_each(|name| self.remove_remains(name));
        }
        Ok((all, damaged))
    }

    /// Removes the directory of a volume without a record, unless another process is about to.
    fn remove_remains(&self, name: &VolumeName) {
        let directory = self.directory(name);
        if let Ok(Some(_free)) = DirectoryLock::attempt(&directory)
            && matches!(self.find(name), Err(VolumeError::NotFound(_)))
        {
            let _ = remove_all(&directory);
        }
    }

    /// The one that is called `name`.
    ///
    /// # Errors
    ///
    /// [`VolumeError::NotFound`], [`VolumeError::Link`], [`VolumeError::Record`].
    pub fn find(&self, name: &VolumeName) -> Result<Volume, VolumeError> {
        let directory = self.directory(name);
        check_link(name, &directory)?;
        match read_record(&directory, name) {
            Ok(record) => Ok(Volume { record, directory }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(VolumeError::NotFound(name.clone())),
            Err(source) => Err(VolumeError::Record { name: name.clone(), source }),
        }
    }

    /// Makes the volume that `record` describes, whose content `fill` makes at the path that it gets. Returns the one
    /// that is there where it has been made already, and whether it is new.
    ///
    /// # Errors
    ///
    /// [`VolumeError`]; nothing is left of one that can't be made.
    pub fn create(
        &self,
        record: &VolumeRecord,
        fill: impl FnOnce(&Path) -> io::Result<()>,
    ) -> Result<(Volume, bool), VolumeError> {
        let name = &record.name;
        let _adding = self.lock()?;
        match self.find(name) {
            Ok(volume) if volume.record.driver == record.driver => return Ok((volume, false)),
            Ok(volume) => return Err(VolumeError::OtherDriver(name.clone(), volume.record.driver)),
            Err(VolumeError::NotFound(_)) => {}
            Err(error) => return Err(error),
        }
        let directory = self.directory(name);
        let host = |source| VolumeError::Host { doing: "make", name: name.clone(), source };
        // What a killed process left of it.
        remove_all(&directory).map_err(host)?;
        let made = place::create_private(&directory)
            .and_then(|()| fill(&content(&directory, record.driver)))
            .and_then(|()| write_record(&directory, record));
        if let Err(error) = made {
            let _ = remove_all(&directory);
            return Err(host(error));
        }
        self.note("create", record);
        Ok((Volume { record: record.clone(), directory }, true))
    }

    /// Makes the volume that `record` describes, which nobody else knows of yet, and holds it. Others can make volumes
    /// while `fill` makes its content, however long that takes.
    ///
    /// # Errors
    ///
    /// [`VolumeError`]; nothing is left of one that can't be made.
    pub fn create_held(
        &self,
        record: &VolumeRecord,
        fill: impl FnOnce(&Path) -> io::Result<()>,
    ) -> Result<VolumeHold, VolumeError> {
        let name = &record.name;
        let directory = self.directory(name);
        let host = |source| VolumeError::Host { doing: "make", name: name.clone(), source };
        let adding = self.lock()?;
        place::create_private(&directory).map_err(host)?;
        // With it the directory is not taken for one that was left, as long as it has no record.
        let lock =
            DirectoryLock::attempt(&directory).and_then(|lock| lock.ok_or(io::ErrorKind::WouldBlock.into()));
        drop(adding);
        let made = lock.and_then(|lock| {
            fill(&content(&directory, record.driver))?;
            write_record(&directory, record).map(|()| lock)
        });
        let lock = made.map_err(|error| {
            let _ = remove_all(&directory);
            host(error)
        })?;
        self.note("create", record);
        Ok(VolumeHold { volume: Volume { record: record.clone(), directory }, _lock: lock })
    }

    /// Holds the volume that is called `name` for a container: a disk for that one alone.
    ///
    /// # Errors
    ///
    /// [`VolumeError::Busy`], [`VolumeError::NotFound`] and what else can be wrong with it.
    pub fn hold(&self, name: &VolumeName) -> Result<VolumeHold, VolumeError> {
        let directory = self.directory(name);
        let host = |source| VolumeError::Host { doing: "lock", name: name.clone(), source };
        let volume = self.find(name)?;
        let locked = match volume.record.driver {
            VolumeDriver::Local => DirectoryLock::attempt(&directory),
            VolumeDriver::Shared => DirectoryLock::share(&directory),
        };
        let lock = match locked {
            Ok(Some(lock)) => lock,
            Ok(None) => return Err(VolumeError::Busy(name.clone())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(VolumeError::NotFound(name.clone()));
            }
            Err(error) => return Err(host(error)),
        };
        // It was removed before the lock was had, and maybe another one was made.
        if !lock.is_at(&directory) {
            return Err(VolumeError::NotFound(name.clone()));
        }
        Ok(VolumeHold { volume, _lock: lock })
    }

    /// Removes the volume that is called `name`, unless a VM has it or `is_used` says that it is used. Returns false
    /// then.
    ///
    /// # Errors
    ///
    /// [`VolumeError::NotFound`] and those of the file system.
    pub fn remove(&self, name: &VolumeName, is_used: impl FnOnce() -> bool) -> Result<bool, VolumeError> {
        let directory = self.directory(name);
        let host = |source| VolumeError::Host { doing: "remove", name: name.clone(), source };
        check_link(name, &directory)?;
        let lock = match DirectoryLock::attempt(&directory) {
            Ok(Some(lock)) => lock,
            Ok(None) => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(VolumeError::NotFound(name.clone()));
            }
            Err(error) => return Err(host(error)),
        };
        // Who uses it has noted so before it gave the lock back.
        if is_used() || !lock.is_at(&directory) {
            return Ok(false);
        }
        // One whose record is damaged is removed as well.
        let record = self.find(name).map(|volume| volume.record).ok();
        remove_all(&directory).map_err(host)?;
        record.iter().for_each(|record| self.note("destroy", record));
        Ok(true)
    }

    /// Notes what has happened to a volume.
    fn note(&self, action: &str, record: &VolumeRecord) {
        let driver = ("driver".to_owned(), record.driver.as_str().to_owned());
        let event = Event::now("volume", action, record.name.as_str(), BTreeMap::from([driver]));
        if let Some(data) = self.base.parent() {
            event.note_in(data);
        }
    }

    /// Where what is in a volume is, or will be when it is made.
    pub fn content_of(&self, name: &VolumeName, driver: VolumeDriver) -> PathBuf {
        content(&self.directory(name), driver)
    }

    fn directory(&self, name: &VolumeName) -> PathBuf {
        self.base.join(name.as_str())
    }

    /// The lock of the base directory, which is made where it is missing.
    fn lock(&self) -> Result<DirectoryLock, InstanceError> {
        if let Some(parent) = self.base.parent() {
            fs::create_dir_all(parent).map_err(InstanceError::directory("make", parent))?;
        }
        let directory = place::make_and_open(&self.base)?;
        DirectoryLock::wait_for(directory).map_err(InstanceError::directory("lock", &self.base))
    }
}

/// Refuses a link in the place of a volume's directory: locks are those of directories, and removal follows no link.
fn check_link(name: &VolumeName, directory: &Path) -> Result<(), VolumeError> {
    match fs::symlink_metadata(directory) {
        Ok(metadata) if metadata.is_symlink() => {
            Err(VolumeError::Link { name: name.clone(), path: directory.to_owned() })
        }
        _ => Ok(()),
    }
}

fn read_record(directory: &Path, name: &VolumeName) -> io::Result<VolumeRecord> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(directory.join(RECORD))?;
    let invalid = |text: String| io::Error::new(io::ErrorKind::InvalidData, text);
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() > MAX_SIZE {
        return Err(invalid(format!("{RECORD} is not a file of at most 1 MiB")));
    }
    let mut content = Vec::new();
    file.take(MAX_SIZE).read_to_end(&mut content)?;
    let record: VolumeRecord =
        serde_json::from_slice(&content).map_err(|error| invalid(format!("{RECORD}: {error}")))?;
    if record.name == *name { Ok(record) } else { Err(invalid(format!("it belongs to {}", record.name))) }
}

/// Writes the record in one step: a directory that has it is complete.
fn write_record(directory: &Path, record: &VolumeRecord) -> io::Result<()> {
    let text = serde_json::to_vec(record)?;
    if u64::try_from(text.len()).is_ok_and(|length| length > MAX_SIZE) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "its labels have more than 1 MiB"));
    }
    written::replace(&directory.join(RECORD), NEW_RECORD, &text)
}

/// Removes the record and then the rest of `directory`: what is left of it after a crash is no volume any more.
fn remove_all(directory: &Path) -> io::Result<()> {
    match fs::remove_file(directory.join(RECORD)) {
        // What is no file goes with the rest.
        Err(error) if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::IsADirectory) => {
            return Err(error);
        }
        _ => {}
    }
    match removal::remove_tree(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
