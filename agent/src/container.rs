//! Making processes of a container.

use std::fs::File;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use agent_protocol::{Container, CopyWhat, Exec, PodContainer, Process};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::thread::{ThreadNameSpaceType, move_into_link_name_space, move_into_thread_name_spaces};

use crate::cgroup::{self, Cgroup};
use crate::child::{self, Ends, Place};
use crate::copies::{self, Entered};
use crate::error::{During, Result, failure};
use crate::mounts::{self, Layers};
use crate::pod::Pod;

/// A process of a container, on its way to the user's command.
pub struct Started {
    pub pid: Pid,
    /// Gives the terminal, then a failure or the end: the user's command runs.
    pub setup: OwnedFd,
    /// The agent's ends of the process's pipes.
    pub input: Option<OwnedFd>,
    pub output: Option<OwnedFd>,
    pub errors: Option<OwnedFd>,
}

/// What further processes of a container need.
pub struct Home {
    pub cgroup: Cgroup,
    /// The first process, whose namespaces they join.
    first: OwnedFd,
    /// Its mounts, which the kernel would otherwise take away as a part of the first process's end: writing what is
    /// mounted to disks keeps the end from being known.
    _mounts: Option<File>,
    /// What they have in common with it.
    process: Process,
    /// What its root is made of, once it is.
    pub layers: Option<Layers>,
    /// Paths in it that may have been made to mount on.
    mounted: Vec<Vec<u8>>,
    /// The container does not run.
    pub is_held: bool,
    /// The user has its processes stand still.
    pub is_paused: bool,
}

/// The bytes of a pipe for output. What is in it counts as memory of the container.
const OUTPUT_PIPE: usize = 256 << 10;

/// Namespaces of a container. That of control groups is made when it is in its own.
const NAMESPACES: i32 = libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;

/// Those of a container in a pod, which has the others.
const NAMESPACES_IN_POD: i32 = libc::CLONE_NEWPID | libc::CLONE_NEWNS;

/// What the first process of a container does.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum First {
    /// It becomes the container's command.
    Runs,
    /// The same, in the root that is prepared.
    RunsInPrepared,
    /// It has the container's root and does nothing.
    Holds,
}

/// Starts the first process of `container`.
pub fn start(container: &Container, first: First) -> Result<(Started, Home)> {
    let cgroup = Cgroup::new(cgroup::CONTAINERS, &container.id, &container.resources)?;
    let (ours, ends) = Ours::new(&container.process, false)?;
    let directory = cgroup.directory().during("open a control group")?;
    let made = clone_into(&directory, NAMESPACES).during("make a process")?;
    let Some(pid) = made else {
        // The copy of this process; nothing else of it is used.
        match first {
            First::Runs => child::run(container, &Place::Own, ends),
            First::RunsInPrepared => child::run(container, &Place::Prepared, ends),
            First::Holds => child::hold(container, ends),
        }
    };
    let mounts = File::open(format!("/proc/{}/ns/mnt", pid.as_raw_nonzero())).during("open a namespace")?;
    let (started, home) = home(ours, pid, cgroup, Some(mounts), container)?;
    Ok((started, Home { is_held: first == First::Holds, ..home }))
}

/// Starts the first process of a container in `pod`.
pub fn start_in(pod: &Pod, started: &PodContainer) -> Result<(Started, Home)> {
    let container = &started.container;
    let cgroup = Cgroup::new(pod.cgroup(), &container.id, &container.resources)?;
    let (ours, ends) = Ours::new(&container.process, false)?;
    let directory = cgroup.directory().during("open a control group")?;
    let make = |namespaces| match clone_into(&directory, namespaces) {
        Ok(None) => {
            let pod = child::InPod { first: pod.first(), disks: &started.disks };
            child::run(container, &Place::Pod(pod), ends)
        }
        made => made,
    };
    let made = match pod.shares_processes() {
        true => below(pod.first(), || make(libc::CLONE_NEWNS))?,
        false => make(NAMESPACES_IN_POD),
    };
    let pid = made.during("make a process")?.ok_or_else(|| failure("it is the new process".into()))?;
    // Its mounts go with it: the others are not to wait for that.
    home(ours, pid, cgroup, None, container)
}

fn home(
    ours: Ours,
    pid: Pid,
    cgroup: Cgroup,
    of: Option<File>,
    container: &Container,
) -> Result<(Started, Home)> {
    // It is not reaped yet, and so the number is its own.
    let first = pidfd_open(pid, PidfdFlags::empty()).during("open a process")?;
    let (process, mounted) = (container.process.clone(), mounts::targets(container));
    let home =
        Home { cgroup, first, _mounts: of, process, layers: None, mounted, is_held: false, is_paused: false };
    Ok((ours.started(pid), home))
}

/// Calls `make`, which makes a process, in the namespace of process IDs of `first`: what this process makes is in it,
/// and not itself.
fn below<T>(first: BorrowedFd<'_>, make: impl FnOnce() -> T) -> Result<T> {
    let own = File::open("/proc/self/ns/pid").during("open a namespace")?;
    move_into_thread_name_spaces(first, ThreadNameSpaceType::PROCESS_ID)
        .during("join a container's processes")?;
    let made = make();
    move_into_link_name_space(own.as_fd(), None).during("leave a container's processes")?;
    Ok(made)
}

impl Home {
    /// The container's first process.
    pub fn first(&self) -> BorrowedFd<'_> {
        self.first.as_fd()
    }

    /// Starts a further process.
    pub fn exec(&self, exec: &Exec) -> Result<Started> {
        let process = further(&self.process, exec);
        let (ours, ends) = Ours::new(&process, exec.is_detached)?;
        let directory = self.cgroup.directory().during("open a control group")?;
        let made = below(self.first.as_fd(), || match clone_into(&directory, 0) {
            Ok(None) => child::run_in(self.first.as_fd(), &process, ends),
            made => made,
        })?;
        let made = match made {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && self.cgroup.is_full() => {
                return Err(failure("the container has as many processes as its limit allows".into()));
            }
            made => made.during("make a process")?,
        };
        match made {
            Some(pid) => Ok(ours.started(pid)),
            None => Err(failure("it is the new process".into())),
        }
    }

    /// Starts a process of the agent's that has entered the container, for files of it. It belongs to the container's
    /// group, or to `apart`. What has not been sent on `connection` is `pending`.
    pub fn copy(
        &self,
        apart: Option<&Cgroup>,
        connection: &OwnedFd,
        pending: &[u8],
        what: &CopyWhat,
    ) -> Result<Pid> {
        let directory = apart.unwrap_or(&self.cgroup).directory().during("open a control group")?;
        let pauses = matches!(what, CopyWhat::Layer { pauses: true });
        let events = pauses.then(|| self.cgroup.events()).transpose().during("open a control group")?;
        match clone_into(&directory, 0).during("make a process")? {
            Some(pid) => Ok(pid),
            None => {
                let layers = self.layers.as_ref();
                let entered = Entered {
                    first: Some(self.first.as_fd()),
                    layers: layers.map(|layers| (layers.changes.as_fd(), layers.image.as_fd())),
                    mounted: &self.mounted,
                    user: &self.process.user,
                    freezes: events.as_ref().map(AsFd::as_fd),
                };
                copies::run(&entered, connection, pending, what)
            }
        }
    }
}

/// A further process of the container whose first one is `first`.
fn further(first: &Process, exec: &Exec) -> Process {
    let mut env = first.env.clone();
    agent_protocol::set_variables(&mut env, &exec.env);
    if exec.terminal.is_some() && !env.iter().any(|variable| variable.starts_with("TERM=")) {
        env.push("TERM=xterm".into());
    }
    Process {
        args: exec.args.clone(),
        env,
        cwd: exec.cwd.clone().unwrap_or_else(|| first.cwd.clone()),
        user: exec.user.clone().unwrap_or_else(|| first.user.clone()),
        terminal: exec.terminal,
        has_input: exec.has_input,
        capabilities: exec.capabilities.unwrap_or(first.capabilities),
        ..first.clone()
    }
}

/// The agent's ends of what connects it with a process.
pub struct Ours {
    setup: OwnedFd,
    input: Option<OwnedFd>,
    output: Option<OwnedFd>,
    errors: Option<OwnedFd>,
}

impl Ours {
    /// Both ends. What is detached has no pipes.
    pub fn new(process: &Process, is_detached: bool) -> Result<(Self, Ends)> {
        let flags = SocketFlags::CLOEXEC;
        let (setup, agent) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).during("make a socket")?;
        let pipe = || pipe_with(PipeFlags::CLOEXEC).during("make a pipe");
        let output_pipe = || {
            let pipe = pipe()?;
            // It works with what it has, too.
            let _ = fcntl_setpipe_size(&pipe.1, OUTPUT_PIPE);
            Ok(pipe)
        };
        let has_pipes = process.terminal.is_none() && !is_detached;
        let input = (process.has_input && has_pipes).then(pipe).transpose()?;
        let output = has_pipes.then(output_pipe).transpose()?;
        let errors = has_pipes.then(output_pipe).transpose()?;
        let (input, their_input) = input.map(|(reader, writer)| (writer, reader)).unzip();
        let (output, their_output) = output.unzip();
        let (errors, their_errors) = errors.unzip();
        for fd in [Some(&setup), input.as_ref(), output.as_ref(), errors.as_ref()].into_iter().flatten() {
            rustix::io::ioctl_fionbio(fd, true).during("set up a pipe")?;
        }
        let ends = Ends { input: their_input, output: their_output, errors: their_errors, agent };
        Ok((Self { setup, input, output, errors }, ends))
    }

    /// What it is, with the process's ID.
    pub fn started(self, pid: Pid) -> Started {
        let Self { setup, input, output, errors } = self;
        Started { pid, setup, input, output, errors }
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

/// A copy of this process, in these namespaces of its own and in `cgroup`; `None` in the copy.
pub fn clone_into(cgroup: &OwnedFd, namespaces: i32) -> io::Result<Option<Pid>> {
    let arguments = CloneArguments {
        flags: u64::from(namespaces.cast_unsigned()) | INTO_CGROUP,
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
