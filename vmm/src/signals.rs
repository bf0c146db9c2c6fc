//! The signals that end a VM: the first asks the guest to power off, the second ends it.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use devices::Interrupt;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use crate::exit::{ExitReason, ExitSlot};

/// The signals that are taken; all mean the same.
pub(crate) const ENDING: [i32; 4] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT];

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

/// The ending signals, blocked for every thread.
pub struct EndingSignals(Signals);

impl EndingSignals {
    /// Blocks the signals for this thread and those that it will start.
    ///
    /// # Errors
    ///
    /// Those of the system calls.
    pub fn block() -> io::Result<Self> {
        Signals::block(&ENDING).map(Self)
    }

    /// The next signal that has arrived.
    pub(crate) fn next(&self) -> Option<i32> {
        self.0.next()
    }
}

impl AsFd for EndingSignals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Turns ending signals into a press of the power button, then into the VM's end.
pub struct SignalHandler {
    signals: EndingSignals,
    power_button: Arc<dyn Interrupt>,
    pressed: bool,
    exit: Arc<ExitSlot>,
}

impl SignalHandler {
    /// A handler that presses `power_button` first and ends the VM through `exit` then.
    pub fn new(signals: EndingSignals, power_button: Arc<dyn Interrupt>, exit: Arc<ExitSlot>) -> Self {
        Self { signals, power_button, pressed: false, exit }
    }

    fn handle(&mut self, signal: i32) {
        if self.pressed {
            return self.exit.end(ExitReason::Signal(signal));
        }
        self.pressed = true;
        tracing::info!(signal, "asking the guest to power off; a second signal stops it");
        if let Err(error) = self.power_button.trigger() {
            tracing::warn!(%error, "cannot press the guest's power button");
        }
    }
}

impl MutEventSubscriber for SignalHandler {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(Events::new_raw(self.signals.as_fd().as_raw_fd(), EventSet::IN)) {
            tracing::error!(%error, "signals will not be seen");
        }
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {
        while let Some(signal) = self.signals.next() {
            self.handle(signal);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn the_first_signal_presses_the_button_and_the_second_ends_the_vm() {
        let signals = EndingSignals::block().unwrap();
        let button = Arc::new(AtomicUsize::new(0));
        let exit = Arc::new(ExitSlot::new().unwrap());
        let mut handler = SignalHandler::new(signals, button.clone(), exit.clone());
        let raise = |handler: &mut SignalHandler| {
            // SAFETY: the signal is blocked on this thread and goes to its descriptor alone.
            unsafe { libc::pthread_kill(libc::pthread_self(), libc::SIGTERM) };
            let signal = handler.signals.next().expect("the signal was raised");
            handler.handle(signal);
        };
        raise(&mut handler);
        assert_eq!((button.load(Ordering::SeqCst), exit.reason()), (1, None));
        raise(&mut handler);
        assert_eq!(exit.reason(), Some(ExitReason::Signal(libc::SIGTERM)));
        assert_eq!(button.load(Ordering::SeqCst), 1);
    }
}
