//! From the guest to the backend.

use std::sync::Arc;

use super::super::iovecs::IoVecs;
use super::super::queue::{ActiveQueue, Chain, Head};
use super::super::rate_limit::{RateLimiter, Reservation};
use super::backend::{Backend, Trouble};
use super::device::NetMetrics;
use super::header::HEADER;
use super::route::{ROUTED, is_for_the_host_itself};

/// `writev` takes 1,024 ranges, and one of them may be the backend's own.
const MAX_RANGES: usize = 1023;
/// The length of an Ethernet header: no frame is shorter.
const MIN_FRAME: usize = 14;

/// The driver is told at once of so many packets that are sent, or so many bytes. What is less can wait for the
/// interrupt of a packet that comes, which is often the answer. A sender that waits for what it sent has more on the
/// way than this: Linux lets each TCP stream have two packets of 64 KiB, and each socket 208 KiB.
const MANY_PACKETS: u16 = 16;
const MANY_BYTES: usize = 128 << 10;

/// A transmit queue at work.
pub(super) struct Transmit {
    queue: ActiveQueue,
    chain: Chain,
    /// The chain of a packet that is not sent, or not whole: the backend has to take it before another.
    begun: Option<Head>,
    /// What is left of that packet. It lies in guest memory, which the queue holds, and in `judged`.
    packet: IoVecs,
    /// The copy of its first bytes by which it was seen to be one that may be sent: the guest can't change it any more.
    /// Empty, where all may be sent.
    judged: Vec<u8>,
    length: usize,
    /// The bytes of packets that are sent, and that the driver was not told of.
    unsignalled_bytes: usize,
    limiter: RateLimiter,
    /// What the limiter allowed for the packet that is sent next.
    reserved: Option<Reservation>,
    metrics: Arc<NetMetrics>,
}

impl Transmit {
    pub(super) fn new(queue: ActiveQueue, limiter: RateLimiter, metrics: Arc<NetMetrics>) -> Self {
        Self {
            queue,
            chain: Chain::default(),
            begun: None,
            packet: IoVecs::default(),
            judged: Vec::new(),
            length: 0,
            unsignalled_bytes: 0,
            limiter,
            reserved: None,
            metrics,
        }
    }

    /// What says when it may go on after packets had to wait for the rate limit.
    pub(super) fn limiter(&mut self) -> &mut RateLimiter {
        &mut self.limiter
    }

    /// The queue, for the driver to be told of what was sent with what was received.
    pub(super) fn queue(&mut self) -> &mut ActiveQueue {
        &mut self.queue
    }

    /// Whether the driver may have to be told of packets that were sent.
    pub(super) fn owes(&self) -> bool {
        self.queue.unsignalled() > 0
    }

    /// Tells the driver of all packets that were sent, if it wants to know.
    pub(super) fn tell(&mut self) {
        self.queue.end_turn();
    }

    /// Sends what the driver has made available; true, where the backend has to be waited for in between. What waits
    /// for the rate limit stays in the queue. The driver is yet to be [told](Self::tell) where this turn sent few packets
    /// and the one before left none that it was to be told of.
    pub(super) fn turn(&mut self, backend: &mut Backend) -> Result<bool, Trouble> {
        self.queue.start_turn();
        let overdue = self.owes();
        if !overdue {
            self.unsignalled_bytes = 0;
        }
        let result = self.send_all(backend);
        if overdue || self.queue.unsignalled() >= MANY_PACKETS || self.unsignalled_bytes >= MANY_BYTES {
            self.tell();
        }
        result
    }

    fn send_all(&mut self, backend: &mut Backend) -> Result<bool, Trouble> {
        loop {
            if self.reserved.is_none() && (self.begun.is_some() || self.queue.has_available()) {
                self.reserved = self.limiter.reserve(0);
                if self.reserved.is_none() {
                    self.metrics.tx_rate_limit_waits.increment();
                    return Ok(false);
                }
            }
            let Some(head) = self.next(backend) else {
                if let Some(reserved) = self.reserved.take() {
                    self.limiter.give_back(reserved);
                }
                return Ok(false);
            };
            // A packet that became available just now waits for the limit like any other.
            let Some(mut reserved) = self.reserved.take() else { continue };
            // SAFETY: the ranges lie in guest memory, which the queue holds, and in `judged`, which stays as it is.
            match unsafe { backend.send(&mut self.packet) } {
                Ok(()) => {
                    self.metrics.tx_packets.increment();
                    self.metrics.tx_bytes.add(self.length as u64);
                    self.limiter.correct(&mut reserved, self.length as u64);
                }
                Err(Trouble::NotNow) => {
                    self.reserved = Some(reserved);
                    self.metrics.tx_stalls.increment();
                    return Ok(true);
                }
                Err(Trouble::Packet(error)) => {
                    tracing::debug!(%error, "cannot send a packet");
                    self.metrics.tx_errors.increment();
                    self.limiter.correct(&mut reserved, self.length as u64);
                }
                Err(trouble) => return Err(trouble),
            }
            self.begun = None;
            self.unsignalled_bytes = self.unsignalled_bytes.saturating_add(self.length);
            self.queue.add_used(head, 0);
        }
    }

    /// The chain of the packet to send, which is in `self.packet`.
    fn next(&mut self, backend: &Backend) -> Option<Head> {
        while self.begun.is_none() && self.queue.pop(&mut self.chain) {
            let head = self.chain.head;
            if self.prepare(backend) {
                self.begun = Some(head);
            } else {
                self.metrics.tx_errors.increment();
                self.queue.add_used(head, 0);
            }
        }
        self.begun
    }

    /// Makes a packet of the chain; false, where it is none or goes where it may not.
    fn prepare(&mut self, backend: &Backend) -> bool {
        let length = usize::try_from(self.chain.readable.len()).unwrap_or(usize::MAX);
        if !(HEADER + MIN_FRAME..=backend.longest()).contains(&length) {
            return false;
        }
        self.length = length - HEADER;
        self.packet.clear();
        self.judged.clear();
        if backend.connects() {
            self.judged.resize(length.min(HEADER + ROUTED), 0);
            let taken = self.chain.readable.take(self.queue.memory(), &mut self.judged);
            if !taken || is_for_the_host_itself(self.judged.get(HEADER..).unwrap_or_default()) {
                return false;
            }
            self.packet.push_raw(self.judged.as_mut_ptr().cast(), self.judged.len());
        }
        let appended = self.chain.readable.append_to(self.queue.memory(), &mut self.packet);
        appended.is_ok() && self.packet.left().len() <= MAX_RANGES
    }

    /// Gives back all that the driver has made available, unsent.
    pub(super) fn discard(&mut self) {
        self.queue.start_turn();
        if let Some(head) = self.begun.take() {
            self.metrics.tx_errors.increment();
            self.queue.add_used(head, 0);
        }
        while self.queue.pop(&mut self.chain) {
            self.metrics.tx_errors.increment();
            self.queue.add_used(self.chain.head, 0);
        }
        self.queue.end_turn();
    }

    /// Gives up the queue. What is left of a packet that has begun is copied, as the backend has to have it.
    pub(super) fn rest(mut self) -> Vec<u8> {
        if self.begun.is_none() {
            return Vec::new();
        }
        let mut left = std::mem::take(&mut self.chain.readable);
        let mut behind = vec![0; usize::try_from(left.len()).unwrap_or(0)];
        if !left.take(self.queue.memory(), &mut behind) {
            // It can't be: the buffers lie in memory.
            return Vec::new();
        }
        let mut all = self.judged;
        all.extend(behind);
        all.split_off(all.len().saturating_sub(self.packet.length()))
    }
}
