//! The first process of a container with `--init`: it starts the command, reaps what others leave, passes signals on,
//! and ends with the command.
//!
//! It is a copy of the agent that has the command's rights. It can't be traced or read by the container's processes,
//! and has nothing open.

use std::io;
use std::mem::zeroed;
use std::ptr::null_mut;

/// Signals that tell a process of its own faults.
const FAULTS: [i32; 7] =
    [libc::SIGFPE, libc::SIGILL, libc::SIGSEGV, libc::SIGBUS, libc::SIGABRT, libc::SIGTRAP, libc::SIGSYS];

/// Makes this process the init, and returns in its child, which is in the foreground of the terminal if there is one.
///
/// # Errors
///
/// That of fork(2).
pub fn split(has_terminal: bool) -> io::Result<()> {
    // Signals that come before the child is there wait for it, and what is blocked is not ignored: that would be so of
    // all that PID 1 has no handler for.
    let signals = all();
    block(&signals);
    // SAFETY: this process has one thread, so that no lock is held by another one in the copy.
    match unsafe { libc::fork() } {
        0 => {
            enter_foreground(has_terminal);
            // SAFETY: all zeros is a valid set.
            block(&unsafe { zeroed() });
            Ok(())
        }
        child if child > 0 => keep(child, &signals),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Those that are passed on, and that of ended children.
fn all() -> libc::sigset_t {
    // SAFETY: all zeros is a valid set, which the calls change and nothing else.
    unsafe {
        let mut set = zeroed();
        libc::sigfillset(&raw mut set);
        for fault in FAULTS {
            libc::sigdelset(&raw mut set, fault);
        }
        set
    }
}

/// Blocks these signals, and no others.
fn block(signals: &libc::sigset_t) {
    // SAFETY: the set lives until the call returns.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, signals, null_mut()) };
}

/// Makes this process a group of its own, which gets what is typed.
fn enter_foreground(has_terminal: bool) {
    // SAFETY: neither call takes memory. The signal for who does this from the background is blocked.
    unsafe {
        libc::setpgid(0, 0);
        if has_terminal {
            libc::tcsetpgrp(0, libc::getpgrp());
        }
    }
}

/// Is the init until `child` ends, and ends with its code. The kernel kills all others then.
fn keep(child: i32, signals: &libc::sigset_t) -> ! {
    // What the command closes has to be closed: its output, and the socket to the agent.
    // SAFETY: nothing is used from here on but signals.
    unsafe { libc::syscall(libc::SYS_close_range, 0, u32::MAX, 0) };
    loop {
        if let Some(code) = reap(child) {
            // SAFETY: it ends the process, without what the copy of the agent would do at its end.
            unsafe { libc::_exit(code) }
        }
        // SAFETY: the set lives until the call returns, and no information is asked for.
        let signal = unsafe { libc::sigwaitinfo(signals, null_mut()) };
        if signal > 0 && signal != libc::SIGCHLD {
            // SAFETY: the call takes no memory. The child is not reaped, so that the number is its own.
            unsafe { libc::kill(child, signal) };
        }
    }
}

/// Is the first process of a pod for as long as the VM runs.
pub fn rest() -> ! {
    let signals = all();
    block(&signals);
    // SAFETY: nothing is used from here on but signals.
    unsafe { libc::syscall(libc::SYS_close_range, 0, u32::MAX, 0) };
    loop {
        reap(0);
        // SAFETY: the set lives until the call returns, and no information is asked for.
        unsafe { libc::sigwaitinfo(&raw const signals, null_mut()) };
    }
}

/// Reaps all that have ended; the exit code of `child` if it is one of them.
fn reap(child: i32) -> Option<i32> {
    let mut code = None;
    loop {
        let mut status = 0;
        // SAFETY: the status lives until the call returns.
        let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
        if pid <= 0 {
            return code;
        }
        if pid == child {
            code = Some(match libc::WIFSIGNALED(status) {
                true => 128 + libc::WTERMSIG(status),
                false => libc::WEXITSTATUS(status),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ptr::null_mut;

    use rstest::rstest;

    use super::*;

    /// The exit code of an init whose command is `command`, which may make system calls and nothing else.
    fn code_of(command: fn() -> i32) -> i32 {
        // SAFETY: the copy makes system calls alone, and ends.
        unsafe {
            let init = libc::fork();
            if init == 0 {
                // Orphans are its children, as they are those of a container's PID 1.
                libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1);
                let code = if split(false).is_ok() { command() } else { 99 };
                libc::_exit(code);
            }
            let mut status = 0;
            assert_eq!(libc::waitpid(init, &raw mut status, 0), init);
            assert!(libc::WIFEXITED(status), "{status:#x}");
            libc::WEXITSTATUS(status)
        }
    }

    /// Leaves a process behind that ends at once, and waits until it is reaped.
    fn leave_an_orphan() -> i32 {
        // SAFETY: as in `code_of`.
        unsafe {
            let mut ends = [0; 2];
            libc::pipe(ends.as_mut_ptr());
            let parent = libc::fork();
            if parent == 0 {
                let orphan = libc::fork();
                if orphan != 0 {
                    libc::write(ends[1], (&raw const orphan).cast(), 4);
                }
                libc::_exit(0);
            }
            libc::waitpid(parent, null_mut(), 0);
            let mut orphan = 0;
            libc::read(ends[0], (&raw mut orphan).cast(), 4);
            // Zombies can be sent signals.
            for _ in 0..10_000 {
                if libc::kill(orphan, 0) != 0 {
                    return 3;
                }
                libc::usleep(1000);
            }
            4
        }
    }

    #[rstest]
    #[case::code(|| 7, 7)]
    // SAFETY: it kills the command.
    #[case::signal(|| unsafe { libc::raise(libc::SIGKILL) }, 137)]
    // SAFETY: init gets the signal, and sends it to the command, which has no handler.
    #[case::passed_on(|| unsafe { libc::kill(libc::getppid(), libc::SIGTERM); libc::pause() }, 143)]
    #[case::orphans(leave_an_orphan, 3)]
    // SAFETY: it asks for its group.
    #[case::group(|| unsafe { i32::from(libc::getpgrp() == libc::getpid()) }, 1)]
    fn it_ends_with_the_command(#[case] command: fn() -> i32, #[case] expected: i32) {
        assert_eq!(code_of(command), expected);
    }
}
