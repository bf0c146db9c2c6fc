//! Bytes of the guest that the host's socket did not take yet.

use std::collections::VecDeque;
use std::io::IoSlice;

use vm_memory::GuestMemoryMmap;

use crate::virtio::queue::Buffers;

/// What waits for room in a socket. Its length is bounded by the connection's window.
#[derive(Debug, Default)]
pub(super) struct Backlog(VecDeque<u8>);

impl Backlog {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Appends `count` bytes off the front of `buffers`, which have as many. Not more memory than `window` bytes is
    /// taken.
    pub(super) fn push(
        &mut self,
        memory: &GuestMemoryMmap,
        buffers: &mut Buffers,
        count: usize,
        window: usize,
    ) {
        let old = self.0.len();
        self.0.reserve_exact(window.saturating_sub(old));
        self.0.resize(old + count, 0);
        let (front, back) = self.0.as_mut_slices();
        let front_length = front.len();
        if let Some(place) = front.get_mut(old..) {
            buffers.take(memory, place);
        }
        if let Some(place) = back.get_mut(old.saturating_sub(front_length)..) {
            buffers.take(memory, place);
        }
    }

    /// What is first to be written.
    pub(super) fn slices(&self) -> [IoSlice<'_>; 2] {
        let (front, back) = self.0.as_slices();
        [IoSlice::new(front), IoSlice::new(back)]
    }

    /// Removes `count` bytes from the front; an empty backlog has no memory.
    pub(super) fn remove(&mut self, count: usize) {
        self.0.drain(..count.min(self.0.len()));
        if self.0.is_empty() {
            self.0 = VecDeque::new();
        }
    }
}
