//! Packets from the backend to the guest.

use std::collections::VecDeque;
use std::sync::Arc;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_HDR_GSO_ECN,
    VIRTIO_NET_HDR_GSO_NONE,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::backend::{Backend, BackendError};
use super::device::NetMetrics;
use super::header::{FLAGS, FRAME_OVERHEAD, GSO_TYPE, HEADER, NUM_BUFFERS};
use crate::virtio::Queue;
use crate::virtio::iovecs::IoVecs;
use crate::virtio::queue::{ActiveQueue, Chain, Head};
use crate::virtio::rate_limit::RateLimiter;

/// The most packets of a turn; then the transmit queue has its own.
const PACKETS_PER_TURN: usize = 64;
/// The driver is signalled for the first packet of a turn at once, and then for so many together: it works on those
/// while the next ones are received. While it does, it wants no interrupts.
const PACKETS_PER_INTERRUPT: usize = 8;
/// No more chains are gathered once there are so many ranges: `readv` takes twice as many. If a chain has more than
/// that leaves, its end isn't used.
const MANY_RANGES: usize = 512;
const MAX_RANGES: usize = 1000;

/// What has to happen before more can be received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// Nothing.
    No,
    /// The backend has a packet.
    Packet,
    /// The driver makes buffers available.
    Buffers,
    /// The driver makes more buffers available, or doesn't for a while: then the packet has to do with those there are.
    MoreBuffers,
    /// The rate limit allows a packet. Until then it stays with the backend.
    Limit,
    /// Nothing can: the backend is gone.
    Forever,
}

/// Where the header of a chain is.
enum HeaderPlace {
    /// In one piece.
    Whole(GuestAddress),
    /// In several buffers (2.7.4): the address of each byte.
    Split(Box<[GuestAddress; HEADER]>),
}

impl HeaderPlace {
    /// `None` if the chain is too short.
    fn of(chain: &Chain) -> Option<Self> {
        let (first, length) = chain.writable.first()?;
        if usize::try_from(length).is_ok_and(|length| length >= HEADER) {
            return Some(Self::Whole(first));
        }
        let mut places = Box::new([first; HEADER]);
        for (offset, place) in (0..).zip(places.iter_mut()) {
            *place = chain.writable.address_of(offset)?;
        }
        Some(Self::Split(places))
    }

    /// Reads the byte at `offset` in the header.
    fn read(&self, memory: &GuestMemoryMmap, offset: usize) -> u8 {
        let place = match self {
            Self::Whole(first) => Some(GuestAddress(first.0.saturating_add(offset as u64))),
            Self::Split(places) => places.get(offset).copied(),
        };
        place.and_then(|place| memory.read_obj(place).ok()).unwrap_or(0)
    }

    /// Writes `bytes` to `offset` in the header.
    fn write(&self, memory: &GuestMemoryMmap, offset: usize, bytes: &[u8]) {
        // All addresses were found to be in RAM, so that nothing here fails.
        match self {
            Self::Whole(first) => {
                let _ = memory.write_slice(bytes, GuestAddress(first.0.saturating_add(offset as u64)));
            }
            Self::Split(places) => {
                for (place, byte) in places.iter().skip(offset).zip(bytes) {
                    let _ = memory.write_obj(*byte, *place);
                }
            }
        }
    }
}

/// A chain that was taken from the queue for the next packets.
struct Waiting {
    head: Head,
    length: usize,
    ranges: usize,
    header: HeaderPlace,
}

/// The buffers for the next packets. Chains that one packet does not need are for the next.
pub(super) struct Room {
    memory: Arc<GuestMemoryMmap>,
    chains: VecDeque<Waiting>,
    ranges: IoVecs,
    capacity: usize,
    /// Behind all buffers; it is written to when a packet is too long for them.
    overflow: Box<[u8; 1]>,
}

impl Room {
    fn new(memory: Arc<GuestMemoryMmap>) -> Self {
        let (chains, ranges) = (VecDeque::new(), IoVecs::default());
        Self { memory, chains, ranges, capacity: 0, overflow: Box::new([0]) }
    }

    /// The length of all buffers together, in bytes.
    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    /// The buffers, in order. They lie in guest memory, which lives as long as this.
    pub(super) fn ranges(&self) -> &IoVecs {
        &self.ranges
    }

    /// Adds a range of one byte behind all others, by which a packet that is too long is recognized.
    pub(super) fn add_overflow(&mut self) {
        self.ranges.push_raw(self.overflow.as_mut_ptr().cast(), self.overflow.len());
    }

    /// Removes it again.
    pub(super) fn remove_overflow(&mut self) {
        self.ranges.pop();
    }

    /// Adds the buffers of `chain`; false if it has no room for a header (5.1.6.3.1).
    fn push(&mut self, chain: &Chain) -> bool {
        let Some(header) = HeaderPlace::of(chain) else { return false };
        let before = self.ranges.left().len();
        if chain.writable.append_to(&self.memory, &mut self.ranges).is_err() {
            return false;
        }
        self.ranges.truncate_ranges(MAX_RANGES);
        let added = self.ranges.left().get(before..).unwrap_or_default();
        let (ranges, length) = (added.len(), added.iter().map(|range| range.iov_len).sum());
        self.capacity = self.capacity.saturating_add(length);
        self.chains.push_back(Waiting { head: chain.head, length, ranges, header });
        length >= HEADER
    }

    /// Gives the first chains back with a packet of `length` bytes, as few of them as it needs.
    fn deliver(
        &mut self,
        queue: &mut ActiveQueue,
        length: usize,
        fields: HeaderFields,
        used: &mut Vec<(Head, u32)>,
    ) {
        used.clear();
        let (mut rest, mut ranges, mut header) = (length, 0, None);
        while rest > 0 {
            let Some(chain) = self.chains.pop_front() else { break };
            let here = rest.min(chain.length);
            rest -= here;
            ranges += chain.ranges;
            self.capacity = self.capacity.saturating_sub(chain.length);
            used.push((chain.head, u32::try_from(here).unwrap_or(u32::MAX)));
            header.get_or_insert(chain.header);
        }
        self.ranges.drop_first(ranges);
        if let Some(header) = header {
            match fields {
                HeaderFields::All => {}
                HeaderFields::AllButFlags => header.write(&self.memory, FLAGS, &[0]),
                HeaderFields::None => header.write(&self.memory, 0, &[0; HEADER]),
            }
            let count = u16::try_from(used.len()).unwrap_or(u16::MAX);
            header.write(&self.memory, NUM_BUFFERS, &count.to_le_bytes());
        }
        queue.add_used_together(used);
    }
}

/// The fields of a packet's header that the backend has written, except for `num_buffers`.
#[derive(Clone, Copy, Debug)]
enum HeaderFields {
    All,
    /// The flags are cleared for a driver that did not negotiate partial checksums (5.1.6.4.1).
    AllButFlags,
    None,
}

/// What device and driver have negotiated for received packets.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReceiveMode {
    /// Whether a packet may be in several chains (VIRTIO_NET_F_MRG_RXBUF).
    mergeable: bool,
    /// Whether a packet may have a partial checksum (VIRTIO_NET_F_GUEST_CSUM).
    checksums: bool,
    /// The length of the longest packet, header included, that need not be segmented (5.1.4.1).
    most: usize,
    /// The length of the longest packet that can be expected, header included.
    longest: usize,
}

impl ReceiveMode {
    /// That of a driver with `features` and a device with the MTU `mtu`.
    pub(super) fn new(features: u64, mtu: Option<u16>, longest: usize) -> Self {
        let has = |bit: u32| features & 1 << bit != 0;
        let most =
            mtu.filter(|_| has(VIRTIO_NET_F_MTU)).map(|mtu| HEADER + FRAME_OVERHEAD + usize::from(mtu));
        Self {
            mergeable: has(VIRTIO_NET_F_MRG_RXBUF),
            checksums: has(VIRTIO_NET_F_GUEST_CSUM),
            most: most.unwrap_or(usize::MAX),
            longest,
        }
    }
}

/// A receive queue that the device works on.
pub(super) struct Receive {
    queue: ActiveQueue,
    room: Room,
    mode: ReceiveMode,
    chain: Chain,
    used: Vec<(Head, u32)>,
    limiter: RateLimiter,
    metrics: Arc<NetMetrics>,
}

impl Receive {
    pub(super) fn new(
        queue: ActiveQueue,
        mode: ReceiveMode,
        limiter: RateLimiter,
        metrics: Arc<NetMetrics>,
    ) -> Self {
        let room = Room::new(Arc::clone(queue.memory()));
        let (chain, used) = (Chain::default(), Vec::new());
        Self { queue, room, mode, chain, used, limiter, metrics }
    }

    /// The limiter whose timer expires after [`Wait::Limit`].
    pub(super) fn limiter(&mut self) -> &mut RateLimiter {
        &mut self.limiter
    }

    /// Receives packets until there are no more or the turn is over. If it does not `wait_for_buffers`, it goes on with
    /// fewer buffers than the longest packet needs, and a packet that is too long for them is lost.
    ///
    /// The driver is signalled for the packets in `sent` at the same time.
    pub(super) fn turn(
        &mut self,
        backend: &mut Backend,
        wait_for_buffers: bool,
        sent: &mut ActiveQueue,
    ) -> Result<Wait, BackendError> {
        let result = self.receive_all(backend, wait_for_buffers, sent);
        if self.queue.unsignalled() > 0 {
            self.queue.end_turn_with(sent);
        }
        result
    }

    fn receive_all(
        &mut self,
        backend: &mut Backend,
        wait_for_buffers: bool,
        sent: &mut ActiveQueue,
    ) -> Result<Wait, BackendError> {
        self.queue.start_turn();
        for number in 0..PACKETS_PER_TURN {
            self.queue.spend(0, backend.take_calls());
            if !self.queue.may_go_on() {
                // A broken queue is reset by the driver.
                return Ok(if self.queue.is_broken() { Wait::Buffers } else { Wait::No });
            }
            let needed = match backend.next_length(self.mode.longest) {
                Ok(needed) => needed,
                Err(BackendError::WouldBlock) => return Ok(Wait::Packet),
                Err(BackendError::Unfinished) => return Ok(Wait::No),
                Err(error) => return Err(error),
            };
            if !self.gather(needed) && (wait_for_buffers || self.room.chains.is_empty()) {
                self.metrics.rx_stalls.increment();
                return Ok(if self.room.chains.is_empty() { Wait::Buffers } else { Wait::MoreBuffers });
            }
            let Some(mut reserved) = self.limiter.reserve(0) else {
                self.metrics.rx_rate_limit_waits.increment();
                return Ok(Wait::Limit);
            };
            let received = backend.receive(&mut self.room);
            match received {
                Ok(length) => {
                    self.limiter.correct(&mut reserved, length.saturating_sub(HEADER) as u64);
                    self.queue.spend(length as u64, 0);
                }
                Err(_) => self.limiter.give_back(reserved),
            }
            match received {
                Ok(length) if length > self.room.capacity => self.metrics.rx_errors.increment(),
                Ok(length) if length < HEADER => {
                    // Taps write whole headers.
                    self.metrics.rx_errors.increment();
                    return Ok(Wait::Packet);
                }
                // The buffers are used for the next packet.
                Ok(length) if self.is_above_mtu(length, backend.writes_headers()) => {
                    self.metrics.rx_errors.increment();
                }
                Ok(length) => {
                    self.deliver(length, backend.writes_headers());
                    if number % PACKETS_PER_INTERRUPT == 0 {
                        self.queue.end_turn_with(sent);
                    }
                }
                Err(BackendError::WouldBlock) => return Ok(Wait::Packet),
                Err(BackendError::Unfinished) => return Ok(Wait::No),
                Err(BackendError::Packet(error)) => {
                    tracing::debug!(%error, "cannot receive a packet");
                    self.metrics.rx_errors.increment();
                    return Ok(Wait::Packet);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Wait::No)
    }

    /// Takes chains until there is room for `needed` bytes; false if the driver has not made enough of them available.
    fn gather(&mut self, needed: usize) -> bool {
        if self.enough(needed) {
            return true;
        }
        while !self.enough(needed) {
            if !self.queue.pop(&mut self.chain) {
                // A driver that uses half of its ring may have to get packets before it makes more available.
                return self.room.chains.len() * 2 >= usize::from(self.queue.size());
            }
            if !self.room.push(&self.chain) {
                self.queue.fail_chain(self.chain.head);
                return false;
            }
        }
        true
    }

    fn enough(&self, needed: usize) -> bool {
        let room = &self.room;
        if self.mode.mergeable {
            room.capacity >= needed || room.ranges.left().len() >= MANY_RANGES
        } else {
            !room.chains.is_empty()
        }
    }

    /// Whether the packet in the room is longer than the driver expects one that need not be segmented.
    fn is_above_mtu(&self, length: usize, has_header: bool) -> bool {
        let is_whole = || {
            let header = self.room.chains.front().filter(|_| has_header);
            let kind = header.map_or(0, |chain| chain.header.read(&self.room.memory, GSO_TYPE));
            u32::from(kind) & !VIRTIO_NET_HDR_GSO_ECN == VIRTIO_NET_HDR_GSO_NONE
        };
        length > self.mode.most && is_whole()
    }

    /// Gives the queue back, with its position; the chains that no packet was written to are the next ones to take. The
    /// part of a packet that was received to them stays with `backend`.
    pub(super) fn suspend(mut self, backend: &mut Backend) -> (Queue, RateLimiter) {
        backend.hold_received_part(&self.room);
        self.queue.put_back(u16::try_from(self.room.chains.len()).unwrap_or(u16::MAX));
        (self.queue.into_queue(), self.limiter)
    }

    /// Gives up the queue, and discards the rest of a packet of which a part was received.
    pub(super) fn stop(self, backend: &mut Backend) -> RateLimiter {
        backend.discard_received_part();
        self.limiter
    }

    fn deliver(&mut self, length: usize, has_header: bool) {
        let fields = match (has_header, self.mode.checksums) {
            (false, _) => HeaderFields::None,
            (true, false) => HeaderFields::AllButFlags,
            (true, true) => HeaderFields::All,
        };
        self.room.deliver(&mut self.queue, length, fields, &mut self.used);
        self.metrics.rx_packets.increment();
        self.metrics.rx_bytes.add(length.saturating_sub(HEADER) as u64);
    }
}
