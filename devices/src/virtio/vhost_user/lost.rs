//! Queues whose back end is gone. Every request in them is refused, so that no program in the guest waits forever.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use crate::virtio::queue::{ActiveQueue, Chain};
use crate::virtio::{Activation, Queue};

/// Writes a refusal of the request in a chain to it, and returns the count of bytes written.
pub(super) type Refuse = fn(&mut Chain, &GuestMemoryMmap) -> u32;

/// The queues of a lost back end.
pub(super) struct LostQueues {
    queues: Vec<Option<ActiveQueue>>,
    refuse: Refuse,
}

impl LostQueues {
    /// Takes the queues of `activation` over at the positions where the back end left them, and refuses the requests
    /// that it had taken and not answered, then those that it had not taken. Also returns the number of requests.
    pub(super) fn take_over(mut activation: Activation, refuse: Refuse) -> (Self, u64) {
        let mut queues = Vec::new();
        let mut refused = 0;
        for index in (0..).take(activation.queues.len()) {
            let queue = activation.queues.get(usize::from(index)).and_then(Option::as_ref);
            let left = queue.map(|queue| LeftOver::of(queue, &activation.memory));
            let mut active = ActiveQueue::take(&mut activation, index).ok();
            if let (Some(queue), Some(left)) = (&mut active, left) {
                match left {
                    Ok(left) => refused += first_turn(queue, &left, refuse),
                    // The transport has checked that the rings lie in memory.
                    Err(error) => tracing::error!(%error, "cannot take over a queue"),
                }
                // The back end may not have got to its own interrupt.
                activation.interrupt.queue_used(index);
            }
            queues.push(active);
        }
        (Self { queues, refuse }, refused)
    }

    /// Gives the queues back, with their positions.
    pub(super) fn into_queues(self) -> Vec<Option<Queue>> {
        self.queues.into_iter().map(|queue| queue.map(ActiveQueue::into_queue)).collect()
    }

    /// Refuses the requests in queue `index`, and returns their number.
    pub(super) fn turn(&mut self, index: u16) -> u64 {
        let queue = self.queues.get_mut(usize::from(index)).and_then(Option::as_mut);
        queue.map_or(0, |queue| {
            queue.start_turn();
            rest_of_turn(queue, self.refuse)
        })
    }
}

fn first_turn(queue: &mut ActiveQueue, left: &LeftOver, refuse: Refuse) -> u64 {
    let mut chain = Chain::default();
    let mut refused = 0;
    queue.seek(left.end, left.used);
    queue.start_turn();
    for &position in &left.positions {
        queue.seek(position, queue.used());
        if queue.pop(&mut chain) {
            answer(queue, &mut chain, refuse);
            refused += 1;
        }
    }
    queue.seek(left.end, queue.used());
    refused + rest_of_turn(queue, refuse)
}

fn rest_of_turn(queue: &mut ActiveQueue, refuse: Refuse) -> u64 {
    let mut chain = Chain::default();
    let mut refused = 0;
    while queue.pop(&mut chain) {
        answer(queue, &mut chain, refuse);
        refused += 1;
    }
    queue.end_turn();
    refused
}

fn answer(queue: &mut ActiveQueue, chain: &mut Chain, refuse: Refuse) {
    let written = refuse(chain, queue.memory());
    queue.add_used(chain.head, written);
}

/// What a back end took from a queue and did not give back.
#[derive(Debug, PartialEq, Eq)]
struct LeftOver {
    /// Positions in the available ring, in their order.
    positions: Vec<u16>,
    /// The position of the first chain that was not taken.
    end: u16,
    /// How many chains were given back.
    used: u16,
}

impl LeftOver {
    fn of(queue: &Queue, memory: &GuestMemoryMmap) -> Result<Self, GuestMemoryError> {
        let at = |base: u64, offset: u64| GuestAddress(base.saturating_add(offset));
        let index = |ring| memory.load::<u16>(at(ring, 2), Ordering::Acquire).map(u16::from_le);
        let (available, used) = (index(queue.avail_ring())?, index(queue.used_ring())?);
        let slot = |position: u16| u64::from(position % queue.size());
        let head = |position| {
            memory.read_obj::<u16>(at(queue.avail_ring(), 4 + 2 * slot(position))).map(u16::from_le)
        };
        let given_back = |position| -> Result<u16, GuestMemoryError> {
            let id =
                memory.read_obj::<u32>(at(queue.used_ring(), 4 + 8 * slot(position))).map(u32::from_le)?;
            Ok(u16::try_from(id).unwrap_or(u16::MAX))
        };
        let open = available.wrapping_sub(used);
        if open > queue.size() {
            // No driver has more chains than the table; the queue reports this position as an error, too.
            return Ok(Self { positions: Vec::new(), end: used, used });
        }
        // Chains may have come back in another order than they were taken in. Those that were made available and did
        // not come back, as far as the rings reach, are left over.
        let window = queue.size().min(available).max(open);
        let first = available.wrapping_sub(window);
        let mut back: HashMap<u16, u16> = HashMap::new();
        for step in 0..window - open {
            *back.entry(given_back(first.wrapping_add(step))?).or_default() += 1;
        }
        let mut positions = Vec::new();
        for step in 0..window {
            let position = first.wrapping_add(step);
            match back.get_mut(&head(position)?).filter(|count| **count > 0) {
                Some(count) => *count -= 1,
                None => positions.push(position),
            }
        }
        if positions.len() != usize::from(open) {
            // A chain is left over from before the window. That they came back in order is the next best guess.
            positions = (0..open).map(|step| used.wrapping_add(step)).collect();
        }
        Ok(Self { positions, end: available, used })
    }
}
