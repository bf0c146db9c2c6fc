//! Packets from the guest to the backend.

use std::sync::Arc;

use super::backend::{Backend, BackendError};
use super::device::NetMetrics;
use super::header::HEADER;
use super::route::{ROUTED, is_for_the_host_itself};
use crate::virtio::Queue;
use crate::virtio::iovecs::IoVecs;
use crate::virtio::queue::{ActiveQueue, Chain, Head};
use crate::virtio::rate_limit::{RateLimiter, Reservation};

/// `writev` takes 1,024 ranges, and one of them may be the backend's own.
const MAX_RANGES: usize = 1023;
/// The length of an Ethernet header: no frame is shorter.
const MIN_FRAME: usize = 14;

/// The driver is signalled at once for so many packets that were sent, or so many bytes. Fewer wait for the interrupt
/// of a received packet, which is often the answer. A sender that waits for its packets to be sent has more of them on
/// the way than this: Linux lets each TCP stream have two packets of 64 KiB, and each socket 208 KiB.
const MANY_PACKETS: u16 = 16;
const MANY_BYTES: usize = 128 << 10;

/// A transmit queue that the device works on.
pub(super) struct Transmit {
    queue: ActiveQueue,
    chain: Chain,
    /// The chain of a packet that was not sent yet, or not as a whole: the next one to send.
    begun: Option<Head>,
    /// What is left of that packet. It lies in guest memory, which the queue holds, and in `checked`.
    packet: IoVecs,
    /// The copy of its first bytes that was checked, which the guest can't change. Empty if nothing has to be checked.
    checked: Vec<u8>,
    length: usize,
    /// The bytes of packets that were sent and for which the driver was not signalled.
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
            checked: Vec::new(),
            length: 0,
            unsignalled_bytes: 0,
            limiter,
            reserved: None,
            metrics,
        }
    }

    /// The limiter whose timer expires after packets had to wait for the rate limit.
    pub(super) fn limiter(&mut self) -> &mut RateLimiter {
        &mut self.limiter
    }

    /// The queue, for the driver to be signalled for it with the receive queue.
    pub(super) fn queue(&mut self) -> &mut ActiveQueue {
        &mut self.queue
    }

    /// Whether there are packets that were sent and for which the driver was not signalled.
    pub(super) fn owes_signal(&self) -> bool {
        self.queue.unsignalled() > 0
    }

    /// Signals the driver for all packets that were sent, if it wants to be.
    pub(super) fn signal(&mut self) {
        self.queue.end_turn();
    }

    /// Sends what the driver has made available; true if a packet waits for the backend. Packets that wait for the rate
    /// limit stay in the queue. After a turn with few packets, the driver is still to be [signalled](Self::signal).
    pub(super) fn turn(&mut self, backend: &mut Backend) -> Result<bool, BackendError> {
        self.queue.start_turn();
        let overdue = self.owes_signal();
        if !overdue {
            self.unsignalled_bytes = 0;
        }
        let result = self.send_all(backend);
        if overdue || self.queue.unsignalled() >= MANY_PACKETS || self.unsignalled_bytes >= MANY_BYTES {
            self.signal();
        }
        result
    }

    fn send_all(&mut self, backend: &mut Backend) -> Result<bool, BackendError> {
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
            // A packet that has just become available waits for the limit like any other.
            let Some(mut reserved) = self.reserved.take() else { continue };
            // SAFETY: the ranges lie in guest memory, which the queue holds, and in `checked`, which stays as it is.
            let sent = unsafe { backend.send(&mut self.packet) };
            self.queue.spend(0, backend.take_calls());
            match sent {
                Ok(()) => {
                    self.metrics.tx_packets.increment();
                    self.metrics.tx_bytes.add(self.length as u64);
                    self.limiter.correct(&mut reserved, self.length as u64);
                }
                Err(BackendError::WouldBlock) => {
                    self.reserved = Some(reserved);
                    self.metrics.tx_stalls.increment();
                    return Ok(true);
                }
                Err(BackendError::Unfinished) => {
                    self.reserved = Some(reserved);
                    self.queue.notify_again();
                    return Ok(false);
                }
                Err(BackendError::Packet(error)) => {
                    tracing::debug!(%error, "cannot send a packet");
                    self.metrics.tx_errors.increment();
                    self.limiter.correct(&mut reserved, self.length as u64);
                }
                Err(error) => return Err(error),
            }
            self.begun = None;
            self.unsignalled_bytes = self.unsignalled_bytes.saturating_add(self.length);
            self.queue.spend(self.length as u64, 0);
            self.queue.add_used(head, 0);
        }
    }

    /// The chain of the next packet to send, which is in `self.packet`.
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

    /// Makes a packet of the chain; false if it is invalid or has a forbidden destination.
    fn prepare(&mut self, backend: &Backend) -> bool {
        let length = usize::try_from(self.chain.readable.len()).unwrap_or(usize::MAX);
        if !(HEADER + MIN_FRAME..=backend.longest()).contains(&length) {
            return false;
        }
        self.length = length - HEADER;
        self.packet.clear();
        self.checked.clear();
        if backend.connects() {
            self.checked.resize(length.min(HEADER + ROUTED), 0);
            let taken = self.chain.readable.take(self.queue.memory(), &mut self.checked);
            if !taken || is_for_the_host_itself(self.checked.get(HEADER..).unwrap_or_default()) {
                return false;
            }
            self.packet.push_raw(self.checked.as_mut_ptr().cast(), self.checked.len());
        }
        let appended = self.chain.readable.append_to(self.queue.memory(), &mut self.packet);
        appended.is_ok() && self.packet.left().len() <= MAX_RANGES
    }

    /// Gives all chains back that the driver has made available, unsent.
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

    /// Gives the queue back, with its position. A packet that was not sent stays in it; one of which a part was sent is
    /// left to `backend`.
    pub(super) fn suspend(mut self, backend: &mut Backend) -> (Queue, RateLimiter) {
        let reserved = self.reserved.take();
        if let Some(head) = self.begun.take() {
            if backend.has_sent_a_part() {
                backend.give_up(self.rest());
                self.metrics.tx_packets.increment();
                self.metrics.tx_bytes.add(self.length as u64);
                if let Some(mut reserved) = reserved {
                    self.limiter.correct(&mut reserved, self.length as u64);
                }
                self.queue.add_used(head, 0);
                return (self.queue.into_queue(), self.limiter);
            }
            backend.give_up(Vec::new());
            self.queue.put_back(1);
        }
        if let Some(reserved) = reserved {
            self.limiter.give_back(reserved);
        }
        (self.queue.into_queue(), self.limiter)
    }

    /// Gives up the queue. The rest of a packet of which a part was sent is left to `backend`.
    pub(super) fn stop(mut self, backend: &mut Backend) -> RateLimiter {
        let rest = if self.begun.is_some() { self.rest() } else { Vec::new() };
        backend.give_up(rest);
        if let Some(reserved) = self.reserved.take() {
            self.limiter.give_back(reserved);
        }
        self.limiter
    }

    /// A copy of what is left of the packet that is being sent.
    fn rest(&mut self) -> Vec<u8> {
        let mut left = std::mem::take(&mut self.chain.readable);
        let mut behind = vec![0; usize::try_from(left.len()).unwrap_or(0)];
        if !left.take(self.queue.memory(), &mut behind) {
            // The buffers were found to be in RAM.
            return Vec::new();
        }
        let mut all = std::mem::take(&mut self.checked);
        all.extend(behind);
        all.split_off(all.len().saturating_sub(self.packet.length()))
    }
}
