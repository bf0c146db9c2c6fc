//! I/O by system calls that wait for its end.

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use super::super::super::iovecs::IoVecs;
use super::{Completion, Operation};

/// Does an operation at once and keeps its result.
pub(in super::super) struct Direct {
    file: Arc<File>,
    completions: VecDeque<Completion>,
}

impl Direct {
    pub(super) fn new(file: Arc<File>) -> Self {
        Self { file, completions: VecDeque::new() }
    }

    /// See [`Engine::start`](super::Engine::start).
    ///
    /// # Safety
    ///
    /// The memory that is left of `ranges` has to be valid during the call.
    pub(super) unsafe fn start(&mut self, number: u16, operation: Operation, offset: u64, ranges: &IoVecs) {
        let result = match i64::try_from(offset) {
            // SAFETY: the caller promises the same.
            Ok(offset) => unsafe { self.call(operation, offset, ranges) },
            Err(_) => -libc::EINVAL,
        };
        self.completions.push_back(Completion { number, result });
    }

    /// Does the system call, and gives its result the way the kernel does: an errno is negative.
    ///
    /// # Safety
    ///
    /// As for [`start`](Self::start).
    unsafe fn call(&self, operation: Operation, offset: i64, ranges: &IoVecs) -> i32 {
        let fd = self.file.as_raw_fd();
        let ranges = ranges.left();
        let Ok(count) = i32::try_from(ranges.len()) else { return -libc::EINVAL };
        let result = match operation {
            // SAFETY: `ranges` has `count` elements, and the caller says that they name valid memory.
            Operation::Read => unsafe { libc::preadv(fd, ranges.as_ptr(), count, offset) },
            // SAFETY: as above.
            Operation::Write => unsafe { libc::pwritev(fd, ranges.as_ptr(), count, offset) },
            // SAFETY: it takes no memory of ours.
            Operation::Sync => unsafe { libc::fdatasync(fd) as isize },
            Operation::Allocate { mode, length } => match i64::try_from(length) {
                // SAFETY: it takes no memory of ours.
                Ok(length) => unsafe { libc::fallocate(fd, mode, offset, length) as isize },
                Err(_) => return -libc::EINVAL,
            },
        };
        if result < 0 {
            -std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
        } else {
            // One call transfers less than 2 GiB.
            i32::try_from(result).unwrap_or(i32::MAX)
        }
    }

    pub(super) fn pop(&mut self) -> Option<Completion> {
        self.completions.pop_front()
    }
}
