//! Opening what a VM needs makes no thread. Once a VM is built it makes no thread either, opens no path and has no
//! socket made, whatever guest and clients do: so that the process can give up the right to.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use devices::virtio::pmem::PmemMode;
use instance::api::{Action, ActionType, BalloonStatistics, BalloonUpdate, VmUpdate, WantedState};
use instance::{CONSOLE_SOCKET, CONTROL_SOCKET, Client, Identity, MetricsReport};
use vmm::{ConsoleConfig, ExitReason, Frontend, Limits, Supervisor, Timeline, VmConfig};

use super::machine::{Machine, WATCHDOG};

guest!(
    starts_all_devices,
    "
        map_gib 3, 0x12000
        // Twice: each device is reset in between.
        mov r13d, 2
    2:
        mov r12d, 0x400000
        mov ebx, {VIRTIO}
    3:
        cmp dword ptr [rbx], 0x74726976
        jne 7f
        // As far as FEATURES_OK, with VERSION_1 alone.
        store 0x70, 0
        store 0x70, 1
        store 0x70, 1 | 2
        store 0x24, 1
        store 0x20, 1
        store 0x70, 1 | 2 | 8
        // All queues that there are, a page for each.
        xor ebp, ebp
    4:
        mov [rbx + 0x30], ebp
        cmp dword ptr [rbx + 0x34], 0
        je 5f
        store 0x38, 4
        mov [rbx + 0x80], r12d
        store 0x84, 0
        lea eax, [r12 + 0x400]
        mov [rbx + 0x90], eax
        store 0x94, 0
        lea eax, [r12 + 0x800]
        mov [rbx + 0xa0], eax
        store 0xa4, 0
        store 0x44, 1
        add r12d, 0x1000
        inc ebp
        jmp 4b
    5:
        store 0x70, 1 | 2 | 4 | 8
    6:
        dec ebp
        mov [rbx + 0x50], ebp
        jnz 6b
        // The device ID and the status say what became of it.
        mov eax, [rbx + 8]
        put8
        mov eax, [rbx + 0x70]
        put8
        add ebx, 0x1000
        jmp 3b
    7:
        dec r13d
        jnz 2b
        say '.'
    8:
        hlt
        jmp 8b
    "
);

/// The calls that make or open what a process could be denied.
const MAKERS: &str = "clone,clone3,fork,vfork,execve,open,openat,openat2,creat,socket,socketpair,bind,connect,\
                      io_uring_setup,epoll_create,epoll_create1,eventfd,eventfd2,timerfd_create,signalfd,signalfd4,\
                      memfd_create,pipe,pipe2,inotify_init,inotify_init1,pidfd_open,userfaultfd";

/// What is still made while a VM runs: the beginnings of lines, how many of them there may be, and why.
const ALLOWED: [(&str, usize, &str); 1] = [(
    "openat(AT_FDCWD, \"/sys/devices/system/cpu/online\"",
    4,
    "glibc's malloc counts the processors when threads first allocate at the same time",
)];

/// Has the child confine itself.
const CONFINED: &str = "MVM_TEST_CONFINED";

/// Where the child finds its kernel and its files.
const DIRECTORY: &str = "MVM_TEST_SEALED";

/// The VM, in a process of its own: it does nothing where the test below has not started it.
#[test]
fn a_process_that_runs_a_vm() {
    let Some(directory) = std::env::var_os(DIRECTORY).map(PathBuf::from) else { return };
    let tap = std::env::var("MVM_TEST_TAP").ok();
    let path = |name: &str| directory.join(name);
    let value = |name: &str| path(name).to_str().unwrap().to_owned();
    let config = VmConfig {
        console: ConsoleConfig::Virtio,
        rootfs: Some(value("disk").parse().unwrap()),
        nets: tap.iter().map(|tap| format!("tap={tap}").parse().unwrap()).collect(),
        vsock: Some(value("vsock").parse().unwrap()),
        pmem: vec![vmm::PmemConfig { mode: PmemMode::CopyOnWrite, ..value("pmem").parse().unwrap() }],
        balloon: true,
        cpus: 2,
        ..VmConfig::new(path("kernel"))
    };
    let identity = Identity { directory: Some(directory.clone()), ..Identity::default() };
    if std::env::var_os(CONFINED).is_some() {
        return in_a_process_of_its_own(|reports| run_confined(&config, &identity, reports));
    }
    let timeline = Arc::new(Timeline::starting_at(Instant::now()));
    let signals = instance::take_ending().unwrap();
    let supervisor = Supervisor::start(Some(signals), Limits::from(&config), Box::new(|_| ())).unwrap();
    let frontend = Frontend::of_process(&config.console).unwrap().supervised_by(supervisor.requests());
    let reason = vmm::launch(&config, &identity, frontend, &timeline).unwrap();
    assert_eq!(reason, ExitReason::Signal(libc::SIGKILL));
}

/// Runs `run` in a copy of this process that has one thread, which it gives a pipe for violations.
fn in_a_process_of_its_own(run: impl FnOnce(io::PipeWriter)) {
    let (mut reports, writer) = io::pipe().unwrap();
    // SAFETY: the copy has one thread, and ends below. It takes memory, which glibc makes possible after a fork.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(writer)));
        // SAFETY: it ends the process.
        unsafe { libc::_exit(i32::from(ended.is_err())) };
    }
    drop(writer);
    let mut report = Vec::new();
    reports.read_to_end(&mut report).unwrap();
    let mut status = 0;
    // SAFETY: the status lives until the call returns.
    unsafe { libc::waitpid(child, &raw mut status, 0) };
    let violation = jail::seccomp::Violation::parse(&report);
    assert_eq!((violation, status), (None, 0));
}

/// As the keeper of a VM has it run.
fn run_confined(config: &VmConfig, identity: &Identity, reports: io::PipeWriter) {
    let frontend = Frontend::of_process(&config.console).unwrap();
    let mut resources = vmm::open(config, identity, None).unwrap();
    let report = resources.confine(jail::Mode::BestEffort, super::machine::alone(), reports.into()).unwrap();
    let lacking: Vec<_> = report.missing().collect();
    if !lacking.is_empty() {
        eprintln!("not all of the jail is there: {lacking:?}");
    }
    let supervisor = Supervisor::start(None, Limits::from(config), Box::new(|_| ())).unwrap();
    let timeline = Arc::new(Timeline::starting_at(Instant::now()));
    let frontend = frontend.supervised_by(supervisor.requests());
    let vm = vmm::seal(vmm::build(resources, frontend, timeline).unwrap()).unwrap();
    assert_eq!(vm.run().unwrap(), ExitReason::Signal(libc::SIGKILL));
}

/// A process that does not outlive its test.
struct Traced(Child);

impl Drop for Traced {
    fn drop(&mut self) {
        // strace and what it traces, in a group of their own.
        let group = rustix::process::Pid::from_child(&self.0);
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        let _ = self.0.wait();
    }
}

/// A tap of the test's own, where it may have one.
struct Tap(String);

impl Tap {
    fn make() -> Option<Self> {
        let name = format!("mvmt{}", std::process::id());
        let made =
            Command::new("ip").args(["tuntap", "add", &name, "mode", "tap"]).stderr(Stdio::null()).status();
        made.is_ok_and(|status| status.success()).then_some(Self(name))
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "del", &self.0]).status();
    }
}

fn skip(why: &str) {
    // Past the harness, which would keep it to itself.
    let _ = writeln!(io::stderr(), "skipped {}: {why}", std::thread::current().name().unwrap_or("a test"));
}

#[test]
fn a_vm_that_runs_makes_and_opens_nothing() {
    let Some(machine) = Machine::new(starts_all_devices()) else { return };
    if Command::new("strace").args(["-f", "true"]).stderr(Stdio::null()).status().is_err() {
        return skip("there is no strace (Debian package strace)");
    }
    machine.file("disk", &[0; 4096]);
    File::create(machine.path("pmem")).unwrap().set_len(2 << 20).unwrap();
    let tap = Tap::make();
    let directory = machine.path("");
    let trace = machine.path("trace");
    let mut command = Command::new("strace");
    command
        .args(["-f", "-qq", "-e", "signal=none", "-e"])
        .arg(format!("trace={MAKERS},ioctl"))
        .arg("-o")
        .arg(&trace);
    command.arg(std::env::current_exe().unwrap()).args(["--exact", "tiny::sealed::a_process_that_runs_a_vm"]);
    command.args(["--nocapture", "--test-threads=1"]).env(DIRECTORY, &directory);
    command.envs(tap.iter().map(|tap| ("MVM_TEST_TAP", &tap.0)));
    let mut child =
        Traced(command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap());
    use_it(&directory, child.0.stdout.as_mut().unwrap(), tap.is_some());
    let mut said = String::new();
    child.0.stdout.as_mut().unwrap().read_to_string(&mut said).unwrap();
    assert!(child.0.wait().unwrap().success(), "{said}");
    let trace = std::fs::read_to_string(trace).unwrap();
    let (opening, building) = threads_before_run(&trace);
    assert!(opening.is_empty(), "made while the VM was opened:\n{}", opening.join("\n"));
    assert!(!building.is_empty(), "threads are seen where they are made: {trace}");
    let made = made_while_running(&trace);
    assert!(made.is_empty(), "made or opened while the VM ran:\n{}", made.join("\n"));
}

#[test]
fn a_vm_that_is_confined_works_as_another() {
    let Some(machine) = Machine::new(starts_all_devices()) else { return };
    machine.file("disk", &[0; 4096]);
    File::create(machine.path("pmem")).unwrap().set_len(2 << 20).unwrap();
    let tap = Tap::make();
    let directory = machine.path("");
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "tiny::sealed::a_process_that_runs_a_vm", "--nocapture", "--test-threads=1"]);
    command.env(DIRECTORY, &directory).env(CONFINED, "1");
    command.envs(tap.iter().map(|tap| ("MVM_TEST_TAP", &tap.0)));
    let mut child =
        Traced(command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap());
    use_it(&directory, child.0.stdout.as_mut().unwrap(), tap.is_some());
    let mut said = String::new();
    child.0.stdout.as_mut().unwrap().read_to_string(&mut said).unwrap();
    assert!(child.0.wait().unwrap().success(), "{said}");
}

/// Does to a running VM what clients can do, and ends it.
fn use_it(directory: &Path, console: &mut impl Read, has_net: bool) {
    let mut devices = vec![3, 2, 1, 19, 27, 5, 4];
    devices.retain(|device| *device != 1 || has_net);
    let mut expected = Vec::new();
    for _ in 0..2 {
        expected.extend(devices.iter().flat_map(|device| [*device, 0b1111]));
    }
    expected.push(b'.');
    // The test harness of the child says something first.
    let mut seen = Vec::new();
    while !seen.ends_with(b".") || seen.ends_with(b"..") || seen.ends_with(b" .") {
        let mut byte = [0];
        console.read_exact(&mut byte).unwrap_or_else(|error| panic!("{error}: {seen:?}"));
        seen.extend(byte);
    }
    assert!(seen.ends_with(&expected), "each device starts, twice: {seen:?} is not {expected:?}");
    let mut client = Client::connect(&directory.join(CONTROL_SOCKET)).unwrap();
    for state in [WantedState::Paused, WantedState::Resumed] {
        client.send("PATCH", "/vm", &VmUpdate { state }).unwrap();
    }
    client.get::<MetricsReport>("/metrics.json").unwrap();
    client.get::<BalloonStatistics>("/balloon/statistics").unwrap();
    client.send("PATCH", "/balloon", &BalloonUpdate { amount_mib: 1 }).unwrap();
    let mut attached = UnixStream::connect(directory.join(CONSOLE_SOCKET)).unwrap();
    attached.set_read_timeout(Some(WATCHDOG)).unwrap();
    attached.write_all(b"x").unwrap();
    attached.read_exact(&mut [0]).unwrap();
    client.send("PUT", "/actions", &Action { action_type: ActionType::Kill }).unwrap();
}

/// The calls in `trace`. A line begins with the thread's number; a call that another thread's interrupted stands there
/// twice.
fn calls(trace: &str) -> impl Iterator<Item = &str> {
    trace.lines().filter_map(|line| Some(line.split_once(' ')?.1.trim_start()))
}

/// The calls in `trace` that made threads while the VM was opened, which begins with its kernel, and while it was
/// built.
fn threads_before_run(trace: &str) -> (Vec<&str>, Vec<&str>) {
    let is_kernel = |call: &&str| call.starts_with("open") && call.contains("/kernel\"");
    let of_vm = calls(trace).skip_while(|call| !is_kernel(call)).take_while(|call| !call.contains("KVM_RUN"));
    let of_vm: Vec<_> = of_vm.collect();
    let built = of_vm.iter().position(|call| call.contains("KVM_CREATE_VM")).expect("a VM is made");
    // A helper process is no thread.
    let is_thread = |(_, call): &(usize, &str)| call.contains("CLONE_THREAD");
    let threads = of_vm.into_iter().enumerate().filter(is_thread);
    let (opening, building): (Vec<_>, Vec<_>) = threads.partition(|(place, _)| *place < built);
    let calls = |threads: Vec<(usize, _)>| threads.into_iter().map(|(_, call)| call).collect();
    (calls(opening), calls(building))
}

/// The calls in `trace` that made or opened something from the first KVM_RUN on, without those that are allowed.
fn made_while_running(trace: &str) -> Vec<&str> {
    let mut running = calls(trace).skip_while(|call| !call.contains("KVM_RUN")).peekable();
    assert!(running.peek().is_some(), "the VM ran");
    let mut made: Vec<_> = running
        .filter(|call| !call.starts_with("ioctl") && !call.starts_with("<...") && !call.starts_with('+'))
        .collect();
    for (allowed, most, _why) in ALLOWED {
        if made.iter().filter(|call| call.starts_with(allowed)).count() <= most {
            made.retain(|call| !call.starts_with(allowed));
        }
    }
    made
}
