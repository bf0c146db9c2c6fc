//! What a helper process inherits from mvm.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use instance::restore_defaults;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{
    Pid, Resource, Rlimit, Signal, getpid, getppid, set_parent_process_death_signal, setrlimit,
};
use rustix::thread::set_no_new_privs;

/// Signals that a helper does not get. To end a service, systemd sends them to all of its processes (KillMode=
/// control-group), and the guest needs its files and its network to shut down.
pub(super) const WITHHELD: [libc::c_int; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

/// Makes `command` start with nothing but its arguments, the descriptors `inherited` and a pipe for its messages. It
/// ends when mvm does, however mvm ends, and not by the signals that ask mvm to.
pub(crate) fn confine(command: &mut Command, inherited: Vec<OwnedFd>) {
    command.env_clear().current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    // So that it is killed together with what it starts, and a terminal's Ctrl-C or Ctrl-\ is for mvm alone.
    command.process_group(0);
    let parent = getpid();
    // SAFETY: what runs between fork and exec makes system calls and nothing else.
    unsafe { command.pre_exec(move || prepare(parent, &inherited)) };
}

/// Runs in the new process, before the program does.
fn prepare(parent: Pid, inherited: &[OwnedFd]) -> io::Result<()> {
    // mvm's own descriptors are closed by the exec; those that mvm inherited may not be.
    // SAFETY: the call touches no memory and closes nothing yet. A kernel that does not have it leaves them open.
    unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    for descriptor in inherited {
        fcntl_setfd(descriptor, FdFlags::empty())?;
    }
    withhold_signals()?;
    restore_defaults();
    set_no_new_privs(true)?;
    // It has the guest's memory, which belongs into no file.
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // If mvm has ended before that call, there will be no signal.
    if getppid() == Some(parent) { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
}

/// Ignores the signals of [`WITHHELD`], and blocks them, as virtiofsd and passt install handlers that end them.
fn withhold_signals() -> io::Result<()> {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initializes the set; the other calls change it, this process's mask and its dispositions,
    // all of which may be called between fork and exec.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in WITHHELD {
            libc::sigaddset(set.as_mut_ptr(), signal);
            if libc::signal(signal, libc::SIG_IGN) == libc::SIG_ERR {
                return Err(io::Error::last_os_error());
            }
        }
        match libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut()) {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }
}
