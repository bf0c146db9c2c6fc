//! The signals that end a VM: the first asks the guest to power off, the second ends it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;

use devices::Interrupt;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use instance::{ENDING, Signals};

use crate::exit::{ExitReason, ExitSlot};

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
