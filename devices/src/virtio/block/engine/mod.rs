//! How I/O reaches the host: through io_uring, or, where the host has none for us, by system calls that wait.

mod direct;
mod uring;

use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use self::direct::Direct;
use self::uring::Uring;
use super::super::iovecs::IoVecs;
use super::disk::Disk;

/// The most operations that may be in flight at once.
pub(super) const MAX_IN_FLIGHT: u16 = 128;

/// An operation on the disk's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    /// Read into the ranges.
    Read,
    /// Write from the ranges.
    Write,
    /// Make all data that was written durable (`fdatasync`).
    Sync,
    /// Free or zero `length` bytes (`fallocate` with this mode).
    Allocate { mode: i32, length: u64 },
}

/// An operation's end: the number it was started with, and what its system call gave (negative: an errno).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Completion {
    pub(super) number: u16,
    pub(super) result: i32,
}

/// Carries operations out.
pub(super) enum Engine {
    /// The kernel does the work and says when it's done.
    Uring(Box<Uring>),
    /// Each operation is done when [`Engine::start`] returns.
    Direct(Direct),
}

impl Engine {
    /// Gives the engine for `disk`: io_uring, if the host lets us have it. It writes to `wake` when
    /// operations complete.
    pub(super) fn open(disk: &Disk, wake: &EventFd) -> Self {
        match Uring::new(disk, wake) {
            Ok(uring) => Self::Uring(Box::new(uring)),
            // Old kernels, containers' seccomp filters, the sysctl io_uring_disabled.
            Err(error) => {
                tracing::info!(%error, "no io_uring on this host; disks are read and written synchronously");
                Self::direct(disk, wake)
            }
        }
    }

    /// Gives the engine that does without io_uring.
    pub(super) fn direct(disk: &Disk, _wake: &EventFd) -> Self {
        Self::Direct(Direct::new(Arc::clone(&disk.file)))
    }

    /// Starts `operation` at `offset` of the file; `number` comes back with its completion.
    ///
    /// # Safety
    ///
    /// What is left of `ranges`, and the memory that it names, have to stay valid until the completion was
    /// taken from [`pop`](Self::pop).
    pub(super) unsafe fn start(&mut self, number: u16, operation: Operation, offset: u64, ranges: &IoVecs) {
        match self {
            // SAFETY: the caller promises the same.
            Self::Uring(uring) => unsafe { uring.start(number, operation, offset, ranges) },
            // SAFETY: the caller promises more.
            Self::Direct(direct) => unsafe { direct.start(number, operation, offset, ranges) },
        }
    }

    /// Brings all that was started to the host.
    pub(super) fn submit(&mut self) {
        match self {
            Self::Uring(uring) => uring.submit(),
            Self::Direct(_) => {}
        }
    }

    /// Takes a completion, if there is one.
    pub(super) fn pop(&mut self) -> Option<Completion> {
        match self {
            Self::Uring(uring) => uring.pop(),
            Self::Direct(direct) => direct.pop(),
        }
    }

    /// Keeps completions from waking the event loop, or lets them do so again.
    pub(super) fn set_wake_ups(&mut self, enabled: bool) {
        match self {
            Self::Uring(uring) => uring.set_wake_ups(enabled),
            Self::Direct(_) => {}
        }
    }

    /// Waits until there is a completion to take.
    ///
    /// # Errors
    ///
    /// The host can't say when operations end.
    pub(super) fn wait(&mut self) -> io::Result<()> {
        match self {
            Self::Uring(uring) => uring.wait(),
            Self::Direct(_) => Ok(()),
        }
    }
}
