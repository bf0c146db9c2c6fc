//! Signals that are read from a descriptor.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

/// The signals that are taken; all mean the same.
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

/// Calls `start`, which starts a thread, so that the thread takes no signal that others wait for: neither an ending
/// one nor that of a changed window.
///
/// # Errors
///
/// Those of the system calls, and those of `start`.
pub fn start_without_signals<T>(start: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let [a, b, c, d] = ENDING;
    let before = set_mask(libc::SIG_BLOCK, &set_of(&[a, b, c, d, libc::SIGWINCH]))?;
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
        // SAFETY: the set is initialized, and the descriptor that signalfd returns is owned by nobody else.
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
