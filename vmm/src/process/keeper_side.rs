//! The keeper's side: the process of a VM as the one that made it sees it.

use std::any::Any;
use std::fs::OpenOptions;
use std::io::{self, PipeReader, Read};
use std::num::NonZeroU64;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Builder;
use std::time::{Duration, Instant};

use devices::virtio::rate_limit::Pace;
use instance::keeper::{Child, Tie, adopt_orphans, end_orphans, standard_streams};
use instance::{Identity, Instance};
use jail::Report;
use jail::seccomp::Violation;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::messages::{Failure, Fault, FromVm, Message, ToVm};
use super::ready::Ready;
use super::started;
use super::vm_side::{Means, run};
use crate::background::COPYING_THREAD;
use crate::confinement::{Noted, Outside};
use crate::console::{FileIdentity, begin_anew, mode_of};
use crate::{ConsoleConfig, ExitReason, LOG_NAME, Limits, LogFile, MAX_DEVICES, Snapshot, VmConfig};

/// The most processes that serve devices of a VM.
const MOST_HELPERS: usize = MAX_DEVICES;

/// How many of its messages are read in a second. A guest that prints without end has the log renewed for each MiB, by
/// two of them; each is some microseconds of work, and a file that is made or renamed.
const MESSAGES_PER_SECOND: NonZeroU64 = NonZeroU64::new(1000).unwrap();

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

/// What a process is made for.
pub struct Order<'a> {
    /// The VM that it runs.
    pub config: &'a VmConfig,
    /// Who that is.
    pub identity: &'a Identity,
    /// Where the console's latest output is kept, if not in the VM's directory.
    pub log: Option<PathBuf>,
    /// The user whose terminal, input and output are the console's; the process leaves the terminal where there is none.
    pub user: Option<User>,
    /// Where it goes on from, if it does not boot.
    pub snapshot: Option<Snapshot>,
    /// What is this process's alone, and the new one's.
    pub split: Split<'a>,
    /// When the start began.
    pub start: Instant,
}

/// A user in front of a VM.
pub struct User {
    /// How long the VM may run, and how long its guest has to power off.
    pub limits: Limits,
    /// The text of the console that [`FromVm::Printed`] is said for.
    pub awaited: Option<Vec<u8>>,
}

/// The process of a VM, which the keeper has made.
pub struct VmProcess {
    tie: Tie,
    /// How fast what it says is read.
    pace: Pace,
    child: Child,
    /// The signal that it was first told to end by; 0 before.
    ended_by: AtomicI32,
    /// It has opened all that it needs, and says so.
    is_open: AtomicBool,
    /// Which system call ended it, if one did.
    violations: Option<PipeReader>,
    /// Where the console's latest output is kept.
    log: Option<PathBuf>,
    /// The file of `--console FILE`, and its mode once it is open.
    console: Option<(PathBuf, AtomicU32)>,
    /// The sockets that the user named, whose files go with the VM.
    sockets: Vec<PathBuf>,
    /// The processes that serve its devices.
    helpers: Mutex<Vec<Child>>,
    /// How it is confined.
    noted: Noted,
    /// Its user and its control group; none of one that is there already.
    outside: Option<Outside>,
    /// It leads no group, as it shares the user's terminal with this process, which its copies are left to.
    is_in_our_group: bool,
    /// The kernel has ended one of its processes for lack of memory.
    is_out_of_memory: AtomicBool,
}

/// One message of the process.
pub(super) enum Taken {
    /// It was for this side, which has done what it says.
    Handled,
    /// It is for who keeps the VM.
    Said(FromVm),
    /// There are no more: the process has ended.
    Ended,
}

impl VmProcess {
    /// Makes the process of a VM that has the directory `instance` and no user, as [`start_for`](Self::start_for) does.
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
        let identity = instance.identity();
        let (log, user, snapshot) = (None, None, None);
        let order = Order { config, identity: &identity, log, user, snapshot, split, start };
        let (vm, instance, of_keeper) = Self::start_for(order, Some(instance), of_keeper)?;
        Ok((vm, instance.ok_or(io::ErrorKind::NotFound)?, of_keeper))
    }

    /// Makes the process, which builds the VM of `order` and runs it. `instance` is its directory, and stays that of this
    /// process; what is in `of_keeper` is dropped in the new one.
    ///
    /// # Errors
    ///
    /// Those of the system calls. This process may have one thread alone.
    pub fn start_for<T>(
        order: Order<'_>,
        instance: Option<Instance>,
        of_keeper: T,
    ) -> io::Result<(Self, Option<Instance>, T)> {
        let Order { config, identity, log, user, snapshot, split, start } = order;
        let (tie, other) = Tie::pair()?;
        let (violations, reports) = io::pipe()?;
        rustix::io::ioctl_fionbio(&violations, true)?;
        rustix::io::ioctl_fionbio(&reports, true)?;
        let dial = || socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
        let (dialed, dialer) = config.vsock.as_ref().map(|_| dial()).transpose()?.unzip();
        // A container's are in its directory.
        let sockets = if user.is_some() { config.sockets() } else { Vec::new() };
        let is_in_our_group = user.is_some() && has_terminal();
        if is_in_our_group {
            adopt_orphans()?;
        }
        let outside = Outside::prepare(config, instance.as_ref());
        let mut mine = Some((tie, violations, dialed, instance, of_keeper));
        let given = log.clone();
        // In this process it drops what the new one has until its files are open.
        let child = outside.fork(|| {
            let Some((tie, violations, dialed, instance, of_keeper)) = mine.take() else { return 0 };
            drop((tie, violations, dialed, of_keeper));
            (split.leave)();
            if let Some(instance) = instance {
                instance.leave();
            }
            let means = Means {
                tie: other,
                reports,
                dialer,
                log: given,
                user,
                is_in_our_group,
                start,
                outside: &outside,
            };
            run((config, identity, snapshot), means, split.until_open)
        })?;
        let Some((tie, violations, dialed, mut instance, of_keeper)) = mine else {
            return Err(io::ErrorKind::NotFound.into());
        };
        if let Some(instance) = &mut instance
            && let Err(error) = instance.set_vm_process(child.id())
        {
            // Its end is seen by the socket.
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot note the VM's process");
        }
        let directory = instance.as_ref().map(|instance| instance.path().to_owned());
        if let Some(directory) = &directory
            && let Err(error) = started::note(directory, config)
        {
            tracing::warn!(%error, "cannot note what the VM is made of: it cannot be saved or copied");
        }
        let vm = Self {
            violations: Some(violations),
            noted: Noted::new(directory.as_deref()),
            outside: Some(outside),
            log: log.or_else(|| directory.as_ref().map(|directory| directory.join(LOG_NAME))),
            console: match &config.console {
                ConsoleConfig::File(path) => Some((path.clone(), AtomicU32::new(0o600))),
                _ => None,
            },
            sockets,
            is_in_our_group,
            ..Self::of(tie, child)
        };
        if let Some((vsock, dialed)) = config.vsock.as_ref().zip(dialed) {
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
            pace: Pace::new(MESSAGES_PER_SECOND),
            child,
            ended_by: AtomicI32::new(0),
            is_open: AtomicBool::new(false),
            violations: None,
            log: None,
            console: None,
            sockets: Vec::new(),
            helpers: Mutex::default(),
            noted: Noted::new(None),
            outside: None,
            is_in_our_group: false,
            is_out_of_memory: AtomicBool::default(),
        }
    }

    /// The same with a file of `--console FILE`.
    #[cfg(test)]
    pub(super) fn with_console(tie: Tie, child: Child, path: PathBuf) -> Self {
        Self { console: Some((path, AtomicU32::new(0o600))), ..Self::of(tie, child) }
    }

    /// Waits for what it says; `None` when it has ended. One that says what can't be understood is killed.
    pub fn receive(&self) -> Option<FromVm> {
        loop {
            match self.take(self.wait_for_message()) {
                Taken::Handled => {}
                Taken::Said(said) => return Some(said),
                Taken::Ended => return None,
            }
        }
    }

    /// What is polled for [`Ready`].
    pub(super) fn polled(&self) -> [PollFd<'_>; 2] {
        [PollFd::new(&self.tie, PollFlags::IN), PollFd::new(&self.child, PollFlags::IN)]
    }

    /// Waits until there is a message.
    pub(super) fn wait_for_message(&self) -> Ready {
        loop {
            let mut polled = self.polled();
            let ready = poll(&mut polled, None).ok().and_then(|_| Ready::of(&polled));
            if let Some(ready) = ready {
                return ready;
            }
        }
    }

    /// Takes one message. It waits until that may be read, as one that was taken over says too much.
    pub(super) fn take(&self, ready: Ready) -> Taken {
        self.pace.keep();
        if ready.needs_hang_up() {
            // Copies of it may have its end open, and say something without end.
            self.tie.hang_up();
        }
        let Ok(said) = self.tie.receive() else { return self.refuse() };
        match said {
            // It is said before the guest runs. Later, the groups that it names would be any of the user's.
            Some(Message::Confined { .. }) if self.is_open() => return self.refuse(),
            Some(Message::Confined { report, helpers }) => self.confined(report, helpers),
            Some(Message::Ready) => {
                if let Err(text) = self.check_helpers() {
                    self.child.kill();
                    return Taken::Said(FromVm::Failed(Failure { text, fault: Fault::Host }));
                }
            }
            Some(Message::NewLog) => self.give_log(),
            Some(Message::LogFilled) => {
                // The log keeps what it has where that fails, and the VM asks for another file.
                let _ = self.log.as_ref().map(|log| std::fs::rename(LogFile::next_of(log), log));
            }
            Some(Message::NewConsole(file)) => self.give_console(file),
            None => {
                let failed = |violation| Taken::Said(FromVm::Failed(of_violation(&violation)));
                return self.violation().map_or(Taken::Ended, failed);
            }
            Some(Message::Said(said)) => return Taken::Said(said),
        }
        Taken::Handled
    }

    /// Kills a process that has said what no VM says.
    fn refuse(&self) -> Taken {
        self.child.kill();
        let text = "its process said what is not understood, and was killed".into();
        Taken::Said(FromVm::Failed(Failure { text, fault: Fault::Guest }))
    }

    /// Notes how the VM is confined, and which processes are to end with it.
    fn confined(&self, report: Report, helpers: Vec<u32>) {
        self.is_open.store(true, Ordering::SeqCst);
        if let Some((path, mode)) = &self.console
            && let Ok(file) = rustix::fs::stat(path)
        {
            mode.store(mode_of(&file), Ordering::SeqCst);
        }
        self.noted.confined(report);
        let groups = helpers
            .into_iter()
            .take(MOST_HELPERS)
            .filter_map(|helper| Child::of_group(i32::try_from(helper).ok()?).ok());
        self.helpers.lock().unwrap_or_else(PoisonError::into_inner).extend(groups);
    }

    /// Has the guest run where the processes that serve devices are as they have to be.
    fn check_helpers(&self) -> Result<(), String> {
        let helpers = self.helpers.lock().unwrap_or_else(PoisonError::into_inner);
        let leaders: Vec<_> = helpers.iter().filter_map(|helper| u32::try_from(helper.id()).ok()).collect();
        drop(helpers);
        self.noted.helpers(&leaders)?;
        // It has ended, if this fails.
        let _ = self.tie.send(&ToVm::Run);
        Ok(())
    }

    /// Gives the VM another file for the console's log.
    fn give_log(&self) {
        let Some(path) = self.log.as_deref().map(LogFile::next_of) else { return };
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(path);
        // The VM goes on without it, and its log lacks output.
        let _ = file.and_then(|file| self.tie.send_with(&ToVm::Log, &[file.as_fd()]));
    }

    /// Gives the VM another file for its console, in place of `file`.
    fn give_console(&self, file: FileIdentity) {
        let Some((path, mode)) = &self.console else { return };
        // A link stays as it is; one to nothing, or nothing, is where another program has taken the file away.
        let at = std::fs::canonicalize(path).unwrap_or_else(|_| path.clone());
        let file = begin_anew(&at, file, mode.load(Ordering::SeqCst));
        match file {
            // Where it is not taken, the VM asks again.
            Ok(file) => drop(self.tie.send_with(&ToVm::Console, &[file.as_fd()])),
            Err(error) => {
                let path = path.display();
                tracing::warn!(%error, %path, "the console's file is full and cannot be renamed: output is left out");
            }
        }
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
        let _ = self.tie.send(&ToVm::End(signal.map_or(ExitReason::PowerOff, ExitReason::Signal)));
        self.end_within(ENDING);
    }

    /// Has the VM end for this reason.
    pub fn end_for(self: &Arc<Self>, reason: ExitReason) {
        let _ = self.tie.send(&ToVm::End(reason));
        self.end_within(ENDING);
    }

    /// Has the VM do what `signal` asks for. One that does not read is killed later.
    pub(super) fn signal(&self, signal: i32) {
        let _ = self.tie.send(&ToVm::Signal(signal));
    }

    /// Whether the process has opened all that it needs, and hears what it is told.
    pub(super) fn is_open(&self) -> bool {
        self.is_open.load(Ordering::SeqCst)
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
        let code = self.child.wait_with_group(Some(limit)).or_else(|| {
            self.child.kill();
            self.child.wait_with_group(Some(limit))
        });
        if self.is_in_our_group && code.is_some() && !end_orphans(COPYING_THREAD, limit) {
            tracing::warn!("the VM's process has left copies of itself behind, which do not end");
        }
        for helper in self.helpers.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            helper.kill_group();
        }
        // Where it has not ended, it may still listen.
        if code.is_some() {
            self.sockets.iter().for_each(|socket| devices::socket::remove_left(socket));
        }
        if let Some(outside) = &self.outside {
            // What it says goes with the group.
            if outside.is_out_of_memory() {
                self.is_out_of_memory.store(true, Ordering::SeqCst);
            }
            outside.end();
        }
        code
    }

    /// Whether the kernel ended one of its processes, as they used more memory than they can need. It is known when the
    /// process was waited for.
    pub fn is_out_of_memory(&self) -> bool {
        self.is_out_of_memory.load(Ordering::SeqCst)
    }
}

/// The open files of a disk, and where each ends on it; each begins where the one before ends.
pub struct Files {
    /// In the order in which they follow each other.
    pub files: Vec<OwnedFd>,
    /// In bytes from the beginning of the disk, one a file.
    pub ends: Vec<u64>,
}

/// Whether one of the standard streams is the terminal of this session: a process that is not in the group which has
/// that can't read it, and a shell stops and continues groups.
fn has_terminal() -> bool {
    // Where the session has none, none of them is.
    let flags = OFlags::RDONLY | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::open("/dev/tty", flags, Mode::empty()).is_ok()
        && standard_streams().iter().any(|stream| rustix::termios::tcgetpgrp(stream).is_ok())
}

/// The line for the user about a process that was ended by a system call.
fn of_violation(violation: &Violation) -> Failure {
    let Violation { thread, call } = violation;
    let name = jail::seccomp::name(*call).map_or_else(|| format!("number {call}"), str::to_owned);
    let text = format!(
        "its process was ended, as its thread {thread} made the system call {name}, which no VM needs: the guest may have \
         attacked it, or mvm has a fault (SECURITY.md says how to report it; --jail off runs without this check)"
    );
    Failure { text, fault: Fault::Guest }
}
