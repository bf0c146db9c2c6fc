//! The thread that serves an active device.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::Timespec;
use rustix::event::epoll::{self, Event, EventFlags};
use rustix::io::Errno;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::super::events::drain;
use super::super::{ActivateError, Activation, VirtioInterrupt};
use super::muxer::{Muxer, RX, Setup, TX};
use super::table::Id;

/// What is watched beside connections: no [`Id`] is as large.
const STOP: u64 = u64::MAX;
const LISTENER: u64 = u64::MAX - 1;
const RECEIVE_QUEUE: u64 = u64::MAX - 2;
const TRANSMIT_QUEUE: u64 = u64::MAX - 3;

/// How many events are taken at once.
const MAX_EVENTS: usize = 64;
/// A running thread; it ends when this is dropped.
pub(super) struct Worker {
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts to serve the queues of `activation`.
    pub(super) fn start(setup: Setup, activation: Activation) -> Result<Self, ActivateError> {
        let (notifiers, interrupt) = (Arc::clone(&activation.notifiers), Arc::clone(&activation.interrupt));
        let stop = Arc::new(EventFd::new(EFD_NONBLOCK).map_err(ActivateError::Host)?);
        let listener = Arc::clone(&setup.listener);
        let muxer = Muxer::new(setup, activation)?;
        let watch =
            |fd: BorrowedFd<'_>, token, flags| muxer.watch(fd, token, flags).map_err(ActivateError::Host);
        watch(borrow(&stop), STOP, EventFlags::IN)?;
        // Where there are no descriptors left, the listener stays ready for as long as that lasts.
        watch(listener.as_fd(), LISTENER, EventFlags::IN | EventFlags::ET)?;
        for (index, token) in [(RX, RECEIVE_QUEUE), (TX, TRANSMIT_QUEUE)] {
            let notifier = notifiers.get(usize::from(index)).ok_or(ActivateError::QueueMissing(index))?;
            watch(borrow(notifier), token, EventFlags::IN)?;
        }
        let running = Running { muxer, notifiers, stop: Arc::clone(&stop), interrupt };
        let thread = crate::thread("vsock").spawn(move || running.run()).map_err(ActivateError::Host)?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It fails only where the counter is full, and then the thread is being woken already.
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of vsock panicked");
        }
    }
}

fn borrow(eventfd: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the eventfd is borrowed for as long as its descriptor.
    unsafe { BorrowedFd::borrow_raw(eventfd.as_raw_fd()) }
}

/// What the thread has.
struct Running {
    muxer: Muxer,
    notifiers: Arc<[EventFd]>,
    stop: Arc<EventFd>,
    interrupt: Arc<dyn VirtioInterrupt>,
}

impl Running {
    fn run(mut self) {
        let mut events = Vec::with_capacity(MAX_EVENTS);
        loop {
            let more = self.muxer.turn();
            let patience = if more { Some(Duration::ZERO) } else { self.muxer.patience() };
            if let Err(error) = self.wait(&mut events, patience) {
                tracing::error!(%error, "vsock cannot wait for its sockets");
                self.interrupt.needs_reset();
                return;
            }
            for event in events.drain(..) {
                match event.data.u64() {
                    STOP => return drain(&self.stop),
                    LISTENER => self.muxer.listener_ready(),
                    RECEIVE_QUEUE => {
                        self.acknowledge(RX);
                        self.muxer.fill_receive_queue();
                    }
                    TRANSMIT_QUEUE => {
                        self.acknowledge(TX);
                        self.muxer.serve_transmit_queue();
                    }
                    id => self.muxer.event(Id::from_u64(id), event.flags),
                }
            }
        }
    }

    fn wait(&self, events: &mut Vec<Event>, patience: Option<Duration>) -> io::Result<()> {
        let timeout = patience.and_then(|patience| Timespec::try_from(patience).ok());
        match epoll::wait(self.muxer.epoll(), rustix::buffer::spare_capacity(events), timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Before a queue is looked at: a notification that comes in between is kept for the next turn.
    fn acknowledge(&self, index: u16) {
        if let Some(notifier) = self.notifiers.get(usize::from(index)) {
            drain(notifier);
        }
    }
}
