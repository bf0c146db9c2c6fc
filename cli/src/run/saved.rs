//! Containers and VMs that are saved beside their record, and go on from there.
//!
//! ```text
//! DIRECTORY/saved/
//! ├── state
//! ├── memory
//! ├── vm.json        its disks, and the options of one that is no container
//! └── disks.json     what its disks were like: what has changed since does not fit the memory
//! ```
//!
//! While a VM starts from them they are in `resuming`: what has run on does not go on from there again.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use container::Copied;
use instance::api::{State, VmUpdate, WantedState};
use instance::{Archive, End, InstanceError, Keep, Kept, Kind, Phase, Process, Running, VmId, Volumes, time};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use vmm::{SavedVm, Snapshot};

use super::in_the_background;
use super::keep::{Side, Which, keep};
use super::start::prepare;
use crate::snapshot::{MAX_STATE, SavedDisk, options, save_memory, with_own_disks};
use crate::targets::{self, Failure};
use crate::{boot, chain, events, exit_code};

const SAVED: &str = "saved";
const RESUMING: &str = "resuming";
const NEW: &str = "saved.new";
const STATE: &str = "state";
const MEMORY: &str = "memory";
const VM: &str = "vm.json";
const DISKS: &str = "disks.json";
/// The most bytes of the last two.
const MAX_JSON: u64 = 1 << 20;
/// How long a keeper has to end once its VM has.
const DEADLINE: Duration = Duration::from_secs(30);

/// What was saved.
#[derive(Serialize, Deserialize)]
struct Vm {
    /// The options of a VM, as in a configuration file.
    options: Option<Value>,
    /// The disks that the guest can write to.
    disks: Vec<PathBuf>,
    /// The process that has saved it, and lives until its keeper has noted that.
    saver: Process,
}

impl Vm {
    /// That of `kept`, which runs in `vm`.
    fn of(kept: &Kept, vm: &Running) -> Result<Self, String> {
        let saver = Process::own().map_err(|error| format!("cannot name this process: {}", chain(&error)))?;
        if kept.entry.kind == Kind::Vm {
            let (options, disks) = options(vm)?;
            return Ok(Self { options: Some(options), disks, saver });
        }
        let volumes = Volumes::of_user().map_err(|error| chain(&error))?;
        let content = |name| Ok(volumes.find(name).map_err(|error| chain(&error))?.content());
        let changes = Some(container::changes_path(&kept.directory)).filter(|path| path.exists());
        let disks = changes.into_iter().map(Ok).chain(kept.entry.volumes.iter().map(content));
        Ok(Self { options: None, disks: disks.collect::<Result<_, String>>()?, saver })
    }

    /// What its disks are like.
    fn disks(&self) -> io::Result<Vec<SavedDisk>> {
        self.disks.iter().map(|path| SavedDisk::of(path)).collect()
    }
}

fn write_json(path: &Path, content: &impl Serialize) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(&serde_json::to_vec(content)?)?;
    file.sync_all()
}

fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    File::open(path)?.take(most).read_to_end(&mut content)?;
    Ok(content)
}

fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    Ok(serde_json::from_slice(&read(path, MAX_JSON)?)?)
}

/// Saves the container or VM that runs in `vm` beside its record, and ends the VM.
///
/// # Errors
///
/// It runs on, unless it was saved.
pub fn save(vm: &Running) -> Result<(), Failure> {
    let kept = targets::kept(vm.record.id.as_str()).map_err(|error| match error {
        InstanceError::NotFound(_) => Failure::Save(
            "it is a VM in the foreground: `mvm snapshot` saves it, and `mvm boot -d` runs one in the background".into(),
        ),
        error => error.into(),
    })?;
    if kept.entry.pod.is_some() {
        return Err(Failure::Save("it is in a pod, whose VM has other containers too".into()));
    }
    if kept.entry.started.is_none() {
        return Err(Failure::NotStarted);
    }
    let mut client = targets::client(vm)?;
    // It is not to run on from where it was saved.
    let was_paused = targets::state(&vm.directory) == Some(State::Paused);
    client.send("PATCH", "/vm", &VmUpdate { state: WantedState::Paused })?;
    let directory = kept.directory.join(NEW);
    let written = write(&kept, vm, &directory).map_err(Failure::Save);
    let process = match written.and_then(|()| Ok(vm.record.process.open()?)) {
        Ok(process) => process,
        Err(failure) => {
            let _ = fs::remove_dir_all(&directory);
            if !was_paused {
                client.send("PATCH", "/vm", &VmUpdate { state: WantedState::Resumed })?;
            }
            return Err(failure);
        }
    };
    client.kill_server().map_err(|error| Failure::Save(format!("cannot end its VM: {error}")))?;
    // Which notes that it is saved.
    if !process.wait(Some(DEADLINE)) {
        return Err(Failure::NotEnded);
    }
    if !kept.directory.join(SAVED).exists() {
        return Err(Failure::Save("its keeper could not note that it is saved: it has ended".into()));
    }
    events::note(&kept.entry, "pause", &[]);
    Ok(())
}

/// Writes what is saved of `kept`, whose VM is paused, to files in `directory`, which is made.
fn write(kept: &Kept, vm: &Running, directory: &Path) -> Result<(), String> {
    let failed = |error: io::Error| format!("cannot write to {}: {error}", directory.display());
    let _ = fs::remove_dir_all(directory);
    DirBuilder::new().mode(0o700).create(directory).map_err(failed)?;
    let file = |name| {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600).open(directory.join(name)).map_err(failed)
    };
    let (state, memory) = (file(STATE)?, file(MEMORY)?);
    let vm_and_saver = Vm::of(kept, vm)?;
    save_memory(vm, &state, &memory)?;
    state.sync_all().and_then(|()| memory.sync_all()).map_err(failed)?;
    // With it all is there.
    write_json(&directory.join(VM), &vm_and_saver).map_err(failed)
}

/// Notes that what `keep` is of was saved, if its VM has ended by that. Its keeper calls it.
pub fn note(keep: &mut Keep) -> bool {
    let new = keep.directory().join(NEW);
    let Ok(vm) = read_json::<Vm>(&new.join(VM)) else { return false };
    // It may have run on since, where the process that saved it was killed.
    if vm.saver.open().is_err() {
        let _ = fs::remove_dir_all(new);
        return false;
    }
    let noted = vm.disks().and_then(|disks| write_json(&new.join(DISKS), &disks));
    let noted = noted.and_then(|()| fs::rename(&new, keep.directory().join(SAVED)));
    let noted = noted.and_then(|()| keep.change(|entry| entry.phase = Phase::Saved));
    if let Err(error) = &noted {
        tracing::warn!(%error, "cannot note that it is saved");
    }
    noted.is_ok()
}

/// Whether what a VM was to go on from is in `directory` yet.
fn is_resuming(directory: &Path) -> bool {
    directory.join(RESUMING).exists()
}

/// Removes what a VM has gone on from.
pub fn remove(directory: &Path) {
    let _ = fs::remove_dir_all(directory.join(RESUMING));
}

/// Has what is called `word` and is saved go on in the background.
///
/// # Errors
///
/// It is as it was, unless its guest has run.
pub fn resume(word: &str) -> Result<(), Failure> {
    let kept = targets::kept_alone(word)?;
    if !kept.is_saved() {
        return Err(Failure::NotPaused);
    }
    if kept.entry.kind == Kind::Vm {
        resume_vm(&kept)?
    } else {
        resume_container(&kept)?
    }
    events::note(&kept.entry, "unpause", &[]);
    Ok(())
}

fn resume_container(kept: &Kept) -> Result<(), Failure> {
    let (order, mut means) = prepare(kept)?;
    let (snapshot, _) = open(kept).map_err(Failure::Start)?;
    let container = kept.entry.id.to_string();
    means.copied = Some(Copied { snapshot, container, changes: None });
    let which = Which::Kept(kept.entry.id.clone());
    in_the_background(|reporter| keep(&order, means, which, Side::Background { reporter, front: None }))
        .map(drop)
        .map_err(|failure| Failure::Start(failure.message))
}

fn resume_vm(kept: &Kept) -> Result<(), Failure> {
    let start = |message: String| Failure::Start(message);
    let (snapshot, Vm { options, .. }) = open(kept).map_err(start)?;
    let options = options.ok_or_else(|| start("what was saved of it has no options".into()))?;
    let (config, opened) = with_own_disks(&options, snapshot).map_err(start)?;
    let config = boot::confined(config, None).map_err(start)?;
    let keep = Archive::of_user()?.take(&kept.entry.id)?.ok_or(Failure::Running)?;
    let mut keep = Some(keep);
    // The process in the background has it from then on.
    let resumed = in_the_background(|reporter| match keep.take() {
        Some(keep) => boot::resume(config, keep, opened, reporter),
        None => exit_code::HOST,
    });
    resumed.map(drop).map_err(|failure| start(failure.message))
}

/// Notes that what `keep` is of is saved as it was, if it was to go on from that and its VM did not run.
pub fn stay(keep: &mut Keep) -> bool {
    if !is_resuming(keep.directory()) {
        return false;
    }
    if let Err(error) = keep.change(|entry| entry.phase = Phase::Saved) {
        tracing::warn!(%error, "cannot note that it is saved");
    }
    put_back(keep.directory());
    true
}

/// The same of the one called `id`, which no process has.
pub fn stay_by(id: &VmId) -> bool {
    let keep = Archive::of_user().and_then(|archive| archive.take(id));
    keep.is_ok_and(|keep| keep.is_some_and(|mut keep| stay(&mut keep)))
}

/// Puts back what a VM should have gone on from that did not run.
fn put_back(directory: &Path) {
    let _ = fs::rename(directory.join(RESUMING), directory.join(SAVED));
}

/// Ends what is saved as if it had been killed: nothing goes on from what was saved.
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
    for name in [NEW, SAVED, RESUMING] {
        let _ = fs::remove_dir_all(kept.directory.join(name));
    }
    events::note(keep.entry(), "die", &[("exitCode", &code.to_string())]);
    if kept.entry.removes {
        archive.remove_own(&keep)?;
        events::note(keep.entry(), "destroy", &[]);
    }
    Ok(())
}

/// What `kept` goes on from.
fn open(kept: &Kept) -> Result<(Snapshot, Vm), String> {
    let (saved, resuming) = (kept.directory.join(SAVED), kept.directory.join(RESUMING));
    // A process that was killed has left them there.
    if !saved.exists() {
        put_back(&kept.directory);
    }
    let failed = |error: io::Error| format!("cannot read what was saved of it: {error}");
    let vm: Vm = read_json(&saved.join(VM)).map_err(failed)?;
    let were: Vec<SavedDisk> = read_json(&saved.join(DISKS)).map_err(failed)?;
    let are = vm.disks().map_err(|error| format!("cannot look at its disks: {error}"))?;
    if let Some(disk) = were.iter().find(|disk| !are.contains(disk)) {
        return Err(format!(
            "its disk {} has changed since it was saved, so that it cannot go on: `mvm kill` ends it",
            disk.path.display()
        ));
    }
    let state = read(&saved.join(STATE), MAX_STATE).map_err(failed)?;
    let state = SavedVm::decode(&state).map_err(|error| chain(&error))?;
    let memory = File::open(saved.join(MEMORY)).map_err(failed)?;
    state.check_memory(&memory).map_err(|error| chain(&error))?;
    fs::rename(&saved, &resuming).map_err(failed)?;
    Ok((Snapshot::new(state, memory), vm))
}
