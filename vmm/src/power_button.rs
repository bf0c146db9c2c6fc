//! The guest's power button, and word of another generation of the VM.

use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use std::{io, mem};

use devices::legacy::PowerEvents;
use devices::{Interrupt, Timer};
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

/// How soon the interrupt is raised again where the guest has not read what it is about, at first and at last. Linux
/// has it masked while it boots, and an edge on a masked pin of the I/O APIC is lost.
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LAST_WAIT: Duration = Duration::from_secs(1);
/// How long an event waits for the guest to read it.
const EXPIRES: Duration = Duration::from_secs(60);

/// When the interrupt of an event was raised.
#[derive(Debug)]
struct Raised {
    first: Instant,
    wait: Duration,
}

/// What else a press does.
pub type OnPress = Box<dyn Fn() + Send + Sync>;

/// A power button, and what else the guest hears by the same interrupt. A press is not lost where the guest's driver is
/// not there yet: the event loop raises the interrupt until the guest has read it, for a minute at most.
pub struct PowerButton {
    events: PowerEvents,
    line: Arc<dyn Interrupt>,
    timer: Timer,
    raised: Mutex<Option<Raised>>,
    on_press: OnceLock<OnPress>,
}

impl PowerButton {
    /// A button whose presses the guest reads from `events` when `line` is raised.
    ///
    /// # Errors
    ///
    /// Those of making a timer.
    pub fn new(events: PowerEvents, line: Arc<dyn Interrupt>) -> io::Result<Self> {
        Ok(Self { events, line, timer: Timer::new()?, raised: Mutex::new(None), on_press: OnceLock::new() })
    }

    /// Calls `on_press` at each press from now on. A second one is ignored.
    pub(crate) fn call(&self, on_press: OnPress) {
        let _ = self.on_press.set(on_press);
    }

    /// Presses the button; any thread may.
    ///
    /// # Errors
    ///
    /// Those of raising the interrupt.
    pub fn press(&self) -> io::Result<()> {
        if let Some(on_press) = self.on_press.get() {
            on_press();
        }
        self.events.press();
        self.raise()
    }

    /// Tells the guest that its generation ID has changed, as a press is told.
    ///
    /// # Errors
    ///
    /// Those of raising the interrupt.
    pub(crate) fn change_generation(&self) -> io::Result<()> {
        self.events.change_generation();
        self.raise()
    }

    fn raise(&self) -> io::Result<()> {
        *self.lock() = Some(Raised { first: Instant::now(), wait: FIRST_WAIT });
        self.line.trigger()?;
        self.timer.set_once(FIRST_WAIT)
    }

    /// The timer has gone off: raises the interrupt again where the guest has not read what there is.
    fn raise_again(&self) -> io::Result<()> {
        self.timer.acknowledge();
        let mut raised = self.lock();
        let Some(Raised { first, wait }) = &mut *raised else { return Ok(()) };
        if !self.events.is_pending() {
            *raised = None;
            return Ok(());
        }
        if first.elapsed() > EXPIRES {
            self.events.take();
            *raised = None;
            return Ok(());
        }
        let next = (*wait * 2).min(LAST_WAIT);
        let wait = mem::replace(wait, next);
        self.line.trigger()?;
        self.timer.set_once(wait)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Raised>> {
        self.raised.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The button's part of the event loop.
pub(crate) struct PowerButtonEvents(pub(crate) Arc<PowerButton>);

impl MutEventSubscriber for PowerButtonEvents {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(Events::new_raw(self.0.timer.as_raw_fd(), EventSet::IN)) {
            tracing::error!(%error, "cannot watch the power button's timer");
        }
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {
        if let Err(error) = self.0.raise_again() {
            tracing::warn!(%error, "cannot raise the power button's interrupt");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use event_manager::{EventManager, SubscriberOps};

    use super::*;

    #[test]
    fn the_interrupt_is_raised_until_the_guest_reads_the_press() {
        let (pressed, line) = (PowerEvents::default(), Arc::new(AtomicUsize::new(0)));
        let button = Arc::new(PowerButton::new(pressed.clone(), line.clone()).unwrap());
        let mut events = EventManager::<PowerButtonEvents>::new().unwrap();
        events.add_subscriber(PowerButtonEvents(button.clone()));
        button.press().unwrap();
        assert!(pressed.is_pending());
        for raised in 2..4 {
            assert_ne!(events.run_with_timeout(10_000).unwrap(), 0, "the timer goes off");
            assert_eq!(line.load(Ordering::SeqCst), raised);
        }
        assert_ne!(pressed.take(), 0, "the guest reads it");
        assert_ne!(events.run_with_timeout(10_000).unwrap(), 0, "the timer goes off once more");
        assert_eq!(line.load(Ordering::SeqCst), 3);
        assert!(button.lock().is_none());
    }
}
