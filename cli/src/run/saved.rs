//! Containers whose VM is saved beside their record, and goes on from there.
//!
//! ```text
//! DIRECTORY/saved/
//! ├── state
//! ├── memory
//! └── disks.json     what its disks were like: what has changed since does not fit the memory
//! ```
//!
//! While a VM starts from them they are in `resuming`: a container that has run on does not go on from there again.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use container::Copied;
use instance::api::{State, VmUpdate, WantedState};
use instance::{Archive, End, Entry, Keep, Kept, Kind, Phase, Running, Volumes, time};
use serde::{Deserialize, Serialize};
use vmm::{SavedVm, Snapshot};

use super::in_the_background;
use super::keep::{Side, Which, keep};
use super::start::prepare;
use crate::snapshot::{MAX_STATE, save_memory};
use crate::targets::{self, Failure};
use crate::{chain, events, exit_code};

const SAVED: &str = "saved";
const RESUMING: &str = "resuming";
const NEW: &str = "saved.new";
const STATE: &str = "state";
const MEMORY: &str = "memory";
const DISKS: &str = "disks.json";
/// The most bytes of the last.
const MAX_DISKS: u64 = 1 << 20;
/// How long a keeper has to end once its VM has.
const DEADLINE: Duration = Duration::from_secs(30);

/// A disk when its VM was saved.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Disk {
    path: PathBuf,
    bytes: u64,
    inode: u64,
    /// When it was written last, in seconds since 1970 and nanoseconds.
    changed: (i64, i64),
}

impl Disk {
    fn of(path: PathBuf) -> io::Result<Self> {
        let metadata = fs::metadata(&path)?;
        let changed = (metadata.mtime(), metadata.mtime_nsec());
        Ok(Self { bytes: metadata.len(), inode: metadata.ino(), changed, path })
    }
}

/// The disks that the VM of a container can write to.
fn disks(directory: &Path, entry: &Entry) -> io::Result<Vec<Disk>> {
    let volumes = Volumes::of_user().map_err(io::Error::other)?;
    let content = |name| volumes.find(name).map(|volume| volume.content()).map_err(io::Error::other);
    let changes = Some(container::changes_path(directory)).filter(|path| path.exists());
    let paths = changes.into_iter().map(Ok).chain(entry.volumes.iter().map(content));
    paths.map(|path| Disk::of(path?)).collect()
}

/// Saves the VM of the container that runs in `vm` beside its record, and ends the VM.
///
/// # Errors
///
/// The container runs on, unless its VM was saved.
pub fn save(vm: &Running) -> Result<(), Failure> {
    let kept = targets::kept(vm.record.id.as_str())?;
    if kept.entry.kind != Kind::Container {
        return Err(Failure::Save("only containers are saved: use `mvm snapshot`".into()));
    }
    if kept.entry.pod.is_some() {
        return Err(Failure::Save("it is in a pod, whose VM has other containers too".into()));
    }
    if kept.entry.started.is_none() {
        return Err(Failure::NotStarted);
    }
    let failed =
        |what: &'static str| move |error: io::Error| Failure::Save(format!("cannot {what}: {error}"));
    let mut client = targets::client(vm)?;
    // It is not to run on from where it was saved.
    let was_paused = targets::state(&vm.directory) == Some(State::Paused);
    client.send("PATCH", "/vm", &VmUpdate { state: WantedState::Paused })?;
    let directory = kept.directory.join(NEW);
    let written = write(vm, &directory).map_err(Failure::Save);
    let written = written.and_then(|()| {
        let process = vm.record.process.open()?;
        fs::rename(&directory, kept.directory.join(SAVED)).map_err(failed("write to its directory"))?;
        Ok(process)
    });
    let process = match written {
        Ok(process) => process,
        Err(failure) => {
            let _ = fs::remove_dir_all(&directory);
            if !was_paused {
                client.send("PATCH", "/vm", &VmUpdate { state: WantedState::Resumed })?;
            }
            return Err(failure);
        }
    };
    client.kill_server().map_err(failed("end its VM"))?;
    if !process.wait(Some(DEADLINE)) {
        return Err(Failure::NotEnded);
    }
    events::note(&kept.entry, "pause", &[]);
    Ok(())
}

/// Writes the state and the memory of the VM, which is paused, to files in `directory`, which is made.
fn write(vm: &Running, directory: &Path) -> Result<(), String> {
    let failed = |error: io::Error| format!("cannot write to {}: {error}", directory.display());
    let _ = fs::remove_dir_all(directory);
    DirBuilder::new().mode(0o700).create(directory).map_err(failed)?;
    let file = |name| {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600).open(directory.join(name)).map_err(failed)
    };
    let (state, memory) = (file(STATE)?, file(MEMORY)?);
    save_memory(vm, &state, &memory)?;
    state.sync_all().and_then(|()| memory.sync_all()).map_err(failed)
}

/// Notes what the disks of a container are like whose VM was saved and has ended. Its keeper calls it.
///
/// # Errors
///
/// Those of writing it.
pub fn note_disks(keep: &Keep) -> io::Result<()> {
    let directory = keep.directory();
    let content = serde_json::to_vec(&disks(directory, keep.entry())?)?;
    let mut options = OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600);
    file.open(directory.join(SAVED).join(DISKS))?.write_all(&content)
}

/// Whether the VM of the container in `directory` was saved and ended by that.
pub fn is_there(directory: &Path) -> bool {
    directory.join(SAVED).exists()
}

/// Puts back what a VM should have gone on from that did not run.
pub fn put_back(directory: &Path) {
    let _ = fs::rename(directory.join(RESUMING), directory.join(SAVED));
}

/// Removes what a VM has gone on from.
pub fn remove(directory: &Path) {
    let _ = fs::remove_dir_all(directory.join(RESUMING));
}

/// Has the container that is called `word`, which is saved, go on in the background.
///
/// # Errors
///
/// It is as it was, unless its guest has run.
pub fn resume(word: &str) -> Result<(), Failure> {
    let kept = targets::kept_alone(word)?;
    if !kept.is_saved() {
        return Err(Failure::NotPaused);
    }
    let (order, mut means) = prepare(&kept)?;
    means.copied = Some(open(&kept).map_err(Failure::Start)?);
    means.resumes = true;
    let which = Which::Kept(kept.entry.id.clone());
    in_the_background(|reporter| keep(&order, means, which, Side::Background { reporter, front: None }))
        .map_err(|failure| Failure::Start(failure.message))?;
    events::note(&kept.entry, "unpause", &[]);
    Ok(())
}

/// Ends the container of `kept`, which is saved, as if it had been killed: nothing goes on from what was saved.
///
/// # Errors
///
/// Another process has it, or its record can't be written.
pub fn discard(kept: &Kept) -> Result<(), Failure> {
    let archive = Archive::of_user()?;
    let mut keep = archive.take(&kept.entry.id)?.ok_or(Failure::NotEnded)?;
    let code = exit_code::of_signal(libc::SIGKILL);
    let end = End { code, out_of_memory: false, error: String::new(), finished: time::now() };
    let ended = keep.begin(|entry| entry.phase = Phase::Started).and_then(|()| keep.ended(&end));
    ended.map_err(|error| Failure::Save(format!("cannot note that it has ended: {error}")))?;
    for name in [SAVED, RESUMING] {
        let _ = fs::remove_dir_all(kept.directory.join(name));
    }
    events::note(keep.entry(), "die", &[("exitCode", &code.to_string())]);
    if kept.entry.removes {
        archive.remove_own(&keep)?;
        events::note(keep.entry(), "destroy", &[]);
    }
    Ok(())
}

/// What the container goes on from.
fn open(kept: &Kept) -> Result<Copied, String> {
    let (saved, resuming) = (kept.directory.join(SAVED), kept.directory.join(RESUMING));
    // A process that was killed has left them there.
    if !saved.exists() {
        put_back(&kept.directory);
    }
    let failed = |error: io::Error| format!("cannot read what was saved of it: {error}");
    let read = |name, most| -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        File::open(saved.join(name))?.take(most).read_to_end(&mut content)?;
        Ok(content)
    };
    let were: Vec<Disk> =
        read(DISKS, MAX_DISKS).and_then(|content| Ok(serde_json::from_slice(&content)?)).map_err(failed)?;
    let are =
        disks(&kept.directory, &kept.entry).map_err(|error| format!("cannot look at its disks: {error}"))?;
    if let Some(disk) = were.iter().find(|disk| !are.contains(disk)) {
        return Err(format!(
            "its disk {} has changed since it was saved, so that it cannot go on: `mvm kill` it to start it anew",
            disk.path.display()
        ));
    }
    let state = SavedVm::decode(&read(STATE, MAX_STATE).map_err(failed)?).map_err(|error| chain(&error))?;
    let memory = File::open(saved.join(MEMORY)).map_err(failed)?;
    fs::rename(&saved, &resuming).map_err(failed)?;
    let snapshot = Snapshot { state, memory };
    Ok(Copied { snapshot, container: kept.entry.id.to_string(), changes: None })
}
