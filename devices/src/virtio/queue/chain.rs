//! A chain of buffers, checked and collected.

use serde::{Deserialize, Serialize};
use virtio_queue::DescriptorChain;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, Permissions};

use super::QueueError;
use crate::virtio::iovecs::IoVecs;

/// The most descriptors that a chain may have, those without a length included. An indirect table could name 65,535; no
/// driver needs more buffers than one `readv` takes (IOV_MAX). Without an indirect table, the queue's size is the
/// limit.
pub const MAX_CHAIN: u16 = 1024;

/// What a chain is given back by: the index of its first descriptor. Not to be mixed up with the index of a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Head(pub(in crate::virtio) u16);

impl std::fmt::Display for Head {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Buffers of one kind in a chain, in its order. All of them lie in guest memory, in RAM or in a file that the guest
/// has as memory (`Activation::dma`): what takes RAM alone finds less in them where that is not where they are.
#[derive(Debug, Default)]
pub(in crate::virtio) struct Buffers(Vec<(GuestAddress, u32)>);

impl Buffers {
    /// The length of all buffers together, in bytes.
    pub(in crate::virtio) fn len(&self) -> u64 {
        self.0.iter().map(|&(_, length)| u64::from(length)).sum()
    }

    /// The places of the buffers that are left, and their lengths in bytes.
    pub(in crate::virtio) fn ranges(&self) -> impl Iterator<Item = (GuestAddress, u32)> {
        self.0.iter().copied()
    }

    /// Reads as many bytes as `data` holds off the front, wherever the driver split them into buffers (2.7.4).
    /// False, where there are fewer.
    pub(in crate::virtio) fn take(&mut self, memory: &GuestMemoryMmap, data: &mut [u8]) -> bool {
        let length = data.len();
        length
            == self.consume(length, |at, from, to| {
                data.get_mut(from..to).is_some_and(|piece| memory.read_slice(piece, at).is_ok())
            })
    }

    /// Takes up to `count` bytes off the front and leaves them unread.
    pub(in crate::virtio) fn skip(&mut self, count: usize) {
        self.consume(count, |_, _, _| true);
    }

    /// Writes `data` to the front, and gives the count of bytes that there was room for.
    pub(in crate::virtio) fn put(&mut self, memory: &GuestMemoryMmap, data: &[u8]) -> usize {
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
    pub(in crate::virtio) fn address_of(&self, mut offset: u64) -> Option<GuestAddress> {
        for &(address, length) in &self.0 {
            if offset < u64::from(length) {
                return Some(GuestAddress(address.0.saturating_add(offset)));
            }
            offset -= u64::from(length);
        }
        None
    }

    /// The first buffer.
    pub(in crate::virtio) fn first(&self) -> Option<(GuestAddress, u32)> {
        self.0.first().copied()
    }

    /// Takes the last byte of all and gives its address.
    pub(in crate::virtio) fn take_last(&mut self) -> Option<GuestAddress> {
        let (address, length) = self.0.iter_mut().rev().find(|(_, length)| *length > 0)?;
        *length -= 1;
        Some(GuestAddress(address.0.saturating_add(u64::from(*length))))
    }

    /// Appends the places of the buffers in host memory to `iovecs`; they are valid as long as `memory` is, which may
    /// be the queue's `ActiveQueue::dma`.
    pub(in crate::virtio) fn append_to(
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
pub(in crate::virtio) struct Chain {
    /// What the chain is given back by.
    pub(in crate::virtio) head: Head,
    /// What the driver wrote for the device.
    pub(in crate::virtio) readable: Buffers,
    /// Where the device may write.
    pub(in crate::virtio) writable: Buffers,
}

impl Chain {
    /// Makes this the chain that begins with `chain`, whose buffers have to lie in `dma`. `walked` is the number of
    /// descriptors that were looked at, whatever the result.
    pub(super) fn collect(
        &mut self,
        chain: DescriptorChain<&GuestMemoryMmap>,
        dma: &GuestMemoryMmap,
        walked: &mut u16,
    ) -> Result<(), QueueError> {
        let head = Head(chain.head_index());
        self.head = head;
        self.readable.0.clear();
        self.writable.0.clear();
        // The iterator ends without an error at a descriptor that it can't read, and after as many as the table has:
        // the chain is whole only where the last one says so.
        let mut whole = false;
        for descriptor in chain {
            if *walked == MAX_CHAIN {
                return Err(QueueError::TooLong(head));
            }
            *walked += 1;
            whole = !descriptor.has_next();
            self.push(head, descriptor, dma)?;
        }
        if whole { Ok(()) } else { Err(QueueError::Broken(head)) }
    }

    fn push(&mut self, head: Head, descriptor: Descriptor, dma: &GuestMemoryMmap) -> Result<(), QueueError> {
        let (address, length) = (descriptor.addr(), descriptor.len());
        if length == 0 {
            return Ok(());
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
