//! The thread that writes to standard error.

use std::io;
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::time::Duration;

use super::{Log, shared};

/// How long the end waits for a reader who reads nothing, and for one who reads.
const STANDSTILL: Duration = Duration::from_millis(500);
const MOST: Duration = Duration::from_secs(2);

/// While it lives, a thread writes what is said, and nobody who says something waits. When it goes, it waits a bounded
/// time until all was written.
pub struct Writer(Arc<Log>);

impl Writer {
    /// Starts the thread for standard error.
    ///
    /// # Errors
    ///
    /// Those of starting a thread.
    pub fn start() -> io::Result<Self> {
        Self::start_for(Arc::clone(shared()))
    }

    pub(super) fn start_for(log: Arc<Log>) -> io::Result<Self> {
        let for_thread = Arc::clone(&log);
        without_signals(|| crate::thread("log").spawn(move || for_thread.queue.write_waiting()))?;
        log.queue.start();
        Ok(Self(log))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.0.sum_up();
        // Who does not read what is left misses it. The thread then waits until the process ends.
        self.0.queue.close(STANDSTILL, MOST);
    }
}

/// Calls `start`, which starts a thread, so that the thread takes no signals.
fn without_signals<T>(start: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let (mut all, mut before) = (MaybeUninit::uninit(), MaybeUninit::uninit());
    // SAFETY: `sigfillset` initializes the first set, and where the other call returns 0, it has filled the second.
    let error = unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr())
    };
    if error != 0 {
        return Err(io::Error::from_raw_os_error(error));
    }
    let started = start();
    // SAFETY: the set was filled above. The call fails only for a bad first argument.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), std::ptr::null_mut()) };
    started
}
