//! Signals: which are taken, blocked and ignored.

use std::borrow::Cow;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU8, Ordering};

/// The signals that ask a VM to end; all mean the same (see `vmm::Supervisor`).
pub const ENDING: [i32; 4] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT];

fn set_of(signals: &[i32]) -> libc::sigset_t {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `sigemptyset` initializes the set, the other calls get pointers to it.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in signals {
            libc::sigaddset(set.as_mut_ptr(), *signal);
        }
        set.assume_init()
    }
}

/// Changes the calling thread's mask and returns what it was.
fn set_mask(how: i32, set: &libc::sigset_t) -> io::Result<libc::sigset_t> {
    let mut before = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: both pointers are to sets, of which the call fills the second where it returns 0.
    unsafe {
        match libc::pthread_sigmask(how, set, before.as_mut_ptr()) {
            0 => Ok(before.assume_init()),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }
}

/// Calls `start`, which starts a thread, with the signals blocked that other threads read from a descriptor.
///
/// # Errors
///
/// Those of the system calls, and those of `start`.
pub fn start_without_signals<T>(start: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let [a, b, c, d] = ENDING;
    let before = set_mask(libc::SIG_BLOCK, &set_of(&[a, b, c, d, libc::SIGWINCH, libc::SIGCONT]))?;
    let started = start();
    set_mask(libc::SIG_SETMASK, &before)?;
    started
}

/// Signals that are blocked for every thread and readable from a descriptor.
pub struct Signals(OwnedFd);

impl Signals {
    /// Blocks `signals` for this thread and those that it will start, and opens their descriptor, which does not
    /// block.
    ///
    /// # Errors
    ///
    /// Those of the system calls.
    pub fn block(signals: &[i32]) -> io::Result<Self> {
        let set = set_of(signals);
        set_mask(libc::SIG_BLOCK, &set)?;
        // SAFETY: the set is initialized, and the descriptor that signalfd returns has no other owner.
        unsafe {
            let fd = libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(Self(OwnedFd::from_raw_fd(fd)))
        }
    }

    /// The next signal that has arrived.
    pub fn next(&self) -> Option<i32> {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        match rustix::io::read(&self.0, &mut info) {
            // ssi_signo comes first.
            Ok(read) if read == info.len() => {
                info.first_chunk().and_then(|bytes| i32::try_from(u32::from_ne_bytes(*bytes)).ok())
            }
            _ => None,
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Those of `signals` that the process does not ignore. One that was ignored when mvm started stays ignored: nohup(1)
/// does so with SIGHUP, and a shell without job control with SIGINT and SIGQUIT of what it runs in the background.
fn not_ignored(signals: &[i32]) -> Vec<i32> {
    signals.iter().copied().filter(|signal| disposition(*signal) != Some(libc::SIG_IGN)).collect()
}

fn disposition(signal: i32) -> Option<libc::sighandler_t> {
    let mut action = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: nothing is changed without a new action; the call fills the old one where it returns 0.
    unsafe {
        match libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) {
            0 => Some(action.assume_init().sa_sigaction),
            _ => None,
        }
    }
}

/// Takes the signals that end a VM, where they were not ignored when the process started. They are blocked for this
/// thread and for those that it starts.
///
/// # Errors
///
/// Those of the system calls.
pub fn take_ending() -> io::Result<Signals> {
    // A thread that does not block these would take them from those that wait for them, and do nothing with them.
    set_mask(libc::SIG_BLOCK, &set_of(&[libc::SIGCONT, libc::SIGWINCH]))?;
    Signals::block(&not_ignored(&ENDING))
}

/// Takes the signals of a process that shows a console: those that end it, where they were not ignored when it started,
/// and SIGCONT.
///
/// # Errors
///
/// Those of the system calls.
pub(crate) fn take_attached() -> io::Result<Signals> {
    let mut signals = not_ignored(&ENDING);
    signals.push(libc::SIGCONT);
    Signals::block(&signals)
}

/// Takes the signals that a container gets in place of this process: those that end it, where they were not ignored
/// when the process started, and that of its terminal's size.
///
/// # Errors
///
/// Those of the system calls.
pub fn take_for_container() -> io::Result<Signals> {
    let mut signals = not_ignored(&ENDING);
    signals.push(libc::SIGWINCH);
    Signals::block(&signals)
}

/// Signals whose default action would end or stop mvm for what is an ordinary error to it.
const IGNORED: [i32; 3] = [
    // A write beyond RLIMIT_FSIZE then fails with EFBIG.
    libc::SIGXFSZ,
    // A read from or a change of the terminal by a background process then fails, or is done, and mvm is not stopped
    // while it holds locks. It asks who has the terminal before it touches it.
    libc::SIGTTIN,
    libc::SIGTTOU,
];

/// Which of [`IGNORED`] this process has ignored itself, a bit each.
static IGNORED_HERE: AtomicU8 = AtomicU8::new(0);

/// Ignores SIGXFSZ, SIGTTIN and SIGTTOU from now on. Child processes get the default back by [`restore_defaults`].
pub fn ignore_limits_and_terminal() {
    for (index, signal) in IGNORED.iter().enumerate() {
        // SAFETY: ignoring a signal runs no code.
        let before = unsafe { libc::signal(*signal, libc::SIG_IGN) };
        match before {
            libc::SIG_DFL => {
                IGNORED_HERE.fetch_or(1 << index, Ordering::SeqCst);
            }
            libc::SIG_IGN | libc::SIG_ERR => {}
            // A handler that was set stays.
            // SAFETY: it was the handler until just now.
            handler => unsafe {
                libc::signal(*signal, handler);
            },
        }
    }
}

/// Gives the calling process, which is about to execute another program, the default action of the signals that mvm
/// ignores by itself. It makes system calls and nothing else.
pub fn restore_defaults() {
    let here = IGNORED_HERE.load(Ordering::SeqCst);
    for (index, signal) in IGNORED.iter().enumerate() {
        if here & (1 << index) != 0 {
            // SAFETY: the default action runs no code of this program.
            unsafe { libc::signal(*signal, libc::SIG_DFL) };
        }
    }
}

/// The name of `signal`, for people.
pub fn name_of(signal: i32) -> Cow<'static, str> {
    Cow::Borrowed(match signal {
        libc::SIGHUP => "SIGHUP",
        libc::SIGINT => "SIGINT",
        libc::SIGQUIT => "SIGQUIT",
        libc::SIGKILL => "SIGKILL",
        libc::SIGTERM => "SIGTERM",
        other => return format!("signal {other}").into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_that_is_ignored_is_not_taken() {
        // Signals that no other test of this process cares about.
        let signals = [libc::SIGUSR1, libc::SIGURG];
        assert_eq!(not_ignored(&signals), signals);
        // SAFETY: ignoring a signal runs no code.
        unsafe { libc::signal(libc::SIGUSR1, libc::SIG_IGN) };
        assert_eq!(not_ignored(&signals), [libc::SIGURG]);
    }

    #[test]
    fn signals_have_names() {
        assert_eq!(name_of(libc::SIGTERM), "SIGTERM");
        assert_eq!(name_of(64), "signal 64");
    }
}
