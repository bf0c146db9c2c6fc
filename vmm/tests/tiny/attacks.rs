//! What an attacker who has taken over a thread of a confined VM's process would try: each attempt in a process of its
//! own, on each kind of thread, and beneath the filters of system calls as well.

use std::ffi::CString;
use std::fmt::Write as _;
use std::fs::Permissions;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::ptr::{null, null_mut};

use instance::Identity;
use jail::seccomp::Violation;
use jail::{Ids, Mode, State};
use tempfile::TempDir;

use super::machine::Machine;
use vmm::{ConsoleConfig, VmConfig};

guest!(
    waits,
    "
    2:
        hlt
        jmp 2b
    "
);

/// An attempt, and what it does; below zero it failed.
type Attack = (&'static str, fn(&Target) -> i64);

/// What there is to attack.
struct Target {
    /// The process that keeps the VM, as the attacker knows it. It has other VMs too.
    keeper: i32,
    /// A directory that any user may write to, with a file in it.
    directory: CString,
    file: CString,
}

macro_rules! call {
    ($name:ident $(, $argument:expr)*) => {
        // SAFETY: the process is there for this call alone, and ends after it.
        unsafe { libc::syscall(libc::$name $(, $argument)*) }
    };
}

/// Attempts at what is outside the process. None may do anything, whatever the filters.
const OUTSIDE: &[Attack] = &[
    ("open a file", |_| call!(SYS_openat, libc::AT_FDCWD, c"/etc/passwd".as_ptr(), libc::O_RDONLY)),
    ("open a file of /proc", |_| call!(SYS_openat, libc::AT_FDCWD, c"/proc/self/mem".as_ptr(), libc::O_RDWR)),
    ("open the root of init", |_| call!(SYS_openat, libc::AT_FDCWD, c"/proc/1/root".as_ptr(), libc::O_PATH)),
    ("open above the root", |_| call!(SYS_openat, libc::AT_FDCWD, c"../../../../etc".as_ptr(), libc::O_PATH)),
    ("open another VM's directory", |target| {
        call!(SYS_openat, libc::AT_FDCWD, target.directory.as_ptr(), libc::O_DIRECTORY)
    }),
    ("open the memory of another VM's process", |target| {
        let path = CString::new(format!("/proc/{}/mem", target.keeper)).unwrap();
        call!(SYS_openat, libc::AT_FDCWD, path.as_ptr(), libc::O_RDONLY)
    }),
    ("write to the host's /proc", |_| {
        call!(SYS_openat, libc::AT_FDCWD, c"/proc/sys/kernel/core_pattern".as_ptr(), libc::O_WRONLY)
    }),
    ("make a file", |_| {
        call!(SYS_openat, libc::AT_FDCWD, c"/new".as_ptr(), libc::O_CREAT | libc::O_WRONLY, 0o600)
    }),
    ("make a directory", |_| call!(SYS_mkdir, c"/new".as_ptr(), 0o700)),
    ("remove a file", |target| call!(SYS_unlink, target.file.as_ptr())),
    ("look at a file", |_| {
        let mut stat = [0_u8; 256];
        call!(SYS_newfstatat, libc::AT_FDCWD, c"/etc/passwd".as_ptr(), stat.as_mut_ptr(), 0)
    }),
    ("execute a program", |_| call!(SYS_execve, c"/bin/true".as_ptr(), null::<u8>(), null::<u8>())),
    ("open by a handle", |_| {
        let handle = [0_u8; 136];
        call!(SYS_open_by_handle_at, libc::AT_FDCWD, handle.as_ptr(), 0)
    }),
    ("connect to this machine", |_| connect_tcp()),
    ("connect to an abstract socket", |target| connect_abstract(target.keeper)),
    ("connect to a socket of the host", |_| connect_path(b"/run/systemd/private")),
    ("send a packet", |_| {
        let socket = call!(SYS_socket, libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP);
        if socket < 0 { socket } else { 0 }
    }),
    ("kill the keeper", |target| call!(SYS_kill, target.keeper, libc::SIGWINCH)),
    ("kill a thread of the keeper", |target| call!(SYS_tgkill, target.keeper, target.keeper, libc::SIGWINCH)),
    ("trace the keeper", |target| call!(SYS_ptrace, libc::PTRACE_SEIZE, target.keeper, 0, 0)),
    ("read the keeper's memory", |target| {
        let mut byte = 0_u8;
        let local = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
        let remote = libc::iovec { iov_base: (connect_tcp as *const u8).cast_mut().cast(), iov_len: 1 };
        call!(SYS_process_vm_readv, target.keeper, &raw const local, 1, &raw const remote, 1, 0)
    }),
    ("mount", |_| call!(SYS_mount, c"x".as_ptr(), c"/".as_ptr(), c"tmpfs".as_ptr(), 0, null::<u8>())),
    ("make the root writable", |_| {
        let flags = libc::MS_REMOUNT | libc::MS_BIND;
        call!(SYS_mount, null::<u8>(), c"/".as_ptr(), null::<u8>(), flags, null::<u8>())
    }),
    ("change the host's name", |_| call!(SYS_sethostname, c"x".as_ptr(), 1)),
    ("become another user", |_| call!(SYS_setuid, 12345)),
    ("load a module", |_| call!(SYS_init_module, null::<u8>(), 0, c"".as_ptr())),
    ("load a BPF program", |_| {
        let attributes = [0_u8; 128];
        let result = call!(SYS_bpf, 5, attributes.as_ptr(), 128);
        if result >= 0 { 0 } else { -1 }
    }),
    ("read the kernel's log", |_| call!(SYS_syslog, 10, null::<u8>(), 0)),
    ("set the clock", |_| {
        let time = [0_i64; 2];
        call!(SYS_clock_settime, 0, time.as_ptr())
    }),
    ("restart the machine", |_| call!(SYS_reboot, 0, 0, 0, 0)),
    ("take much memory", |_| {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        call!(SYS_mmap, 0, 8_usize << 30, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0_usize)
    }),
    ("have itself dumped", |_| {
        let limit = [u64::MAX, u64::MAX];
        call!(SYS_prlimit64, 0, libc::RLIMIT_CORE, limit.as_ptr(), null_mut::<u8>())
    }),
    ("raise a limit", |_| {
        let limit = [1_u64 << 40, 1 << 40];
        call!(SYS_prlimit64, 0, libc::RLIMIT_DATA, limit.as_ptr(), null_mut::<u8>())
    }),
];

/// Attempts at more that could be attacked, and at the filters themselves: these are the filters' alone.
const SURFACE: &[Attack] = &[
    // Linux lets a process limit another one with the same user and group.
    ("limit the keeper", |target| {
        let limit = [1_u64, 1];
        call!(SYS_prlimit64, target.keeper, libc::RLIMIT_NOFILE, limit.as_ptr(), null_mut::<u8>())
    }),
    ("make a socket", |_| call!(SYS_socket, libc::AF_UNIX, libc::SOCK_STREAM, 0)),
    ("make a socket of netlink", |_| call!(SYS_socket, libc::AF_NETLINK, libc::SOCK_RAW, 0)),
    ("make a pair of sockets", |_| {
        let mut pair = [0_i32; 2];
        call!(SYS_socketpair, libc::AF_UNIX, libc::SOCK_STREAM, 0, pair.as_mut_ptr())
    }),
    ("make a process", |_| call!(SYS_fork)),
    ("make a process by clone", |_| call!(SYS_clone, libc::SIGCHLD, 0, 0, 0, 0)),
    ("make a process by clone3", |_| call!(SYS_clone3, null::<u8>(), 0)),
    ("make a namespace", |_| call!(SYS_unshare, libc::CLONE_NEWUSER)),
    ("enter a namespace", |_| call!(SYS_setns, 0, 0)),
    ("make a ring", |_| call!(SYS_io_uring_setup, 1, null::<u8>())),
    ("change a ring", |_| call!(SYS_io_uring_register, 0, 0, null::<u8>(), 0)),
    ("make an executable file in memory", |_| call!(SYS_memfd_create, c"x".as_ptr(), 0)),
    ("map executable memory", |_| {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        call!(SYS_mmap, 0, 4096, libc::PROT_READ | libc::PROT_EXEC, flags, -1, 0)
    }),
    ("execute an open file", |_| {
        let none = null::<u8>();
        call!(SYS_execveat, 0, c"".as_ptr(), none, none, libc::AT_EMPTY_PATH)
    }),
    ("make memory executable", |_| call!(SYS_mprotect, 0, 4096, libc::PROT_READ | libc::PROT_EXEC)),
    ("use keys", |_| call!(SYS_keyctl, 0, 0, 0, 0, 0)),
    ("watch the processor", |_| call!(SYS_perf_event_open, null::<u8>(), 0, 0, 0, 0)),
    ("handle page faults", |_| call!(SYS_userfaultfd, 0)),
    ("name a process", |target| call!(SYS_pidfd_open, target.keeper, 0)),
    ("take a descriptor", |_| call!(SYS_pidfd_getfd, 0, 0, 0)),
    ("handle signals", |_| call!(SYS_rt_sigaction, libc::SIGSYS, null::<u8>(), null_mut::<u8>(), 8)),
    ("set a filter", |_| call!(SYS_seccomp, 1, 0, null::<u8>())),
    ("be traced and dumped", |_| call!(SYS_prctl, libc::PR_SET_DUMPABLE, 1)),
    ("make a VM", |_| call!(SYS_ioctl, 0, 0xae01, 0)),
    ("type on the terminal", |_| call!(SYS_ioctl, 0, libc::TIOCSTI, c"x".as_ptr())),
    ("duplicate a descriptor", |_| call!(SYS_dup, 0)),
    ("leave its group", |_| call!(SYS_setpgid, 0, 0)),
    ("leave its session", |_| call!(SYS_setsid)),
    ("be called as another thread", |_| call!(SYS_prctl, libc::PR_SET_NAME, c"main".as_ptr())),
    ("signal by a descriptor", |_| call!(SYS_pidfd_send_signal, 0, 0, 0, 0)),
    ("look at a path as at an open file", |_| {
        let mut found = [0_u64; 32];
        let (flags, what) = (libc::AT_EMPTY_PATH, libc::STATX_BASIC_STATS);
        call!(SYS_statx, libc::AT_FDCWD, c"/".as_ptr(), flags, what, found.as_mut_ptr())
    }),
    ("change its name", |_| call!(SYS_chdir, c"/".as_ptr())),
    ("change its root", |_| call!(SYS_chroot, c"/".as_ptr())),
];

fn connect(family: i32, address: &[u8]) -> i64 {
    let socket = call!(SYS_socket, family, libc::SOCK_STREAM, 0);
    if socket < 0 {
        return socket;
    }
    call!(SYS_connect, socket, address.as_ptr(), address.len())
}

fn connect_tcp() -> i64 {
    // Port 9 of 127.0.0.1. Refused would be an answer.
    let address = [2_u8, 0, 0, 9, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
    let result = connect(libc::AF_INET, &address);
    let refused = io::Error::last_os_error().raw_os_error() == Some(libc::ECONNREFUSED);
    if refused { 0 } else { result }
}

/// The name is one that the keeper listens at.
fn abstract_name(keeper: i32) -> Vec<u8> {
    format!("\0mvm-test-{keeper}").into_bytes()
}

fn connect_abstract(keeper: i32) -> i64 {
    connect_path(&abstract_name(keeper))
}

fn connect_path(path: &[u8]) -> i64 {
    let mut address = vec![1_u8, 0];
    address.extend(path);
    connect(libc::AF_UNIX, &address)
}

/// What came of an attempt.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// The process was ended, and said by which call of which thread.
    Ended(Violation),
    Failed,
    Succeeded,
    /// The host lacks a layer, and the process did not start.
    Refused(String),
}

/// What any user may do on a host where nothing confines the process: attempts that fail in the jail fail by it.
const ALLOWED_WITHOUT: &[&str] = &[
    "open a file",
    "open a file of /proc",
    "open above the root",
    "open another VM's directory",
    "remove a file",
    "look at a file",
    "look at a path as at an open file",
    "connect to this machine",
    "connect to an abstract socket",
    "make a socket",
    "make a pair of sockets",
    "make an executable file in memory",
    "name a process",
];

/// How an attacker's process is confined.
#[derive(Clone, Copy)]
struct Confined {
    mode: Mode,
    /// Who it is, if not who runs the tests.
    user: Option<u32>,
}

/// As the default is.
const DEFAULT: Confined = Confined { mode: Mode::BestEffort, user: None };
/// A user who has nothing.
const NOBODY: u32 = 65534;

/// The kinds of threads, as they are called.
const THREADS: [&str; 13] = [
    "vcpu0",
    "block",
    "net",
    "vsock",
    "pmem",
    "vhost-user",
    "console",
    "log",
    "background",
    "supervisor",
    "keeper",
    "slots",
    "gdb",
];

/// Confines a process as one of a VM of `config`, and has it attack: on a thread that is called `thread`, or before
/// there is one, beneath all filters.
fn attempt(
    config: &VmConfig,
    thread: Option<&'static str>,
    confined: Confined,
    attack: fn(&Target) -> i64,
) -> Outcome {
    let (mut reports, writer) = io::pipe().unwrap();
    let (mut outcome, mut outcome_writer) = io::pipe().unwrap();
    let directory = TempDir::new().unwrap();
    std::fs::set_permissions(directory.path(), Permissions::from_mode(0o777)).unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "").unwrap();
    let [path, file] =
        [directory.path(), &file].map(|path| CString::new(path.as_os_str().as_bytes()).unwrap());
    let target = Target { keeper: std::process::id().cast_signed(), directory: path, file };
    // SAFETY: the copy has one thread, and ends below. It takes memory, which glibc makes possible after a fork.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let identity = Identity::default();
        let mut resources = vmm::open(config, &identity, None).unwrap();
        if let Some(user) = confined.user {
            call!(SYS_setgroups, 0, null::<u8>());
            call!(SYS_setresgid, user, user, user);
            call!(SYS_setresuid, user, user, user);
            // As one of a user who has logged in.
            call!(SYS_prctl, libc::PR_SET_DUMPABLE, 1);
        }
        let outside = match confined.mode {
            // What the host gives from outside is there.
            Mode::Strict => (Ids::own(NOBODY - 1), State::On("a group".into())),
            _ => super::machine::alone(),
        };
        if let Err(error) = resources.confine(confined.mode, outside, writer.into()) {
            write!(outcome_writer, "{}", devices::log::chain(&error)).unwrap();
            // SAFETY: it ends the process.
            unsafe { libc::_exit(0) };
        }
        let mut attack = move || {
            let result = attack(&target);
            outcome_writer.write_all(if result < 0 { b"f" } else { b"s" }).unwrap();
        };
        match thread {
            None => attack(),
            Some(name) => drop(devices::thread(name).spawn(attack).unwrap().join()),
        }
        // SAFETY: it ends the process.
        unsafe { libc::_exit(0) };
    }
    drop((writer, outcome_writer));
    let (mut report, mut said) = (Vec::new(), Vec::new());
    reports.read_to_end(&mut report).unwrap();
    outcome.read_to_end(&mut said).unwrap();
    // SAFETY: no status is asked for.
    unsafe { libc::waitpid(child, null_mut(), 0) };
    match (&said[..], Violation::parse(&report)) {
        (b"", Some(violation)) => Outcome::Ended(violation),
        (b"f", None) => Outcome::Failed,
        (b"s", None) => Outcome::Succeeded,
        (why, None) if why.len() > 1 => Outcome::Refused(String::from_utf8_lossy(why).into_owned()),
        other => panic!("the process ended in another way: {other:?}"),
    }
}

/// A VM that can be opened.
pub(super) fn machine() -> Option<(Machine, VmConfig)> {
    let machine = Machine::new(waits())?;
    let config = VmConfig { console: ConsoleConfig::Off, ..VmConfig::new(machine.path("kernel")) };
    Some((machine, config))
}

/// Set for the process that a test below has made for itself.
const ALONE: &str = "MVM_TEST_ALONE";

/// Whether this is a process with nothing in it but the test `name`; where it is not, the test is run in one. The
/// memory of other tests' VMs would count for the limit of the jail.
pub(super) fn is_alone(name: &str) -> bool {
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &format!("tiny::{name}"), "--nocapture", "--test-threads=1"]);
    let output = command.env(ALONE, "1").output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
    false
}

#[test]
fn each_thread_is_ended_at_the_first_attempt() {
    if !is_alone("attacks::each_thread_is_ended_at_the_first_attempt") {
        return;
    }
    let Some((_machine, config)) = machine() else { return };
    let mut wrong = String::new();
    for thread in THREADS {
        let kind = thread.trim_end_matches('0');
        for (name, attack) in OUTSIDE.iter().chain(SURFACE) {
            let outcome = attempt(&config, Some(thread), DEFAULT, *attack);
            // What a thread may do in principle fails by what it does it to.
            let is_limit = *name == "take much memory" && outcome == Outcome::Failed;
            let is_ended = matches!(&outcome, Outcome::Ended(violation) if violation.thread == kind);
            if !is_ended && !is_limit {
                writeln!(wrong, "{thread}: {name}: {outcome:?}").unwrap();
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn beneath_the_filters_nothing_of_the_host_is_reached() {
    if !is_alone("attacks::beneath_the_filters_nothing_of_the_host_is_reached") {
        return;
    }
    let Some((_machine, config)) = machine() else { return };
    let name = abstract_name(std::process::id().cast_signed());
    let listener = listen_abstract(&name);
    let is_root = rustix::process::geteuid().is_root();
    let users: &[Option<u32>] = if is_root { &[None, Some(NOBODY)] } else { &[None] };
    let mut works = String::new();
    for user in users {
        for (name, attack) in OUTSIDE {
            if attempt(&config, None, Confined { user: *user, ..DEFAULT }, *attack) != Outcome::Failed {
                writeln!(works, "user {user:?}: {name}").unwrap();
            }
        }
    }
    drop(listener);
    assert!(works.is_empty(), "{works}");
}

#[test]
fn where_all_layers_are_asked_for_attempts_fail_or_nothing_starts() {
    if !is_alone("attacks::where_all_layers_are_asked_for_attempts_fail_or_nothing_starts") {
        return;
    }
    let Some((_machine, config)) = machine() else { return };
    let strict = Confined { mode: Mode::Strict, ..DEFAULT };
    let mut wrong = String::new();
    for (name, attack) in OUTSIDE.iter().chain(SURFACE) {
        match attempt(&config, Some("vcpu0"), strict, *attack) {
            Outcome::Ended(_) => {}
            Outcome::Failed if *name == "take much memory" => {}
            // Nothing of the guest's ever runs there.
            Outcome::Refused(why) => {
                assert!(why.contains("--jail"), "{why}");
                return eprintln!("skipped: {why}");
            }
            outcome => writeln!(wrong, "{name}: {outcome:?}").unwrap(),
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// It shows that the attempts are real ones.
#[test]
fn without_a_jail_an_attacker_may_do_what_the_user_may() {
    if !is_alone("attacks::without_a_jail_an_attacker_may_do_what_the_user_may") {
        return;
    }
    let Some((_machine, config)) = machine() else { return };
    let listener = listen_abstract(&abstract_name(std::process::id().cast_signed()));
    let user = rustix::process::geteuid().is_root().then_some(NOBODY);
    let mut wrong = String::new();
    for name in ALLOWED_WITHOUT {
        let mut attacks = OUTSIDE.iter().chain(SURFACE);
        let (_, attack) = attacks.find(|(known, _)| known == name).unwrap_or_else(|| panic!("{name}"));
        let outcome = attempt(&config, Some("vcpu0"), Confined { mode: Mode::Off, user }, *attack);
        if outcome != Outcome::Succeeded {
            writeln!(wrong, "{name}: {outcome:?}").unwrap();
        }
    }
    drop(listener);
    assert!(wrong.is_empty(), "{wrong}");
}

fn listen_abstract(name: &[u8]) -> OwnedFd {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind, listen, socket};
    let socket = socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
    bind(&socket, &SocketAddrUnix::new_abstract_name(&name[1..]).unwrap()).unwrap();
    listen(&socket, 8).unwrap();
    socket
}
