//! Device models of mvm.
//!
//! Nothing here knows of KVM: a device is driven through [`BusDevice`] (what the guest reads and writes),
//! raises interrupts through [`Interrupt`], and tells the machine of its end through [`MachineEvents`]. The
//! vmm, a test and a fuzzer all stand at the same three places.

pub mod bus;
pub mod interrupt;
pub mod legacy;
pub mod log;
pub mod machine;
pub mod metrics;
pub mod socket;
pub mod suspend;
pub mod timer;
pub mod virtio;

pub use bus::{Bus, BusDevice, BusError};
pub use interrupt::Interrupt;
pub use machine::{MachineEvent, MachineEvents};
pub use suspend::{Section, Suspend, SuspendError};
pub use timer::Timer;

use std::io;
use std::mem::MaybeUninit;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;

/// Locks `mutex`, also where a thread panicked while it held it: the state behind each lock here is valid
/// between any two statements, and a device that stops answering would hang the guest.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A thread of mvm's own, to be started, that is called `name`.
///
/// Its stack is small: none of them goes deep, and of a stack of the usual 2 MiB the first use may take all, as one
/// huge page.
pub fn thread(name: &str) -> Thread {
    Thread(name.to_owned())
}

/// A thread to be started; see [`thread`].
pub struct Thread(String);

impl Thread {
    /// Starts it.
    ///
    /// # Errors
    ///
    /// Those of starting a thread.
    pub fn spawn(self, run: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
        let first = FIRST.get().map(|first| first(&self.0));
        let builder = std::thread::Builder::new().name(self.0).stack_size(256 << 10);
        builder.spawn(move || {
            if let Some(first) = &first {
                first();
            }
            run();
        })
    }
}

/// What a thread of this name does before all else.
type First = Box<dyn Fn(&str) -> Arc<dyn Fn() + Send + Sync> + Send + Sync>;

static FIRST: OnceLock<First> = OnceLock::new();

/// Has each [`thread`] of mvm's own that is started from now on begin with what `first` returns for its name, to give
/// up rights. The thread that starts it calls `first`: a thread that takes no memory needs no pool of malloc's. It can
/// be said once.
pub fn before_threads(first: First) {
    // Of two, the first stays.
    let _ = FIRST.set(first);
}

/// Starts a thread of mvm's own that is called `name` and takes no signals, which others wait for, but SIGSYS: that is
/// no other thread's, and the answer to a system call that a filter denies.
///
/// # Errors
///
/// Those of starting a thread.
pub fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    let (mut all, mut before) = (MaybeUninit::uninit(), MaybeUninit::uninit());
    // SAFETY: `sigfillset` initializes the first set, and where the last call returns 0, it has filled the second.
    let error = unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::sigdelset(all.as_mut_ptr(), libc::SIGSYS);
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr())
    };
    if error != 0 {
        return Err(io::Error::from_raw_os_error(error));
    }
    let started = thread(name).spawn(run);
    // SAFETY: the set was filled above. The call fails only for a bad first argument.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), std::ptr::null_mut()) };
    started
}
