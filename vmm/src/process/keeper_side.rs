//! The keeper's side: the process of a VM as the one that made it sees it.

use std::any::Any;
use std::fs::OpenOptions;
use std::io::{self, PipeReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Builder;
use std::time::{Duration, Instant};

use instance::Instance;
use instance::keeper::{Child, Tie, fork};
use jail::Report;
use jail::seccomp::Violation;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::messages::{FromVm, Message, ToVm};
use super::vm_side::{Means, run};
use crate::{LOG_NAME, LogFile, MAX_DEVICES, VmConfig};

/// The file in a VM's directory that says how it is confined.
pub const JAIL: &str = "jail.json";
/// The most processes that serve devices of a VM.
const MOST_HELPERS: usize = MAX_DEVICES;

/// How long the process may take to end once it was told to: its own supervisor ends it in less.
const ENDING: Duration = Duration::from_secs(5);

/// What the process that starts a VM's has, and the VM's is to have for some time or not at all.
pub struct Split<'a> {
    /// What keeps the VM's files there until its process has opened them, which drops it then. The other process drops it
    /// at once.
    pub until_open: Box<dyn Any>,
    /// Called in the VM's process alone, to close what is not its own.
    pub leave: Box<dyn FnOnce() + 'a>,
}

/// The process of a VM, which the keeper has made.
pub struct VmProcess {
    tie: Tie,
    child: Child,
    /// The signal that it was first told to end by; 0 before.
    ended_by: AtomicI32,
    /// Which system call ended it, if one did.
    violations: Option<PipeReader>,
    /// The VM's directory.
    directory: PathBuf,
    /// The processes that serve its devices.
    helpers: Mutex<Vec<Child>>,
}

impl VmProcess {
    /// Makes the process, which builds the VM of `config` and runs it. `instance` is its directory, and stays that of this
    /// process; what is in `of_keeper` is dropped in the new one, which gives the rest to `split`.
    ///
    /// # Errors
    ///
    /// Those of the system calls. This process may have one thread alone.
    pub fn start<T>(
        config: &VmConfig,
        instance: Instance,
        of_keeper: T,
        split: Split<'_>,
        start: Instant,
    ) -> io::Result<(Self, Instance, T)> {
        let (tie, other) = Tie::pair()?;
        let (violations, reports) = io::pipe()?;
        rustix::io::ioctl_fionbio(&violations, true)?;
        rustix::io::ioctl_fionbio(&reports, true)?;
        let (dialed, dialer) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let mut mine = Some((tie, violations, dialed, instance, of_keeper));
        // In this process it drops what the new one has until its files are open.
        let child = fork(|| {
            let Some((tie, violations, dialed, instance, of_keeper)) = mine.take() else { return 0 };
            drop((tie, violations, dialed, of_keeper));
            (split.leave)();
            run(config, instance, Means { tie: other, reports, dialer }, split.until_open, start)
        })?;
        let Some((tie, violations, dialed, instance, of_keeper)) = mine else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let vm = Self {
            tie,
            child,
            ended_by: AtomicI32::new(0),
            violations: Some(violations),
            directory: instance.path().to_owned(),
            helpers: Mutex::default(),
        };
        if let Some(vsock) = &config.vsock {
            let path = vsock.path.clone();
            let dial = move || devices::virtio::vsock::dial(&dialed, &path);
            Builder::new()
                .name("dialer".into())
                .stack_size(64 << 10)
                .spawn(dial)
                .inspect_err(|_| vm.kill())?;
        }
        Ok((vm, instance, of_keeper))
    }

    /// One that is there already, and says what it has to say by the other end of `tie`.
    pub fn of(tie: Tie, child: Child) -> Self {
        Self {
            tie,
            child,
            ended_by: AtomicI32::new(0),
            violations: None,
            directory: PathBuf::new(),
            helpers: Mutex::default(),
        }
    }

    /// Waits for what it says; `None` when it has ended. One that says what can't be understood is killed.
    pub fn receive(&self) -> Option<FromVm> {
        loop {
            let said = self.tie.receive().unwrap_or_else(|_| {
                self.child.kill();
                let text = "its process said what is not understood, and was killed";
                Some(Message::Said(FromVm::Failed(text.into())))
            });
            match said {
                Some(Message::Confined { report, helpers }) => self.confined(&report, helpers),
                Some(Message::NewLog) => self.give_log(),
                Some(Message::LogFilled) => {
                    let log = self.directory.join(LOG_NAME);
                    // The log keeps what it has where that fails, and the VM asks for another file.
                    let _ = std::fs::rename(LogFile::next_of(&log), log);
                }
                None => return self.violation().map(|violation| FromVm::Failed(of_violation(&violation))),
                Some(Message::Said(said)) => return Some(said),
            }
        }
    }

    /// Notes how the VM is confined, and which processes are to end with it.
    fn confined(&self, report: &Report, helpers: Vec<u32>) {
        let written = serde_json::to_vec(report).map_err(io::Error::from);
        let written = written.and_then(|text| std::fs::write(self.directory.join(JAIL), text));
        if let Err(error) = written {
            tracing::warn!(%error, "cannot note how the VM is confined");
        }
        let mut known = self.helpers.lock().unwrap_or_else(PoisonError::into_inner);
        // Said once, by a process that the guest has not run in yet.
        if known.is_empty() {
            known.extend(
                helpers
                    .into_iter()
                    .take(MOST_HELPERS)
                    .filter_map(|helper| Child::of_group(i32::try_from(helper).ok()?).ok()),
            );
        }
    }

    /// Gives the VM another file for the console's log.
    fn give_log(&self) {
        let path = LogFile::next_of(&self.directory.join(LOG_NAME));
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(path);
        // The VM goes on without it, and its log lacks output.
        let _ = file.and_then(|file| self.tie.send_with(&ToVm::Log, &[file.as_fd()]));
    }

    /// The system call that ended the process, if one did.
    fn violation(&self) -> Option<Violation> {
        let mut report = [0; 256];
        let count = self.violations.as_ref()?.read(&mut report).ok()?;
        Violation::parse(report.get(..count)?)
    }

    /// Has the VM end, by a signal or since what it was for is done. Where it does not, its process is killed.
    pub fn end(self: &Arc<Self>, signal: Option<i32>) {
        if let Some(signal) = signal {
            let _ = self.ended_by.compare_exchange(0, signal, Ordering::SeqCst, Ordering::SeqCst);
        }
        // Where the process does not read, it is killed later.
        let _ = self.tie.send(&ToVm::End { signal });
        self.end_within(ENDING);
    }

    /// Asks for a disk to be put into a slot, which is answered by [`FromVm::Slot`].
    pub fn insert(&self, number: u64, slot: usize, read_only: bool, files: &Files) -> io::Result<()> {
        let ends = files.ends.clone();
        let files: Vec<_> = files.files.iter().map(AsFd::as_fd).collect();
        self.tie.send_with(&ToVm::Insert { number, slot, read_only, ends }, &files)
    }

    /// The same for a disk to be taken out.
    pub fn eject(&self, number: u64, slot: usize) -> io::Result<()> {
        self.tie.send(&ToVm::Eject { number, slot })
    }

    /// Kills the process at once.
    pub fn kill(&self) {
        self.child.kill();
    }

    /// The signal that it was told to end by, which its process may not have lived to say.
    pub fn ended_by(&self) -> Option<i32> {
        Some(self.ended_by.load(Ordering::SeqCst)).filter(|signal| *signal != 0)
    }

    /// Kills the process if it has not ended after so long.
    pub fn end_within(self: &Arc<Self>, limit: Duration) {
        let this = self.clone();
        let waited = Builder::new().name("end".into()).stack_size(64 << 10).spawn(move || this.wait(limit));
        if waited.is_err() {
            self.child.kill();
        }
    }

    /// Waits until the process has ended, and kills it where that takes longer than `limit`; returns its exit code.
    pub fn wait(&self, limit: Duration) -> Option<u8> {
        let code = self.child.wait(Some(limit)).or_else(|| {
            self.child.kill();
            self.child.wait(Some(limit))
        });
        for helper in self.helpers.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            helper.kill_group();
        }
        code
    }
}

/// The open files of a disk, and where each ends on it; each begins where the one before ends.
pub struct Files {
    /// In the order in which they follow each other.
    pub files: Vec<OwnedFd>,
    /// In bytes from the beginning of the disk, one a file.
    pub ends: Vec<u64>,
}

/// The line for the user about a process that was ended by a system call.
fn of_violation(violation: &Violation) -> String {
    let Violation { thread, call } = violation;
    let name = jail::seccomp::name(*call).map_or_else(|| format!("number {call}"), str::to_owned);
    format!(
        "its process was ended, as its thread {thread} made the system call {name}, which no VM needs: the guest may have \
         attacked it, or mvm has a fault (SECURITY.md says how to report it; --jail off runs without this check)"
    )
}
