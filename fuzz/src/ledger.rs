//! What a driver that keeps to the rules is owed: each chain back, and once.

use std::sync::atomic::Ordering;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// The chains of each queue since the device was set up. It is of use only for as long as the driver has kept to the
/// rules: what a device owes to one that has not is not known.
#[derive(Default)]
pub(crate) struct Ledger {
    keeps_rules: bool,
    queues: Vec<Queue>,
}

#[derive(Default)]
struct Queue {
    /// For each descriptor the head of the chain that it belongs to, while that is with the device.
    chains: Vec<Option<u16>>,
    open: u16,
    next_used: u16,
}

impl Ledger {
    /// A device was set up with queues of `sizes` descriptors.
    pub(crate) fn begin(&mut self, sizes: &[u16]) {
        let queue = |&size: &u16| Queue { chains: vec![None; size.into()], ..Queue::default() };
        *self = Self { keeps_rules: true, queues: sizes.iter().map(queue).collect() };
    }

    /// The driver has broken a rule.
    pub(crate) fn end(&mut self) {
        self.keeps_rules = false;
    }

    pub(crate) fn keeps_rules(&self) -> bool {
        self.keeps_rules
    }

    /// How many chains of `queue` are with the device.
    pub(crate) fn open(&self, queue: usize) -> u16 {
        self.queues.get(queue).map_or(0, |queue| queue.open)
    }

    /// Whether `queue` has `descriptors` that are free from `first` on.
    pub(crate) fn has_room(&self, queue: usize, first: u16, descriptors: usize) -> bool {
        self.queues.get(queue).is_some_and(|queue| {
            let size = queue.chains.len();
            let is_free = |place: usize| queue.chains[(usize::from(first) + place) % size].is_none();
            descriptors <= size && (0..descriptors).all(is_free)
        })
    }

    /// The driver makes a chain of `descriptors` from `first` on available, which breaks a rule if they are not free.
    pub(crate) fn add(&mut self, queue: usize, first: u16, descriptors: usize) {
        if !self.has_room(queue, first, descriptors) {
            self.keeps_rules = false;
        }
        if !self.keeps_rules {
            return;
        }
        let queue = &mut self.queues[queue];
        let size = queue.chains.len();
        for place in 0..descriptors {
            queue.chains[(usize::from(first) + place) % size] = Some(first % size as u16);
        }
        queue.open += 1;
    }

    /// Takes what the device has put into the used ring of `queue` at `ring`.
    pub(crate) fn collect(&mut self, memory: &GuestMemoryMmap, queue: usize, ring: u64) {
        let Some(Queue { chains, open, next_used }) = self.queues.get_mut(queue) else { return };
        if !self.keeps_rules {
            return;
        }
        let index =
            memory.load::<u16>(GuestAddress(ring + 2), Ordering::Acquire).expect("the ring is in memory");
        let used = index.wrapping_sub(*next_used);
        assert!(used <= *open, "queue {queue}: {used} chains came back, of {open}");
        for _ in 0..used {
            let at = ring + 4 + 8 * u64::from(*next_used % chains.len() as u16);
            let head: u32 = memory.read_obj(GuestAddress(at)).expect("the ring is in memory");
            let is_own = |chain: &Option<u16>| chain.is_some_and(|chain| u32::from(chain) == head);
            assert!(
                chains.iter().any(is_own),
                "queue {queue}: chain {head} came back that was not with the device"
            );
            chains.iter_mut().filter(|chain| is_own(chain)).for_each(|chain| *chain = None);
            *open -= 1;
            *next_used = next_used.wrapping_add(1);
        }
    }
}
