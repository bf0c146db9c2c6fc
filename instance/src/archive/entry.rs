//! What is kept of a VM or container.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, open};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::lock::DirectoryLock;
use crate::record::Format;
use crate::{Process, VmId, VmName, VolumeName, written};

pub(super) const RECORD: &str = "record.json";
pub(super) const END: &str = "end.json";
/// What was asked for, so that another process can start it again.
const ORDER: &str = "order.json";
/// How it is, where its health is checked.
pub(super) const HEALTH: &str = "health.json";
/// The most bytes of that: five results with 4 KiB of output each.
const MAX_HEALTH: u64 = 256 << 10;
/// The name that it was given since it was made.
pub(super) const NAME: &str = "name";
/// Is there where a user has stopped it.
pub(super) const STOPPED: &str = "stopped";
/// The name of the file of a container's output, or of a VM's console.
pub(super) const OUTPUT: &str = "output.log";
/// The process that has it for a while without starting it.
pub(super) const VISITOR: &str = "visitor.json";
/// A record has a container's options and an image's configuration in it.
const MAX_SIZE: u64 = 4 << 20;

/// Which kind of thing it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A VM of `mvm boot`.
    Vm,
    /// A container of `mvm run`.
    Container,
    /// A pod, which has containers.
    Pod,
}

impl Kind {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Vm => "vm",
            Self::Container => "container",
            Self::Pod => "pod",
        }
    }
}

/// How far it has come, as long as it has not ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// It was made, and never started.
    Created,
    /// It was started.
    #[default]
    Started,
    /// It has ended, and its keeper is about to start it again.
    Restarting,
    /// Its VM was saved beside the record, and goes on from there when a user says so.
    Saved,
}

/// The record of a VM or container. Fields that another version of mvm has beyond these are passed over.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// The version of the record.
    #[serde(default = "Format::first")]
    pub format: Format,
    /// Its ID, which is the directory's name too.
    pub id: VmId,
    /// Its name.
    pub name: Option<VmName>,
    /// What it is.
    pub kind: Kind,
    /// When it was made, in milliseconds since 1970.
    pub created: u64,
    /// When its guest or its command began, in milliseconds since 1970.
    #[serde(default)]
    pub started: Option<u64>,
    /// How far it has come.
    #[serde(default)]
    pub phase: Phase,
    /// How often it was started again by its keeper since a user has started it.
    #[serde(default)]
    pub restarts: u32,
    /// The pod that it is in.
    #[serde(default)]
    pub pod: Option<VmId>,
    /// The process that keeps it, or has kept it last.
    pub process: Process,
    /// It is removed when it ends.
    #[serde(default)]
    pub removes: bool,
    /// The image as the user calls it, or the path of the VM's root disk.
    pub image: String,
    /// The image's ID.
    #[serde(default)]
    pub image_id: Option<String>,
    /// The command with its arguments, or the VM's kernel.
    #[serde(default)]
    pub command: Vec<String>,
    /// Published ports, as in `0.0.0.0:8080->80/tcp`.
    #[serde(default)]
    pub ports: Vec<String>,
    /// What the user calls it besides.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Volumes that it uses.
    #[serde(default)]
    pub volumes: Vec<VolumeName>,
    /// What `mvm inspect` shows beside all that.
    #[serde(default)]
    pub details: serde_json::Value,
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// The exit code.
    pub code: u8,
    /// The kernel killed a process of it, since it had no memory left.
    #[serde(default)]
    pub out_of_memory: bool,
    /// What went wrong, empty where nothing did.
    #[serde(default)]
    pub error: String,
    /// When, in milliseconds since 1970; 0 where that is not known.
    pub finished: u64,
}

impl End {
    /// That of one whose keeper was killed, or whose host went down: docker gives such a container the same code.
    pub fn unknown() -> Self {
        let error = "its process was killed, or the host went down".to_owned();
        Self { code: 255, out_of_memory: false, error, finished: 0 }
    }
}

/// What is wrong with a record that was kept.
#[derive(Debug, Error)]
pub enum EntryError {
    /// It can't be read.
    #[error("cannot read {RECORD}")]
    Read(#[source] io::Error),
    /// It is not a file, or is larger than any record.
    #[error("{RECORD} or {ORDER} is not a file of at most 4 MiB")]
    NotAFile,
    /// It is not JSON, or lacks something.
    #[error("{RECORD}")]
    Content(#[source] serde_json::Error),
    /// It is that of another one.
    #[error("{RECORD} belongs to {0}")]
    OfAnother(VmId),
    /// It does not say what was asked for.
    #[error("it has no {ORDER}: an older mvm has made it, which starts none again")]
    NoOrder,
    /// What it says was asked for can't be understood.
    #[error("{ORDER}")]
    Order(#[source] serde_json::Error),
}

/// A VM or container that was kept, as another process sees it.
#[derive(Debug)]
pub struct Kept {
    /// What it is.
    pub entry: Entry,
    /// Its directory.
    pub directory: PathBuf,
    /// Its keeper lives.
    pub is_running: bool,
    /// The file that says how it ended, which stays readable when the directory is gone.
    end: File,
}

pub(super) fn read_json<T: DeserializeOwned>(file: &File) -> Result<T, EntryError> {
    let metadata = file.metadata().map_err(EntryError::Read)?;
    if !metadata.is_file() || metadata.len() > MAX_SIZE {
        return Err(EntryError::NotAFile);
    }
    let mut content = Vec::new();
    file.take(MAX_SIZE).read_to_end(&mut content).map_err(EntryError::Read)?;
    serde_json::from_slice(&content).map_err(EntryError::Content)
}

/// The name that it was given since it was made, if it was.
fn new_name(directory: &Path) -> Option<VmName> {
    let mut text = String::new();
    let limit = u64::try_from(VmName::MAX).unwrap_or(u64::MAX);
    open_in(directory, NAME).ok()?.take(limit).read_to_string(&mut text).ok()?;
    text.parse().ok()
}

pub(super) fn read_order<T: DeserializeOwned>(directory: &Path) -> Result<T, EntryError> {
    let file = open_in(directory, ORDER).map_err(|error| match error {
        EntryError::Read(source) if source.kind() == io::ErrorKind::NotFound => EntryError::NoOrder,
        error => error,
    })?;
    read_json(&file).map_err(|error| match error {
        EntryError::Content(source) => EntryError::Order(source),
        error => error,
    })
}

/// Opens a file of a record. Whatever lies there instead of it, this returns soon.
pub(super) fn open_in(directory: &Path, name: &str) -> Result<File, EntryError> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = open(directory.join(name), flags, Mode::empty());
    Ok(file.map_err(|error| EntryError::Read(error.into()))?.into())
}

impl Kept {
    /// Reads what is in `directory`, which is that of `id`.
    pub(super) fn read(directory: PathBuf, id: &VmId) -> Result<Self, EntryError> {
        // Before it is read how it ended: one that has ended since is then taken for one that runs, and not for one
        // that was killed.
        let is_running = DirectoryLock::is_held(&directory);
        let mut entry: Entry = read_json(&open_in(&directory, RECORD)?)?;
        if entry.id != *id {
            return Err(EntryError::OfAnother(entry.id));
        }
        // Its keeper knows the name that it had when it began to run.
        if let Some(name) = new_name(&directory) {
            entry.name = Some(name);
        }
        let end = open_in(&directory, END)?;
        Ok(Self { entry, directory, is_running, end })
    }

    /// How it ended; `None` while it runs, where it was never started, and while it is saved.
    pub fn end(&self) -> Option<End> {
        if self.is_running || self.is_created() || self.is_saved() { None } else { Some(self.last_end()) }
    }

    /// It was made, and never started.
    pub fn is_created(&self) -> bool {
        self.entry.phase == Phase::Created
    }

    /// It does not run, and its VM goes on from what was saved of it when a user says so.
    pub fn is_saved(&self) -> bool {
        !self.is_running && self.entry.phase == Phase::Saved
    }

    /// It should have been removed at its end, and its keeper was killed before.
    pub(super) fn is_left(&self) -> bool {
        self.entry.removes && !self.is_running && !self.is_created() && !self.is_saved()
    }

    /// What was asked for.
    ///
    /// # Errors
    ///
    /// [`EntryError`]: one that another version of mvm has made has none, or it is damaged.
    pub fn order<T: DeserializeOwned>(&self) -> Result<T, EntryError> {
        read_order(&self.directory)
    }

    /// How it is, where its health is checked: `State.Health` of docker. It is that of its last life.
    pub fn health(&self) -> Option<serde_json::Value> {
        let mut content = Vec::new();
        open_in(&self.directory, HEALTH).ok()?.take(MAX_HEALTH).read_to_end(&mut content).ok()?;
        serde_json::from_slice(&content).ok()
    }

    /// Its keeper is about to start it again.
    pub fn is_restarting(&self) -> bool {
        self.is_running && self.entry.phase == Phase::Restarting
    }

    /// A user has stopped it since it was started.
    pub fn is_stopped(&self) -> bool {
        self.directory.join(STOPPED).exists()
    }

    /// The process that has it for a while without starting it, if one does.
    pub fn visitor(&self) -> Option<Process> {
        let visitor: Process =
            read_json(&open_in(&self.directory, VISITOR).ok().filter(|_| self.is_running)?).ok()?;
        // One that was killed has left its name.
        visitor.open().is_ok().then_some(visitor)
    }

    /// How it ended, once its keeper's process has.
    pub fn last_end(&self) -> End {
        use std::os::unix::fs::FileExt;
        let mut content = [0; 64 << 10];
        let count = self.end.read_at(&mut content, 0).unwrap_or(0);
        serde_json::from_slice(content.get(..count).unwrap_or_default()).unwrap_or_else(|_| End::unknown())
    }

    /// The file of its output.
    pub fn output(&self) -> PathBuf {
        self.directory.join(OUTPUT)
    }
}

/// Keeps how the container is whose directory is `directory`.
///
/// # Errors
///
/// Those of writing it.
pub fn write_health(directory: &Path, content: &[u8]) -> io::Result<()> {
    written::replace_for_now(&directory.join(HEALTH), "health.json.new", content)
}

/// Writes the record in one step, so that no reader sees a part of it.
pub(super) fn write_record(directory: &Path, entry: &Entry) -> io::Result<()> {
    let record = serde_json::to_vec(entry)?;
    check_size(&record)?;
    replace(entry)(&directory.join(RECORD), "record.json.new", &record)
}

/// Writes what was asked for by `entry`, in one step too.
pub(super) fn write_order(directory: &Path, entry: &Entry, order: &impl Serialize) -> io::Result<()> {
    let content = serde_json::to_vec(order)?;
    check_size(&content)?;
    replace(entry)(&directory.join(ORDER), "order.json.new", &content)
}

/// How a file of `entry` is written. One that runs and is removed at its end is gone after a crash of the host, so that
/// the disk is not waited for.
fn replace(entry: &Entry) -> fn(&Path, &str, &[u8]) -> io::Result<()> {
    let lasts = !entry.removes || matches!(entry.phase, Phase::Created | Phase::Saved);
    if lasts { written::replace } else { written::replace_for_now }
}

fn check_size(content: &[u8]) -> io::Result<()> {
    if u64::try_from(content.len()).is_ok_and(|length| length <= MAX_SIZE) {
        return Ok(());
    }
    let text = format!(
        "its record would have {} MiB, more than {}: give fewer ports, or an image with a smaller environment",
        content.len() >> 20,
        MAX_SIZE >> 20
    );
    Err(io::Error::new(io::ErrorKind::InvalidInput, text))
}

/// Removes the record and then the rest of `directory`: what is left of it after a crash is no entry any more.
pub(super) fn remove_files(directory: &Path) -> io::Result<()> {
    remove_record(directory)?;
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes the record of what is in `directory`, if there is one.
pub(super) fn remove_record(directory: &Path) -> io::Result<()> {
    let record = directory.join(RECORD);
    match fs::remove_file(&record) {
        // What lies there was not put there by mvm.
        Err(error) if error.kind() == io::ErrorKind::IsADirectory => fs::remove_dir_all(&record),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Whether `directory` has a record.
pub(super) fn has_record(directory: &Path) -> bool {
    fs::symlink_metadata(directory.join(RECORD)).is_ok()
}
