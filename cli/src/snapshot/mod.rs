//! `mvm snapshot`.

mod copies;
mod live;
mod manifest;
mod open;
mod place;
mod settle;

use std::fs::File;
use std::io::Read;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use instance::api::{Drive, SnapshotCreate};
use instance::{Client, Kind, MoreMemory, Running, time};
use serde_json::Value;
use vmm::{Snapshot, Started, VmConfig, VsockConfig, disk_name};

pub use self::copies::PrivateDisks;
pub use self::live::{Live, LiveContainer, VolumeCopy};
pub use self::manifest::SavedDisk;
pub use self::open::{MAX_STATE, Opened, check, open};
pub use self::place::digest_of_pages;
pub use self::settle::{Settled, settle};

use self::copies::{Copying, Source};
use self::manifest::Manifest;
use self::place::Place;
use crate::process::ExitCode;
use crate::targets::{self, Failure};
use crate::{chain, complain, events, exit_code};

/// Bytes in a sector: a guest does not see the rest of a disk that is not a multiple of it.
const SECTOR: u64 = 512;

const EXAMPLES: &str = "\
Examples:
  mvm snapshot web ./web.snap
  mvm restore ./web.snap --name web2

Exit codes:
  1      there is no such VM, DIR exists already, or the VM cannot be saved
  2      wrong usage";

/// How long a VM may take to be saved: as long as its memory takes to be written.
const PATIENCE: Duration = Duration::from_secs(15 * 60);

/// Arguments of `mvm snapshot`.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub struct SnapshotCommand {
    /// The VM of `mvm boot`: its ID, the beginning of that, or its name (for containers: `mvm pause --save`)
    #[arg(value_name = "VM")]
    vm: String,

    /// The directory that is made for it; it must not exist yet
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

impl SnapshotCommand {
    /// Saves the VM.
    pub fn run(self) -> ExitCode {
        match self.save() {
            Ok(()) => exit_code::SUCCESS.into(),
            Err(message) => {
                complain(&message);
                exit_code::FAILURE.into()
            }
        }
    }

    fn save(&self) -> Result<(), String> {
        let failure = |failure: Failure| targets::message(&self.vm, &failure);
        let vm = targets::find(&instance::Registry::of_user(), &self.vm).map_err(failure)?;
        let id = vm.record.id.as_str();
        if targets::kept(id).is_ok_and(|kept| kept.entry.kind != Kind::Vm) {
            return Err(format!(
                "{}: it is a container: `mvm pause --save` saves it, and `mvm fork` makes a copy",
                self.vm
            ));
        }
        let of_vm = |message| format!("{}: {message}", self.vm);
        let mut place = Place::new(&self.directory)?;
        let Description { config, disks, pmem, sources } = describe(&vm).map_err(of_vm)?;
        let copying = |source: Writable| Copying::new(source.disk, &source.path, &place.parent);
        let names: Vec<_> = sources.iter().map(|source| disk_name(source.index)).collect();
        let copies = sources.into_iter().map(copying).collect::<Result<Vec<_>, String>>()?;
        create(&vm, (&place.state, &place.memory), &copies).map_err(of_vm)?;
        place = place.settled()?;
        check_lengths(&vm, &place.state, &place.memory).map_err(of_vm)?;
        place.disks = names.into_iter().zip(copies.into_iter().map(Copying::into_file)).collect();
        let manifest = |files| Manifest::new(config, (disks, pmem), time::now().to_string(), files);
        place.keep(manifest)?;
        events::note_of(id, "checkpoint", &[("checkpoint", &self.directory.to_string_lossy())]);
        Ok(())
    }
}

/// The options of a VM, and the paths of its disks and its persistent memory.
///
/// # Errors
///
/// On one line.
pub fn options(vm: &Running) -> Result<(Value, Vec<PathBuf>), String> {
    let Description { config, disks, pmem, .. } = describe(vm)?;
    Ok((config, disks.into_iter().chain(pmem).map(|disk| disk.path).collect()))
}

/// What a VM with these `options` goes on from, with the disks that it had.
///
/// # Errors
///
/// On one line.
pub fn with_own_disks(options: &Value, snapshot: Snapshot) -> Result<(VmConfig, Opened), String> {
    let config = manifest::options(options)?;
    let has_agent = manifest::has_agent(options);
    Ok((config, Opened { snapshot, disks: Vec::new(), has_agent, place: None }))
}

/// Has the VM, which is paused, save its state and its memory in these files; its disks are left as they are. It stays
/// paused as long as the other end of `hold` is open.
///
/// # Errors
///
/// On one line.
pub fn save_memory(vm: &Running, state: &File, memory: &File, hold: &UnixStream) -> Result<(), String> {
    let request = SnapshotCreate { stays_paused: true, ..SnapshotCreate::default() };
    Request::to(vm)?.send(&request, &[state.as_fd(), memory.as_fd(), hold.as_fd()])?;
    check_lengths(vm, state, memory)
}

/// Checks that a VM's process has made these files no longer than the VM's state and memory are: to read what it has
/// made of holes could take longer than anybody waits. Before it can't write to them any more, that is so for the moment
/// alone.
///
/// # Errors
///
/// They are longer; on one line.
pub fn check_lengths(vm: &Running, state: &File, memory: &File) -> Result<(), String> {
    let (_, bytes) = Started::read(&vm.directory)?.size()?;
    for (file, most) in [(state, MAX_STATE), (memory, bytes)] {
        let length =
            file.metadata().map_err(|error| format!("cannot look at what was saved: {error}"))?.len();
        if length > most {
            return Err(format!(
                "its process has saved {length} bytes, and {most} are the most that it can have"
            ));
        }
    }
    Ok(())
}

/// A request to save a VM.
struct Request {
    client: Client,
    /// What the guest changes while its memory is written is there twice.
    _more: Option<MoreMemory>,
}

impl Request {
    fn to(vm: &Running) -> Result<Self, String> {
        let client = Client::connect_with_limit(&vm.control_socket(), PATIENCE);
        let client = client.map_err(|error| chain(&error))?;
        Ok(Self { client, _more: MoreMemory::allow(&vm.directory, &vm.record.id) })
    }

    fn send(&mut self, request: &SnapshotCreate, files: &[BorrowedFd<'_>]) -> Result<(), String> {
        let sent = self.client.send_with_files(("PUT", "/snapshot/create"), request, files);
        sent.map_err(|error| chain(&error))
    }
}

/// Has the VM save its state and its memory in these files; its disks are copied while it stands still.
fn create(vm: &Running, (state, memory): (&File, &File), copies: &[Copying]) -> Result<(), String> {
    let mut request = Request::to(vm)?;
    let files = [state.as_fd(), memory.as_fd()];
    let mut send = |files: &[BorrowedFd<'_>]| request.send(&SnapshotCreate::default(), files);
    if copies.is_empty() {
        send(&files)?;
        return check_lengths(vm, state, memory);
    }
    let (ours, theirs) = UnixStream::pair().map_err(|error| format!("cannot make a socket: {error}"))?;
    let (copied, saved) = std::thread::scope(|scope| {
        let copied = scope.spawn(|| copy_paused(ours, copies));
        let saved = send(&[&files[..], &[theirs.as_fd()]].concat());
        // This ends the wait for a VM that has not paused, whatever its process does with its end.
        let _ = theirs.shutdown(Shutdown::Both);
        (copied.join(), saved)
    });
    match copied {
        Ok(Ok(true)) => saved.and_then(|()| check_lengths(vm, state, memory)),
        Ok(Ok(false)) => saved.and(Err("it did not stand still for its disks to be copied".to_owned())),
        Ok(Err(message)) => Err(message),
        Err(_) => Err("cannot copy its disks".to_owned()),
    }
}

/// Copies the disks once the VM stands still, and lets it go. False where it never did.
fn copy_paused(mut vm: UnixStream, copies: &[Copying]) -> Result<bool, String> {
    let count =
        vm.read(&mut [0]).map_err(|error| format!("it does not say whether it is paused: {error}"))?;
    if count == 0 {
        return Ok(false);
    }
    copies.iter().try_for_each(Copying::copy).map(|()| true)
}

/// What is saved of a VM beside its state and memory.
struct Description {
    /// Its options.
    config: Value,
    /// Its disks as they are.
    disks: Vec<SavedDisk>,
    /// Its files of persistent memory.
    pmem: Vec<SavedDisk>,
    /// Those that are to be copied.
    sources: Vec<Writable>,
}

/// A disk that the guest can write to.
struct Writable {
    /// Which of its disks it is.
    index: usize,
    path: PathBuf,
    disk: Source,
}

/// Describes a VM, and opens its disks.
fn describe(vm: &Running) -> Result<Description, String> {
    let mut client = targets::client(vm).map_err(|failure| chain(&failure))?;
    // Not by the VM's process: what that says, its guest may have had it say.
    let started = Started::read(&vm.directory)?;
    started.check_files()?;
    let mut config = started.config;
    if let Some(members) = config.as_object_mut() {
        // Whose they are is another VM's.
        ["id", "name", "directory"].iter().for_each(|key| drop(members.remove(*key)));
        members.retain(|_, value| !value.is_null());
        // What leads to the agent is in the VM's directory: another one has its own.
        let socket = members.get("vsock").and_then(Value::as_str);
        let socket = socket.and_then(|socket| socket.parse::<VsockConfig>().ok());
        if socket.is_some_and(|socket| socket.path.starts_with(&vm.directory)) {
            members.remove("vsock");
            members.insert("agent".into(), true.into());
        }
    }
    let (mut saved, mut sources) = (Vec::new(), Vec::new());
    let options = manifest::options(&config)?;
    for (index, disk) in manifest::disks(&options).enumerate() {
        let (path, name) = (disk.path.display(), disk_name(index));
        let own = if disk.read_only {
            as_it_is(&disk.path)?
        } else {
            let source = Writable { index, path: disk.path.clone(), disk: Source::open(&disk.path)? };
            let bytes = source.disk.bytes;
            sources.push(source);
            SavedDisk { path: disk.path.clone(), bytes, changed: None }
        };
        let drive: Drive = client.get(&format!("/drives/{name}")).map_err(|error| chain(&error))?;
        // A block device that is only read has no length here.
        if own.bytes != 0 && drive.size_bytes != own.bytes / SECTOR * SECTOR {
            return Err(format!(
                "its disk {path} is made of several files, as an image's are, or is not as long any more: such a VM \
                 cannot be saved yet"
            ));
        }
        saved.push(own);
    }
    let pmem = options.pmem.iter().map(|pmem| as_it_is(&pmem.path)).collect::<Result<_, _>>()?;
    Ok(Description { config, disks: saved, pmem, sources })
}

/// A file that is only read.
fn as_it_is(path: &Path) -> Result<SavedDisk, String> {
    SavedDisk::of(path).map_err(|error| format!("cannot look at {}: {error}", path.display()))
}

#[cfg(test)]
#[path = "lengths_tests.rs"]
mod lengths_tests;
