//! What a helper process is given, and what not.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Pid, Signal, getpid, getppid, set_parent_process_death_signal};
use rustix::thread::set_no_new_privs;

/// Makes `command` start with nothing but its arguments, the descriptors `inherited` and a pipe for what it has to say;
/// its end follows mvm's, however that comes about.
pub(crate) fn confine(command: &mut Command, inherited: Vec<OwnedFd>) {
    command.env_clear().current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    // A group of its own: what a terminal sends to mvm's, Ctrl-C say, is for the guest to end on, which may need its
    // files and its network for that.
    command.process_group(0);
    let parent = getpid();
    // SAFETY: what runs between fork and exec makes system calls and nothing else.
    unsafe { command.pre_exec(move || prepare(parent, &inherited)) };
}

/// Runs in the new process, before the program does.
fn prepare(parent: Pid, inherited: &[OwnedFd]) -> io::Result<()> {
    // mvm's descriptors close at the exec of themselves; those that mvm inherited may not.
    // SAFETY: the call touches no memory and closes nothing yet. A kernel that does not know it has none to spare.
    unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    for descriptor in inherited {
        fcntl_setfd(descriptor, FdFlags::empty())?;
    }
    set_no_new_privs(true)?;
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // If mvm ended before that, there was nobody's death to be told of.
    if getppid() == Some(parent) { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
}
