//! From the backend to the guest.

use std::collections::VecDeque;
use std::sync::Arc;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_HDR_GSO_ECN,
    VIRTIO_NET_HDR_GSO_NONE,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::super::iovecs::IoVecs;
use super::super::queue::{ActiveQueue, Chain, Head};
use super::super::rate_limit::RateLimiter;
use super::backend::{Backend, Trouble};
use super::device::NetMetrics;
use super::header::{FLAGS, FRAME_OVERHEAD, GSO_TYPE, HEADER, NUM_BUFFERS};

/// The most packets of a turn; then others have theirs.
const PACKETS_PER_TURN: usize = 64;
/// Of the first packet of a turn the driver is told at once, and then of so many together: it works on those while the
/// next ones come. While it is at it, it wants no interrupts.
const PACKETS_PER_INTERRUPT: usize = 8;
/// No more chains are gathered when there are so many ranges: `readv` takes twice as many. A chain may have more than
/// the rest, and then its end isn't used.
const MANY_RANGES: usize = 512;
const MAX_RANGES: usize = 1000;

/// What has to happen before more can be received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// Nothing.
    No,
    /// The backend has to have a packet.
    Packet,
    /// The driver has to give buffers.
    Buffers,
    /// The driver has to give buffers; but where it gives none for a while, what there is will have to do.
    MoreBuffers,
    /// The rate limit has to let the next packet pass. Until then it stays with the backend.
    Limit,
    /// The backend is gone.
    Forever,
}

/// Where the header of a chain is.
enum HeaderPlace {
    /// In one piece.
    Whole(GuestAddress),
    /// The driver has split it (2.7.4): the place of each byte.
    Split(Box<[GuestAddress; HEADER]>),
}

impl HeaderPlace {
    /// `None`, where the chain is too short.
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
        // All places were found to lie in memory, so that nothing here fails.
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

/// A chain that waits for a packet.
struct Waiting {
    head: Head,
    length: usize,
    ranges: usize,
    header: HeaderPlace,
}

/// The buffers that the next packets go to. What one packet leaves over is there for the next.
pub(super) struct Room {
    memory: Arc<GuestMemoryMmap>,
    chains: VecDeque<Waiting>,
    ranges: IoVecs,
    capacity: usize,
    /// What is written to here had no room.
    overflow: Box<[u8; 1]>,
}

impl Room {
    fn new(memory: Arc<GuestMemoryMmap>) -> Self {
        let (chains, ranges) = (VecDeque::new(), IoVecs::default());
        Self { memory, chains, ranges, capacity: 0, overflow: Box::new([0]) }
    }

    /// The bytes of all buffers together.
    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    /// The buffers, in order. They lie in guest memory, which is there as long as this is.
    pub(super) fn ranges(&self) -> &IoVecs {
        &self.ranges
    }

    /// Adds a range of one byte behind all others, by which a packet is seen to be too long.
    pub(super) fn add_overflow(&mut self) {
        self.ranges.push_raw(self.overflow.as_mut_ptr().cast(), self.overflow.len());
    }

    /// Takes it away again.
    pub(super) fn remove_overflow(&mut self) {
        self.ranges.pop();
    }

    /// Adds the buffers of `chain`; false, where it has no room for a header (5.1.6.3.1).
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

    /// Gives the driver a packet of `length` bytes in the first chains, as few as it takes.
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

/// What there is of a packet's header, but for `num_buffers`.
#[derive(Clone, Copy, Debug)]
enum HeaderFields {
    All,
    /// The backend's flags are not for a driver that knows nothing of unfinished checksums (5.1.6.4.1).
    AllButFlags,
    None,
}

/// What the driver has negotiated that matters here.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    /// Whether a packet may go to several chains.
    mergeable: bool,
    /// Whether the flags of a header mean something.
    checksums: bool,
    /// The length of the longest packet, header included, that is no one to be segmented (5.1.4.1).
    most: usize,
    /// The length of the longest packet that is to be expected, header included.
    longest: usize,
}

impl Terms {
    /// Those of a driver with `features`, and a device with an MTU of `mtu`.
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

/// A receive queue at work.
pub(super) struct Receive {
    queue: ActiveQueue,
    room: Room,
    terms: Terms,
    chain: Chain,
    used: Vec<(Head, u32)>,
    limiter: RateLimiter,
    metrics: Arc<NetMetrics>,
}

impl Receive {
    pub(super) fn new(
        queue: ActiveQueue,
        terms: Terms,
        limiter: RateLimiter,
        metrics: Arc<NetMetrics>,
    ) -> Self {
        let room = Room::new(Arc::clone(queue.memory()));
        let (chain, used) = (Chain::default(), Vec::new());
        Self { queue, room, terms, chain, used, limiter, metrics }
    }

    /// What says when it may go on after [`Wait::Limit`].
    pub(super) fn limiter(&mut self) -> &mut RateLimiter {
        &mut self.limiter
    }

    /// Receives packets until there are no more or others have to have their turn. Where it is not `patient`, it goes
    /// on with fewer buffers than the longest packet takes, and loses the packet if that is what comes.
    ///
    /// With what was received, the driver is told of what was sent.
    pub(super) fn turn(
        &mut self,
        backend: &mut Backend,
        patient: bool,
        sent: &mut ActiveQueue,
    ) -> Result<Wait, Trouble> {
        let result = self.receive_all(backend, patient, sent);
        if self.queue.unsignalled() > 0 {
            self.queue.end_turn_with(sent);
        }
        result
    }

    fn receive_all(
        &mut self,
        backend: &mut Backend,
        patient: bool,
        sent: &mut ActiveQueue,
    ) -> Result<Wait, Trouble> {
        for number in 0..PACKETS_PER_TURN {
            let needed = match backend.next_length(self.terms.longest) {
                Ok(needed) => needed,
                Err(Trouble::NotNow) => return Ok(Wait::Packet),
                Err(trouble) => return Err(trouble),
            };
            if !self.gather(needed) && (patient || self.room.chains.is_empty()) {
                self.metrics.rx_stalls.increment();
                return Ok(if self.room.chains.is_empty() { Wait::Buffers } else { Wait::MoreBuffers });
            }
            let Some(mut reserved) = self.limiter.reserve(0) else {
                self.metrics.rx_rate_limit_waits.increment();
                return Ok(Wait::Limit);
            };
            let received = backend.receive(&mut self.room);
            match received {
                Ok(length) => self.limiter.correct(&mut reserved, length.saturating_sub(HEADER) as u64),
                Err(_) => self.limiter.give_back(reserved),
            }
            match received {
                Ok(length) if length > self.room.capacity => self.metrics.rx_errors.increment(),
                Ok(length) if length < HEADER => {
                    // No tap gives as little.
                    self.metrics.rx_errors.increment();
                    return Ok(Wait::Packet);
                }
                // The buffers are there for the next packet.
                Ok(length) if self.is_above_mtu(length, backend.writes_headers()) => {
                    self.metrics.rx_errors.increment();
                }
                Ok(length) => {
                    self.deliver(length, backend.writes_headers());
                    if number % PACKETS_PER_INTERRUPT == 0 {
                        self.queue.end_turn_with(sent);
                    }
                }
                Err(Trouble::NotNow) => return Ok(Wait::Packet),
                Err(Trouble::Packet(error)) => {
                    tracing::debug!(%error, "cannot receive a packet");
                    self.metrics.rx_errors.increment();
                    return Ok(Wait::Packet);
                }
                Err(trouble) => return Err(trouble),
            }
        }
        Ok(Wait::No)
    }

    /// Takes chains until there is room for `needed` bytes; false, where the driver has not made as many available.
    fn gather(&mut self, needed: usize) -> bool {
        if self.enough(needed) {
            return true;
        }
        self.queue.start_turn();
        while !self.enough(needed) {
            if !self.queue.pop(&mut self.chain) {
                // A driver that keeps half of its ring for itself may have to see packets before it gives more.
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
        if self.terms.mergeable {
            room.capacity >= needed || room.ranges.left().len() >= MANY_RANGES
        } else {
            !room.chains.is_empty()
        }
    }

    /// Whether a packet that lies in the room is longer than the driver expects one that it need not segment.
    fn is_above_mtu(&self, length: usize, has_header: bool) -> bool {
        let is_whole = || {
            let header = self.room.chains.front().filter(|_| has_header);
            let kind = header.map_or(0, |chain| chain.header.read(&self.room.memory, GSO_TYPE));
            u32::from(kind) & !VIRTIO_NET_HDR_GSO_ECN == VIRTIO_NET_HDR_GSO_NONE
        };
        length > self.terms.most && is_whole()
    }

    fn deliver(&mut self, length: usize, has_header: bool) {
        let fields = match (has_header, self.terms.checksums) {
            (false, _) => HeaderFields::None,
            (true, false) => HeaderFields::AllButFlags,
            (true, true) => HeaderFields::All,
        };
        self.room.deliver(&mut self.queue, length, fields, &mut self.used);
        self.metrics.rx_packets.increment();
        self.metrics.rx_bytes.add(length.saturating_sub(HEADER) as u64);
    }
}
