//! A pair of queues at work, on a thread of its own.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::super::VirtioInterrupt;
use super::backend::{Backend, Trouble, again};
use super::control::Control;
use super::receive::{Receive, Wait};
use super::transmit::Transmit;
use crate::lock;

/// How long a packet waits for a driver that has given too few buffers to give more.
const PATIENCE: Duration = Duration::from_millis(10);
/// For how many milliseconds the driver is not told of packets that were sent, when no packet comes that it is told of
/// with the same interrupt. An interrupt costs a guest two exits.
const SILENCE: i32 = 1;
/// What stands for no end of time.
const FOREVER: i32 = -1;

/// What the thread waits for, as epoll tells it.
const STOP: u64 = 0;
const BACKEND: u64 = 1;
const RECEIVE: u64 = 2;
const TRANSMIT: u64 = 3;
const CONTROL: u64 = 4;
const RECEIVE_LIMIT: u64 = 5;
const TRANSMIT_LIMIT: u64 = 6;
const EVENTS: usize = 7;

/// What a pair consists of.
pub(super) struct Pair {
    /// Counted from 0.
    pub(super) number: u16,
    /// Locked as long as the thread runs; so it is there for the next one.
    pub(super) backend: Arc<Mutex<Backend>>,
    pub(super) receive: Receive,
    pub(super) transmit: Transmit,
    /// The control queue, with its index, which the first pair's thread serves. The queue behind the first pair is
    /// the control queue for a driver that knows of one pair, and the second pair's for one that knows of several
    /// (5.1.2), so that nobody outside of the device can know who is to be woken for it.
    pub(super) control: Option<(u16, Control)>,
    /// The notifiers of all queues.
    pub(super) notifiers: Arc<[EventFd]>,
    pub(super) link_is_up: Arc<AtomicBool>,
    pub(super) interrupt: Arc<dyn VirtioInterrupt>,
}

/// The thread of a pair.
pub(super) struct Worker {
    stop: EventFd,
    thread: JoinHandle<()>,
}

impl Worker {
    /// Starts a thread for `pair`.
    ///
    /// # Errors
    ///
    /// The host has no descriptor or no thread left.
    pub(super) fn start(mut pair: Pair) -> io::Result<Self> {
        let stop = EventFd::new(EFD_NONBLOCK)?;
        let epoll = pair.watch(&stop)?;
        let thread = crate::thread("net").spawn(move || pair.run(&epoll))?;
        Ok(Self { stop, thread })
    }

    /// Stops the thread. When it returns, nothing of guest memory is used any more.
    pub(super) fn stop(self) {
        // It fails only where the counter is full, and then the thread is woken all the same.
        let _ = self.stop.write(1);
        // A panic there has been reported where it was.
        let _ = self.thread.join();
    }
}

/// What the next turns are for.
struct Due {
    receive: bool,
    transmit: bool,
    control: bool,
    /// What receiving waits for.
    wait: Wait,
    /// When more buffers have been waited for long enough.
    patience_ends: Option<Instant>,
    /// Whether a packet of the guest's waits for the backend.
    blocked: bool,
}

impl Pair {
    /// Makes an epoll instance of all that the pair waits for.
    ///
    /// All but the end is edge-triggered: a notifier then needn't be read empty each time, and a backend whose
    /// packets there is no room for doesn't keep the thread busy.
    fn watch(&mut self, stop: &EventFd) -> io::Result<Epoll> {
        let epoll = Epoll::new()?;
        let add = |fd, events, number| epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(events, number));
        let edge = EventSet::IN | EventSet::EDGE_TRIGGERED;
        add(stop.as_raw_fd(), EventSet::IN, STOP)?;
        add(lock(&self.backend).as_fd().as_raw_fd(), edge | EventSet::OUT, BACKEND)?;
        let control = self.control.as_ref().map(|(index, _)| (*index, CONTROL));
        let queues = [(2 * self.number, RECEIVE), (2 * self.number + 1, TRANSMIT)];
        for (index, number) in queues.into_iter().chain(control) {
            if let Some(notifier) = self.notifiers.get(usize::from(index)) {
                add(notifier.as_raw_fd(), edge, number)?;
            }
        }
        let timers = [(self.receive.limiter(), RECEIVE_LIMIT), (self.transmit.limiter(), TRANSMIT_LIMIT)];
        for (limiter, number) in timers {
            if let Some(timer) = limiter.timer() {
                add(timer, edge, number)?;
            }
        }
        Ok(epoll)
    }

    fn run(mut self, epoll: &Epoll) {
        let backend = Arc::clone(&self.backend);
        let mut backend = lock(&backend);
        let mut due = Due {
            receive: true,
            transmit: true,
            control: true,
            wait: Wait::No,
            patience_ends: None,
            blocked: false,
        };
        let mut events = [EpollEvent::default(); EVENTS];
        loop {
            self.turns(&mut backend, &mut due);
            let count = match again(|| epoll.wait(self.timeout(&due), &mut events)) {
                Ok(count) => count,
                Err(error) => {
                    tracing::error!(%error, "a network device's thread cannot wait");
                    break;
                }
            };
            if count == 0 {
                self.transmit.tell();
            }
            due.receive = due.wait == Wait::No || due.timeout() == 0;
            let mut events = events.iter().take(count).map(EpollEvent::data);
            if events.any(|event| !self.note(event, &mut due)) {
                break;
            }
        }
        backend.reset(self.transmit.rest());
    }

    /// For how many milliseconds nothing has to be done unless something happens.
    fn timeout(&self, due: &Due) -> i32 {
        match due.timeout() {
            FOREVER if self.transmit.owes() => SILENCE,
            timeout if self.transmit.owes() => timeout.min(SILENCE),
            timeout => timeout,
        }
    }

    /// Notes what an event is for; false, where it is the end.
    ///
    /// While packets wait for a rate limit there is nothing to begin for those that come behind them.
    fn note(&mut self, event: u64, due: &mut Due) -> bool {
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
            _ => return false,
        }
        true
    }

    fn turns(&mut self, backend: &mut Backend, due: &mut Due) {
        if std::mem::take(&mut due.control)
            && let Some((_, control)) = &mut self.control
        {
            control.turn();
        }
        if std::mem::take(&mut due.transmit) {
            if due.wait == Wait::Forever {
                self.transmit.discard();
            } else {
                match self.transmit.turn(backend) {
                    Ok(blocked) => due.blocked = blocked,
                    Err(trouble) => self.trouble(trouble, due),
                }
            }
        }
        if std::mem::take(&mut due.receive) && due.wait != Wait::Forever {
            let patient = due.patience_ends.is_none_or(|end| Instant::now() < end);
            match self.receive.turn(backend, patient, self.transmit.queue()) {
                Ok(wait) => due.wait = wait,
                Err(trouble) => {
                    due.wait = Wait::Packet;
                    self.trouble(trouble, due);
                }
            }
            due.patience_ends = match (due.wait, due.patience_ends) {
                (Wait::MoreBuffers, Some(end)) if patient => Some(end),
                (Wait::MoreBuffers, _) => Some(Instant::now() + PATIENCE),
                _ => None,
            };
        }
    }

    /// The backend has no more packets and takes none: for the guest, the cable is pulled.
    fn trouble(&mut self, trouble: Trouble, due: &mut Due) {
        let Trouble::Closed(error) = trouble else { return };
        // A tap's queue that the driver doesn't use is no loss; the first one goes with the tap alone.
        if self.number > 0 {
            self.transmit.discard();
            return;
        }
        tracing::warn!(%error, "a network backend is gone; the guest's link goes down");
        due.wait = Wait::Forever;
        due.blocked = false;
        self.transmit.discard();
        self.link_is_up.store(false, Ordering::Release);
        self.interrupt.config_changed();
    }
}

impl Due {
    /// For how many milliseconds receiving needs no turn unless something happens.
    fn timeout(&self) -> i32 {
        match (self.wait, self.patience_ends) {
            (Wait::No, _) => 0,
            (Wait::MoreBuffers, Some(end)) => {
                let left = end.saturating_duration_since(Instant::now());
                // Rounded up, so that it is not woken too early, over and over.
                i32::try_from(left.as_micros().div_ceil(1000)).unwrap_or(FOREVER)
            }
            _ => FOREVER,
        }
    }
}
