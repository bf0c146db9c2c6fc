//! The thread of a pair of queues. It is made with the device, and gets the queues by a message.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::backend::{Backend, retry};
use super::control::Control;
use super::device::{Driver, Shared};
use super::pair::{BACKEND, FOREVER, First, Limiters, Pair, RECEIVE_LIMIT, TAP_LIMIT, TRANSMIT_LIMIT};
use super::receive::Receive;
use super::stream::StreamState;
use super::taps::{TapSettings, Taps};
use super::transmit::Transmit;
use crate::virtio::mailbox::{Letter, Mailbox};
use crate::virtio::queue::ActiveQueue;
use crate::virtio::{ActivateError, Activation, Queue};

/// The event of a message.
const MESSAGE: u64 = 0;
/// The number of descriptors that a thread waits for: its messages, and those of its pair.
const EVENTS: usize = 8;

/// A message to a thread.
pub(super) enum Command {
    /// Work on queues.
    Start(Start),
    /// Give up the queues, if there are any.
    Stop,
    /// Give the queues back, if there are any.
    Suspend,
    /// Go on with the frames of a stream, before any queue is started.
    Restore(StreamState),
}

/// The queues of a pair.
pub(super) struct Start {
    /// Their driver.
    pub(super) driver: Arc<Driver>,
    /// The queues, each with its index.
    pub(super) queues: Vec<(u16, Queue)>,
    /// For the first pair, how the tap has to be set up; otherwise it is left as it is.
    pub(super) tap: Option<SetUp>,
}

/// How a tap has to be set up.
#[derive(Clone, Copy)]
pub(super) enum SetUp {
    /// For a driver that has just started, within the limit.
    Limited(TapSettings),
    /// For the host, at once.
    AtOnce(TapSettings),
}

/// The answer of a thread.
pub(super) enum Reply {
    Done,
    Failed(ActivateError),
    /// The queues, each with its index, and the frames under way if the backend is a stream.
    Suspended(Vec<(u16, Queue)>, Option<StreamState>),
}

/// What a thread has.
pub(super) struct Worker {
    number: u16,
    backend: Backend,
    /// For the first pair, the queues of the tap.
    taps: Option<Taps>,
    /// The limiters while there is no pair.
    limiters: Option<Limiters>,
    pair: Option<Pair>,
    /// The pair's driver.
    driver: Option<Arc<Driver>>,
    epoll: Epoll,
    shared: Arc<Shared>,
}

impl Worker {
    /// What the thread of pair `number` has.
    ///
    /// # Errors
    ///
    /// The process has no descriptor left.
    pub(super) fn new(
        number: u16,
        backend: Backend,
        taps: Option<Taps>,
        limiters: Limiters,
        shared: Arc<Shared>,
    ) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let edge = EventSet::IN | EventSet::EDGE_TRIGGERED;
        let timers = [
            (limiters.receive.timer(), RECEIVE_LIMIT),
            (limiters.transmit.timer(), TRANSMIT_LIMIT),
            (taps.as_ref().and_then(Taps::timer), TAP_LIMIT),
        ];
        for (timer, event) in timers {
            if let Some(timer) = timer {
                epoll.ctl(ControlOperation::Add, timer, EpollEvent::new(edge, event))?;
            }
        }
        let limiters = Some(limiters);
        Ok(Self { number, backend, taps, limiters, pair: None, driver: None, epoll, shared })
    }

    /// Works until the device is gone.
    pub(super) fn run(mut self, mailbox: &Mailbox<Command, Reply>) {
        let event = EpollEvent::new(EventSet::IN, MESSAGE);
        if let Err(error) = self.epoll.ctl(ControlOperation::Add, mailbox.wake_fd(), event) {
            tracing::error!(%error, "a network device's thread cannot wait for messages");
            return;
        }
        let mut events = [EpollEvent::default(); EVENTS];
        while !mailbox.is_closed() {
            let timeout = match &mut self.pair {
                Some(pair) => {
                    pair.turns(&mut self.backend, self.taps.as_mut());
                    pair.timeout()
                }
                None => FOREVER,
            };
            let count = match retry(|| self.epoll.wait(timeout, &mut events)) {
                Ok(count) => count,
                Err(error) => {
                    tracing::error!(%error, "a network device's thread cannot wait");
                    return;
                }
            };
            let events = events.get(..count).unwrap_or_default();
            self.woken(events);
            if events.iter().any(|event| event.data() == MESSAGE) {
                while let Some(letter) = mailbox.take() {
                    self.answer(letter);
                }
            }
        }
    }

    fn woken(&mut self, events: &[EpollEvent]) {
        let has = |number: u64| events.iter().any(|event| event.data() == number);
        if has(TAP_LIMIT)
            && let Some(taps) = &mut self.taps
        {
            taps.timer_expired();
        }
        match (&mut self.pair, &mut self.limiters) {
            (Some(pair), _) => pair.woken(events.iter().map(EpollEvent::data)),
            (None, Some(limiters)) => {
                if has(RECEIVE_LIMIT) {
                    limiters.receive.timer_expired();
                }
                if has(TRANSMIT_LIMIT) {
                    limiters.transmit.timer_expired();
                }
            }
            (None, None) => {}
        }
    }

    fn answer(&mut self, mut letter: Letter<Command, Reply>) {
        let Some(command) = letter.command() else { return };
        let reply = match command {
            Command::Start(start) => self.start(start).map_or_else(Reply::Failed, |()| Reply::Done),
            Command::Stop => {
                self.stop();
                Reply::Done
            }
            Command::Suspend => self.suspend(),
            Command::Restore(state) => match self.backend.restore(&state) {
                Ok(()) => Reply::Done,
                Err(why) => Reply::Failed(ActivateError::State(why.to_owned())),
            },
        };
        let driver = self.driver.take();
        match letter.answer(reply) {
            // The caller has gone: the device continues, as if it had not been asked.
            Err(Reply::Suspended(queues, _)) if !queues.is_empty() => {
                let Some(driver) = driver else { return };
                let tap = self.taps.as_ref().map(|_| SetUp::Limited(self.shared.tap_settings()));
                if let Err(error) = self.start(Start { driver, queues, tap }) {
                    tracing::error!(%error, "a network device cannot go on after it was suspended");
                }
            }
            _ => self.driver = self.pair.is_some().then_some(driver).flatten(),
        }
    }

    fn start(&mut self, start: Start) -> Result<(), ActivateError> {
        self.stop();
        let Start { driver, queues, tap } = start;
        let mut activation = driver.activation(queues);
        let receive = ActiveQueue::take(&mut activation, 2 * self.number)?;
        let transmit = ActiveQueue::take(&mut activation, 2 * self.number + 1)?;
        let first = match &mut self.taps {
            Some(taps) => Some(first(&driver, &mut activation, taps, tap, &self.shared)?),
            None => None,
        };
        let Some(limiters) = self.limiters.take() else { return Ok(()) };
        let metrics = &self.shared.metrics;
        let receive = Receive::new(receive, driver.mode, limiters.receive, metrics.clone());
        let transmit = Transmit::new(transmit, limiters.transmit, metrics.clone());
        let signals = (activation.notifiers, activation.interrupt);
        let pair = Pair::new(self.number, (receive, transmit), first, signals, self.shared.clone());
        let watched = self.watch(&pair);
        self.pair = Some(pair);
        self.driver = Some(driver);
        watched.inspect_err(|_| self.stop()).map_err(ActivateError::Host)
    }

    /// Watches the backend and the notifiers of `pair`.
    ///
    /// They are edge-triggered: a notifier then needn't be read, and a backend whose packets there are no buffers for
    /// doesn't wake the thread over and over.
    fn watch(&self, pair: &Pair) -> io::Result<()> {
        let edge = EventSet::IN | EventSet::EDGE_TRIGGERED;
        let add = |fd: RawFd, events, number| {
            self.epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(events, number))
        };
        add(self.backend.as_fd().as_raw_fd(), edge | EventSet::OUT, BACKEND)?;
        pair.notifiers().try_for_each(|(notifier, event)| add(notifier.as_raw_fd(), edge, event))
    }

    /// Takes the pair from the thread, which watches its descriptors no more.
    fn take_pair(&mut self) -> Option<Pair> {
        let pair = self.pair.take()?;
        let notifiers = pair.notifiers().map(|(notifier, _)| notifier.as_raw_fd());
        for fd in notifiers.chain([self.backend.as_fd().as_raw_fd()]) {
            // It fails only if the descriptor is not watched.
            let _ = self.epoll.ctl(ControlOperation::Delete, fd, EpollEvent::default());
        }
        Some(pair)
    }

    fn stop(&mut self) {
        if let Some(pair) = self.take_pair() {
            self.limiters = Some(pair.stop(&mut self.backend));
        }
        self.driver = None;
    }

    fn suspend(&mut self) -> Reply {
        let mut queues = Vec::new();
        if let Some(pair) = self.take_pair() {
            let suspended = pair.suspend(&mut self.backend);
            self.limiters = Some(suspended.limiters);
            queues = suspended.queues;
        }
        Reply::Suspended(queues, self.backend.state())
    }
}

/// The further parts of the first pair: sets the tap up, and takes the control queue.
fn first(
    driver: &Driver,
    activation: &mut Activation,
    taps: &mut Taps,
    set_up: Option<SetUp>,
    shared: &Arc<Shared>,
) -> Result<First, ActivateError> {
    let mut tap = None;
    match set_up {
        None => {}
        Some(SetUp::AtOnce(settings)) => {
            shared.tap_result(taps.set(settings)).map_err(ActivateError::Host)?
        }
        Some(SetUp::Limited(settings)) => {
            shared.begin_tap_set_up();
            match taps.try_set(settings) {
                Ok(None) => tap = Some(settings),
                result => shared.tap_result(result.map(drop)).map_err(ActivateError::Host)?,
            }
        }
    }
    // A driver that negotiates a control queue and leaves it disabled does not use it.
    let control = driver.control_queue.and_then(|index| {
        let queue = ActiveQueue::take(activation, index).ok()?;
        Some((index, Control::new(queue, driver.features, driver.pairs, shared.clone())))
    });
    Ok(First { control, tap })
}
