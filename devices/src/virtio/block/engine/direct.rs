//! I/O by system calls that block.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{BorrowedFd, RawFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::super::super::iovecs::IoVecs;
use super::{Completion, Operation, PerSource, Place, Source, Wakes};

/// Does an operation at once and keeps its result.
#[derive(Default)]
pub(in super::super) struct Direct {
    completions: VecDeque<Completion>,
    watched: Watched,
}

impl Direct {
    /// See [`Engine::start`](super::Engine::start).
    ///
    /// # Safety
    ///
    /// The file of `place`, and the memory that is left of `ranges`, have to be valid during the call.
    pub(super) unsafe fn start(&mut self, number: u16, operation: Operation, place: Place, ranges: &IoVecs) {
        let result = match i64::try_from(place.offset) {
            // SAFETY: the caller promises the same.
            Ok(offset) => unsafe { call(operation, place.fd, offset, ranges) },
            Err(_) => -libc::EINVAL,
        };
        self.completions.push_back(Completion { number, result });
    }

    pub(super) fn has_completions(&self) -> bool {
        !self.completions.is_empty()
    }

    pub(super) fn pop(&mut self) -> Option<Completion> {
        self.completions.pop_front()
    }

    pub(super) fn watch(&mut self, source: Source, fd: Option<RawFd>) {
        self.watched.watch(source, fd);
    }

    pub(super) fn take_wakes(&mut self) -> Wakes {
        self.watched.take_wakes()
    }

    pub(super) fn wait(&mut self, block: bool) -> io::Result<()> {
        self.watched.wait(block && !self.has_completions())
    }
}

/// Does the system call, and returns its result the way the kernel does: an errno is negative.
///
/// # Safety
///
/// As for [`Direct::start`].
unsafe fn call(operation: Operation, fd: RawFd, offset: i64, ranges: &IoVecs) -> i32 {
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
        -io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
    } else {
        // One call transfers less than 2 GiB.
        i32::try_from(result).unwrap_or(i32::MAX)
    }
}

/// Sources that are waited for by poll(2).
#[derive(Default)]
pub(super) struct Watched {
    fds: PerSource<Option<RawFd>>,
    wakes: Wakes,
}

impl Watched {
    pub(super) fn watch(&mut self, source: Source, fd: Option<RawFd>) {
        *self.fds.get_mut(source) = fd;
    }

    pub(super) fn take_wakes(&mut self) -> Wakes {
        std::mem::take(&mut self.wakes)
    }

    /// Looks which sources are readable; with `block`, waits for one.
    pub(super) fn wait(&mut self, block: bool) -> io::Result<()> {
        let sources: Vec<(Source, RawFd)> = self
            .fds
            .each_mut()
            .into_iter()
            .filter_map(|(source, fd)| fd.as_ref().map(|&fd| (source, fd)))
            .collect();
        let mut polled: Vec<PollFd<'_>> = sources
            .iter()
            // SAFETY: the sources are open for as long as they are watched.
            .map(|&(_, fd)| PollFd::from_borrowed_fd(unsafe { BorrowedFd::borrow_raw(fd) }, PollFlags::IN))
            .collect();
        let now = Timespec::default();
        let timeout = if block && !self.wakes.any() { None } else { Some(&now) };
        match poll(&mut polled, timeout) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for ((source, _), polled) in sources.into_iter().zip(polled) {
            *self.wakes.get_mut(source) |= !polled.revents().is_empty();
        }
        Ok(())
    }
}
