//! From the driver to the user.

use std::io::Write;
use std::os::fd::RawFd;

use serde::{Deserialize, Serialize};

use crate::virtio::queue::{ActiveQueue, Budget, Chain, Head, Queue};

/// What one turn outputs. A chain may name gigabytes; the rest of it waits until others had their turn.
const BUDGET: Budget = Budget { bytes: 256 << 10, ..Budget::TURN };
/// The most bytes taken from guest memory at once, on the stack.
const PIECE: usize = 4096;

/// Where a console's output goes. Writing to it never waits.
///
/// A Linux driver spins with interrupts off until its bytes were taken, so a sink must not be without room for
/// long, whatever its reader does.
pub trait ConsoleSink: Write + Send {
    /// How many bytes can be written without losing any. Where it is 0, the device takes nothing more from the
    /// driver until [`room_fd`](Self::room_fd) is readable.
    fn room(&mut self) -> usize;
    /// Becomes readable when it is time to ask for room again. The same for the sink's life.
    fn room_fd(&self) -> RawFd;
    /// Reads [`room_fd`](Self::room_fd) empty.
    fn acknowledge(&mut self);
}

/// A chain that was taken from the driver and not output to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SentPart {
    /// Its first descriptor.
    pub head: Head,
    /// How many of its bytes were output.
    pub sent: u64,
}

/// The transmit queue and the chain at work.
pub(super) struct Transmitter {
    queue: ActiveQueue,
    chain: Chain,
    part: Option<SentPart>,
    /// The chain that was at work when the device was suspended. It is the queue's next one.
    suspended: Option<SentPart>,
}

impl Transmitter {
    pub(super) fn new(queue: ActiveQueue, suspended: Option<SentPart>) -> Self {
        let queue = queue.in_ram().with_budget(BUDGET);
        Self { queue, chain: Chain::default(), part: None, suspended }
    }

    pub(super) fn part(&self) -> Option<SentPart> {
        self.part.or(self.suspended)
    }

    /// Gives the queue back, and what was output of its next chain.
    pub(super) fn suspend(mut self) -> (Queue, Option<SentPart>) {
        if self.part.is_some() {
            self.queue.unpop();
        }
        (self.queue.into_queue(), self.part.or(self.suspended))
    }

    /// Outputs what the driver made available, as far as `sink` has room, and gives the count of bytes.
    pub(super) fn turn(&mut self, sink: &mut dyn ConsoleSink) -> u64 {
        let mut total = 0;
        self.queue.start_turn();
        while let Some(part) = self.next_chain(sink) {
            let sent = self.send(sink);
            total += sent;
            if self.chain.readable.len() > 0 {
                self.part = Some(SentPart { sent: part.sent + sent, ..part });
                if !self.queue.may_go_on() {
                    self.queue.notify_again();
                }
                break;
            }
            self.part = None;
            // Nothing was written to it, whatever it lets the device write.
            self.queue.add_used(part.head, 0);
        }
        self.queue.end_turn();
        total
    }

    /// The chain to go on with, if there is one and room for a part of it.
    fn next_chain(&mut self, sink: &mut dyn ConsoleSink) -> Option<SentPart> {
        if sink.room() == 0 {
            return None;
        }
        if self.part.is_none() && self.queue.pop(&mut self.chain) {
            let head = self.chain.head;
            // A driver that has changed the chain meanwhile loses or repeats a part of its own output.
            let sent = self.suspended.take().filter(|part| part.head == head).map_or(0, |part| part.sent);
            self.chain.readable.skip(usize::try_from(sent).unwrap_or(usize::MAX));
            self.part = Some(SentPart { head, sent });
        }
        self.part
    }

    /// Outputs what the turn may of the chain, and gives the count of bytes.
    fn send(&mut self, sink: &mut dyn ConsoleSink) -> u64 {
        let mut piece = [0; PIECE];
        let mut sent = 0;
        while self.queue.may_go_on() {
            let rest = usize::try_from(self.chain.readable.len()).unwrap_or(usize::MAX);
            let length = rest.min(PIECE).min(sink.room());
            let Some(piece) = piece.get_mut(..length).filter(|piece| !piece.is_empty()) else { break };
            if !self.chain.readable.take(self.queue.memory(), piece) {
                // All buffers are in RAM and have as many bytes.
                self.queue.fail_chain(self.chain.head);
                break;
            }
            // A sink without a reader is a line without a cable.
            let _ = sink.write_all(piece);
            self.queue.spend(length as u64, 0);
            sent += length as u64;
        }
        sent
    }
}
