//! I/O through io_uring.
//!
//! One system call hands over what was started and waits for whatever comes next: a completion, a notification from the
//! driver, a message from the device, or the timer of the rate limit.

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;

use io_uring::register::Restriction;
use io_uring::types::{Fd, FsyncFlags};
use io_uring::{IoUring, Probe, cqueue, opcode, squeue};

use super::super::super::iovecs::IoVecs;
use super::{Completion, MAX_IN_FLIGHT, Operation, PerSource, Place, Source, Wakes};

/// Entries of the submission queue: all that may be in flight, and the polls.
const ENTRIES: u32 = 256;
const _: () = assert!(ENTRIES > MAX_IN_FLIGHT as u32 + 8);

/// The user data of a completion is the number of the operation; of a poll, this, the source and a generation.
const POLL: u64 = 1 << 32;
/// The user data of the removal of a poll.
const REMOVAL: u64 = 1 << 33;

/// A ring with room for all that may be in flight.
pub(in super::super) struct Uring {
    ring: IoUring,
    /// The ring takes submissions from one thread only, which is not known yet.
    is_disabled: bool,
    polls: PerSource<Poll>,
    /// The kernel has polls that stay after they have fired, from Linux 5.13 on.
    has_multishot: bool,
    wakes: Wakes,
    completions: VecDeque<Completion>,
    /// How often the kernel was entered.
    #[cfg(test)]
    pub(in super::super) calls: std::sync::Arc<std::sync::atomic::AtomicUsize>,
}

/// All that a ring does.
const OPERATIONS: [u8; 8] = [
    opcode::Read::CODE,
    opcode::Write::CODE,
    opcode::Readv::CODE,
    opcode::Writev::CODE,
    opcode::Fsync::CODE,
    opcode::Fallocate::CODE,
    opcode::PollAdd::CODE,
    opcode::PollRemove::CODE,
];

/// A file descriptor that is polled.
#[derive(Debug, Default)]
struct Poll {
    fd: Option<RawFd>,
    /// The kernel has the poll.
    is_armed: bool,
    /// Tells the events of this descriptor from those of the ones before.
    generation: u16,
}

impl Poll {
    fn user_data(&self, source: Source) -> u64 {
        POLL | (source as u64) << 16 | u64::from(self.generation)
    }
}

impl Uring {
    pub(super) fn new() -> io::Result<Self> {
        let (ring, is_disabled) = Self::ring()?;
        let (polls, wakes) = (PerSource::default(), Wakes::default());
        let completions = VecDeque::with_capacity(MAX_IN_FLIGHT.into());
        Ok(Self {
            ring,
            is_disabled,
            polls,
            has_multishot: true,
            wakes,
            completions,
            #[cfg(test)]
            calls: std::sync::Arc::default(),
        })
    }

    /// The ring, and whether it is disabled.
    fn ring() -> io::Result<(IoUring, bool)> {
        // With one thread that submits, the kernel needs no locks; it delivers completions when the thread waits for
        // them, instead of by interrupting it. From Linux 6.1 on, which has all operations.
        let single =
            IoUring::builder().setup_single_issuer().setup_defer_taskrun().setup_r_disabled().build(ENTRIES);
        match single {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            other => return other.and_then(Self::restricted),
        }
        let mut builder = IoUring::builder();
        let ring = match builder.setup_coop_taskrun().setup_r_disabled().build(ENTRIES) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                IoUring::builder().setup_r_disabled().build(ENTRIES)?
            }
            other => other?,
        };
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        if OPERATIONS.iter().all(|&code| probe.is_supported(code)) {
            Self::restricted(ring)
        } else {
            Err(io::ErrorKind::Unsupported.into())
        }
    }

    /// Limits `ring`, which is disabled, to what it is for, as filters of system calls don't see what a ring does.
    fn restricted(ring: IoUring) -> io::Result<(IoUring, bool)> {
        ring.submitter().register_restrictions(&mut OPERATIONS.map(Restriction::sqe_op))?;
        Ok((ring, true))
    }

    /// See [`Engine::enable`](super::Engine::enable).
    pub(super) fn enable(&mut self) {
        if !std::mem::take(&mut self.is_disabled) {
            return;
        }
        if let Err(error) = self.ring.submitter().register_enable_rings() {
            // Requests will not be answered; nothing else can be done for a kernel that takes its ring back.
            tracing::error!(%error, "cannot enable an io_uring instance; a disk does not work");
        }
    }

    pub(super) fn is_level_triggered(&self) -> bool {
        !self.has_multishot
    }

    /// See [`Engine::watch`](super::Engine::watch).
    pub(super) fn watch(&mut self, source: Source, fd: Option<RawFd>) {
        let poll = self.polls.get_mut(source);
        let old = poll.user_data(source);
        let was_armed = std::mem::take(&mut poll.is_armed);
        poll.fd = fd;
        poll.generation = poll.generation.wrapping_add(1);
        if was_armed {
            let removal = opcode::PollRemove::new(old).build().user_data(REMOVAL);
            // SAFETY: the entry names no memory.
            unsafe { self.push(&removal) };
        }
    }

    /// See [`Engine::start`](super::Engine::start).
    ///
    /// # Safety
    ///
    /// The file of `place`, what is left of `ranges`, and the memory that it names, have to stay valid until the
    /// completion was taken.
    pub(super) unsafe fn start(&mut self, number: u16, operation: Operation, place: Place, ranges: &IoVecs) {
        let entry = Self::entry(operation, place, ranges).user_data(u64::from(number));
        // SAFETY: the caller promises that all that the entry points to outlives the operation.
        unsafe { self.push(&entry) };
    }

    /// # Safety
    ///
    /// All that the entry points to has to outlive the operation.
    unsafe fn push(&mut self, entry: &squeue::Entry) {
        // SAFETY: the caller promises that all that the entry points to outlives the operation.
        while unsafe { self.ring.submission().push(entry) }.is_err() {
            // The queue is full of operations that the kernel did not take yet.
            if let Err(error) = self.enter(0) {
                tracing::warn!(%error, "the kernel takes no disk I/O at the moment");
                std::thread::yield_now();
            }
        }
    }

    fn entry(operation: Operation, place: Place, ranges: &IoVecs) -> squeue::Entry {
        let (fd, offset) = (Fd(place.fd), place.offset);
        let ranges = ranges.left();
        let count = u32::try_from(ranges.len()).unwrap_or(u32::MAX);
        // The kernel needs not copy a list of one.
        let single = match ranges {
            [range] => u32::try_from(range.iov_len).ok().map(|length| (range.iov_base.cast::<u8>(), length)),
            _ => None,
        };
        match (operation, single) {
            (Operation::Read, Some((at, length))) => opcode::Read::new(fd, at, length).offset(offset).build(),
            (Operation::Read, None) => opcode::Readv::new(fd, ranges.as_ptr(), count).offset(offset).build(),
            (Operation::Write, Some((at, length))) => {
                opcode::Write::new(fd, at, length).offset(offset).build()
            }
            (Operation::Write, None) => {
                opcode::Writev::new(fd, ranges.as_ptr(), count).offset(offset).build()
            }
            (Operation::Sync, _) => opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build(),
            (Operation::Allocate { mode, length }, _) => {
                opcode::Fallocate::new(fd, length).offset(offset).mode(mode).build()
            }
        }
    }

    /// See [`Engine::submit`](super::Engine::submit).
    pub(super) fn submit(&mut self) -> bool {
        // What the kernel does not take now is left to `wait`.
        if !self.ring.submission().is_empty() && self.enter(0).is_ok() {
            self.harvest();
        }
        !self.completions.is_empty()
    }

    pub(super) fn pop(&mut self) -> Option<Completion> {
        self.completions.pop_front()
    }

    /// Takes from the ring what the kernel has put there.
    fn harvest(&mut self) {
        while let Some(entry) = { self.ring.completion().next() } {
            if let Ok(number) = u16::try_from(entry.user_data()) {
                self.completions.push_back(Completion { number, result: entry.result() });
            } else if entry.user_data() & POLL != 0 {
                self.polled(entry.user_data(), entry.result(), cqueue::more(entry.flags()));
            }
        }
    }

    /// Takes the event of a poll, after which the kernel has it still or not.
    fn polled(&mut self, user_data: u64, result: i32, is_armed: bool) {
        let polls = self.polls.each_mut();
        let Some((source, poll)) =
            polls.into_iter().find(|(source, poll)| poll.user_data(*source) == user_data)
        else {
            return;
        };
        poll.is_armed = is_armed;
        if result >= 0 {
            *self.wakes.get_mut(source) = true;
        } else if result == -libc::EINVAL && self.has_multishot {
            self.has_multishot = false;
        } else {
            let error = io::Error::from_raw_os_error(-result);
            tracing::error!(%error, ?source, "a disk's thread cannot wait for one of its sources");
            poll.fd = None;
        }
    }

    pub(super) fn take_wakes(&mut self) -> Wakes {
        std::mem::take(&mut self.wakes)
    }

    pub(super) fn wait(&mut self, block: bool) -> io::Result<()> {
        let has_multishot = self.has_multishot;
        let mut polls = [None; 3];
        for (entry, (source, poll)) in polls.iter_mut().zip(self.polls.each_mut()) {
            if let Some(fd) = poll.fd.filter(|_| !poll.is_armed) {
                poll.is_armed = true;
                *entry = Some((fd, poll.user_data(source)));
            }
        }
        for (fd, user_data) in polls.into_iter().flatten() {
            let poll = opcode::PollAdd::new(Fd(fd), libc::POLLIN as u32).multi(has_multishot).build();
            // SAFETY: the entry names no memory.
            unsafe { self.push(&poll.user_data(user_data)) };
        }
        let want = usize::from(block && !self.wakes.any() && self.completions.is_empty());
        let entered = self.enter(want);
        self.harvest();
        entered
    }

    /// Submits everything and waits for `want` completions.
    fn enter(&mut self, want: usize) -> io::Result<()> {
        loop {
            #[cfg(test)]
            self.calls.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            match self.ring.submitter().submit_and_wait(want) {
                Ok(_) if self.ring.submission().is_empty() => return Ok(()),
                // The kernel stops at an entry that it refuses, and reports it as a completion.
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                // Completions have to be taken from the ring first.
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}
