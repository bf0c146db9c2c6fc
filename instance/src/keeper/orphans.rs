//! What a child of this process has made, and leaves to it when it ends.

use std::fs;
use std::io;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, getpid, pidfd_open, pidfd_send_signal, set_child_subreaper, waitpid,
};

/// Has processes whose parent has ended become children of this one, where they descend from it.
///
/// # Errors
///
/// Those of prctl(2).
pub fn adopt_orphans() -> io::Result<()> {
    Ok(set_child_subreaper(Some(getpid()))?)
}

/// Kills children of this process whose thread is called `name`, with the children that these leave, and waits until
/// none is left, `limit` at most. Returns whether none is.
pub fn end_orphans(name: &str, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        let mut named = children().into_iter().filter(|child| is_called(*child, name)).peekable();
        if named.peek().is_none() {
            return true;
        }
        // Its number is its own until this process waits for it, which it does here alone.
        for child in named {
            let Ok(descriptor) = pidfd_open(child, PidfdFlags::empty()) else { continue };
            let _ = pidfd_send_signal(&descriptor, Signal::KILL);
            let left = Timespec::try_from(deadline.saturating_duration_since(Instant::now())).ok();
            let _ = poll(&mut [PollFd::new(&descriptor, PollFlags::IN)], left.as_ref());
            let _ = waitpid(Some(child), WaitOptions::NOHANG);
        }
        if deadline <= Instant::now() {
            return false;
        }
    }
}

/// The children of this process.
fn children() -> Vec<Pid> {
    let threads = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    let numbers = lists.flat_map(|list| list.split_whitespace().map(str::parse).collect::<Vec<_>>());
    numbers.filter_map(|number| Pid::from_raw(number.ok()?)).collect()
}

/// Whether the thread of `process` is called so. One that may execute nothing and has no prctl(2) is called as the
/// thread that has made it.
fn is_called(process: Pid, name: &str) -> bool {
    let status = fs::read_to_string(format!("/proc/{}/comm", process.as_raw_nonzero()));
    status.is_ok_and(|own| own.trim_end_matches('\n') == name)
}
