//! What a container's first process does before it is the user's command.

use std::convert::Infallible;
use std::ffi::CString;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use agent_protocol::{Capabilities, Container, Failure, FailureKind, Process, encode};
use rustix::fs::{Mode, OFlags};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::{Gid, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::error::{During, Result, failure};
use crate::mounts;
use crate::pty;
use crate::user::{Accounts, Identity};

/// The process's ends of what connects it with the agent.
pub struct Ends {
    pub input: Option<OwnedFd>,
    pub output: Option<OwnedFd>,
    pub errors: Option<OwnedFd>,
    pub agent: OwnedFd,
}

/// Becomes the user's command, or tells the agent why not and ends.
pub fn run(container: &Container, ends: Ends) -> ! {
    let Err(failure) = become_command(container, &ends);
    if let Ok(message) = encode(&failure) {
        let _ = rustix::io::write(&ends.agent, &message);
    }
    // The agent has its own exit code for this process.
    // SAFETY: it ends the process, without what the copy of the agent would do at its end.
    unsafe { libc::_exit(125) }
}

fn become_command(container: &Container, ends: &Ends) -> Result<Infallible> {
    let process = &container.process;
    reset_signals();
    rustix::process::umask(Mode::from_raw_mode(0o022));
    // SAFETY: one thread, and no other owner of what the namespace is for.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWCGROUP) }
        .during("make a namespace of control groups")?;
    rustix::system::sethostname(container.hostname.as_bytes()).during("set the host name")?;
    mounts::enter(container)?;
    let identity = Accounts::read().find(&process.user, &process.groups)?;
    set_limits(process)?;
    connect(process, ends, &identity)?;
    enter_directory(&process.cwd)?;
    // Without no_new_privs a filter can be set by who may administer alone.
    if !process.no_new_privileges {
        filter(&process.seccomp)?;
    }
    drop_rights(&process.capabilities, &identity)?;
    if process.no_new_privileges {
        rustix::thread::set_no_new_privs(true).during("set no_new_privs")?;
        filter(&process.seccomp)?;
    }
    execute(process, &identity)
}

fn reset_signals() {
    // SAFETY: all zeros is a valid set, and the calls change this process's signals alone.
    unsafe {
        let mut none = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        // Rust's start-up code ignores it.
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
}

fn set_limits(process: &Process) -> Result<()> {
    for limit in &process.limits {
        let value = libc::rlimit64 { rlim_cur: limit.soft, rlim_max: limit.hard };
        // SAFETY: the kernel reads the limit, which lives until the call returns.
        let result = unsafe { libc::setrlimit64(limit.resource, &raw const value) };
        if result != 0 {
            return Err(io::Error::last_os_error()).during(format!("set limit {}", limit.resource));
        }
    }
    Ok(())
}

/// Connects standard input, output and error.
fn connect(process: &Process, ends: &Ends, identity: &Identity) -> Result<()> {
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    let null = null.during("open /dev/null")?;
    if let Some(size) = process.terminal {
        let (master, terminal) = pty::open_terminal(size).during("open a terminal")?;
        send(&ends.agent, master.as_fd()).during("send the terminal")?;
        let user = Uid::from_raw(identity.uid);
        rustix::fs::fchown(&terminal, Some(user), None).during("give the terminal to its user")?;
        mounts::bind_console(terminal.as_fd())?;
        pty::take(terminal.as_fd()).during("take the terminal")?;
        for target in 0..3 {
            duplicate(terminal.as_fd(), target).during("connect the terminal")?;
        }
        return Ok(());
    }
    let _ = rustix::process::setsid();
    for (target, end) in [&ends.input, &ends.output, &ends.errors].into_iter().enumerate() {
        let end = end.as_ref().unwrap_or(&null);
        // So that /proc/self/fd/1 can be opened by its user.
        let _ = rustix::fs::fchown(end, Some(Uid::from_raw(identity.uid)), None);
        let target = i32::try_from(target).unwrap_or_default();
        duplicate(end.as_fd(), target).during("connect standard input and output")?;
    }
    Ok(())
}

fn duplicate(fd: BorrowedFd<'_>, target: i32) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    // SAFETY: both are descriptors of this process, and what `target` was is of no use any more.
    if unsafe { libc::dup2(fd.as_raw_fd(), target) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sends a descriptor to the agent.
fn send(agent: &OwnedFd, fd: BorrowedFd<'_>) -> io::Result<()> {
    let fds = [fd];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    sendmsg(agent, &[IoSlice::new(b"t")], &mut ancillary, SendFlags::empty())?;
    Ok(())
}

/// Makes `path` the working directory, which is made where there is none.
fn enter_directory(path: &str) -> Result<()> {
    let path = if path.is_empty() { "/" } else { path };
    std::fs::create_dir_all(path).during(format!("make the working directory {path}"))?;
    rustix::process::chdir(path).during(format!("enter the working directory {path}"))
}

/// Becomes the user, with no more than these capabilities.
fn drop_rights(capabilities: &Capabilities, identity: &Identity) -> Result<()> {
    let bounding = CapabilitySet::from_bits_retain(capabilities.bounding);
    for number in 0..64 {
        let one = CapabilitySet::from_bits_retain(1 << number);
        if !bounding.contains(one) && rustix::thread::capability_is_in_bounding_set(one).is_ok_and(|has| has)
        {
            rustix::thread::remove_capability_from_bounding_set(one).during("drop capabilities")?;
        }
    }
    let groups: Vec<Gid> = identity.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    rustix::thread::set_thread_groups(&groups).during("set groups")?;
    let gid = Gid::from_raw(identity.gid);
    rustix::thread::set_thread_res_gid(gid, gid, gid).during("set the group")?;
    let ambient = CapabilitySet::from_bits_retain(capabilities.ambient);
    if !ambient.is_empty() {
        rustix::thread::set_keep_capabilities(true).during("keep capabilities")?;
    }
    let uid = Uid::from_raw(identity.uid);
    rustix::thread::set_thread_res_uid(uid, uid, uid).during("set the user")?;
    // Another user than root has none, unless they are ambient.
    let own = if identity.uid == 0 { bounding } else { ambient };
    let sets = CapabilitySets { effective: own, permitted: own, inheritable: ambient };
    rustix::thread::set_capabilities(None, sets).during("set capabilities")?;
    for number in 0..64 {
        let one = CapabilitySet::from_bits_retain(1 << number);
        if ambient.contains(one) {
            rustix::thread::configure_capability_in_ambient_set(one, true).during("keep capabilities")?;
        }
    }
    Ok(())
}

/// Loads filters of system calls.
fn filter(programs: &[Vec<u8>]) -> Result<()> {
    for bytes in programs {
        let (instructions, rest) = bytes.as_chunks::<8>();
        let mut program: Vec<libc::sock_filter> = instructions
            .iter()
            .map(|&[code0, code1, jt, jf, k0, k1, k2, k3]| libc::sock_filter {
                code: u16::from_le_bytes([code0, code1]),
                jt,
                jf,
                k: u32::from_le_bytes([k0, k1, k2, k3]),
            })
            .collect();
        let length = u16::try_from(program.len()).ok().filter(|_| rest.is_empty());
        let Some(len) = length else { return Err(failure("a filter of system calls is too long".into())) };
        let program = libc::sock_fprog { len, filter: program.as_mut_ptr() };
        // SAFETY: the kernel reads the program, of that many instructions, which lives until the call returns.
        let result =
            unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
        if result != 0 {
            return Err(io::Error::last_os_error()).during("filter system calls");
        }
    }
    Ok(())
}

/// Executes the command; returns where that fails.
fn execute(process: &Process, identity: &Identity) -> Result<Infallible> {
    let zero = |_| failure("an argument or a variable has a zero byte".into());
    let mut env = process.env.clone();
    let variable = |name: &str| {
        let value = process.env.iter().rev().find_map(|variable| variable.strip_prefix(name));
        value.and_then(|value| value.strip_prefix('='))
    };
    if variable("HOME").is_none() {
        env.push(format!("HOME={}", identity.home));
    }
    let strings = |list: &[String]| {
        list.iter().map(|text| CString::new(&**text)).collect::<std::result::Result<Vec<_>, _>>()
    };
    let (arguments, env) = (strings(&process.args).map_err(zero)?, strings(&env).map_err(zero)?);
    let Some(command) = process.args.first().filter(|command| !command.is_empty()) else {
        return Err(Failure { kind: FailureKind::NotFound, message: "no command specified".into() });
    };
    let path = find(
        command,
        variable("PATH").unwrap_or("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    )?;
    let program = CString::new(path.as_os_str().as_bytes()).map_err(zero)?;
    let pointers = |list: &[CString]| {
        list.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect::<Vec<_>>()
    };
    let (arguments, env) = (pointers(&arguments), pointers(&env));
    // SAFETY: both lists end with a null, and their strings live until the call returns.
    unsafe { libc::execve(program.as_ptr(), arguments.as_ptr(), env.as_ptr()) };
    Err(refused(&path.to_string_lossy(), &io::Error::last_os_error()))
}

/// The file of a command: itself where it has a slash, otherwise in `path`.
fn find(command: &str, path: &str) -> Result<std::path::PathBuf> {
    if command.contains('/') {
        return Ok(command.into());
    }
    let mut denied = None;
    for directory in path.split(':') {
        let file = Path::new(if directory.is_empty() { "." } else { directory }).join(command);
        match file.metadata() {
            Ok(metadata) if metadata.is_file() => {
                use std::os::unix::fs::PermissionsExt;
                if metadata.permissions().mode() & 0o111 != 0 {
                    return Ok(file);
                }
                denied.get_or_insert(file);
            }
            _ => {}
        }
    }
    match denied {
        Some(file) => Err(refused(&file.to_string_lossy(), &io::ErrorKind::PermissionDenied.into())),
        None => Err(Failure {
            kind: FailureKind::NotFound,
            message: format!("exec: {command:?}: executable file not found in $PATH"),
        }),
    }
}

/// How docker's runtime says it.
fn refused(path: &str, error: &io::Error) -> Failure {
    let (kind, why) = match error.raw_os_error() {
        Some(libc::ENOENT) => (FailureKind::NotFound, "no such file or directory".into()),
        Some(libc::ENOTDIR) => (FailureKind::NotFound, "not a directory".into()),
        Some(libc::EACCES) => (FailureKind::NotExecutable, "permission denied".into()),
        Some(libc::ENOEXEC) => (FailureKind::NotExecutable, "exec format error".into()),
        Some(libc::EISDIR) => (FailureKind::NotExecutable, "is a directory".into()),
        _ if error.kind() == io::ErrorKind::PermissionDenied => {
            (FailureKind::NotExecutable, "permission denied".into())
        }
        _ => (FailureKind::NotExecutable, error.to_string()),
    };
    Failure { kind, message: format!("exec: {path:?}: {why}") }
}
