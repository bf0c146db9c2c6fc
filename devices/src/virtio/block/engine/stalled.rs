//! A disk that does not answer until a test or a fuzzer lets it, as one on a network file system whose server is gone.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::super::super::events::drain;
use super::super::super::iovecs::IoVecs;
use super::direct::{Direct, Watched};
use super::{Completion, Operation, Place, Source, Wakes};
use crate::lock;

/// Keeps the operations of a disk from being carried out until it is opened.
#[derive(Clone)]
pub struct Valve(Arc<Shared>);

struct Shared {
    is_open: Mutex<bool>,
    opened: Condvar,
    started: AtomicUsize,
    wake: EventFd,
}

impl Valve {
    /// A valve that lets nothing through.
    ///
    /// # Errors
    ///
    /// The process has no descriptor left.
    pub fn closed() -> io::Result<Self> {
        let wake = EventFd::new(EFD_NONBLOCK)?;
        let (is_open, opened, started) = (Mutex::new(false), Condvar::new(), AtomicUsize::new(0));
        Ok(Self(Arc::new(Shared { is_open, opened, started, wake })))
    }

    /// Lets nothing more through.
    pub fn close(&self) {
        *lock(&self.0.is_open) = false;
    }

    /// How many operations came to it.
    pub fn started(&self) -> usize {
        self.0.started.load(Ordering::SeqCst)
    }

    /// Lets everything through from now on.
    pub fn open(&self) {
        *lock(&self.0.is_open) = true;
        self.0.opened.notify_all();
        // It fails only where the counter is full, and then the thread is being woken already.
        let _ = self.0.wake.write(1);
    }

    /// Returns once it is open, as a system call that waits for storage.
    pub(in crate::virtio) fn pass(&self) {
        self.0.started.fetch_add(1, Ordering::SeqCst);
        let closed = lock(&self.0.is_open);
        drop(self.0.opened.wait_while(closed, |is_open| !*is_open));
    }

    fn is_open(&self) -> bool {
        *lock(&self.0.is_open)
    }
}

/// An engine that carries operations out once a valve is open.
pub(in super::super) struct Stalled {
    engine: Direct,
    waiting: VecDeque<(u16, Operation, Place, IoVecs)>,
    valve: Valve,
    /// Whether the thread is stuck in the system call, as without io_uring.
    blocks: bool,
    watched: Watched,
}

impl Stalled {
    pub(in super::super) fn new(valve: Valve, blocks: bool) -> Self {
        Self {
            engine: Direct::default(),
            waiting: VecDeque::new(),
            valve,
            blocks,
            watched: Watched::default(),
        }
    }

    /// See [`Engine::start`](super::Engine::start).
    ///
    /// # Safety
    ///
    /// The memory that is left of `ranges` has to be valid until the completion was taken.
    pub(super) unsafe fn start(&mut self, number: u16, operation: Operation, place: Place, ranges: &IoVecs) {
        if self.blocks {
            self.valve.pass();
        } else {
            self.valve.0.started.fetch_add(1, Ordering::SeqCst);
        }
        let mut copy = IoVecs::default();
        ranges.copy_part(0, usize::MAX, &mut copy);
        self.waiting.push_back((number, operation, place, copy));
    }

    pub(super) fn has_completions(&self) -> bool {
        self.valve.is_open() && !self.waiting.is_empty()
    }

    pub(super) fn pop(&mut self) -> Option<Completion> {
        if !self.valve.is_open() {
            return None;
        }
        let (number, operation, place, ranges) = self.waiting.pop_front()?;
        // SAFETY: the memory is valid, since the completion was not taken yet.
        unsafe { self.engine.start(number, operation, place, &ranges) };
        self.engine.pop()
    }

    pub(super) fn watch(&mut self, source: Source, fd: Option<RawFd>) {
        self.watched.watch(source, fd);
    }

    pub(super) fn take_wakes(&mut self) -> Wakes {
        drain(&self.valve.0.wake);
        self.watched.take_wakes()
    }

    pub(super) fn wait(&mut self, block: bool) -> io::Result<()> {
        // These disks have no rate limit, so that the timer's place is free.
        self.watched.watch(Source::Timer, Some(self.valve.0.wake.as_raw_fd()));
        self.watched.wait(block && !self.has_completions())
    }
}
