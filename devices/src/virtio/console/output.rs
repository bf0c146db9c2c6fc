//! From the driver to the user.

use std::io::Write;
use std::os::fd::RawFd;

use serde::{Deserialize, Serialize};

use super::super::queue::{ActiveQueue, Chain, Head};

/// The most that one turn outputs. A chain may name gigabytes; the rest of it waits until others had their turn.
const MOST_PER_TURN: usize = 256 << 10;
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
}

impl Transmitter {
    pub(super) fn new(queue: ActiveQueue) -> Self {
        Self { queue, chain: Chain::default(), part: None }
    }

    pub(super) fn part(&self) -> Option<SentPart> {
        self.part
    }

    /// Outputs what the driver made available, as far as `sink` has room, and gives the count of bytes.
    pub(super) fn turn(&mut self, sink: &mut dyn ConsoleSink) -> usize {
        let mut left = MOST_PER_TURN;
        self.queue.start_turn();
        while let Some(part) = self.next_chain(sink) {
            let Some(sent) = self.send(sink, &mut left) else {
                self.queue.fail_chain(part.head);
                self.part = None;
                break;
            };
            let rest = self.chain.readable.len();
            if rest > 0 {
                self.part = Some(SentPart { sent: part.sent + sent, ..part });
                if left == 0 {
                    self.queue.notify_again();
                }
                break;
            }
            self.part = None;
            // Nothing was written to it, whatever it lets the device write.
            self.queue.add_used(part.head, 0);
        }
        self.queue.end_turn();
        MOST_PER_TURN - left
    }

    /// The chain to go on with, if there is one and room for a part of it.
    fn next_chain(&mut self, sink: &mut dyn ConsoleSink) -> Option<SentPart> {
        if sink.room() == 0 {
            return None;
        }
        if self.part.is_none() && self.queue.pop(&mut self.chain) {
            self.part = Some(SentPart { head: self.chain.head, sent: 0 });
        }
        self.part
    }

    /// Outputs up to `left` bytes of the chain, and gives the count; `None`, where a buffer is not in RAM.
    fn send(&mut self, sink: &mut dyn ConsoleSink, left: &mut usize) -> Option<u64> {
        let mut piece = [0; PIECE];
        let mut sent = 0;
        loop {
            let rest = usize::try_from(self.chain.readable.len()).unwrap_or(usize::MAX);
            let length = rest.min(*left).min(PIECE).min(sink.room());
            let Some(piece) = piece.get_mut(..length).filter(|piece| !piece.is_empty()) else { break };
            if !self.chain.readable.take(self.queue.memory(), piece) {
                return None;
            }
            // A sink without a reader is a line without a cable.
            let _ = sink.write_all(piece);
            *left -= length;
            sent += length as u64;
        }
        Some(sent)
    }
}
