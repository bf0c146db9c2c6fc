//! A control group for each VM, where the host has them in version 2 and leaves a subtree to mvm: it bounds what the
//! VM's process and those that serve its devices use together, and holds all of them until the last one has ended.
//!
//! The path of the group is in the VM's directory, so that who removes the remains of a killed VM removes the group.

mod more;
mod place;
mod systemd;

pub use self::more::MoreMemory;

use std::fs;
use std::io::{self, Read, Seek};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use thiserror::Error;

use crate::VmId;

/// The file in a VM's directory with the path of its group.
const FILE: &str = "cgroup";
/// The one with the bytes of memory that the group may have.
const OWN_MEMORY: &str = "cgroup-memory";
/// The longest path in it.
const MAX_PATH: u64 = 4096;
/// What the name of a VM's group begins with.
const PREFIX: &str = "mvm-";
/// How long the processes of a group may take to end once they were killed.
const PATIENCE: Duration = Duration::from_secs(5);
/// In which processor time is handed out, in microseconds.
const PERIOD: u64 = 100_000;
/// How often a step is tried that others can undo.
const ATTEMPTS: usize = 8;

/// Why there is no control group for a VM.
#[derive(Debug, Error)]
pub enum CgroupError {
    /// The host has the first version, or both.
    #[error("this host has no control groups of version 2 at /sys/fs/cgroup, or has version 1 beside them")]
    NotVersion2,
    /// The control group of this process is another program's to manage.
    #[error("no control group is delegated to mvm")]
    NotDelegated,
    /// There are other processes in the one that is.
    #[error("the delegated control group has processes other than mvm's, which mvm does not move")]
    Shared,
    /// A controller is not among those that are delegated.
    #[error("the controller {0} of control groups is not available here")]
    NoController(&'static str),
    /// The group could not be made.
    #[error("cannot make the control group {}: {why}", path.display())]
    Make {
        /// Its directory.
        path: PathBuf,
        /// Why not.
        why: io::Error,
    },
    /// Another step failed.
    #[error("cannot {doing}: {why}")]
    Host {
        /// What was being done.
        doing: &'static str,
        /// Why not.
        why: io::Error,
    },
}

impl CgroupError {
    fn host(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |why| Self::Host { doing, why }
    }

    fn make(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |why| Self::Make { path, why }
    }
}

/// What the processes of a group may use together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CgroupLimits {
    /// Bytes of memory, and as many of swap.
    pub memory: u64,
    /// Processes and threads.
    pub tasks: u64,
    /// Processors, where they are limited.
    pub cpus: Option<u64>,
}

/// The control group of a VM.
#[derive(Debug)]
pub struct Cgroup {
    directory: PathBuf,
    limits: CgroupLimits,
}

/// Whether VMs of this process would get a group.
///
/// # Errors
///
/// [`CgroupError`] says why not.
pub fn examine_cgroups() -> Result<(), CgroupError> {
    place::find()?.examine()
}

impl Cgroup {
    /// Makes the group of the VM `id`, whose directory is `instance`, with the limits that `limits` returns: it is
    /// asked for them where the host has groups.
    ///
    /// # Errors
    ///
    /// [`CgroupError`]; nothing is left behind.
    pub fn make(
        instance: &Path,
        id: &VmId,
        limits: impl FnOnce() -> CgroupLimits,
    ) -> Result<Self, CgroupError> {
        let place = place::find()?;
        let has_cpu = place.prepare()?;
        let limits = limits();
        let directory = place.directory.join(name(instance, id).map_err(CgroupError::host("name a group"))?);
        // Before the group is made, so that it can be found whenever this process ends.
        let path = directory.as_os_str().as_encoded_bytes();
        fs::write(instance.join(FILE), path)
            .and_then(|()| fs::write(instance.join(OWN_MEMORY), limits.memory.to_string()))
            .map_err(CgroupError::host("note the control group"))?;
        for attempt in 1.. {
            match fs::create_dir(&directory) {
                Ok(()) => break,
                // Of a VM of the same directory, which has ended.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && attempt < ATTEMPTS => {
                    end(&directory);
                }
                Err(error) => return Err(CgroupError::make(&directory)(error)),
            }
        }
        let limits = CgroupLimits { cpus: limits.cpus.filter(|_| has_cpu), ..limits };
        let group = Self { directory, limits };
        match group.set() {
            Ok(()) => Ok(group),
            Err(error) => {
                group.end();
                Err(CgroupError::host("limit a control group")(error))
            }
        }
    }

    fn set(&self) -> io::Result<()> {
        let set = |name: &str, value: String| fs::write(self.directory.join(name), value);
        set("memory.max", self.limits.memory.to_string())?;
        set("pids.max", self.limits.tasks.to_string())?;
        if let Some(cpus) = self.limits.cpus {
            set("cpu.max", format!("{} {PERIOD}", cpus.saturating_mul(PERIOD)))?;
        }
        // A host may have no accounting of swap. A VM is of no use without the processes that serve its devices.
        for (name, value) in
            [("memory.swap.max", self.limits.memory.to_string()), ("memory.oom.group", "1".into())]
        {
            match set(name, value) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Its directory, for [`fork_into`](crate::keeper::fork_into).
    ///
    /// # Errors
    ///
    /// Those of open(2).
    pub fn open(&self) -> io::Result<OwnedFd> {
        crate::lock::open_directory(&self.directory)
    }

    /// Moves this process into the group, with all that it starts from now on.
    ///
    /// # Errors
    ///
    /// Those of write(2).
    pub fn join(&self) -> io::Result<()> {
        fs::write(self.directory.join("cgroup.procs"), "0")
    }

    /// Whether the kernel has killed a process in it for lack of memory.
    pub fn is_out_of_memory(&self) -> bool {
        let events = fs::read_to_string(self.directory.join("memory.events")).unwrap_or_default();
        value(&events, "oom_kill").is_some_and(|count| count > 0)
    }

    /// Kills what is left in it, and removes it.
    pub fn end(&self) {
        end(&self.directory);
    }

    /// Its limits, in words.
    pub fn summary(&self) -> String {
        let CgroupLimits { memory, tasks, cpus } = self.limits;
        let cpus = cpus.map(|cpus| format!(", {cpus} processors")).unwrap_or_default();
        format!("{} MiB of memory, {tasks} threads{cpus}", memory >> 20)
    }
}

/// The name of the group of the VM `id`: no other VM that runs has a directory of the same number.
fn name(instance: &Path, id: &VmId) -> io::Result<String> {
    let directory = fs::metadata(instance)?;
    Ok(format!("{PREFIX}{id}-{:x}-{:x}", directory.dev(), directory.ino()))
}

/// Ends what a VM `id` has left in the group that its directory names, and removes the group. No process keeps that VM
/// any more.
pub(super) fn end_left(instance: &Path, id: &VmId) {
    if let Some(group) = noted(instance, id) {
        end(&group);
    }
}

/// The group of the VM `id` that its directory names.
fn noted(instance: &Path, id: &VmId) -> Option<PathBuf> {
    let mut path = String::new();
    fs::File::open(instance.join(FILE)).ok()?.take(MAX_PATH).read_to_string(&mut path).ok()?;
    let path = PathBuf::from(path);
    // Whatever is in the file: it is this VM's group or nothing.
    let is_its = name(instance, id).is_ok_and(|name| path.file_name() == Some(name.as_ref()));
    (is_its && path.is_absolute() && place::is_cgroup2(&path)).then_some(path)
}

/// What the processes of a VM's group use and have used together, as the kernel counts it: the VM's own, and those that
/// serve its devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CgroupUsage {
    /// Nanoseconds on processors.
    pub cpu_nanoseconds: u64,
    /// Bytes of memory, without the cache of files that the kernel drops first.
    pub memory_bytes: u64,
}

impl CgroupUsage {
    /// That of the VM `id`, whose directory is `instance`; `None` where it has no group.
    pub fn of(instance: &Path, id: &VmId) -> Option<Self> {
        let group = noted(instance, id)?;
        let read = |name: &str| fs::read_to_string(group.join(name)).ok();
        let microseconds = value(&read("cpu.stat")?, "usage_usec")?;
        let memory: u64 = read("memory.current")?.trim().parse().ok()?;
        let cache = value(&read("memory.stat")?, "inactive_file")?;
        Some(Self {
            cpu_nanoseconds: microseconds.saturating_mul(1000),
            memory_bytes: memory.saturating_sub(cache),
        })
    }
}

/// Kills what is in the group at `directory`, and removes it. What does not end stays, with the group.
fn end(directory: &Path) {
    let deadline = Instant::now() + PATIENCE;
    match fs::remove_dir(directory) {
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
        _ => return,
    }
    kill(directory);
    if let Err(error) = wait_until_empty(directory, deadline).and_then(|()| fs::remove_dir(directory))
        && !is_gone(&error)
    {
        tracing::warn!(%error, "cannot remove the control group {}", directory.display());
    }
}

/// Whether that is what is said of a group that has been removed meanwhile, by another mvm or another thread: its files
/// that are open have no device then.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
}

/// Kills all processes of a group.
fn kill(directory: &Path) {
    // Linux has it from 5.14 on.
    if fs::write(directory.join("cgroup.kill"), "1").is_ok() {
        return;
    }
    // A process that starts others faster than this loop ends them is stopped by pids.max: so many passes find all.
    for _ in 0..ATTEMPTS {
        let listed = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
        let processes = listed.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?));
        for process in processes {
            let _ = kill_process(process, Signal::KILL);
        }
    }
}

/// Waits until no process is left in a group.
fn wait_until_empty(directory: &Path, deadline: Instant) -> io::Result<()> {
    let mut events = fs::File::open(directory.join("cgroup.events"))?;
    loop {
        let mut text = String::new();
        events.rewind()?;
        (&events).take(MAX_PATH).read_to_string(&mut text)?;
        if value(&text, "populated") == Some(0) {
            return Ok(());
        }
        let left = Timespec::try_from(deadline.saturating_duration_since(Instant::now()));
        match poll(&mut [PollFd::new(&events, PollFlags::PRI)], left.ok().as_ref()) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The number behind `key` in lines of keys and numbers.
fn value(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests;
