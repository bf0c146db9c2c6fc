//! What every device does with a queue: take chains from it, check them, give them back, tell the driver.

use std::num::Wrapping;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use thiserror::Error;
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{DescriptorChain, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, Permissions};

use super::iovecs::IoVecs;
use super::{ActivateError, Activation, VirtioInterrupt};

mod state;

pub use self::state::{Queue, QueueState};

/// The most buffers a chain may have. An indirect table could name 65,535; no driver needs more than one
/// `readv` takes (IOV_MAX).
const MAX_BUFFERS: usize = 1024;

/// How a driver broke the rules for queues (2.7).
#[derive(Debug, Error)]
enum QueueError {
    #[error("the queue's rings cannot be used: {0}")]
    Ring(virtio_queue::Error),
    #[error("the chain at descriptor {0} ends in a descriptor that does not exist, or is a loop")]
    Broken(u16),
    #[error("the chain at descriptor {0} has more than {MAX_BUFFERS} buffers")]
    TooLong(u16),
    #[error("the chain at descriptor {0} has a buffer outside of memory")]
    OutsideMemory(u16),
    #[error("the chain at descriptor {0} has a readable buffer after a writable one")]
    Order(u16),
    #[error("the chain at descriptor {0} is of no use to the device")]
    Unanswerable(u16),
}

/// Buffers of one kind in a chain, in its order. All of them lie in guest memory, in RAM or in a file that the guest
/// has as memory ([`Activation::dma`]): what takes RAM alone finds less in them where that is not where they are.
#[derive(Debug, Default)]
pub(super) struct Buffers(Vec<(GuestAddress, u32)>);

impl Buffers {
    /// The length of all buffers together, in bytes.
    pub(super) fn len(&self) -> u64 {
        self.0.iter().map(|&(_, length)| u64::from(length)).sum()
    }

    /// Whether all of them lie in `memory`. A device that reads or writes buffers itself asks for RAM: a file that the
    /// guest has as memory is for system calls only ([`Activation::dma`]).
    pub(super) fn lie_in(&self, memory: &GuestMemoryMmap) -> bool {
        self.ranges().all(|(address, length)| {
            memory.check_range(address, usize::try_from(length).unwrap_or(usize::MAX), Permissions::ReadWrite)
        })
    }

    /// The places of the buffers that are left, and their lengths in bytes.
    pub(super) fn ranges(&self) -> impl Iterator<Item = (GuestAddress, u32)> {
        self.0.iter().copied()
    }

    /// Reads as many bytes as `data` holds off the front, wherever the driver split them into buffers (2.7.4).
    /// False, where there are fewer.
    pub(super) fn take(&mut self, memory: &GuestMemoryMmap, data: &mut [u8]) -> bool {
        let length = data.len();
        length
            == self.consume(length, |at, from, to| {
                data.get_mut(from..to).is_some_and(|piece| memory.read_slice(piece, at).is_ok())
            })
    }

    /// Takes up to `count` bytes off the front and leaves them unread.
    pub(super) fn skip(&mut self, count: usize) {
        self.consume(count, |_, _, _| true);
    }

    /// Writes `data` to the front, and gives the count of bytes that there was room for.
    pub(super) fn put(&mut self, memory: &GuestMemoryMmap, data: &[u8]) -> usize {
        self.consume(data.len(), |at, from, to| {
            data.get(from..to).is_some_and(|piece| memory.write_slice(piece, at).is_ok())
        })
    }

    /// Takes up to `count` bytes off the front. `copy` is given the place of each piece in guest memory and the
    /// range of the `count` bytes that it is, and says whether to go on.
    fn consume(&mut self, count: usize, mut copy: impl FnMut(GuestAddress, usize, usize) -> bool) -> usize {
        let mut done = 0;
        for (address, length) in &mut self.0 {
            let here = u32::try_from(count - done).unwrap_or(u32::MAX).min(*length);
            let end = done + usize::try_from(here).unwrap_or(0);
            if end > done && !copy(*address, done, end) {
                break;
            }
            // The buffer lies in memory, so its end is an address.
            address.0 = address.0.saturating_add(u64::from(here));
            *length -= here;
            done = end;
        }
        done
    }

    /// The address of the byte at `offset`.
    pub(super) fn address_of(&self, mut offset: u64) -> Option<GuestAddress> {
        for &(address, length) in &self.0 {
            if offset < u64::from(length) {
                return Some(GuestAddress(address.0.saturating_add(offset)));
            }
            offset -= u64::from(length);
        }
        None
    }

    /// The first buffer.
    pub(super) fn first(&self) -> Option<(GuestAddress, u32)> {
        self.0.first().copied()
    }

    /// Takes the last byte of all and gives its address.
    pub(super) fn take_last(&mut self) -> Option<GuestAddress> {
        let (address, length) = self.0.iter_mut().rev().find(|(_, length)| *length > 0)?;
        *length -= 1;
        Some(GuestAddress(address.0.saturating_add(u64::from(*length))))
    }

    /// Appends the places of the buffers in host memory to `iovecs`; they are valid as long as `memory` is, which may
    /// be the queue's [`dma`](ActiveQueue::dma).
    pub(super) fn append_to(
        &self,
        memory: &GuestMemoryMmap,
        iovecs: &mut IoVecs,
    ) -> Result<(), vm_memory::GuestMemoryError> {
        for &(address, length) in &self.0 {
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            // One slice for each memory region that the buffer lies in.
            for slice in memory.get_slices(address, length, Permissions::ReadWrite)? {
                iovecs.push(&slice?);
            }
        }
        Ok(())
    }
}

/// A chain that the driver made available: buffers to read, then buffers to write (2.7.4).
#[derive(Debug, Default)]
pub(super) struct Chain {
    /// What the chain is given back by.
    pub(super) head: u16,
    /// What the driver wrote for the device.
    pub(super) readable: Buffers,
    /// Where the device may write.
    pub(super) writable: Buffers,
}

impl Chain {
    fn collect(
        &mut self,
        chain: DescriptorChain<&GuestMemoryMmap>,
        dma: &GuestMemoryMmap,
    ) -> Result<(), QueueError> {
        let head = chain.head_index();
        self.head = head;
        self.readable.0.clear();
        self.writable.0.clear();
        // The iterator ends without a word at a descriptor that it can't read and after as many as the table
        // has: the chain is whole only where the last one says so.
        let mut whole = false;
        for descriptor in chain {
            whole = !descriptor.has_next();
            self.push(head, descriptor, dma)?;
        }
        if whole { Ok(()) } else { Err(QueueError::Broken(head)) }
    }

    fn push(&mut self, head: u16, descriptor: Descriptor, dma: &GuestMemoryMmap) -> Result<(), QueueError> {
        let (address, length) = (descriptor.addr(), descriptor.len());
        if length == 0 {
            return Ok(());
        }
        if self.readable.0.len() + self.writable.0.len() == MAX_BUFFERS {
            return Err(QueueError::TooLong(head));
        }
        let bytes = usize::try_from(length).unwrap_or(usize::MAX);
        if !dma.check_range(address, bytes, Permissions::ReadWrite) {
            return Err(QueueError::OutsideMemory(head));
        }
        if descriptor.is_write_only() {
            self.writable.0.push((address, length));
        } else if self.writable.0.is_empty() {
            self.readable.0.push((address, length));
        } else {
            return Err(QueueError::Order(head));
        }
        Ok(())
    }
}

/// A queue that a device works on.
///
/// Work comes in turns, one for each wake-up: [`start_turn`](Self::start_turn), [`pop`](Self::pop) and
/// [`add_used`](Self::add_used) as often as need be, [`end_turn`](Self::end_turn). Where the driver broke a
/// rule, the queue asks for a reset and from then on is empty and takes nothing.
pub(super) struct ActiveQueue {
    index: u16,
    queue: virtio_queue::Queue,
    memory: Arc<GuestMemoryMmap>,
    dma: Arc<GuestMemoryMmap>,
    interrupt: Arc<dyn VirtioInterrupt>,
    /// How many more chains this turn takes. Without a limit, a driver that makes chains available as fast
    /// as they are used would keep the event loop from all else.
    budget: u16,
    /// Whether chains were given back since it was last decided whether to signal the driver.
    used: bool,
    /// The used index when it was last decided whether to signal the driver.
    signalled: Wrapping<u16>,
    broken: bool,
}

/// Where the entries of the used ring begin, and what each takes (2.7.8).
const USED_ENTRIES: u64 = 4;
const USED_ENTRY: u64 = 8;
/// Where the entries of the available ring begin, and what each takes; `used_event` is behind them (2.7.6).
const AVAILABLE_ENTRIES: u64 = 4;
const AVAILABLE_ENTRY: u64 = 2;

impl ActiveQueue {
    /// Takes queue `index` out of what the driver activated.
    ///
    /// # Errors
    ///
    /// [`ActivateError::QueueMissing`] where the driver didn't enable it.
    pub(super) fn take(activation: &mut Activation, index: u16) -> Result<Self, ActivateError> {
        let queue = activation
            .queues
            .get_mut(usize::from(index))
            .and_then(Option::take)
            .ok_or(ActivateError::QueueMissing(index))?;
        let Queue { rings, signalled, broken } = queue;
        Ok(Self {
            index,
            used: rings.next_used() != signalled.0,
            signalled,
            queue: rings,
            memory: Arc::clone(&activation.memory),
            dma: Arc::clone(&activation.dma),
            interrupt: Arc::clone(&activation.interrupt),
            budget: 0,
            broken,
        })
    }

    /// Gives the queue back, with its position, when its device is suspended. The driver is signalled first for what it
    /// has not been signalled for.
    pub(super) fn into_queue(mut self) -> Queue {
        self.end_turn();
        Queue { rings: self.queue, signalled: self.signalled, broken: self.broken }
    }

    /// RAM: for all that the device itself reads and writes.
    pub(super) fn memory(&self) -> &Arc<GuestMemoryMmap> {
        &self.memory
    }

    /// All that buffers may lie in: for system calls only, which fail where a page can't be had.
    pub(super) fn dma(&self) -> &Arc<GuestMemoryMmap> {
        &self.dma
    }

    /// Goes on from other positions in the rings: the next chain is the one that was made available as number
    /// `available`, and goes back as number `used`. Both count from the activation, modulo 2^16.
    pub(super) fn seek(&mut self, available: u16, used: u16) {
        self.queue.set_next_avail(available);
        self.queue.set_next_used(used);
    }

    /// How many chains have gone back so far, modulo 2^16.
    pub(super) fn used(&self) -> u16 {
        self.queue.next_used()
    }

    /// How many chains the driver can have made available at once.
    pub(super) fn size(&self) -> u16 {
        self.queue.size()
    }

    /// Has the driver notify the device once it makes more available than it has by now, though the device has not taken
    /// all of that, and gives the count of what it has, modulo 2^16.
    pub(super) fn await_more(&mut self) -> Wrapping<u16> {
        let next = self.queue.next_avail();
        let available = self.available();
        // The driver is to notify of the chain behind that one that the device is said to have come to.
        self.queue.set_next_avail(available.0);
        if let Err(error) = self.queue.enable_notification(&*self.memory) {
            self.fail(&QueueError::Ring(error));
        }
        self.queue.set_next_avail(next);
        available
    }

    /// How many chains the driver has made available so far, modulo 2^16; what the device has taken, where the ring
    /// can't be read.
    pub(super) fn available(&self) -> Wrapping<u16> {
        let available = self.queue.avail_idx(&*self.memory, Ordering::Acquire);
        available.unwrap_or(Wrapping(self.queue.next_avail()))
    }

    /// Whether the driver broke a rule: the queue is empty and takes nothing until the device was reset.
    pub(super) fn is_broken(&self) -> bool {
        self.broken
    }

    /// Begins a turn.
    pub(super) fn start_turn(&mut self) {
        self.budget = self.queue.size();
        if !self.broken
            && let Err(error) = self.queue.disable_notification(&*self.memory)
        {
            self.fail(&QueueError::Ring(error));
        }
    }

    /// Whether there is a chain to take.
    pub(super) fn has_available(&self) -> bool {
        !self.broken && self.available().0 != self.queue.next_avail()
    }

    /// Takes the next chain; false, where there is none for this turn. Where the queue is empty, the driver
    /// will notify the device of the next chain.
    pub(super) fn pop(&mut self, chain: &mut Chain) -> bool {
        if self.broken {
            return false;
        }
        if self.budget == 0 {
            self.interrupt.notify_again(self.index);
            return false;
        }
        match self.try_pop(chain) {
            Ok(found) => {
                self.budget -= u16::from(found);
                found
            }
            Err(error) => {
                self.fail(&error);
                false
            }
        }
    }

    fn try_pop(&mut self, chain: &mut Chain) -> Result<bool, QueueError> {
        // Twice: a chain may have become available just before notifications were enabled.
        for _ in 0..2 {
            if let Some(found) = self.queue.iter(&*self.memory).map_err(QueueError::Ring)?.next() {
                chain.collect(found, &self.dma)?;
                return Ok(true);
            }
            if !self.queue.enable_notification(&*self.memory).map_err(QueueError::Ring)? {
                return Ok(false);
            }
        }
        // The driver plays with the index.
        self.interrupt.notify_again(self.index);
        Ok(false)
    }

    /// Takes no more chains in this turn, as what it took was much work. The others come after other devices had
    /// their turn.
    pub(super) fn leave_the_rest(&mut self) {
        self.budget = 0;
    }

    /// Asks for a turn after this one, for work that is left over.
    pub(super) fn ask_for_another_turn(&self) {
        if !self.broken {
            self.interrupt.notify_again(self.index);
        }
    }

    /// Gives the chain at `head` back, with `length` bytes written to it.
    pub(super) fn add_used(&mut self, head: u16, length: u32) {
        if self.broken {
            return;
        }
        match self.queue.add_used(&*self.memory, head, length) {
            Ok(()) => self.used = true,
            Err(error) => self.fail(&QueueError::Ring(error)),
        }
    }

    /// Gives `chains` back, each a head and the bytes written to it: the driver sees all of them or none. It has to
    /// where they are one packet's (5.1.6.4.1).
    pub(super) fn add_used_together(&mut self, chains: &[(u16, u32)]) {
        if self.broken {
            return;
        }
        match self.try_add_used_together(chains) {
            Ok(()) => self.used = true,
            Err(error) => self.fail(&QueueError::Ring(error)),
        }
    }

    fn try_add_used_together(&mut self, chains: &[(u16, u32)]) -> Result<(), virtio_queue::Error> {
        let Some((&(last, length), others)) = chains.split_last() else { return Ok(()) };
        for &(head, length) in others {
            let place = u64::from(self.queue.next_used() % self.queue.size());
            let entry = GuestAddress(self.queue.used_ring() + USED_ENTRIES + USED_ENTRY * place);
            let used = u64::from(head) | u64::from(length) << 32;
            self.memory.write_obj(used.to_le(), entry).map_err(virtio_queue::Error::GuestMemory)?;
            self.queue.set_next_used(self.queue.next_used().wrapping_add(1));
        }
        // The last one moves the index that the driver looks at.
        self.queue.add_used(&*self.memory, last, length)
    }

    /// Tells the driver once more of what it was told of already.
    pub(super) fn tell_again(&self) {
        if !self.broken {
            self.interrupt.queue_used(self.index);
        }
    }

    /// Ends a turn, or the first part of one: tells the driver of all that was used in it, if it wants to know.
    pub(super) fn end_turn(&mut self) {
        if self.is_to_be_told() {
            self.interrupt.queue_used(self.index);
        }
    }

    /// Ends a turn of `other`, too, which is a queue of the same device. Both need no more than one interrupt where the
    /// transport has it so.
    pub(super) fn end_turn_with(&mut self, other: &mut Self) {
        match (self.is_to_be_told(), other.is_to_be_told()) {
            (true, true) => self.interrupt.queues_used(self.index, other.index),
            (true, false) => self.interrupt.queue_used(self.index),
            (false, true) => other.interrupt.queue_used(other.index),
            (false, false) => {}
        }
    }

    /// How many chains were given back since it was last decided whether to tell the driver.
    pub(super) fn untold(&self) -> u16 {
        if self.used && !self.broken { (Wrapping(self.queue.next_used()) - self.signalled).0 } else { 0 }
    }

    /// Whether the driver is to be told of chains that were given back. It won't be asked again for these.
    fn is_to_be_told(&mut self) -> bool {
        if self.broken || !std::mem::take(&mut self.used) {
            return false;
        }
        self.wants_interrupt().unwrap_or_else(|error| {
            self.fail(&QueueError::Ring(error));
            false
        })
    }

    /// Whether the driver wants to know of what was used since it was last asked.
    fn wants_interrupt(&mut self) -> Result<bool, virtio_queue::Error> {
        // What was used has to be visible before it is looked at what the driver wants (2.7.10).
        fence(Ordering::SeqCst);
        let ring = self.queue.avail_ring();
        let load = |offset: u64| {
            let value: u16 = self
                .memory
                .load(GuestAddress(ring + offset), Ordering::Relaxed)
                .map_err(virtio_queue::Error::GuestMemory)?;
            Ok(u16::from_le(value))
        };
        let now = Wrapping(self.queue.next_used());
        let before = std::mem::replace(&mut self.signalled, now);
        if self.queue.event_idx_enabled() {
            // 2.7.10: it does where the index went past this one.
            let event = load(AVAILABLE_ENTRIES + AVAILABLE_ENTRY * u64::from(self.queue.size()))?;
            return Ok(now - Wrapping(event) - Wrapping(1) < now - before);
        }
        // 2.7.7: without event indices, a flag says whether.
        Ok(u32::from(load(0)?) & VRING_AVAIL_F_NO_INTERRUPT == 0)
    }

    /// Says that the chain at `head` can't be answered, not even with an error.
    pub(super) fn unanswerable(&mut self, head: u16) {
        self.fail(&QueueError::Unanswerable(head));
    }

    fn fail(&mut self, error: &QueueError) {
        tracing::warn!(queue = self.index, %error, "the driver broke a rule; the device needs a reset");
        self.broken = true;
        self.interrupt.needs_reset();
    }
}

#[cfg(test)]
mod tests;
