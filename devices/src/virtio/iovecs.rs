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

    /// Removes the last range.
    pub(super) fn pop(&mut self) {
        self.all.pop();
    }

    /// Leaves no more than the first `count` ranges of those that are left.
    pub(super) fn truncate_ranges(&mut self, count: usize) {
        self.all.truncate(self.done.saturating_add(count));
    }

    /// Removes the first `count` ranges of those that are left.
    pub(super) fn drop_first(&mut self, count: usize) {
        self.done = self.all.len().min(self.done + count);
        // To move what is left to the front costs least when little is left.
        if self.done * 2 > self.all.len() {
            self.all.drain(..self.done);
            self.done = 0;
        }
    }

    /// Appends to `other` the ranges of `length` bytes from `offset` on, or as many as there are.
    pub(super) fn copy_part(&self, mut offset: usize, mut length: usize, other: &mut Self) {
        for range in self.left() {
            if length == 0 {
                return;
            }
            let skipped = offset.min(range.iov_len);
            offset -= skipped;
            let here = (range.iov_len - skipped).min(length);
            length -= here;
            if here > 0 {
                // It stays inside the range, so it is an address still.
                other.push_raw(range.iov_base.wrapping_byte_add(skipped), here);
            }
        }
    }

    /// Copies the first bytes of what is left to `bytes`, as many as that holds, and returns how many there were.
    ///
    /// # Safety
    ///
    /// What is left has to be valid memory. The guest may write to it at the same time.
    pub(super) unsafe fn read(&self, bytes: &mut [u8]) -> usize {
        let mut done = 0;
        for range in self.left() {
            // SAFETY: the caller says that the range is valid, and a volatile slice makes no claim to it.
            let memory = unsafe { VolatileSlice::new(range.iov_base.cast(), range.iov_len) };
            done += memory.copy_to(bytes.get_mut(done..).unwrap_or_default());
        }
        done
    }

    /// Copies `bytes` to the front of what is left, as many as have room there, and returns how many had.
    ///
    /// # Safety
    ///
    /// What is left has to be valid memory. The guest may use it at the same time.
    pub(super) unsafe fn write(&self, bytes: &[u8]) -> usize {
        let mut done = 0;
        for range in self.left() {
            let rest = bytes.get(done..).unwrap_or_default();
            let here = rest.len().min(range.iov_len);
            // SAFETY: as above.
            let memory = unsafe { VolatileSlice::new(range.iov_base.cast(), range.iov_len) };
            memory.copy_from(rest.get(..here).unwrap_or_default());
            done += here;
        }
        done
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

    /// The bytes that are left, together.
    pub(super) fn length(&self) -> usize {
        self.left().iter().fold(0, |all: usize, range| all.saturating_add(range.iov_len))
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

    #[test]
    fn bytes_are_copied_to_and_from_the_front_of_what_is_left() {
        let (mut one, mut other) = ([1_u8, 2, 3], [4_u8, 5, 6]);
        let mut iovecs = IoVecs::default();
        iovecs.push_raw(one.as_mut_ptr().cast(), 3);
        iovecs.push_raw(other.as_mut_ptr().cast(), 3);
        iovecs.advance(1);
        let (mut few, mut many) = ([0; 3], [0; 8]);
        // SAFETY: both arrays live as long as the list, and nothing else uses them meanwhile.
        unsafe {
            assert_eq!((iovecs.read(&mut few), iovecs.read(&mut many)), (3, 5));
            assert_eq!((few, many), ([2, 3, 4], [2, 3, 4, 5, 6, 0, 0, 0]));
            assert_eq!((iovecs.write(&[7; 3]), iovecs.write(&[])), (3, 0));
            assert_eq!(iovecs.read(&mut many), 5);
            assert_eq!(many[..5], [7, 7, 7, 5, 6]);
            assert_eq!(iovecs.write(&[8; 9]), 5);
        }
        assert_eq!((one, other), ([1, 8, 8], [8, 8, 8]));
    }

    #[test]
    fn a_part_begins_and_ends_inside_of_ranges() {
        let mut iovecs = IoVecs::default();
        let base = 0x1000 as *mut c_void;
        for length in [4, 8, 2] {
            iovecs.push_raw(base, length);
        }
        let part = |offset, length| {
            let mut part = IoVecs::default();
            iovecs.copy_part(offset, length, &mut part);
            part.left().iter().map(|range| (range.iov_base as usize, range.iov_len)).collect::<Vec<_>>()
        };
        assert_eq!(part(0, 4), [(0x1000, 4)]);
        assert_eq!(part(6, 7), [(0x1002, 6), (0x1000, 1)]);
        assert_eq!(part(12, 100), [(0x1000, 2)]);
        assert_eq!(part(14, 1), []);
    }

    #[test]
    fn ranges_are_dropped_from_the_front() {
        let mut iovecs = IoVecs::default();
        for length in [1, 2, 3, 4] {
            iovecs.push_raw(std::ptr::null_mut(), length);
        }
        iovecs.drop_first(1);
        assert_eq!(lengths(&iovecs), [2, 3, 4]);
        iovecs.drop_first(2);
        iovecs.push_raw(std::ptr::null_mut(), 5);
        assert_eq!(lengths(&iovecs), [4, 5]);
        iovecs.pop();
        assert_eq!(lengths(&iovecs), [4]);
        iovecs.drop_first(9);
        assert!(lengths(&iovecs).is_empty());
    }
}
