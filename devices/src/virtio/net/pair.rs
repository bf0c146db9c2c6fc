//! A pair of a receive queue and a transmit queue that the device works on.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use super::backend::{Backend, BackendError};
use super::control::Control;
use super::device::Shared;
use super::receive::{Receive, Wait};
use super::taps::{TapSettings, Taps};
use super::transmit::Transmit;
use crate::virtio::rate_limit::RateLimiter;
use crate::virtio::{Queue, VirtioInterrupt};

/// How long a packet waits for a driver that has made too few buffers available to make more available.
const BUFFERS_TIMEOUT: Duration = Duration::from_millis(10);
/// For how many milliseconds the driver is not signalled for packets that were sent, if no packet is received for which
/// it is signalled by the same interrupt. An interrupt costs a guest two exits.
const SIGNAL_DELAY: i32 = 1;
/// The timeout of epoll that never ends.
pub(super) const FOREVER: i32 = -1;

/// Events of a pair, as epoll reports them. The numbers below are the thread's own.
pub(super) const BACKEND: u64 = 1;
pub(super) const RECEIVE: u64 = 2;
pub(super) const TRANSMIT: u64 = 3;
pub(super) const CONTROL: u64 = 4;
pub(super) const RECEIVE_LIMIT: u64 = 5;
pub(super) const TRANSMIT_LIMIT: u64 = 6;
pub(super) const TAP_LIMIT: u64 = 7;

/// The limiters of a pair, which outlive its queues: a reset fills no bucket.
pub(super) struct Limiters {
    pub(super) receive: RateLimiter,
    pub(super) transmit: RateLimiter,
}

/// The parts of the device that the thread of the first pair has besides.
pub(super) struct First {
    /// The control queue, if the driver uses one, and its index. It is behind the first pair for a driver that knows
    /// one pair, and behind all of them for one that knows several (5.1.2).
    pub(super) control: Option<(u16, Control)>,
    /// How the tap has to be set up before packets are received.
    pub(super) tap: Option<TapSettings>,
}

/// A pair with its queues.
pub(super) struct Pair {
    /// Counted from 0.
    number: u16,
    receive: Receive,
    transmit: Transmit,
    first: Option<First>,
    /// The notifiers of all queues of the device.
    notifiers: Arc<[EventFd]>,
    interrupt: Arc<dyn VirtioInterrupt>,
    shared: Arc<Shared>,
    due: Due,
}

/// What the next turns are for.
struct Due {
    receive: bool,
    transmit: bool,
    control: bool,
    /// What receiving waits for.
    wait: Wait,
    /// When more buffers have been waited for long enough.
    buffers_deadline: Option<Instant>,
    /// Whether a packet of the guest waits for the backend.
    blocked: bool,
}

/// What a pair gives up when it is suspended.
pub(super) struct Suspended {
    /// The queues, each with its index.
    pub(super) queues: Vec<(u16, Queue)>,
    pub(super) limiters: Limiters,
}

impl Pair {
    /// Pair `number` of a device, which begins with a turn of each queue.
    pub(super) fn new(
        number: u16,
        (receive, transmit): (Receive, Transmit),
        first: Option<First>,
        (notifiers, interrupt): (Arc<[EventFd]>, Arc<dyn VirtioInterrupt>),
        shared: Arc<Shared>,
    ) -> Self {
        let due = Due {
            receive: true,
            transmit: true,
            control: true,
            wait: Wait::No,
            buffers_deadline: None,
            blocked: false,
        };
        Self { number, receive, transmit, first, notifiers, interrupt, shared, due }
    }

    /// The notifiers to watch, each with its event.
    pub(super) fn notifiers(&self) -> impl Iterator<Item = (&EventFd, u64)> {
        let control = self.first.as_ref().and_then(|first| first.control.as_ref());
        let queues = [(2 * self.number, RECEIVE), (2 * self.number + 1, TRANSMIT)];
        let queues = queues.into_iter().chain(control.map(|(index, _)| (*index, CONTROL)));
        queues.filter_map(|(index, event)| Some((self.notifiers.get(usize::from(index))?, event)))
    }

    /// For how many milliseconds there is nothing to do unless something happens.
    pub(super) fn timeout(&self) -> i32 {
        match self.due.timeout() {
            FOREVER if self.transmit.owes_signal() => SIGNAL_DELAY,
            timeout if self.transmit.owes_signal() => timeout.min(SIGNAL_DELAY),
            timeout => timeout,
        }
    }

    /// Takes note of the events of one wake-up.
    pub(super) fn woken(&mut self, events: impl ExactSizeIterator<Item = u64>) {
        if events.len() == 0 {
            self.transmit.signal();
        }
        self.due.receive = self.due.wait == Wait::No || self.due.timeout() == 0;
        events.for_each(|event| self.note(event));
    }

    /// Takes note of an event. While packets wait for a rate limit, there is nothing to do for those behind them.
    fn note(&mut self, event: u64) {
        let due = &mut self.due;
        match event {
            BACKEND => {
                due.receive |= due.wait != Wait::Limit;
                due.transmit |= due.blocked;
            }
            RECEIVE => due.receive |= matches!(due.wait, Wait::Buffers | Wait::MoreBuffers),
            TRANSMIT => due.transmit |= !self.transmit.limiter().is_waiting(),
            CONTROL => due.control = true,
            RECEIVE_LIMIT => {
                self.receive.limiter().timer_expired();
                due.receive |= due.wait == Wait::Limit;
            }
            TRANSMIT_LIMIT => {
                self.transmit.limiter().timer_expired();
                due.transmit = true;
            }
            TAP_LIMIT => due.control = true,
            _ => {}
        }
    }

    /// Does what is due.
    pub(super) fn turns(&mut self, backend: &mut Backend, taps: Option<&mut Taps>) {
        if let (Some(first), Some(taps)) = (&mut self.first, taps)
            && self.due.control
            && !taps.is_waiting()
        {
            self.due.control = false;
            if let Some(settings) = first.tap
                && self.shared.set_up_tap(taps, settings, &*self.interrupt)
            {
                first.tap = None;
                self.due.receive = true;
            }
            if first.tap.is_none()
                && let Some((_, control)) = &mut first.control
            {
                control.turn(taps);
            }
        }
        if std::mem::take(&mut self.due.transmit) {
            self.transmit(backend);
        }
        if std::mem::take(&mut self.due.receive) && self.due.wait != Wait::Forever {
            self.receive(backend);
        }
    }

    fn transmit(&mut self, backend: &mut Backend) {
        if self.due.wait == Wait::Forever {
            self.transmit.discard();
            return;
        }
        match self.transmit.turn(backend) {
            Ok(blocked) => self.due.blocked = blocked,
            Err(error) => self.failed(error),
        }
    }

    fn receive(&mut self, backend: &mut Backend) {
        // Until then, packets may come by queues and with offloads that an earlier driver has chosen. The queues of
        // all pairs but the first are empty afterwards, since the kernel empties those that it detaches.
        if !self.shared.is_tap_set_up() {
            self.due.wait = Wait::Packet;
            return;
        }
        let now = Instant::now;
        let wait_for_buffers = self.due.buffers_deadline.is_none_or(|deadline| now() < deadline);
        match self.receive.turn(backend, wait_for_buffers, self.transmit.queue()) {
            Ok(wait) => self.due.wait = wait,
            Err(error) => {
                self.due.wait = Wait::Packet;
                self.failed(error);
            }
        }
        self.due.buffers_deadline = match (self.due.wait, self.due.buffers_deadline) {
            (Wait::MoreBuffers, Some(deadline)) if wait_for_buffers => Some(deadline),
            (Wait::MoreBuffers, _) => Some(now() + BUFFERS_TIMEOUT),
            _ => None,
        };
    }

    /// The backend is gone: the link goes down, and what the driver sends is discarded.
    fn failed(&mut self, error: BackendError) {
        let BackendError::Closed(error) = error else { return };
        // A queue of the tap that the driver does not use may fail; the first one fails only with the tap.
        if self.number > 0 {
            self.transmit.discard();
            return;
        }
        self.due.wait = Wait::Forever;
        self.due.blocked = false;
        self.transmit.discard();
        // Each driver finds it out once more.
        if self.shared.link_is_up.swap(false, Ordering::AcqRel) {
            tracing::warn!(%error, "a network backend is gone; the guest's link goes down");
            self.interrupt.config_changed(&self.shared.config_space());
        }
    }

    /// Gives the queues back, with their positions: packets that were not sent or received stay where they are.
    pub(super) fn suspend(self, backend: &mut Backend) -> Suspended {
        let (receive, receive_limiter) = self.receive.suspend(backend);
        let (transmit, transmit_limiter) = self.transmit.suspend(backend);
        let mut queues = vec![(2 * self.number, receive), (2 * self.number + 1, transmit)];
        if let Some((index, control)) = self.first.and_then(|first| first.control) {
            queues.push((index, control.into_queue()));
        }
        let limiters = Limiters { receive: receive_limiter, transmit: transmit_limiter };
        Suspended { queues, limiters }
    }

    /// Gives up the queues.
    pub(super) fn stop(self, backend: &mut Backend) -> Limiters {
        Limiters { receive: self.receive.stop(backend), transmit: self.transmit.stop(backend) }
    }
}

impl Due {
    /// For how many milliseconds receiving needs no turn unless something happens.
    fn timeout(&self) -> i32 {
        match (self.wait, self.buffers_deadline) {
            (Wait::No, _) => 0,
            (Wait::MoreBuffers, Some(deadline)) => {
                let left = deadline.saturating_duration_since(Instant::now());
                // Rounded up, so that the thread is not woken too early, over and over.
                i32::try_from(left.as_micros().div_ceil(1000)).unwrap_or(FOREVER)
            }
            _ => FOREVER,
        }
    }
}
