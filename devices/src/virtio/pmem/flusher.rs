//! Flushes: what the guest wrote to its memory goes to the file's storage.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::device::PmemMetrics;
#[cfg(any(test, fuzzing))]
use crate::virtio::block::Valve;
use crate::virtio::events::drain;
use crate::virtio::mailbox::{DeviceThread, Letter, Mailbox};
use crate::virtio::queue::{ActiveQueue, Buffers, Chain, Head};
use crate::virtio::{ActivateError, Activation, Queue};

/// The requests queue (5.19.2).
const REQUESTS: u16 = 0;
/// The only request there is (5.19.6): make durable what was written.
const FLUSH: u32 = 0;
/// Answers to it (5.19.7.3): 0, and -1 for whatever went wrong.
const OK: u32 = 0;
const FAILURE: u32 = u32::MAX;

/// What makes writes durable.
pub(super) trait Storage: Send + Sync {
    /// Returns when everything that was written is durable.
    fn sync(&self) -> io::Result<()>;
}

impl Storage for File {
    fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::fdatasync(self)?)
    }
}

/// Storage that does not answer while the valve is closed.
#[cfg(any(test, fuzzing))]
impl Storage for Valve {
    fn sync(&self) -> io::Result<()> {
        self.pass();
        Ok(())
    }
}

/// What is flushed, and what came of it.
#[derive(Clone)]
pub(super) struct Target {
    /// Where writes go; `None` where they never leave memory, and there is nothing to flush.
    pub(super) storage: Option<Arc<dyn Storage>>,
    /// A flush failed. The kernel reports lost writes once; they are lost to all later flushes too.
    pub(super) failed: Arc<AtomicBool>,
    pub(super) metrics: Arc<PmemMetrics>,
}

/// The queue of an active device, and what its requests flush.
pub(super) struct Flusher {
    queue: ActiveQueue,
    /// What the device was activated with, without the queue.
    activation: Activation,
    target: Target,
}

impl Flusher {
    /// Works on the queue of `activation`.
    ///
    /// # Errors
    ///
    /// The driver did not enable the queue.
    pub(super) fn new(mut activation: Activation, target: Target) -> Result<Self, ActivateError> {
        Ok(Self { queue: ActiveQueue::take(&mut activation, REQUESTS)?, activation, target })
    }

    /// Gives the queue back, and what it takes to go on with it.
    pub(super) fn into_queue(self) -> (Queue, Activation, Target) {
        (self.queue.into_queue(), self.activation, self.target)
    }

    /// Answers what is available. One flush serves all requests that were there before it.
    pub(super) fn turn(&mut self) {
        let mut chain = Chain::default();
        let mut waiting = Vec::new();
        self.queue.start_turn();
        while self.queue.pop(&mut chain) {
            let mut kind = [0; 4];
            let known =
                chain.readable.take(self.queue.memory(), &mut kind) && u32::from_le_bytes(kind) == FLUSH;
            let answer = std::mem::take(&mut chain.writable);
            if answer.len() < 4 {
                self.queue.fail_chain(chain.head);
            } else if known {
                waiting.push((chain.head, answer));
            } else {
                self.answer(chain.head, answer, FAILURE);
            }
        }
        if !waiting.is_empty() {
            self.queue.spend(0, 1);
            let result = self.flush();
            for (head, answer) in waiting {
                self.answer(head, answer, result);
            }
        }
        self.queue.end_turn();
    }

    fn flush(&self) -> u32 {
        let Some(storage) = &self.target.storage else { return OK };
        if let Err(error) = storage.sync() {
            tracing::error!(%error, "cannot make durable what the guest wrote to persistent memory");
            self.target.failed.store(true, Ordering::Relaxed);
        }
        if self.target.failed.load(Ordering::Relaxed) { FAILURE } else { OK }
    }

    fn answer(&mut self, head: Head, mut place: Buffers, result: u32) {
        let metrics = &self.target.metrics;
        let counter = if result == OK { &metrics.flush_operations } else { &metrics.failed_operations };
        counter.increment();
        let written = place.put(self.queue.memory(), &result.to_le_bytes());
        self.queue.add_used(head, u32::try_from(written).unwrap_or(0));
    }
}

/// A message to the thread that flushes.
pub(super) enum Command {
    /// Answer the requests of a queue.
    Activate(Box<Flusher>),
    /// Give up the queue.
    Reset,
    /// Give the queue back.
    Suspend,
}

/// The answer to a [`Command`].
pub(super) enum Answer {
    Done,
    Suspended(Option<Queue>),
}

/// The thread of a device, which is made with it: storage takes its time.
pub(super) type FlushThread = DeviceThread<Command, Answer>;

/// Starts the thread. It answers messages within `deadline` unless the storage is slower.
///
/// # Errors
///
/// The process has no file descriptor or no thread left.
pub(super) fn start(deadline: Duration) -> io::Result<FlushThread> {
    DeviceThread::with_deadline("pmem", deadline, |mailbox| serve(&mailbox))
}

fn serve(mailbox: &Mailbox<Command, Answer>) {
    let mut flusher: Option<Box<Flusher>> = None;
    while !mailbox.is_closed() {
        while let Some(letter) = mailbox.take() {
            obey(letter, &mut flusher);
        }
        if let Some(flusher) = &mut flusher {
            if let Some(notifier) = flusher.activation.notifiers.first() {
                drain(notifier);
            }
            flusher.turn();
        }
        let notifier = flusher.as_ref().and_then(|flusher| flusher.activation.notifiers.first());
        if let Err(error) = wait(mailbox.wake_fd(), notifier.map(AsRawFd::as_raw_fd)) {
            tracing::error!(%error, "cannot wait for flushes; persistent memory answers no more requests");
            return;
        }
    }
}

fn obey(mut letter: Letter<Command, Answer>, flusher: &mut Option<Box<Flusher>>) {
    match letter.command() {
        Some(Command::Activate(new)) => {
            *flusher = Some(new);
            if letter.answer(Answer::Done).is_err() {
                // The caller has told the driver that the device does not work.
                *flusher = None;
            }
        }
        Some(Command::Reset) => {
            *flusher = None;
            let _ = letter.answer(Answer::Done);
        }
        Some(Command::Suspend) => {
            let Some(active) = flusher.take() else {
                let _ = letter.answer(Answer::Suspended(None));
                return;
            };
            let (queue, activation, target) = active.into_queue();
            if let Err(Answer::Suspended(Some(queue))) = letter.answer(Answer::Suspended(Some(queue))) {
                // The caller has given up: the device goes on.
                let activation = Activation { queues: vec![Some(queue)], ..activation };
                *flusher = Flusher::new(activation, target).ok().map(Box::new);
            }
        }
        None => {}
    }
}

/// Waits for a message or a notification.
fn wait(mailbox: RawFd, notifier: Option<RawFd>) -> io::Result<()> {
    let polled = |fd| {
        // SAFETY: both eventfds are open as long as the mailbox and the queue, which outlive the call.
        PollFd::from_borrowed_fd(unsafe { BorrowedFd::borrow_raw(fd) }, PollFlags::IN)
    };
    // Without a notifier, the mailbox is polled twice.
    let mut both = [mailbox, notifier.unwrap_or(mailbox)].map(polled);
    match poll(&mut both, None) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
