//! Making a container's first process.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, OwnedFd};

use agent_protocol::Container;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Pid;

use crate::cgroup::Cgroup;
use crate::child::{self, Ends};
use crate::error::{During, Result};

/// A container's first process, on its way to the user's command.
pub struct Started {
    pub pid: Pid,
    pub cgroup: Cgroup,
    /// Gives the terminal, then a failure or the end: the user's command runs.
    pub setup: OwnedFd,
    /// The agent's ends of the process's pipes.
    pub input: Option<OwnedFd>,
    pub output: Option<OwnedFd>,
    pub errors: Option<OwnedFd>,
}

/// Namespaces of a container. That of control groups is made when it is in its own.
const NAMESPACES: i32 = libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;

/// Starts the first process of `container`.
pub fn start(container: &Container) -> Result<Started> {
    let cgroup = Cgroup::new(&container.id, &container.resources)?;
    let flags = SocketFlags::CLOEXEC;
    let (setup, to_agent) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).during("make a socket")?;
    let pipe = || pipe_with(PipeFlags::CLOEXEC).during("make a pipe");
    let has_terminal = container.process.terminal.is_some();
    let input = (container.process.has_input && !has_terminal).then(pipe).transpose()?;
    let output = (!has_terminal).then(pipe).transpose()?;
    let errors = (!has_terminal).then(pipe).transpose()?;
    let (input, their_input) = input.map(|(reader, writer)| (writer, reader)).unzip();
    let (output, their_output) = output.unzip();
    let (errors, their_errors) = errors.unzip();
    for fd in [Some(&setup), input.as_ref(), output.as_ref(), errors.as_ref()].into_iter().flatten() {
        rustix::io::ioctl_fionbio(fd, true).during("set up a pipe")?;
    }
    let ends = Ends { input: their_input, output: their_output, errors: their_errors, agent: to_agent };
    let directory = cgroup.directory().during("open a control group")?;
    let child = clone_into(&directory).during("make a process")?;
    match child {
        // The copy of this process; nothing else of it is used.
        None => child::run(container, ends),
        Some(pid) => Ok(Started { pid, cgroup, setup, input, output, errors }),
    }
}

/// `struct clone_args` of clone3(2), up to `cgroup`.
#[repr(C)]
#[derive(Default)]
struct CloneArguments {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// `CLONE_INTO_CGROUP` of `linux/sched.h`.
const INTO_CGROUP: u64 = 1 << 33;

/// A copy of this process, in namespaces of its own and in `cgroup`; `None` in the copy.
fn clone_into(cgroup: &OwnedFd) -> io::Result<Option<Pid>> {
    let arguments = CloneArguments {
        flags: u64::from(NAMESPACES.cast_unsigned()) | INTO_CGROUP,
        exit_signal: u64::from(libc::SIGCHLD.cast_unsigned()),
        cgroup: u64::from(cgroup.as_raw_fd().cast_unsigned()),
        ..CloneArguments::default()
    };
    // SAFETY: without CLONE_VM it is as fork(2): the copy has memory of its own, and this process has one thread, so
    // that no lock is held by another one. The arguments live until the call returns.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<CloneArguments>()) };
    match i32::try_from(pid) {
        Ok(0) => Ok(None),
        Ok(pid) if pid > 0 => Ok(Pid::from_raw(pid)),
        _ => Err(io::Error::last_os_error()),
    }
}
