//! Copies of a VM that runs: saved in files without names, from which others go on at once.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use container::{Copied, MakeDisk};
use instance::{Running, Volume, VolumeName};
use vmm::{ConsoleConfig, NetBackend, SavedVm, Snapshot, Started, VmConfig};

use super::copies::{Copying, Saved, Source, copy};
use super::open::MAX_STATE;
use super::place::{name, scratch, unnamed};
use super::settle::settle;
use super::{Description, Opened, Writable, check_lengths, create, describe, manifest};
use crate::chain;

/// A VM as it was at one moment.
pub struct Live {
    config: VmConfig,
    has_agent: bool,
    state: SavedVm,
    memory: File,
    disks: Vec<Disk>,
}

/// The content of one of its disks.
struct Disk {
    index: usize,
    bytes: u64,
    file: File,
    /// The first VM's.
    path: PathBuf,
    /// Where copies of it are made.
    beside: PathBuf,
}

impl Live {
    /// Saves the VM, which runs on. What is written goes to files without names: its disks beside themselves where that
    /// is allowed, the rest to `place`.
    ///
    /// # Errors
    ///
    /// On one line; the VM runs on.
    pub fn of(vm: &Running, place: &Path) -> Result<Self, String> {
        let Description { config, sources, .. } = describe(vm)?;
        let has_agent = manifest::has_agent(&config);
        let mut config = manifest::options(&config)?;
        check(&config)?;
        if let ConsoleConfig::File(_) = config.console {
            // What is in it is the first VM's output.
            config.console = ConsoleConfig::Off;
        }
        config.publish.clear();
        let (mut disks, mut copies) = (Vec::new(), Vec::new());
        for Writable { index, path, disk } in sources {
            let own = path.parent().and_then(|parent| Some((parent, scratch(parent).ok()?)));
            let (beside, file) = own.map_or_else(|| Ok::<_, String>((place, scratch(place)?)), Ok)?;
            copies.push(Copying::to(disk, &path, file, beside)?);
            let beside = beside.to_owned();
            disks.push((index, path, beside));
        }
        let (state, memory) = take(vm, place, &copies)?;
        let disks = disks.into_iter().zip(copies).map(|((index, path, beside), copying)| {
            let (bytes, file) = (copying.bytes(), copying.into_file());
            Disk { index, bytes, file, path, beside }
        });
        Ok(Self { config, has_agent, state, memory, disks: disks.collect() })
    }

    /// The configuration of a VM that goes on from there, which has no port published.
    pub fn config(&self) -> &VmConfig {
        &self.config
    }

    /// What such a VM goes on from: with its own copies of the disks, or, where it `is_only` one, with these.
    ///
    /// # Errors
    ///
    /// This process has no descriptor left.
    pub fn opened(&self, is_only: bool) -> io::Result<Opened> {
        let memory = self.memory.try_clone()?;
        let disks = self.disks.iter().map(|Disk { index, bytes, file, path, beside }| {
            let (index, bytes, file) = (*index, *bytes, file.try_clone()?);
            Ok(Saved { index, file, bytes, shown: path.clone(), beside: beside.clone(), is_own: is_only })
        });
        let disks = disks.collect::<io::Result<_>>()?;
        let snapshot = Snapshot::new(self.state.clone(), memory);
        Ok(Opened { snapshot, disks, has_agent: self.has_agent, place: None })
    }
}

/// Has the VM save its state and its memory, in files without names in `place`, and its disks as `copies`.
fn take(vm: &Running, place: &Path, copies: &[Copying]) -> Result<(SavedVm, File), String> {
    let (mut state, mut memory) = (scratch(place)?, scratch(place)?);
    create(vm, (&state, &memory), copies)?;
    let own = |file| settle(file, || scratch(place)).map(|settled| settled.file);
    (state, memory) = (own(state)?, own(memory)?);
    check_lengths(vm, &state, &memory)?;
    let mut bytes = Vec::new();
    let read = state.seek(SeekFrom::Start(0)).and_then(|_| state.take(MAX_STATE).read_to_end(&mut bytes));
    read.map_err(|error| format!("cannot read its state: {error}"))?;
    Ok((SavedVm::decode(&bytes).map_err(|error| chain(&error))?, memory))
}

/// A container's VM as it was at one moment.
pub struct LiveContainer {
    state: SavedVm,
    /// vCPUs and bytes of memory.
    size: (u32, u64),
    memory: File,
    /// Its changes, and their length.
    changes: Option<(File, u64)>,
    /// The same of its volumes.
    volumes: Vec<(VolumeName, File, u64)>,
}

/// The content of a volume for a copy of its container.
pub struct VolumeCopy {
    /// What the volume is called.
    pub name: VolumeName,
    /// What makes the disk of the copy's.
    pub make: MakeDisk,
}

impl LiveContainer {
    /// Saves the VM, which runs on. What is written goes to files without names: its memory to `place`, its `changes`
    /// and the disks of its `volumes` to the file systems that these are on, where those of others are kept too.
    ///
    /// # Errors
    ///
    /// On one line; the VM runs on.
    pub fn of(
        vm: &Running,
        place: &Path,
        changes: Option<&Path>,
        volumes: &[Volume],
    ) -> Result<Self, String> {
        let started = Started::read(&vm.directory)?;
        started.check_files()?;
        let size = started.size()?;
        let content = |volume: &Volume| (Some(volume.record.name.clone()), volume.content());
        let disks =
            changes.map(|path| (None, path.to_owned())).into_iter().chain(volumes.iter().map(content));
        let (mut names, mut copies) = (Vec::new(), Vec::new());
        for (name, path) in disks {
            // Beside the directories of containers and volumes, as its own may go meanwhile.
            let beside = path.parent().and_then(Path::parent).unwrap_or(place);
            let file = unnamed(beside).or_else(|_| scratch(beside))?;
            copies.push(Copying::to(Source::open(&path)?, &path, file, beside)?);
            names.push(name);
        }
        let (state, memory) = take(vm, place, &copies)?;
        let (mut changes, mut volumes) = (None, Vec::new());
        for (name, copying) in names.into_iter().zip(copies) {
            let (bytes, file) = (copying.bytes(), copying.into_file());
            match name {
                None => changes = Some((file, bytes)),
                Some(name) => volumes.push((name, file, bytes)),
            }
        }
        Ok(Self { state, size, memory, changes, volumes })
    }

    /// What a copy of the container `id` begins with, and its volumes: its own copies of the disks, or, where it
    /// `is_only` one, these.
    pub fn into_copied(self, id: &str, is_only: bool) -> (Copied, Vec<VolumeCopy>) {
        let Self { state, size, memory, changes, volumes } = self;
        let make = |(file, bytes)| {
            let make = move |path: &Path| make_disk(path, &file, bytes, is_only);
            Box::new(make) as MakeDisk
        };
        let copies =
            volumes.into_iter().map(|(name, file, bytes)| VolumeCopy { name, make: make((file, bytes)) });
        let copies = copies.collect();
        let (snapshot, changes) = (Snapshot::new(state, memory), changes.map(make));
        (Copied { snapshot, size, container: id.to_owned(), changes }, copies)
    }
}

/// Makes the disk at `path` of the `bytes` of `file`, which becomes it where that `is_own`; nothing is left of one that
/// is not whole.
fn make_disk(path: &Path, file: &File, bytes: u64, is_own: bool) -> io::Result<()> {
    if is_own && name(file, path).is_ok() {
        return Ok(());
    }
    let disk = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
    copy(file, &disk, bytes).inspect_err(|_| drop(std::fs::remove_file(path)))
}

/// Refuses what two VMs can't have at the same time.
fn check(config: &VmConfig) -> Result<(), String> {
    let one = |what: &str| Err(format!("it has {what}, which one VM alone can have"));
    for net in &config.nets {
        match &net.backend {
            NetBackend::Tap(name) => return one(&format!("the tap {name}")),
            NetBackend::Bridge(name) => {
                return one(&format!("an address in the network of the bridge {name}"));
            }
            NetBackend::User { .. } => {}
        }
    }
    match &config.vsock {
        Some(vsock) => one(&format!("the socket {}", vsock.path.display())),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_vm_alone_can_have_is_named() {
        let mut config = VmConfig::new("k");
        config.nets = vec!["user".parse().unwrap()];
        assert_eq!(check(&config), Ok(()));
        for (net, expected) in [("tap=tap7", "the tap tap7"), ("bridge=br0", "bridge br0")] {
            config.nets = vec!["user".parse().unwrap(), net.parse().unwrap()];
            assert!(check(&config).unwrap_err().contains(expected));
        }
        config.nets.clear();
        config.vsock = Some("./own.sock".parse().unwrap());
        assert!(check(&config).unwrap_err().contains("./own.sock"));
    }
}
