//! How virtiofsd is started: its options, and what it inherits.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{
    Pid, Resource, Signal, getegid, geteuid, getpid, getppid, getrlimit, set_parent_process_death_signal,
};
use rustix::thread::set_no_new_privs;

use crate::{Sandbox, ShareConfig};

/// The most files that virtiofsd keeps open, where its user may; each that the guest knows is one.
const MAX_FILES: u64 = 1_000_000;

/// The command that serves `folder` as `share` says, to the first who connects to `listener`.
pub(super) fn command(program: &Path, share: &ShareConfig, folder: &Path, listener: &OwnedFd) -> Command {
    let mut command = Command::new(program);
    command.args(options(share)).arg("--shared-dir").arg(folder);
    command.arg(format!("--fd={}", listener.as_raw_fd()));
    command.env_clear().current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    // A group of its own: what a terminal sends to mvm's, Ctrl-C say, is for the guest to end on, which may need its
    // files for that.
    command.process_group(0);
    let (parent, listener) = (getpid(), listener.as_raw_fd());
    // SAFETY: what runs between fork and exec makes system calls and nothing else. The listener is open, since the
    // child has a copy of all descriptors of this process, which waits for the exec.
    unsafe { command.pre_exec(move || prepare(parent, BorrowedFd::borrow_raw(listener))) };
    command
}

/// Runs in the new process, before virtiofsd does.
fn prepare(parent: Pid, listener: BorrowedFd<'_>) -> io::Result<()> {
    // mvm's descriptors close at the exec of themselves; those that mvm inherited may not.
    // SAFETY: the call touches no memory and closes nothing yet. A kernel that does not know it has none to spare.
    unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    fcntl_setfd(listener, FdFlags::empty())?;
    set_no_new_privs(true)?;
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // If mvm ended before that, there was nobody's death to be told of.
    if getppid() == Some(parent) { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
}

fn options(share: &ShareConfig) -> Vec<String> {
    let mut options = vec![
        format!("--sandbox={}", share.sandbox.name()),
        "--seccomp=kill".to_owned(),
        "--log-level=warn".to_owned(),
        // What the host changes is seen by the guest after a second at most.
        "--cache=auto".to_owned(),
        "--xattr".to_owned(),
        "--announce-submounts".to_owned(),
        // To open files by handle takes a right that reaches beyond the folder (CAP_DAC_READ_SEARCH).
        "--inode-file-handles=never".to_owned(),
    ];
    if share.read_only {
        options.push("--readonly".to_owned());
    }
    if !geteuid().is_root() {
        options.extend(unprivileged(share.sandbox));
    }
    options
}

/// What virtiofsd can do for one user alone: the guest's root is that user.
fn unprivileged(sandbox: Sandbox) -> Vec<String> {
    let (user, group) = (geteuid().as_raw(), getegid().as_raw());
    let files = getrlimit(Resource::Nofile).maximum.unwrap_or(MAX_FILES).min(MAX_FILES);
    let mut options = vec![format!("--rlimit-nofile={files}")];
    options.extend(match sandbox {
        Sandbox::Namespace => [format!("--uid-map=:0:{user}:1:"), format!("--gid-map=:0:{group}:1:")],
        Sandbox::Chroot | Sandbox::None => {
            [format!("--translate-uid=map:0:{user}:1"), format!("--translate-gid=map:0:{group}:1")]
        }
    });
    options
}
