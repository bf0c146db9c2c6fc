//! Places in guest memory, as the system calls for I/O take them.

use libc::{c_void, iovec};
use vm_memory::VolatileSlice;

/// A list of memory ranges to read to or write from (`struct iovec`), of which a part may be done with.
///
/// It holds addresses and no more: who uses them sees to it that the memory is still there.
#[derive(Default)]
pub(super) struct IoVecs {
    all: Vec<iovec>,
    /// How many of the first are done with.
    done: usize,
}

// SAFETY: the addresses are plain values until they are given to a system call, and that is an unsafe act of
// its own; no part of them belongs to a thread.
unsafe impl Send for IoVecs {}

impl IoVecs {
    /// Removes all ranges and keeps the room for as many.
    pub(super) fn clear(&mut self) {
        self.all.clear();
        self.done = 0;
    }

    pub(super) fn push(&mut self, slice: &VolatileSlice) {
        self.push_raw(slice.ptr_guard_mut().as_ptr().cast(), slice.len());
    }

    pub(super) fn push_raw(&mut self, iov_base: *mut c_void, iov_len: usize) {
        self.all.push(iovec { iov_base, iov_len });
    }

    /// The ranges that are left.
    pub(super) fn left(&self) -> &[iovec] {
        self.all.get(self.done..).unwrap_or_default()
    }

    /// Leaves no more than the first `most` bytes of what is left.
    pub(super) fn truncate(&mut self, mut most: usize) {
        let mut kept = self.done;
        for range in self.all.iter_mut().skip(self.done) {
            if most == 0 {
                break;
            }
            range.iov_len = range.iov_len.min(most);
            most -= range.iov_len;
            kept += 1;
        }
        self.all.truncate(kept);
    }

    /// Marks `count` bytes at the front as done.
    pub(super) fn advance(&mut self, mut count: usize) {
        for range in self.all.iter_mut().skip(self.done) {
            if count < range.iov_len {
                // It stays inside the range, so it is an address still.
                range.iov_base = range.iov_base.wrapping_byte_add(count);
                range.iov_len -= count;
                return;
            }
            count -= range.iov_len;
            self.done += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths(iovecs: &IoVecs) -> Vec<usize> {
        iovecs.left().iter().map(|range| range.iov_len).collect()
    }

    #[test]
    fn truncating_keeps_the_front_of_what_is_left() {
        let mut iovecs = IoVecs::default();
        for length in [4, 8, 2] {
            iovecs.push_raw(0x1000 as *mut c_void, length);
        }
        iovecs.advance(5);
        iovecs.truncate(100);
        assert_eq!(lengths(&iovecs), [7, 2]);
        iovecs.truncate(7);
        assert_eq!(lengths(&iovecs), [7]);
        iovecs.truncate(3);
        assert_eq!(lengths(&iovecs), [3]);
        iovecs.truncate(0);
        assert!(lengths(&iovecs).is_empty());
    }

    #[test]
    fn advancing_goes_over_ranges_and_into_them() {
        let mut iovecs = IoVecs::default();
        let base = 0x1000 as *mut c_void;
        for length in [4, 8, 2] {
            iovecs.push_raw(base, length);
        }
        iovecs.advance(0);
        assert_eq!(lengths(&iovecs), [4, 8, 2]);
        iovecs.advance(7);
        assert_eq!(lengths(&iovecs), [5, 2]);
        assert_eq!(iovecs.left()[0].iov_base as usize, 0x1003);
        iovecs.advance(5);
        assert_eq!(lengths(&iovecs), [2]);
        iovecs.advance(100);
        assert!(lengths(&iovecs).is_empty());
        iovecs.clear();
        iovecs.push_raw(base, 1);
        assert_eq!(lengths(&iovecs), [1]);
    }
}
