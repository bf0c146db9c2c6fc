//! What every device does with a queue: take chains from it, check them, give them back, signal the driver.

use std::num::Wrapping;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use thiserror::Error;
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::{ActivateError, Activation, VirtioInterrupt};

mod budget;
mod chain;
mod state;

pub use self::budget::{Budget, Meter, Spent};
pub(super) use self::chain::{Buffers, Chain};
pub use self::chain::{Head, MAX_CHAIN};
pub use self::state::{Queue, QueueState};

/// How a driver broke the rules for queues (2.7).
#[derive(Debug, Error)]
enum QueueError {
    #[error("the queue's rings cannot be used: {0}")]
    Ring(virtio_queue::Error),
    #[error(
        "the chain at descriptor {0} ends in a descriptor that does not exist, is a loop, or is longer than the queue"
    )]
    Broken(Head),
    #[error("the chain at descriptor {0} has more than {MAX_CHAIN} descriptors")]
    TooLong(Head),
    #[error("the chain at descriptor {0} has a buffer outside of memory")]
    OutsideMemory(Head),
    #[error("the chain at descriptor {0} has a readable buffer after a writable one")]
    Order(Head),
    #[error("the chain at descriptor {0} can't be used by the device")]
    Unusable(Head),
}

/// A queue that a device works on.
///
/// Work comes in turns, one for each wake-up: [`start_turn`](Self::start_turn), [`pop`](Self::pop),
/// [`spend`](Self::spend) and [`add_used`](Self::add_used) as often as need be, [`end_turn`](Self::end_turn). When a
/// turn's
/// [`Budget`] is spent, `pop` gives no more and has the device notified again. A loop over anything else than `pop`
/// looks at [`may_go_on`](Self::may_go_on).
///
/// Where the driver broke a rule, the queue asks for a reset and from then on is empty and takes nothing.
pub(super) struct ActiveQueue {
    index: u16,
    queue: virtio_queue::Queue,
    memory: Arc<GuestMemoryMmap>,
    dma: Arc<GuestMemoryMmap>,
    interrupt: Arc<dyn VirtioInterrupt>,
    /// What a turn may spend. Without a limit, a driver that makes chains available as fast as they are used would keep
    /// the thread from all else.
    budget: Budget,
    /// What this turn has spent.
    spent: Spent,
    meter: Arc<Meter>,
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
            budget: Budget::TURN,
            spent: Spent::default(),
            meter: Arc::clone(&activation.meter),
            broken,
        })
    }

    /// Gives turns another budget than [`Budget::TURN`].
    #[must_use]
    pub(super) fn with_budget(self, budget: Budget) -> Self {
        Self { budget, ..self }
    }

    /// Takes buffers in RAM only, for a device that reads and writes them all itself: a chain with another breaks the
    /// queue.
    #[must_use]
    pub(super) fn in_ram(self) -> Self {
        Self { dma: Arc::clone(&self.memory), ..self }
    }

    /// Gives the queue back, with its position, when its device is suspended. The driver is signalled first for what it
    /// has not been signalled for.
    pub(super) fn into_queue(mut self) -> Queue {
        self.end_turn();
        self.count_turn();
        Queue { rings: self.queue, signalled: self.signalled, broken: self.broken }
    }

    /// The interrupts of the device.
    pub(super) fn interrupt(&self) -> &dyn VirtioInterrupt {
        &*self.interrupt
    }

    /// RAM: for all that the device itself reads and writes.
    pub(super) fn memory(&self) -> &Arc<GuestMemoryMmap> {
        &self.memory
    }

    /// All memory that buffers may be in: for system calls only, which fail for a page that cannot be allocated.
    pub(super) fn dma(&self) -> &Arc<GuestMemoryMmap> {
        &self.dma
    }

    /// Goes on from other positions in the rings: the next chain is the one that was made available as number
    /// `available`, and goes back as number `used`. Both count from the activation, modulo 2^16.
    pub(super) fn seek(&mut self, available: u16, used: u16) {
        self.queue.set_next_avail(available);
        self.queue.set_next_used(used);
    }

    /// Puts the `count` chains that were taken last back, unused: they are the next ones to take.
    pub(super) fn put_back(&mut self, count: u16) {
        let next = Wrapping(self.queue.next_avail()) - Wrapping(count);
        self.queue.set_next_avail(next.0);
    }

    /// How many chains have gone back so far, modulo 2^16.
    pub(super) fn used(&self) -> u16 {
        self.queue.next_used()
    }

    /// How many chains the driver can have made available at once.
    pub(super) fn size(&self) -> u16 {
        self.queue.size()
    }

    /// Has the driver notify the device once it makes more available than it has by now, though the device has not
    /// taken all of that, and gives the count of what it has, modulo 2^16.
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
        self.count_turn();
        if !self.broken
            && let Err(error) = self.queue.disable_notification(&*self.memory)
        {
            self.fail(&QueueError::Ring(error));
        }
    }

    fn count_turn(&mut self) {
        let spent = std::mem::take(&mut self.spent);
        if spent != Spent::default() {
            self.meter.count_turn(&spent);
        }
    }

    /// Counts what the turn costs beyond its descriptors: `bytes` that are moved, freed or written, and system calls.
    pub(super) fn spend(&mut self, bytes: u64, host_calls: u64) {
        self.spent.bytes = self.spent.bytes.saturating_add(bytes);
        self.spent.host_calls = self.spent.host_calls.saturating_add(host_calls);
    }

    /// Whether the turn may take more work: its budget is not spent, and the queue not broken. Where it may not, the
    /// one that has work left over calls [`notify_again`](Self::notify_again).
    pub(super) fn may_go_on(&self) -> bool {
        !self.broken && !self.budget.is_spent(&self.spent)
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
        if self.budget.is_spent(&self.spent) {
            self.interrupt.notify_again(self.index);
            return false;
        }
        self.try_pop(chain).unwrap_or_else(|error| {
            self.fail(&error);
            false
        })
    }

    fn try_pop(&mut self, chain: &mut Chain) -> Result<bool, QueueError> {
        // Twice: a chain may have become available just before notifications were enabled.
        for _ in 0..2 {
            if let Some(found) = self.queue.iter(&*self.memory).map_err(QueueError::Ring)?.next() {
                let mut walked = 0;
                let result = chain.collect(found, &self.dma, &mut walked);
                self.spent.descriptors += u64::from(walked);
                return result.map(|()| true);
            }
            if !self.queue.enable_notification(&*self.memory).map_err(QueueError::Ring)? {
                return Ok(false);
            }
        }
        // The driver changes the index as it likes.
        self.interrupt.notify_again(self.index);
        Ok(false)
    }

    /// Puts the chain that was taken last back where it was: it was not used, and is the next one again.
    pub(super) fn unpop(&mut self) {
        self.queue.set_next_avail(self.queue.next_avail().wrapping_sub(1));
    }

    /// Has the device notified of the queue again after this turn, for work that is left over.
    pub(super) fn notify_again(&self) {
        if !self.broken {
            self.interrupt.notify_again(self.index);
        }
    }

    /// Gives the chain at `head` back, with `length` bytes written to it.
    pub(super) fn add_used(&mut self, Head(head): Head, length: u32) {
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
    pub(super) fn add_used_together(&mut self, chains: &[(Head, u32)]) {
        if self.broken {
            return;
        }
        match self.try_add_used_together(chains) {
            Ok(()) => self.used = true,
            Err(error) => self.fail(&QueueError::Ring(error)),
        }
    }

    fn try_add_used_together(&mut self, chains: &[(Head, u32)]) -> Result<(), virtio_queue::Error> {
        let Some((&(Head(last), length), others)) = chains.split_last() else { return Ok(()) };
        for &(Head(head), length) in others {
            let place = u64::from(self.queue.next_used() % self.queue.size());
            let entry = GuestAddress(self.queue.used_ring() + USED_ENTRIES + USED_ENTRY * place);
            let used = u64::from(head) | u64::from(length) << 32;
            self.memory.write_obj(used.to_le(), entry).map_err(virtio_queue::Error::GuestMemory)?;
            self.queue.set_next_used(self.queue.next_used().wrapping_add(1));
        }
        // The last one moves the index that the driver looks at.
        self.queue.add_used(&*self.memory, last, length)
    }

    /// Signals the driver once more for what it was signalled for already.
    pub(super) fn signal_again(&self) {
        if !self.broken {
            self.interrupt.queue_used(self.index);
        }
    }

    /// Ends a turn, or the first part of one: signals the driver for all that was used in it, if it wants to be.
    pub(super) fn end_turn(&mut self) {
        if self.needs_signal() {
            self.interrupt.queue_used(self.index);
        }
    }

    /// Ends a turn of `other`, too, which is a queue of the same device. Both need no more than one interrupt where the
    /// transport has it so.
    pub(super) fn end_turn_with(&mut self, other: &mut Self) {
        match (self.needs_signal(), other.needs_signal()) {
            (true, true) => self.interrupt.queues_used(self.index, other.index),
            (true, false) => self.interrupt.queue_used(self.index),
            (false, true) => other.interrupt.queue_used(other.index),
            (false, false) => {}
        }
    }

    /// How many chains were given back since it was last decided whether to signal the driver.
    pub(super) fn unsignalled(&self) -> u16 {
        if self.used && !self.broken { (Wrapping(self.queue.next_used()) - self.signalled).0 } else { 0 }
    }

    /// Whether the driver is to be signalled for chains that were given back. It is decided once for these.
    fn needs_signal(&mut self) -> bool {
        if self.broken || !std::mem::take(&mut self.used) {
            return false;
        }
        self.wants_interrupt().unwrap_or_else(|error| {
            self.fail(&QueueError::Ring(error));
            false
        })
    }

    /// Whether the driver wants an interrupt for what was used since this was last decided.
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

    /// Breaks the queue, as the chain at `head` has no place for an answer, not even for an error.
    pub(super) fn fail_chain(&mut self, head: Head) {
        self.fail(&QueueError::Unusable(head));
    }

    fn fail(&mut self, error: &QueueError) {
        let (device, queue) = (self.interrupt.device_name(), self.index);
        tracing::warn!(device, queue, %error, "the driver broke a rule; the device needs a reset");
        self.broken = true;
        self.interrupt.needs_reset();
    }
}

#[cfg(test)]
mod tests;
