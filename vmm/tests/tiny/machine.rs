//! A VM around a tiny guest, from its files to its end.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use devices::virtio::pmem::PmemMode;
use instance::Identity;
use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm::ExitSlot;
use vmm::KvmError;
use vmm::{
    ConsoleConfig, ExitReason, Frontend, Limits, MemorySize, PmemConfig, Requests, Saver, Snapshot,
    Supervisor, TimeLimit, Timeline, Vm, VmConfig, VmError,
};
use vmm::{Gate, Holder};

use super::image::{self, Entry};

/// No guest here takes a second; this is for one that hangs.
pub(super) const WATCHDOG: Duration = Duration::from_secs(60);

/// A guest, before it runs.
pub(super) struct Machine {
    /// What the VM is made of. The kernel, the disks and the console are files of the directory.
    pub(super) config: VmConfig,
    identity: Identity,
    /// Where it goes on from, if it does not boot.
    snapshot: Option<Snapshot>,
    directory: TempDir,
}

/// A guest after its end.
pub(super) struct Ended {
    /// Why it ended.
    pub(super) reason: ExitReason,
    /// All that it wrote to its serial port.
    pub(super) console: Vec<u8>,
    /// When it came how far.
    pub(super) timeline: Arc<Timeline>,
    /// Its files stay until the test has looked at them.
    _directory: TempDir,
}

impl Ended {
    /// What the guest wrote to its serial port, where it is known to have powered off after it.
    pub(super) fn output(self) -> Vec<u8> {
        assert_eq!(self.reason, ExitReason::PowerOff, "console: {:02x?}", self.console);
        self.console
    }

    /// The same as numbers of 32 bits.
    pub(super) fn numbers(self) -> Vec<u32> {
        let output = self.output();
        assert_eq!(output.len() % 4, 0, "{output:02x?}");
        output.chunks_exact(4).map(|bytes| u32::from_le_bytes(bytes.try_into().unwrap())).collect()
    }
}

/// A guest that runs, with its console in the hands of the test.
pub(super) struct Running {
    /// What keeps its vCPUs out of the guest.
    pub(super) gate: Arc<Gate>,
    memory: Arc<GuestMemoryMmap>,
    console: File,
    exit: Arc<ExitSlot>,
    /// What saves it.
    pub(super) saver: Arc<Saver>,
    thread: JoinHandle<()>,
    supervisor: Supervisor,
    end: End,
    directory: TempDir,
}

impl Machine {
    /// A machine of one vCPU and 128 MiB for a guest that is entered in 64-bit mode; `None`, with the reason
    /// printed, where there is no KVM.
    pub(super) fn new(code: &[u8]) -> Option<Self> {
        Self::with_entry(code, Entry::Linux64)
    }

    /// The same for a guest that is entered by its PVH note.
    pub(super) fn pvh(code: &[u8]) -> Option<Self> {
        Self::with_entry(code, Entry::Pvh)
    }

    fn with_entry(code: &[u8], entry: Entry) -> Option<Self> {
        if !kvm_is_there() {
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let kernel = directory.path().join("kernel");
        std::fs::write(&kernel, image::elf(code, entry)).unwrap();
        let console = ConsoleConfig::File(directory.path().join("console"));
        let config = VmConfig { memory: MemorySize::from_mib(128), console, ..VmConfig::new(kernel) };
        Some(Self { config, identity: Identity::default(), snapshot: None, directory })
    }

    /// The path of a file next to the kernel.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Makes a file with `content` next to the kernel.
    pub(super) fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    /// Gives the guest a disk with `content`.
    pub(super) fn disk(mut self, name: &str, content: &[u8]) -> Self {
        let path = self.file(name, content);
        self.config.disks.push(format!("{}", path.display()).parse().unwrap());
        self
    }

    /// Gives the guest a file with `content` as persistent memory.
    pub(super) fn pmem(mut self, name: &str, mode: PmemMode, content: &[u8]) -> Self {
        let path = self.file(name, content);
        self.config.pmem.push(PmemConfig { path, format: Default::default(), mode });
        self
    }

    /// Gives the guest `cpus` vCPUs.
    pub(super) fn cpus(mut self, cpus: u32) -> Self {
        self.config.cpus = cpus;
        self
    }

    /// Gives the guest so much memory in place of 128 MiB.
    pub(super) fn memory(mut self, mib: u32) -> Self {
        self.config.memory = MemorySize::from_mib(mib);
        self
    }

    /// Ends the VM by force `seconds` after it was asked to end.
    pub(super) fn stop_timeout(mut self, seconds: u32) -> Self {
        self.config.stop_timeout = TimeLimit::from_secs(seconds);
        self
    }

    /// Has the guest go on from where another one was saved, which is of the same configuration.
    pub(super) fn continuing(mut self, snapshot: Snapshot) -> Self {
        self.snapshot = Some(snapshot);
        self
    }

    /// Lets the VM run for `seconds`.
    pub(super) fn timeout(mut self, seconds: u32) -> Self {
        self.config.timeout = Some(TimeLimit::from_secs(seconds));
        self
    }

    /// Gives the VM `directory` as its own.
    pub(super) fn runtime_directory(mut self, directory: &Path) -> Self {
        self.identity.directory = Some(directory.to_owned());
        self
    }

    /// Gives the VM a directory, and with it a control socket.
    pub(super) fn controlled(self) -> Self {
        let directory = self.directory.path().to_owned();
        self.runtime_directory(&directory)
    }
    /// Runs the guest to its end.
    pub(super) fn run(self) -> Ended {
        self.run_with(|_| ())
    }

    /// Runs the guest to its end, after `built` has seen the VM.
    pub(super) fn run_with(self, built: impl FnOnce(&Vm) + Send + 'static) -> Ended {
        let timeline = Arc::new(Timeline::starting_at(Instant::now()));
        let supervisor = supervisor(&self.config);
        let described = (self.config, self.identity);
        let (_thread, end) =
            start(described, self.snapshot, (supervisor.requests(), timeline.clone()), built);
        let console = || std::fs::read(self.directory.path().join("console")).unwrap_or_default();
        let Ok(reason) = end.recv_timeout(WATCHDOG) else {
            panic!("the guest does not end; console: {:02x?}", console());
        };
        let reason = reason.unwrap();
        Ended { reason, console: console(), timeline, _directory: self.directory }
    }

    /// Why the VM is not built, with all causes.
    pub(super) fn refusal(self) -> String {
        let supervisor = supervisor(&self.config);
        let seen = (supervisor.requests(), Arc::new(Timeline::starting_at(Instant::now())));
        match build_from((&self.config, &self.identity), self.snapshot, seen) {
            Ok(_) => panic!("the VM is built"),
            Err(error) => devices::log::chain(&error),
        }
    }

    /// Starts the guest with a pipe as its console and waits until it says that it is ready, with one byte.
    pub(super) fn run_until_ready(self) -> Running {
        let mut running = self.run_with_pipe(false);
        running.wait_until_ready();
        running
    }

    /// Starts the guest with a pipe as its console and its vCPUs held before their first instruction.
    pub(super) fn run_paused(self) -> Running {
        self.run_with_pipe(true)
    }

    /// Starts the guest with a pipe as its console.
    pub(super) fn run_with_pipe(self, paused: bool) -> Running {
        let path = self.directory.path().join("console");
        let name = std::ffi::CString::new(path.as_os_str().as_bytes()).unwrap();
        // SAFETY: the name is a string with an end.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0, "{}", io::Error::last_os_error());
        // Opened without waiting for the VM to open its end, so that a VM which cannot be built is seen.
        let console = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).unwrap();
        let timeline = Arc::new(Timeline::starting_at(Instant::now()));
        let (sender, parts) = mpsc::channel();
        let supervisor = supervisor(&self.config);
        let requests = supervisor.requests();
        let described = (self.config, self.identity);
        let (thread, end) = start(described, self.snapshot, (requests, timeline), move |vm| {
            if paused {
                vm.gate().pause(Holder::User).unwrap();
            }
            // The test has given up waiting if it is not received.
            let _ =
                sender.send((vm.gate().clone(), vm.memory().clone(), vm.exit().clone(), vm.saver().clone()));
        });
        let Ok((gate, memory, exit, saver)) = parts.recv() else {
            panic!("the VM is not built: {:?}", end.recv())
        };
        Running { gate, memory, console, exit, saver, thread, supervisor, end, directory: self.directory }
    }
}

impl Running {
    /// The control socket of a machine that is [`controlled`](Machine::controlled).
    pub(super) fn control_socket(&self) -> PathBuf {
        self.directory.path().join(instance::CONTROL_SOCKET)
    }

    /// Waits until the guest says that it is ready, with one byte.
    pub(super) fn wait_until_ready(&mut self) {
        if !becomes_readable(&self.console) {
            panic!("the guest is not ready; end: {:?}", self.end.try_recv());
        }
        self.console.read_exact(&mut [0]).unwrap();
    }

    /// A number in the guest's memory.
    pub(super) fn read(&self, address: u64) -> u64 {
        self.memory.read_obj(GuestAddress(address)).unwrap()
    }

    /// Waits until a number in the guest's memory has changed, and returns what it is then.
    pub(super) fn read_changed(&self, address: u64) -> u64 {
        let (start, before) = (Instant::now(), self.read(address));
        while self.read(address) == before {
            assert!(start.elapsed() < WATCHDOG, "the guest stands still");
            std::thread::yield_now();
        }
        self.read(address)
    }

    /// The pipe's end.
    pub(super) fn console(&self) -> &File {
        &self.console
    }

    /// Signals again and again until the VM ends.
    pub(super) fn signal_until_it_ends(&self, signal: i32) {
        let start = Instant::now();
        while !self.exit.has_ended() {
            assert!(start.elapsed() < WATCHDOG, "the VM does not end");
            self.signal(signal);
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Does to the VM what `signal` to its process does.
    pub(super) fn signal(&self, signal: i32) {
        self.supervisor.requests().signal(signal);
    }

    /// Ends the VM at once, as a second `signal` would.
    pub(super) fn force(&self, signal: i32) {
        self.exit.end(ExitReason::Signal(signal));
    }

    /// Waits for the guest's end; returns its reason and what it wrote to its serial port since it was ready.
    pub(super) fn wait(mut self) -> (ExitReason, Vec<u8>) {
        let reason = self.end.recv_timeout(WATCHDOG).expect("the guest ends").unwrap();
        self.thread.join().unwrap();
        let mut rest = Vec::new();
        // A reader as slow as this one is still written to.
        rustix::io::ioctl_fionbio(&self.console, false).unwrap();
        self.console.read_to_end(&mut rest).unwrap();
        (reason, rest)
    }
}

type End = Receiver<Result<ExitReason, VmError>>;

/// Builds a VM. The thread's signals are the VM's from then on.
pub(super) fn build(
    (config, identity): &(VmConfig, Identity),
    requests: Requests,
    timeline: Arc<Timeline>,
) -> Result<Vm, VmError> {
    build_from((config, identity), None, (requests, timeline))
}

fn build_from(
    (config, identity): (&VmConfig, &Identity),
    snapshot: Option<Snapshot>,
    (requests, timeline): (Requests, Arc<Timeline>),
) -> Result<Vm, VmError> {
    let frontend = Frontend::of_process(&config.console)?.supervised_by(requests);
    let resources = match snapshot {
        None => vmm::open(config, identity, None)?,
        Some(snapshot) => vmm::open_snapshot(config, identity, None, snapshot)?,
    };
    vmm::build(resources, frontend, timeline)
}

/// Builds and runs a VM on a thread of its own: [`Vm::run`] returns at the guest's end only.
fn start(
    described: (VmConfig, Identity),
    snapshot: Option<Snapshot>,
    seen: (Requests, Arc<Timeline>),
    built: impl FnOnce(&Vm) + Send + 'static,
) -> (JoinHandle<()>, End) {
    let (sender, end) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        let result = build_from((&described.0, &described.1), snapshot, seen).and_then(|vm| {
            built(&vm);
            vm.run()
        });
        // The test has given up waiting if it is not received.
        let _ = sender.send(result);
    });
    (thread, end)
}

/// What ends the VM; no signal of the process's does.
pub(super) fn supervisor(config: &VmConfig) -> Supervisor {
    let last_resort = Box::new(|reason: &ExitReason| panic!("the VM's threads do not end: {reason}"));
    Supervisor::start(None, Limits::from(config), last_resort).unwrap()
}

/// Waits until there is something to read.
fn becomes_readable(file: &File) -> bool {
    let mut poll = libc::pollfd { fd: file.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let timeout = i32::try_from(WATCHDOG.as_millis()).unwrap();
    // SAFETY: the pointer is that of one `pollfd`.
    unsafe { libc::poll(&raw mut poll, 1, timeout) };
    poll.revents & libc::POLLIN != 0
}

/// Whether KVM can be opened. Where it can't, the reason is printed, past the test harness, which would keep it
/// to itself.
fn kvm_is_there() -> bool {
    match vmm::open_kvm() {
        Ok(_) => true,
        Err(error @ (KvmError::NoDevice | KvmError::NoPermission(_) | KvmError::Open(_))) => {
            let thread = std::thread::current();
            let _ = writeln!(io::stderr(), "skipped {}: {error}", thread.name().unwrap_or("a test"));
            false
        }
        Err(error) => panic!("{error}"),
    }
}

/// A user whom no other process is, and no control group of this process's doing.
pub(super) fn alone() -> (jail::Ids, jail::State) {
    (jail::Ids::own(2_000_000_301), jail::State::On(String::new()))
}
