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
use std::net::Shutdown;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use container::Copied;
use instance::api::{State, VmUpdate, WantedState};
use instance::{
    Archive, Client, End, InstanceError, Keep, Kept, Kind, OpenProcess, Phase, Process, Running, VmId,
    Volumes, time,
};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::process::Signal;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use vmm::{SavedVm, Snapshot, Started};

use super::in_the_background;
use super::keep::{Side, Which};
use super::start::prepare;
use crate::snapshot::{
    MAX_STATE, SavedDisk, Settled, check_lengths, options, save_memory, settle, with_own_disks,
};
use crate::targets::{self, Failure};
use crate::{boot, chain, complain, events, exit_code};

const SAVED: &str = "saved";
const RESUMING: &str = "resuming";
const NEW: &str = "saved.new";
const STATE: &str = "state";
const MEMORY: &str = "memory";
/// One of both, until it has its name.
const COPY: &str = "copy";
const VM: &str = "vm.json";
const DISKS: &str = "disks.json";
/// Held by the process that saves it.
const LOCK: &str = "saving";
/// Bytes that are kept free for the record, in a file of this name.
const RESERVE: &str = "reserve";
const ROOM: usize = 64 << 10;
/// The most bytes of the last two.
const MAX_JSON: u64 = 1 << 20;
/// How long a keeper has to end once its VM has.
const DEADLINE: Duration = Duration::from_secs(30);

/// What was saved.
#[derive(Serialize, Deserialize)]
struct Vm {
    /// The options of a VM, as in a configuration file.
    options: Option<Value>,
    /// vCPUs and bytes of memory of a container's VM.
    size: Option<(u32, u64)>,
    /// All its disks, and its persistent memory.
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
            return Ok(Self { options: Some(options), size: None, disks, saver });
        }
        let volumes = Volumes::of_user().map_err(|error| chain(&error))?;
        let content = |name| Ok(volumes.find(name).map_err(|error| chain(&error))?.content());
        let changes = Some(container::changes_path(&kept.directory)).filter(|path| path.exists());
        let started = Started::read(&vm.directory)?;
        started.check_files()?;
        let read_only = started.files.iter().map(|file| Ok(file.path.clone()));
        let disks =
            changes.into_iter().map(Ok).chain(kept.entry.volumes.iter().map(content)).chain(read_only);
        let (size, disks) = (Some(started.size()?), disks.collect::<Result<_, String>>()?);
        Ok(Self { options: None, size, disks, saver })
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
    let _lock = lock(&kept.directory)?;
    let mut client = targets::client(vm)?;
    // It is not to run on from where it was saved.
    let was_paused = targets::state(&vm.directory) == Some(State::Paused);
    let directory = kept.directory.join(NEW);
    let (hold, theirs) = begin(vm, &directory, was_paused)
        .map_err(|error| Failure::Save(format!("cannot write to {}: {error}", directory.display())))?;
    let saved = pause_and_write(&kept, vm, &mut client, &theirs);
    drop(theirs);
    let mut saves = lock_saves();
    saves.in_work.retain(|work| work.vm.record.id != vm.record.id);
    let process = match saved {
        Ok(process) => process,
        Err(failure) => {
            drop(saves);
            drop(hold);
            let _ = fs::remove_dir_all(kept.directory.join(NEW));
            if !was_paused {
                client.send("PATCH", "/vm", &VmUpdate { state: WantedState::Resumed })?;
            }
            return Err(failure);
        }
    };
    // From here on it is not given up by a signal.
    saves.ending += 1;
    drop(saves);
    let ended = end(&kept, vm, &process);
    drop(hold);
    lock_saves().ending -= 1;
    ended?;
    events::note(&kept.entry, "pause", &[]);
    Ok(())
}

/// Makes the directory for what is saved of `vm`, from where on a signal gives that up. Returns what the VM stays
/// paused by, and its end of that.
fn begin(vm: &Running, directory: &Path, was_paused: bool) -> io::Result<(UnixStream, UnixStream)> {
    let (ours, theirs) = UnixStream::pair()?;
    let (vm, hold) = (vm.clone(), ours.try_clone()?);
    let mut saves = lock_saves();
    let _ = fs::remove_dir_all(directory);
    DirBuilder::new().mode(0o700).create(directory)?;
    saves.in_work.push(InWork { vm, directory: directory.to_owned(), was_paused, hold });
    Ok((ours, theirs))
}

/// Pauses the VM, and writes what is saved. Returns its keeper.
fn pause_and_write(
    kept: &Kept,
    vm: &Running,
    client: &mut Client,
    hold: &UnixStream,
) -> Result<OpenProcess, Failure> {
    client.send("PATCH", "/vm", &VmUpdate { state: WantedState::Paused })?;
    write(kept, vm, &kept.directory.join(NEW), hold).map_err(Failure::Save)?;
    Ok(vm.record.process.open()?)
}

/// Ends the VM that was saved, whose process is the one that its keeper has noted, and waits until that has noted the
/// end.
fn end(kept: &Kept, vm: &Running, keeper: &OpenProcess) -> Result<(), Failure> {
    let process = vm.record.running_process();
    process
        .open()
        .and_then(|process| process.signal(Signal::KILL))
        .map_err(|error| Failure::Save(format!("cannot end its VM: {error}")))?;
    if !keeper.wait(Some(DEADLINE)) {
        return Err(Failure::NotEnded);
    }
    if !targets::kept(kept.entry.id.as_str()).is_ok_and(|kept| kept.is_saved()) {
        return Err(Failure::Save("its keeper could not note that it is saved: it has ended".into()));
    }
    Ok(())
}

/// What this process saves.
struct Saves {
    /// What can still be given up.
    in_work: Vec<InWork>,
    /// How many VMs are being ended.
    ending: usize,
}

/// One that is being saved.
struct InWork {
    vm: Running,
    /// Where it is written.
    directory: PathBuf,
    was_paused: bool,
    /// As long as it is open, the VM can't be resumed.
    hold: UnixStream,
}

static SAVES: Mutex<Saves> = Mutex::new(Saves { in_work: Vec::new(), ending: 0 });

fn lock_saves() -> MutexGuard<'static, Saves> {
    SAVES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends this process for `signal`, and gives up what it saves: VMs that ran do so again. Returns where one is about to
/// end, as it is saved then.
pub fn give_up(signal: i32) {
    let mut saves = lock_saves();
    if saves.ending > 0 {
        return;
    }
    for InWork { vm, directory, was_paused, hold } in saves.in_work.drain(..) {
        let _ = hold.shutdown(Shutdown::Both);
        // A file may be made in it at the same time. Once it is gone, none can.
        while matches!(fs::remove_dir_all(&directory), Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty)
        {
        }
        let resumed = VmUpdate { state: WantedState::Resumed };
        let is_resumed = || Ok::<_, Failure>(targets::client(&vm)?.send("PATCH", "/vm", &resumed)?);
        if !was_paused && let Err(error) = is_resumed() {
            complain(&format!("{} stays paused: {}", vm.record.id, chain(&error)));
        }
    }
    std::process::exit(exit_code::of_signal(signal).into());
}

/// Keeps others from saving what is in `directory`.
fn lock(directory: &Path) -> Result<File, Failure> {
    let path = directory.join(LOCK);
    let failed = |error| Failure::Save(format!("cannot lock {}: {error}", path.display()));
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(false).mode(0o600).open(&path).map_err(failed)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(Errno::WOULDBLOCK) => Err(Failure::Save("it is being saved by another command".into())),
        Err(error) => Err(failed(error.into())),
    }
}

/// Writes what is saved of `kept`, whose VM is paused, to files in `directory`. The VM stays paused as long
/// as the other end of `hold` is open.
fn write(kept: &Kept, vm: &Running, directory: &Path, hold: &UnixStream) -> Result<(), String> {
    let failed = |error: io::Error| format!("cannot write to {}: {error}", directory.display());
    let file = |name| {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600).open(directory.join(name)).map_err(failed)
    };
    let (state, memory) = (file(STATE)?, file(MEMORY)?);
    let vm_and_saver = Vm::of(kept, vm)?;
    save_memory(vm, &state, &memory, hold)?;
    let own = |written, name| {
        let Settled { file: own, is_copy } = settle(written, || file(COPY))?;
        own.sync_all().map_err(failed)?;
        if is_copy {
            fs::rename(directory.join(COPY), directory.join(name)).map_err(failed)?;
        }
        Ok::<_, String>(own)
    };
    check_lengths(vm, &own(state, STATE)?, &own(memory, MEMORY)?)?;
    vm_and_saver.disks().and_then(|disks| write_json(&directory.join(DISKS), &disks)).map_err(failed)?;
    file(RESERVE)?.write_all(&[1; ROOM]).map_err(failed)?;
    // With it all is there.
    write_json(&directory.join(VM), &vm_and_saver).map_err(failed)
}

/// Notes that what `keep` is of was saved, if its VM has ended by that. Its keeper calls it.
pub fn note(keep: &mut Keep) -> bool {
    let (new, saved) = (keep.directory().join(NEW), keep.directory().join(SAVED));
    // It may have run on since, where the process that saved it was killed; or that was ended before all was written.
    if !read_json::<Vm>(&new.join(VM)).is_ok_and(|vm| vm.saver.open().is_ok()) {
        let _ = fs::remove_dir_all(new);
        return false;
    }
    // Of another life.
    let _ = fs::remove_dir_all(&saved);
    // On a full disk, this is the room for the record.
    let noted = fs::remove_file(new.join(RESERVE)).and_then(|()| fs::rename(&new, &saved));
    let noted = noted.and_then(|()| keep.change(|entry| entry.phase = Phase::Saved));
    if let Err(error) = &noted {
        tracing::warn!(%error, "cannot note that it is saved");
        let _ = fs::remove_dir_all(saved);
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
    // From here on no other command has it go on, or ends it.
    let keep = Archive::of_user()?.take(&kept.entry.id)?.ok_or(Failure::Running)?;
    if keep.entry().phase != Phase::Saved {
        return Err(Failure::NotPaused);
    }
    let resumed =
        if kept.entry.kind == Kind::Vm { resume_vm(&kept, keep) } else { resume_container(&kept, keep) };
    resumed?;
    events::note(&kept.entry, "unpause", &[]);
    Ok(())
}

fn resume_container(kept: &Kept, keep: Keep) -> Result<(), Failure> {
    let (order, mut means) = prepare(kept)?;
    let (snapshot, Vm { size, .. }) = open(kept).map_err(Failure::Start)?;
    let size = size.ok_or_else(|| Failure::Start("what was saved of it has no size".into()))?;
    let container = kept.entry.id.to_string();
    means.copied = Some(Copied { snapshot, size, container, changes: None });
    let which = Which::Taken(Box::new(keep));
    in_the_background(|reporter| {
        super::keep::keep(&order, means, which, Side::Background { reporter, front: None })
    })
    .map(drop)
    .map_err(|failure| Failure::Start(failure.message))
}

fn resume_vm(kept: &Kept, keep: Keep) -> Result<(), Failure> {
    let start = |message: String| Failure::Start(message);
    let (snapshot, Vm { options, .. }) = open(kept).map_err(start)?;
    let options = options.ok_or_else(|| start("what was saved of it has no options".into()))?;
    let (config, opened) = with_own_disks(&options, snapshot).map_err(start)?;
    let config = boot::confined(config, None).map_err(start)?;
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
            "its disk {} has changed since it was saved: put the old file back, or end it with `mvm kill`",
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
