//! From the user to the driver.

use std::collections::VecDeque;

use crate::virtio::queue::{ActiveQueue, Chain};

/// How much waits for the driver to make buffers available. As with a serial port's FIFO, what the user types
/// beyond it stays where it is.
const CAPACITY: usize = 256;

/// What was typed and not yet put in a buffer.
#[derive(Default)]
pub(super) struct Pending(VecDeque<u8>);

impl Pending {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn room(&self) -> usize {
        CAPACITY - self.0.len()
    }

    /// Takes as much of `bytes` as there is room for, and gives the count.
    pub(super) fn push(&mut self, bytes: &[u8]) -> usize {
        let (fitting, _) = bytes.split_at(self.room().min(bytes.len()));
        self.0.extend(fitting);
        fitting.len()
    }

    /// What waited when the device was suspended; `None` for more than may wait.
    pub(super) fn restored(bytes: Vec<u8>) -> Option<Self> {
        (bytes.len() <= CAPACITY).then(|| Self(bytes.into()))
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        self.0.iter().copied().collect()
    }

    /// Puts what waits in the buffers of `queue`, and gives the count of bytes that went.
    pub(super) fn deliver(&mut self, queue: &mut ActiveQueue) -> usize {
        let before = self.0.len();
        let mut chain = Chain::default();
        queue.start_turn();
        while !self.0.is_empty() && queue.pop(&mut chain) {
            let written = chain.writable.put(queue.memory(), self.0.make_contiguous());
            self.0.drain(..written);
            queue.spend(written as u64, 0);
            // At most as much as may wait.
            queue.add_used(chain.head, u32::try_from(written).unwrap_or(u32::MAX));
        }
        queue.end_turn();
        before - self.0.len()
    }
}
