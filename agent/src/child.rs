//! What a container's process does before it is the user's command.

use std::convert::Infallible;
use std::ffi::CString;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use agent_protocol::{Capabilities, Container, Failure, FailureKind, PodDisk, Process, encode};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::{Gid, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets, ThreadNameSpaceType, move_into_thread_name_spaces};

use crate::disk;
use crate::error::{During, Result, failure};
use crate::flow;
use crate::init;
use crate::mounts::{self, Before};
use crate::pty;
use crate::system::set;
use crate::user::{Accounts, Identity};

/// The most bytes of a message from a process to the agent.
pub const MAX_SETUP: usize = 4096;
/// The most bytes of what went wrong.
const MAX_FAILURE: usize = 2048;

/// What descriptors that a process sends to the agent are: its terminal, or its container's [`mounts::Layers`].
pub const TERMINAL: u8 = b't';
pub const LAYERS: u8 = b'l';

/// The process's ends of what connects it with the agent.
pub struct Ends {
    pub input: Option<OwnedFd>,
    pub output: Option<OwnedFd>,
    pub errors: Option<OwnedFd>,
    pub agent: OwnedFd,
}

/// What a container in a pod has in common with the others.
pub struct InPod<'a> {
    /// The process whose namespaces they join.
    pub first: BorrowedFd<'a>,
    /// The disks that were put into the VM for it.
    pub disks: &'a [PodDisk],
}

/// What there is before a container.
pub enum Place<'a> {
    /// Nothing.
    Own,
    /// Its root: see [`mounts::prepare`].
    Prepared,
    /// A pod.
    Pod(InPod<'a>),
}

/// Becomes the command of a container's first process, or tells the agent why not and ends.
pub fn run(container: &Container, place: &Place<'_>, ends: Ends) -> ! {
    reset();
    let which = if container.has_init { Which::BelowInit } else { Which::First };
    let made = make_container(container, place, &ends);
    let Err(failure) = made.and_then(|()| become_command(&container.process, &ends, which));
    end(&ends, &failure)
}

/// Becomes what has the root of a container that does not run, until it is killed.
pub fn hold(container: &Container, ends: Ends) -> ! {
    reset();
    let made = mounts::enter_root(container).and_then(|layers| send_layers(&ends, &layers));
    if let Err(failure) = made {
        end(&ends, &failure)
    }
    // With that, the agent knows that the root is there.
    close_others([]);
    loop {
        // SAFETY: the call takes no memory.
        unsafe { libc::pause() };
    }
}

fn send_layers(ends: &Ends, layers: &mounts::Layers) -> Result<()> {
    send(&ends.agent, LAYERS, &[layers.changes.as_fd(), layers.image.as_fd()])
        .during("send the root's layers")
}

/// Becomes the command of a further process, which joins the namespaces of the first one.
pub fn run_in(first: BorrowedFd<'_>, process: &Process, ends: Ends) -> ! {
    // Until it is the command, the container's processes see it, and those that may trace others see what it has open.
    let own = [&ends.input, &ends.output, &ends.errors].into_iter().flatten().chain([&ends.agent]);
    close_others(own.map(AsFd::as_fd).chain([first]));
    reset();
    let joined = ThreadNameSpaceType::MOUNT
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::CONTROL_GROUP;
    let joined = move_into_thread_name_spaces(first, joined).during("join the container");
    let Err(failure) = joined.and_then(|()| become_command(process, &ends, Which::Further));
    end(&ends, &failure)
}

/// Becomes a command in the guest that the agent is a service of.
pub fn run_in_guest(process: &Process, ends: Ends) -> ! {
    let own = [&ends.input, &ends.output, &ends.errors].into_iter().flatten().chain([&ends.agent]);
    close_others(own.map(AsFd::as_fd));
    reset();
    let Err(failure) = become_guest_command(process, &ends);
    end(&ends, &failure)
}

/// As who logs in: the guest's own files say who the user is, and the kernel what the user may do.
fn become_guest_command(process: &Process, ends: &Ends) -> Result<Infallible> {
    let accounts = Accounts::read();
    let identity = accounts.find(&process.user, &[])?;
    connect(process, ends, &identity, Which::Further)?;
    // The service may be the last that the kernel kills for lack of memory.
    let _ = set("/proc/self/oom_score_adj", "0");
    set_identity(&identity)?;
    let home = if identity.home.starts_with('/') { &*identity.home } else { "/" };
    if process.cwd.is_empty() {
        if rustix::process::chdir(home).is_err() {
            enter_directory("/", Which::Further)?;
        }
    } else {
        enter_directory(&process.cwd, Which::Further)?;
    }
    let mut env = accounts.variables(identity.uid);
    agent_protocol::set_variables(&mut env, &process.env);
    execute(&Process { env, ..process.clone() }, &identity)
}

fn end(ends: &Ends, failure: &Failure) -> ! {
    let failure = Failure { message: shortened(&failure.message), ..failure.clone() };
    if let Ok(message) = encode(&failure) {
        let _ = rustix::io::write(&ends.agent, &message);
    }
    // The agent has its own exit code for this process.
    // SAFETY: it ends the process, without what the copy of the agent would do at its end.
    unsafe { libc::_exit(125) }
}

/// A text that fits into a message: words of the host's in it may be very long.
pub fn shortened(text: &str) -> String {
    if text.len() <= MAX_FAILURE {
        return text.to_owned();
    }
    let (start, _) = text.split_at(text.floor_char_boundary(MAX_FAILURE / 2));
    let (_, end) = text.split_at(text.ceil_char_boundary(text.len().saturating_sub(MAX_FAILURE / 2)));
    format!("{start}…{end}")
}

/// Makes what further processes find.
fn make_container(container: &Container, place: &Place<'_>, ends: &Ends) -> Result<()> {
    if let Place::Pod(pod) = place {
        let joined = ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
            | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME;
        move_into_thread_name_spaces(pod.first, joined).during("join the pod")?;
        pod.disks.iter().try_for_each(disk::wait_for)?;
    }
    // SAFETY: one thread, and no other owner of what the namespace is for.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWCGROUP) }
        .during("make a namespace of control groups")?;
    let before = match place {
        Place::Own => Before::Nothing,
        Place::Prepared => Before::Root,
        Place::Pod(_) => Before::Pod,
    };
    if before != Before::Pod {
        rustix::system::sethostname(container.hostname.as_bytes()).during("set the host name")?;
    }
    let layers = mounts::enter(container, before)?;
    send_layers(ends, &layers)
}

/// Which process of a container.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    /// It has the container's console, and its working directory is made.
    First,
    /// The same, and the command is a child of it.
    BelowInit,
    Further,
}

fn become_command(process: &Process, ends: &Ends, which: Which) -> Result<Infallible> {
    let identity = Accounts::read().find(&process.user, &process.groups)?;
    connect(process, ends, &identity, which)?;
    enter_directory(&process.cwd, which)?;
    set_oom_score(process)?;
    // Last of what needs files, of which there may be few.
    set_limits(process)?;
    // Without no_new_privs a filter can be set by who may administer alone.
    if !process.no_new_privileges {
        filter(&process.seccomp)?;
    }
    drop_rights(&process.capabilities, &identity)?;
    if process.no_new_privileges {
        rustix::thread::set_no_new_privs(true).during("set no_new_privs")?;
        filter(&process.seccomp)?;
    }
    if which == Which::BelowInit {
        init::split(process.terminal.is_some()).during("make a process")?;
    }
    execute(process, &identity)
}

fn set_oom_score(process: &Process) -> Result<()> {
    let Some(adjustment) = process.oom_score_adjustment else { return Ok(()) };
    set("/proc/self/oom_score_adj", &adjustment.to_string())
}

/// Closes all but `kept`.
pub fn close_others<'a>(kept: impl IntoIterator<Item = BorrowedFd<'a>>) {
    let mut kept: Vec<u32> = kept.into_iter().map(|fd| fd.as_raw_fd().cast_unsigned()).collect();
    kept.sort_unstable();
    let mut from = 3;
    for fd in kept.into_iter().chain([u32::MAX]) {
        if from < fd {
            // SAFETY: nothing of the agent's is used in this copy of it but what stays open.
            unsafe { libc::syscall(libc::SYS_close_range, from, fd - 1, 0) };
        }
        from = fd.saturating_add(1);
    }
}

/// Sets what the agent has in a way of its own to what a command expects.
pub fn reset() {
    flow::reset();
    rustix::process::umask(Mode::from_raw_mode(0o022));
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
fn connect(process: &Process, ends: &Ends, identity: &Identity, which: Which) -> Result<()> {
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    let null = null.during("open /dev/null")?;
    if let Some(size) = process.terminal {
        let (master, terminal) = pty::open_terminal(size).during("open a terminal")?;
        send(&ends.agent, TERMINAL, &[master.as_fd()]).during("send the terminal")?;
        let user = Uid::from_raw(identity.uid);
        rustix::fs::fchown(&terminal, Some(user), None).during("give the terminal to its user")?;
        if which != Which::Further {
            mounts::bind_console(terminal.as_fd())?;
        }
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
    // SAFETY: both are descriptors of this process, and what `target` was is of no use any more.
    if unsafe { libc::dup2(fd.as_raw_fd(), target) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sends descriptors to the agent.
fn send(agent: &OwnedFd, what: u8, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(fds));
    sendmsg(agent, &[IoSlice::new(&[what])], &mut ancillary, SendFlags::empty())?;
    Ok(())
}

/// Makes `path` the working directory. Docker makes that of a container, and no other.
fn enter_directory(path: &str, which: Which) -> Result<()> {
    let path = if path.is_empty() { "/" } else { path };
    if which != Which::Further {
        std::fs::create_dir_all(path).during(format!("make the working directory {path}"))?;
    }
    rustix::process::chdir(path).map_err(|error| Failure {
        kind: if error == Errno::NOENT { FailureKind::NotFound } else { FailureKind::Other },
        message: format!("cannot enter the working directory {path}: {}", io::Error::from(error)),
    })
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
    let ambient = CapabilitySet::from_bits_retain(capabilities.ambient);
    if !ambient.is_empty() {
        rustix::thread::set_keep_capabilities(true).during("keep capabilities")?;
    }
    set_identity(identity)?;
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

/// Becomes the user, with its groups.
fn set_identity(identity: &Identity) -> Result<()> {
    let groups: Vec<Gid> = identity.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    rustix::thread::set_thread_groups(&groups).during("set groups")?;
    let gid = Gid::from_raw(identity.gid);
    rustix::thread::set_thread_res_gid(gid, gid, gid).during("set the group")?;
    let uid = Uid::from_raw(identity.uid);
    rustix::thread::set_thread_res_uid(uid, uid, uid).during("set the user")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_fits_into_its_message() {
        assert_eq!(shortened("short"), "short");
        for letter in ["x", "\u{fc}", "\u{10ffff}"] {
            let failure = refused(&letter.repeat(100_000), &io::ErrorKind::PermissionDenied.into());
            let failure = Failure { message: shortened(&failure.message), ..failure };
            assert!(failure.message.starts_with("exec: ") && failure.message.ends_with("permission denied"));
            assert!(encode(&failure).unwrap().len() <= MAX_SETUP);
        }
    }
}
