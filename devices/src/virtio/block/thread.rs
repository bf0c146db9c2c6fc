//! The thread that serves a disk.
//!
//! It is made with the device and lives as long. The device's methods send it messages; between them, it works on the
//! queue that it was given.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use super::disk::Disk;
use super::engine::{Source, Wakes};
use super::worker::{Host, Worker};
use crate::virtio::events::drain;
use crate::virtio::mailbox::{Letter, Mailbox};
use crate::virtio::{ActivateError, Activation, Queue};

/// How long the thread waits when the host is short of resources.
const SHORTAGE: Duration = Duration::from_millis(10);

/// A message to the thread.
pub(super) enum Command {
    /// Work on the queue.
    Activate(Box<Activation>),
    /// Give up the queue, once nothing is in flight.
    Reset,
    /// Give the queue back, once everything in flight is answered.
    Suspend,
    /// Work on this disk, once everything in flight is answered.
    Replace(Arc<Disk>),
    /// Go on, where the caller of [`Suspend`](Self::Suspend) or [`Replace`](Self::Replace) has given up waiting.
    Continue,
}

/// The answer to a [`Command`].
pub(super) enum Answer {
    Done,
    Refused(ActivateError),
    Suspended(Option<Queue>),
    /// What the device had before.
    Replaced(Arc<Disk>),
}

/// What the thread does.
enum State {
    Idle,
    Active(Box<Worker>),
    /// Waits for what is in flight, to answer the letter then.
    Stopping(Box<Worker>, Stop, Letter<Command, Answer>),
}

#[derive(Debug)]
enum Stop {
    Reset,
    Suspend,
    Replace(Arc<Disk>),
}

/// The thread's own.
pub(super) struct DiskThread {
    mailbox: Mailbox<Command, Answer>,
    host: Host,
    state: State,
    /// The notifiers that the engine watches.
    notifiers: Option<Arc<[EventFd]>>,
}

impl DiskThread {
    /// What the thread runs.
    pub(super) fn run(mailbox: Mailbox<Command, Answer>, host: Host) {
        Self { mailbox, host, state: State::Idle, notifiers: None }.serve();
    }

    fn serve(mut self) {
        self.host.engine.enable();
        self.host.engine.watch(Source::Mailbox, Some(self.mailbox.wake_fd()));
        self.host.engine.watch(Source::Timer, self.host.limiter.timer());
        loop {
            let wakes = self.host.engine.take_wakes();
            self.take_wakes(&wakes);
            if wakes.has(Source::Mailbox) && !self.read_mail() {
                break;
            }
            let has_more = self.work();
            self.wait(!has_more);
        }
        self.finish();
    }

    fn take_wakes(&mut self, wakes: &Wakes) {
        if wakes.has(Source::Timer) {
            self.host.limiter.timer_expired();
        }
        if wakes.has(Source::Notifier)
            && self.host.engine.is_level_triggered()
            && let Some(notifier) = self.notifiers.as_ref().and_then(|notifiers| notifiers.first())
        {
            drain(notifier);
        }
    }

    /// Does what the messages say; false where the device is gone.
    fn read_mail(&mut self) -> bool {
        while let Some(mut letter) = self.mailbox.take() {
            match letter.command() {
                Some(Command::Activate(activation)) => {
                    let answer = self.activate(*activation).map_or_else(Answer::Refused, |()| Answer::Done);
                    if letter.answer(answer).is_err() {
                        // The caller has told the driver that the device does not work.
                        self.state = State::Idle;
                    }
                }
                Some(Command::Reset) => self.stop(Stop::Reset, letter),
                Some(Command::Suspend) => self.stop(Stop::Suspend, letter),
                Some(Command::Replace(disk)) => self.stop(Stop::Replace(disk), letter),
                Some(Command::Continue) => {
                    self.go_on();
                    let _ = letter.answer(Answer::Done);
                }
                None => {}
            }
        }
        !self.mailbox.is_closed()
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        // They are the same for the device's life, where no test has several drivers for one device.
        let is_watched = |watched: &Arc<_>| Arc::ptr_eq(watched, &activation.notifiers);
        if !self.notifiers.as_ref().is_some_and(is_watched) {
            let notifier = activation.notifiers.first().map(AsRawFd::as_raw_fd);
            self.host.engine.watch(Source::Notifier, notifier);
            self.notifiers = Some(Arc::clone(&activation.notifiers));
        }
        if !matches!(self.state, State::Idle) {
            return Err(ActivateError::State("the disk still works on the queue that it had".to_owned()));
        }
        self.state = State::Active(Box::new(Worker::new(activation)?));
        Ok(())
    }

    /// Begins to stop; [`work`](Self::work) answers the letter when nothing is in flight any more.
    fn stop(&mut self, stop: Stop, letter: Letter<Command, Answer>) {
        match std::mem::replace(&mut self.state, State::Idle) {
            State::Idle => match stop {
                Stop::Suspend => drop(letter.answer(Answer::Suspended(None))),
                Stop::Reset => drop(letter.answer(Answer::Done)),
                Stop::Replace(disk) => self.replace(disk, letter),
            },
            State::Active(worker) => self.state = State::Stopping(worker, stop, letter),
            // A driver that has reset the device must not see it go on: it stays so.
            State::Stopping(worker, before, _) => {
                let stop = if matches!(before, Stop::Reset) { before } else { stop };
                self.state = State::Stopping(worker, stop, letter);
            }
        }
    }

    /// Gives up suspending.
    fn go_on(&mut self) {
        self.state = match std::mem::replace(&mut self.state, State::Idle) {
            State::Stopping(worker, Stop::Suspend | Stop::Replace(_), _) => State::Active(worker),
            other => other,
        };
    }

    /// Does what can be done now; whether there is more to do at once.
    fn work(&mut self) -> bool {
        match &mut self.state {
            State::Idle => false,
            State::Active(worker) => worker.turn(&mut self.host),
            State::Stopping(worker, stop, _) => {
                let has_more = match stop {
                    Stop::Suspend | Stop::Replace(_) => worker.drain(&mut self.host),
                    Stop::Reset => {
                        worker.discard(&mut self.host);
                        false
                    }
                };
                if worker.is_idle() {
                    self.stopped();
                    // What was asked for may have been given up meanwhile.
                    return matches!(self.state, State::Active(_));
                }
                has_more
            }
        }
    }

    /// Answers the letter: nothing is in flight.
    fn stopped(&mut self) {
        let State::Stopping(worker, stop, letter) = std::mem::replace(&mut self.state, State::Idle) else {
            return;
        };
        match stop {
            Stop::Reset => {
                drop(worker);
                // Where the caller waits no more, a later reset finds nothing to stop.
                let _ = letter.answer(Answer::Done);
                return;
            }
            Stop::Replace(disk) => {
                self.state = State::Active(worker);
                return self.replace(disk, letter);
            }
            Stop::Suspend => {}
        }
        let (queue, activation) = worker.into_queue();
        if let Err(Answer::Suspended(Some(queue))) = letter.answer(Answer::Suspended(Some(queue))) {
            // The caller has given up: the device goes on.
            let activation = Activation { queues: vec![Some(queue)], ..activation };
            self.state =
                Worker::new(activation).map_or(State::Idle, |worker| State::Active(Box::new(worker)));
        }
    }

    /// Works on `disk` from now on. Nothing is in flight.
    fn replace(&mut self, disk: Arc<Disk>, letter: Letter<Command, Answer>) {
        let before = std::mem::replace(&mut self.host.disk, disk);
        if let Err(Answer::Replaced(before)) = letter.answer(Answer::Replaced(before)) {
            // The caller has given up, and takes the device for one with the disk that it had.
            self.host.disk = before;
        }
    }

    fn wait(&mut self, block: bool) {
        if let Err(error) = self.host.engine.wait(block) {
            tracing::warn!(%error, "the host is short of resources for disk I/O; it is tried again");
            std::thread::sleep(SHORTAGE);
        }
    }

    /// Waits for what is in flight: its memory is held until then.
    fn finish(mut self) {
        self.host.engine.watch(Source::Mailbox, None);
        self.host.engine.watch(Source::Notifier, None);
        self.host.engine.watch(Source::Timer, None);
        let (State::Active(worker) | State::Stopping(worker, ..)) = &mut self.state else { return };
        loop {
            worker.discard(&mut self.host);
            if worker.is_idle() {
                return;
            }
            if self.host.engine.wait(true).is_err() {
                std::thread::sleep(SHORTAGE);
            }
        }
    }
}
