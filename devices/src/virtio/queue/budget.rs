//! What a turn of a queue may cost.

use std::sync::atomic::{AtomicU64, Ordering};

/// What a turn may spend before other queues and devices have theirs. A turn ends after the chain that spends the last
/// of it, so that it costs one chain more at the most; then the device is notified of the queue again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Descriptors that are looked at, those without a length included.
    pub descriptors: u64,
    /// Bytes that the device or the host moves, frees or writes for the driver.
    pub bytes: u64,
    /// System calls whose cost the driver can choose: I/O, madvise, a change of the host's network.
    pub host_calls: u64,
}

impl Budget {
    /// What a turn may cost where the device doesn't say otherwise: about a millisecond.
    pub const TURN: Self = Self { descriptors: 4096, bytes: 8 << 20, host_calls: 256 };

    /// Whether nothing is left of it.
    pub fn is_spent(&self, spent: &Spent) -> bool {
        spent.descriptors >= self.descriptors
            || spent.bytes >= self.bytes
            || spent.host_calls >= self.host_calls
    }
}

/// What was spent, in a turn or in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// Descriptors that were looked at.
    pub descriptors: u64,
    /// Bytes that were moved, freed or written.
    pub bytes: u64,
    /// System calls.
    pub host_calls: u64,
}

/// The costs of a device's queues since it was made, for tests: the largest turn in each respect, and how many turns
/// there were.
#[derive(Debug, Default)]
pub struct Meter {
    turns: AtomicU64,
    descriptors: AtomicU64,
    bytes: AtomicU64,
    host_calls: AtomicU64,
}

impl Meter {
    pub(super) fn count_turn(&self, spent: &Spent) {
        self.turns.fetch_add(1, Ordering::Relaxed);
        for (largest, value) in [
            (&self.descriptors, spent.descriptors),
            (&self.bytes, spent.bytes),
            (&self.host_calls, spent.host_calls),
        ] {
            // Hardly ever: most turns are no larger than one before.
            if value > largest.load(Ordering::Relaxed) {
                largest.fetch_max(value, Ordering::Relaxed);
            }
        }
    }

    /// The most that any turn of any queue has spent.
    pub fn largest_turn(&self) -> Spent {
        let [descriptors, bytes, host_calls] =
            [&self.descriptors, &self.bytes, &self.host_calls].map(|most| most.load(Ordering::Relaxed));
        Spent { descriptors, bytes, host_calls }
    }

    /// How many turns there were that spent something.
    pub fn turns(&self) -> u64 {
        self.turns.load(Ordering::Relaxed)
    }
}
