//! The process of a container's VM, and what it and the keeper tell each other.

use std::any::Any;
use std::fs::{File, OpenOptions};
use std::io::{self, PipeReader, PipeWriter, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::Builder;
use std::time::{Duration, Instant};

use instance::Instance;
use instance::keeper::{Child, Tie, fork, leave_the_terminal};
use jail::Report;
use jail::seccomp::Violation;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use vmm::{
    BlockHandle, Disk, ExitReason, Frontend, Limits, LogFile, LogKeeper, Noted, Outside, Part, Requests,
    Supervisor, Timeline, VmConfig, VmError, WeakBlockHandle,
};

/// The most processes that serve devices of a VM.
const MOST_HELPERS: usize = vmm::MAX_DEVICES;

/// How long the process may take to end once it was told to: its own supervisor ends it in less.
const ENDING: Duration = Duration::from_secs(5);

/// What the keeper says.
#[derive(Debug, Serialize, Deserialize)]
enum ToVm {
    /// End at once: what the guest was for is done, or this signal ends it.
    End { signal: Option<i32> },
    /// Put a disk into a slot. Its open files come with the message; they follow each other up to these places.
    Insert { number: u64, slot: usize, read_only: bool, ends: Vec<u64> },
    /// Take the disk out of a slot.
    Eject { number: u64, slot: usize },
    /// Here is the next file of the console's log.
    Log,
    /// The processes that serve devices are as they have to be: the guest may run.
    Run,
}

/// What the VM's process says. A guest that has taken it over may say anything.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromVm {
    /// Its power button was pressed.
    Pressed,
    /// The VM has ended.
    Ended(VmEnd),
    /// It could not be built: a line for the user.
    Failed(String),
    /// What was asked of a slot was done, or why not.
    Slot {
        /// Which request.
        number: u64,
        /// Why not.
        failure: Option<String>,
    },
}

/// All that it says.
#[derive(Debug, Serialize, Deserialize)]
enum Message {
    /// It is confined so, and these processes serve its devices, each in a group of its own.
    Confined {
        /// The layers.
        report: Report,
        /// The groups.
        helpers: Vec<u32>,
    },
    /// The VM is built, and waits for [`ToVm::Run`] where processes serve its devices.
    Built,
    /// The console's log has grown: another file is to take its place.
    NewLog,
    /// It is filled, and can take its place.
    LogFilled,
    /// What is passed on.
    #[serde(untagged)]
    Said(FromVm),
}

/// How a VM ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmEnd {
    /// The guest powered off, or what it was for was done.
    pub is_power_off: bool,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// How it ended, in words.
    pub text: String,
    /// When each phase of the start was reached, as `vmm::Timeline::nanoseconds`.
    #[serde(default)]
    pub timing: Vec<u64>,
}

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
    /// How it is confined.
    noted: Noted,
    /// Its user and its control group; none of one that is there already.
    outside: Option<Outside>,
    /// The kernel has ended one of its processes for want of memory.
    is_out_of_memory: AtomicBool,
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
        let outside = Outside::prepare(config, &instance);
        let mut mine = Some((tie, violations, dialed, instance, of_keeper));
        // In this process it drops what the new one has until its files are open.
        let child = fork(|| {
            let Some((tie, violations, dialed, instance, of_keeper)) = mine.take() else { return 0 };
            drop((tie, violations, dialed, of_keeper));
            (split.leave)();
            let means = Means { tie: other, reports, dialer, outside: &outside };
            run(config, instance, means, split.until_open, start)
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
            noted: Noted::new(instance.path()),
            outside: Some(outside),
            is_out_of_memory: AtomicBool::default(),
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

    /// One that is there already.
    #[cfg(test)]
    pub fn of(tie: Tie, child: Child) -> Self {
        Self {
            tie,
            child,
            ended_by: AtomicI32::new(0),
            violations: None,
            directory: PathBuf::new(),
            helpers: Mutex::default(),
            noted: Noted::new(&PathBuf::new()),
            outside: None,
            is_out_of_memory: AtomicBool::default(),
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
                Some(Message::Confined { report, helpers }) => self.confined(report, helpers),
                Some(Message::Built) => {
                    if let Err(line) = self.check_helpers() {
                        self.child.kill();
                        return Some(FromVm::Failed(line));
                    }
                }
                Some(Message::NewLog) => self.give_log(),
                Some(Message::LogFilled) => {
                    let log = self.directory.join(vmm::LOG_NAME);
                    // The log keeps what it has where that fails, and the VM asks for another file.
                    let _ = std::fs::rename(LogFile::next_of(&log), log);
                }
                None => return self.violation().map(|violation| FromVm::Failed(of_violation(&violation))),
                Some(Message::Said(said)) => return Some(said),
            }
        }
    }

    /// Notes how the VM is confined, and which processes are to end with it.
    fn confined(&self, report: Report, helpers: Vec<u32>) {
        self.noted.confined(report);
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
        let path = LogFile::next_of(&self.directory.join(vmm::LOG_NAME));
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
    pub files: Vec<OwnedFd>,
    pub ends: Vec<u64>,
}

/// How many requests for slots wait at most.
const WAITING: usize = 64;

/// What is asked of the VM's slots while it runs.
type SlotRequest = (ToVm, Vec<OwnedFd>);

/// The slots of a VM, once it is built.
type Slots = Arc<OnceLock<Vec<WeakBlockHandle>>>;

/// Serves requests for slots, on a thread that lives as long as the process.
fn serve_slots(slots: Slots, tie: Arc<Tie>) -> io::Result<SyncSender<SlotRequest>> {
    let (sender, requests) = sync_channel::<SlotRequest>(WAITING);
    devices::spawn("slots", move || {
        for (request, files) in requests {
            let (number, done) = match request {
                ToVm::Insert { number, slot, read_only, ends } => {
                    (number, slot_of(&slots, slot).and_then(|slot| insert(&slot, read_only, &ends, files)))
                }
                ToVm::Eject { number, slot } => {
                    let eject = |slot: BlockHandle| slot.eject().map_err(|error| devices::log::chain(&error));
                    (number, slot_of(&slots, slot).and_then(eject))
                }
                ToVm::End { .. } | ToVm::Log | ToVm::Run => continue,
            };
            // The keeper has gone, if this fails.
            let _ = tie.send(&FromVm::Slot { number, failure: done.err() });
        }
    })?;
    Ok(sender)
}

fn slot_of(slots: &Slots, slot: usize) -> Result<BlockHandle, String> {
    let handle = slots.get().ok_or("the VM is not built yet")?.get(slot).ok_or("there is no such slot")?;
    handle.upgrade().ok_or_else(|| "the VM has ended".to_owned())
}

fn insert(slot: &BlockHandle, read_only: bool, ends: &[u64], files: Vec<OwnedFd>) -> Result<(), String> {
    if ends.len() != files.len() {
        return Err("files of the disk are missing".into());
    }
    let starts = [0].into_iter().chain(ends.iter().copied());
    let parts =
        files.into_iter().zip(starts.zip(ends)).map(|(file, (start, end))| Part { file, start, end: *end });
    let disk = Disk::of_parts(parts.collect(), read_only).map_err(|error| devices::log::chain(&error))?;
    slot.insert(disk).map_err(|error| devices::log::chain(&error))
}

/// The line for the user about a process that was ended by a system call.
fn of_violation(violation: &Violation) -> String {
    let Violation { thread, call } = violation;
    let name = crate::seccomp::name(*call).map_or_else(|| format!("number {call}"), str::to_owned);
    format!(
        "its process was ended, as its thread {thread} made the system call {name}, which no VM needs: the guest may have \
         attacked it, or mvm has a fault (SECURITY.md says how to report it; --jail off runs without this check)"
    )
}

/// How the VM ended, and what that usually means.
fn in_words(reason: &ExitReason) -> String {
    reason.hint().map_or_else(|| reason.to_string(), |hint| format!("{reason}; {hint}"))
}

/// What the VM's process does.
fn run(
    config: &VmConfig,
    instance: Instance,
    means: Means<'_>,
    until_open: Box<dyn Any>,
    start: Instant,
) -> u8 {
    // A terminal's signals and the command's input and output are the keeper's.
    let left = leave_the_terminal();
    let Means { tie, reports, dialer, outside } = means;
    let tie = Arc::new(tie);
    let timeline = Arc::new(Timeline::starting_at(start));
    let ran = left
        .map_err(|error| format!("cannot leave the terminal: {error}"))
        .and_then(|()| try_run(config, instance, &tie, (reports, dialer, outside, until_open), &timeline));
    let (message, code) = match ran {
        Ok(reason) => {
            let signal = if let ExitReason::Signal(signal) = &reason { Some(*signal) } else { None };
            let is_power_off = reason == ExitReason::PowerOff;
            let end = VmEnd { is_power_off, signal, text: in_words(&reason), timing: timeline.nanoseconds() };
            (FromVm::Ended(end), 0)
        }
        Err(message) => (FromVm::Failed(message), 1),
    };
    // The keeper has gone, if this fails.
    let _ = tie.send(&message);
    devices::log::finish_quickly();
    code
}

/// What the process has from the one that keeps it.
struct Means<'a> {
    tie: Tie,
    /// Where it says which system call ended it.
    reports: PipeWriter,
    /// Leads to what connects the guest with sockets of the host.
    dialer: OwnedFd,
    /// Its user and its control group.
    outside: &'a Outside,
}

/// The keeper, as the console's log knows it.
struct Logs {
    tie: Arc<Tie>,
    next: NextLog,
}

/// A file that has come from the keeper for the log.
type NextLog = Arc<Mutex<Option<File>>>;

impl LogKeeper for Logs {
    fn ask(&self) {
        // The keeper has gone, if this fails.
        let _ = self.tie.send(&Message::NewLog);
    }

    fn take(&self) -> Option<File> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn replace(&self) {
        let _ = self.tie.send(&Message::LogFilled);
    }
}

/// What opens the VM, and gives up the rest; then starts the threads beside it, builds it and runs it.
fn try_run(
    config: &VmConfig,
    instance: Instance,
    tie: &Arc<Tie>,
    (reports, dialer, outside, until_open): (PipeWriter, OwnedFd, &Outside, Box<dyn Any>),
    timeline: &Arc<Timeline>,
) -> Result<ExitReason, String> {
    let thread = |error: io::Error| format!("cannot start a thread: {error}");
    let chain = |error: VmError| devices::log::chain(&error);
    let identity = instance.identity();
    // Who is confined sees no path, and cannot tell whether the directory is there.
    let is_confined = config.jail != jail::Mode::Off;
    let removal = if is_confined { None } else { instance.watch_removal().ok() };
    instance.leave();
    // Before anything that counts: the guest's memory, and the processes that serve its devices.
    let entered = outside.enter();
    let frontend = Frontend::of_process(&config.console).map_err(chain)?;
    let mut resources = vmm::open(config, &identity, None).map_err(chain)?;
    drop(until_open);
    let helpers = resources.helpers();
    if is_confined {
        resources.dial_by(dialer);
    }
    let report = resources.confine(config.jail, entered, reports.into()).map_err(chain)?;
    // One that was stopped goes on when its keeper ends, and so sees that. Changes of rights forget it.
    let _ = rustix::process::set_parent_process_death_signal(Some(Signal::CONT));
    for (layer, why) in report.missing() {
        tracing::info!("the VM is confined without {layer}: {why}");
    }
    let has_helpers = !helpers.is_empty();
    let _ = tie.send(&Message::Confined { report, helpers });

    let writer = devices::log::Writer::start().map_err(thread)?;
    let limits = Limits { stop_timeout: Duration::ZERO, timeout: None };
    let (of_last_resort, of_timeline) = (tie.clone(), timeline.clone());
    let last_resort = move |reason: &ExitReason| {
        let signal = if let ExitReason::Signal(signal) = reason { Some(*signal) } else { None };
        let text = in_words(reason);
        let end = VmEnd { is_power_off: false, signal, text, timing: of_timeline.nanoseconds() };
        let _ = of_last_resort.send(&FromVm::Ended(end));
        devices::socket::remove_files();
        devices::log::finish_quickly();
        instance::exit_now(1)
    };
    let supervisor = Supervisor::start(None, limits, Box::new(last_resort)).map_err(thread)?;
    let requests = supervisor.requests();
    let (slots, next_log) = (Slots::default(), NextLog::default());
    let (may_run, run) = sync_channel(1);
    let to_slots = (config.slots > 0).then(|| serve_slots(slots.clone(), tie.clone())).transpose();
    hear_keeper(tie.clone(), (to_slots.map_err(thread)?, may_run), next_log.clone(), requests.clone())
        .map_err(thread)?;
    let of_button = tie.clone();
    let frontend = frontend
        .supervised_by(requests)
        .watching(removal)
        .log_kept_by(Box::new(Logs { tie: tie.clone(), next: next_log }))
        .on_power_button(Box::new(move || drop(of_button.send(&FromVm::Pressed))));
    let built = vmm::build(resources, frontend, timeline.clone()).and_then(|vm| {
        let _ = slots.set(vm.slots().iter().map(BlockHandle::downgrade).collect());
        if has_helpers {
            // The keeper has gone, or has ended the VM, if there is no answer.
            let _ = tie.send(&Message::Built);
            let _ = run.recv();
        }
        vmm::seal(vm)
    });
    let reason = built.and_then(vmm::Vm::run).map_err(chain);
    // Until the process ends: another thread may still keep it from ending.
    std::mem::forget(supervisor);
    drop(writer);
    reason
}

/// Does what the keeper says, on a thread that lives as long as the process.
fn hear_keeper(
    tie: Arc<Tie>,
    (to_slots, may_run): (Option<SyncSender<SlotRequest>>, SyncSender<()>),
    next_log: NextLog,
    to_end: Requests,
) -> io::Result<()> {
    let hear = move || {
        let reason = loop {
            match tie.receive_with() {
                Ok(Some((ToVm::End { signal: None }, _))) => break ExitReason::PowerOff,
                Ok(Some((ToVm::End { signal: Some(signal) }, _))) => break ExitReason::Signal(signal),
                // Said once.
                Ok(Some((ToVm::Run, _))) => drop(may_run.try_send(())),
                Ok(Some((ToVm::Log, mut files))) => {
                    let file = files.pop().map(File::from);
                    *next_log.lock().unwrap_or_else(PoisonError::into_inner) = file;
                }
                Ok(Some(request)) => {
                    // One that is dropped is not answered, which its deadline is for.
                    let _ = to_slots.as_ref().map(|slots| slots.try_send(request));
                }
                // The keeper has gone.
                Ok(None) | Err(_) => break ExitReason::Signal(libc::SIGKILL),
            }
        };
        drop(may_run);
        to_end.end(reason);
    };
    devices::spawn("keeper", hear).map(drop)
}
