//! How I/O reaches the host: through io_uring, or by system calls that block where the host refuses io_uring.

mod direct;
#[cfg(any(test, fuzzing))]
pub(super) mod stalled;
mod uring;

use std::io;
use std::os::fd::RawFd;

use self::direct::Direct;
#[cfg(any(test, fuzzing))]
use self::stalled::Stalled;
use self::uring::Uring;
use super::super::iovecs::IoVecs;

/// The most operations that may be in flight at once.
pub(super) const MAX_IN_FLIGHT: u16 = 128;

/// Where an operation goes: an open file of the disk, and the offset there.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Place {
    pub(in super::super) fd: RawFd,
    pub(in super::super) offset: u64,
}

/// An operation on a file of the disk.
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

/// A completed operation: the number that it was started with, and the result of its system call (negative: an errno).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Completion {
    pub(super) number: u16,
    pub(super) result: i32,
}

/// What wakes a disk's thread besides completions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// A message from the device.
    Mailbox,
    /// A notification from the driver.
    Notifier,
    /// The timer of the rate limit.
    Timer,
}

/// One value for each [`Source`].
#[derive(Debug, Default)]
pub(super) struct PerSource<T> {
    mailbox: T,
    notifier: T,
    timer: T,
}

impl<T> PerSource<T> {
    fn get_mut(&mut self, source: Source) -> &mut T {
        match source {
            Source::Mailbox => &mut self.mailbox,
            Source::Notifier => &mut self.notifier,
            Source::Timer => &mut self.timer,
        }
    }

    fn each_mut(&mut self) -> [(Source, &mut T); 3] {
        [
            (Source::Mailbox, &mut self.mailbox),
            (Source::Notifier, &mut self.notifier),
            (Source::Timer, &mut self.timer),
        ]
    }
}

/// The sources that woke the thread.
pub(super) type Wakes = PerSource<bool>;

impl Wakes {
    /// Whether `source` woke the thread.
    pub(super) fn has(&self, source: Source) -> bool {
        match source {
            Source::Mailbox => self.mailbox,
            Source::Notifier => self.notifier,
            Source::Timer => self.timer,
        }
    }

    fn any(&self) -> bool {
        self.mailbox || self.notifier || self.timer
    }
}

/// Carries operations out, and waits for them and for whatever else wakes the disk's thread.
pub(super) enum Engine {
    /// The kernel does the work and reports completions.
    Uring(Box<Uring>),
    /// Each operation is complete when [`Engine::start`] returns.
    Direct(Direct),
    /// Operations complete when a test lets them.
    #[cfg(any(test, fuzzing))]
    Stalled(Stalled),
}

impl Engine {
    /// The engine for a disk: io_uring where the host allows it.
    pub(super) fn open() -> Self {
        match Uring::new() {
            Ok(uring) => Self::Uring(Box::new(uring)),
            // Old kernels, containers' seccomp filters, the sysctl io_uring_disabled.
            Err(error) => {
                tracing::info!(%error, "this host refuses io_uring; disks are read and written synchronously");
                Self::direct()
            }
        }
    }

    /// The engine that does without io_uring.
    pub(super) fn direct() -> Self {
        Self::Direct(Direct::default())
    }

    /// Makes the calling thread the one that uses the engine from now on.
    pub(super) fn enable(&mut self) {
        match self {
            Self::Uring(uring) => uring.enable(),
            Self::Direct(_) => {}
            #[cfg(any(test, fuzzing))]
            Self::Stalled(_) => {}
        }
    }

    /// Has `fd` wake the thread as `source` when it becomes readable, instead of what was watched as that source.
    pub(super) fn watch(&mut self, source: Source, fd: Option<RawFd>) {
        match self {
            Self::Uring(uring) => uring.watch(source, fd),
            Self::Direct(direct) => direct.watch(source, fd),
            #[cfg(any(test, fuzzing))]
            Self::Stalled(stalled) => stalled.watch(source, fd),
        }
    }

    /// Whether a source that woke the thread has to be read empty before it can wake it again.
    pub(super) fn is_level_triggered(&self) -> bool {
        match self {
            Self::Uring(uring) => uring.is_level_triggered(),
            Self::Direct(_) => true,
            #[cfg(any(test, fuzzing))]
            Self::Stalled(_) => true,
        }
    }

    /// Starts `operation` at `place`; `number` comes back with its completion.
    ///
    /// # Safety
    ///
    /// The file of `place`, what is left of `ranges`, and the memory that it names, have to stay valid until the
    /// completion was taken from [`pop`](Self::pop).
    pub(super) unsafe fn start(&mut self, number: u16, operation: Operation, place: Place, ranges: &IoVecs) {
        match self {
            // SAFETY: the caller promises the same.
            Self::Uring(uring) => unsafe { uring.start(number, operation, place, ranges) },
            // SAFETY: the caller promises more.
            Self::Direct(direct) => unsafe { direct.start(number, operation, place, ranges) },
            #[cfg(any(test, fuzzing))]
            // SAFETY: the caller promises the same.
            Self::Stalled(stalled) => unsafe { stalled.start(number, operation, place, ranges) },
        }
    }

    /// Hands to the host all that was started, and does not wait. Whether there are completions.
    pub(super) fn submit(&mut self) -> bool {
        match self {
            Self::Uring(uring) => uring.submit(),
            Self::Direct(direct) => direct.has_completions(),
            #[cfg(any(test, fuzzing))]
            Self::Stalled(stalled) => stalled.has_completions(),
        }
    }

    /// Takes a completion, if there is one.
    pub(super) fn pop(&mut self) -> Option<Completion> {
        match self {
            Self::Uring(uring) => uring.pop(),
            Self::Direct(direct) => direct.pop(),
            #[cfg(any(test, fuzzing))]
            Self::Stalled(stalled) => stalled.pop(),
        }
    }

    /// Takes the sources that woke the thread since the last call.
    pub(super) fn take_wakes(&mut self) -> Wakes {
        match self {
            Self::Uring(uring) => uring.take_wakes(),
            Self::Direct(direct) => direct.take_wakes(),
            #[cfg(any(test, fuzzing))]
            Self::Stalled(stalled) => stalled.take_wakes(),
        }
    }

    /// Hands to the host all that was started. With `block`, waits until there is a completion or a source that wakes
    /// the thread.
    ///
    /// # Errors
    ///
    /// The host is short of resources for the moment; what was started is not lost.
    pub(super) fn wait(&mut self, block: bool) -> io::Result<()> {
        match self {
            Self::Uring(uring) => uring.wait(block),
            Self::Direct(direct) => direct.wait(block),
            #[cfg(any(test, fuzzing))]
            Self::Stalled(stalled) => stalled.wait(block),
        }
    }
}
