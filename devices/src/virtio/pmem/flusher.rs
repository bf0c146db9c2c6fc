//! Flushes: what the guest wrote to its memory goes to the file's storage.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::super::events::drain;
use super::super::queue::{ActiveQueue, Buffers, Chain, Head};
use super::device::PmemMetrics;

/// The only request there is (5.19.6): make durable what was written.
const FLUSH: u32 = 0;
/// Answers to it (5.19.7.3): 0, and -1 for whatever went wrong.
const OK: u32 = 0;
const FAILURE: u32 = u32::MAX;

/// The queue and what its requests flush.
pub(super) struct Flusher {
    pub(super) queue: ActiveQueue,
    /// Where writes go; `None` where they never leave memory, and there is nothing to flush.
    pub(super) file: Option<Arc<File>>,
    /// A flush failed. The kernel tells of lost writes once; they are lost to all later flushes too.
    pub(super) failed: Arc<AtomicBool>,
    pub(super) metrics: Arc<PmemMetrics>,
}

impl Flusher {
    /// Answers what is available. One flush serves all requests that were there before it.
    pub(super) fn turn(&mut self) {
        let mut chain = Chain::default();
        let mut waiting = Vec::new();
        self.queue.start_turn();
        while self.queue.pop(&mut chain) {
            let mut kind = [0; 4];
            let known =
                chain.readable.take(self.queue.memory(), &mut kind) && u32::from_le_bytes(kind) == FLUSH;
            let answer = std::mem::take(&mut chain.writable);
            if answer.len() < 4 {
                self.queue.fail_chain(chain.head);
            } else if known {
                waiting.push((chain.head, answer));
            } else {
                self.answer(chain.head, answer, FAILURE);
            }
        }
        if !waiting.is_empty() {
            let result = self.flush();
            for (head, answer) in waiting {
                self.answer(head, answer, result);
            }
        }
        self.queue.end_turn();
    }

    fn flush(&self) -> u32 {
        let Some(file) = &self.file else { return OK };
        if let Err(error) = rustix::fs::fdatasync(file) {
            tracing::error!(%error, "what the guest wrote to persistent memory could not be made durable");
            self.failed.store(true, Ordering::Relaxed);
        }
        if self.failed.load(Ordering::Relaxed) { FAILURE } else { OK }
    }

    fn answer(&mut self, head: Head, mut place: Buffers, result: u32) {
        let counter =
            if result == OK { &self.metrics.flush_operations } else { &self.metrics.failed_operations };
        counter.increment();
        let written = place.put(self.queue.memory(), &result.to_le_bytes());
        self.queue.add_used(head, u32::try_from(written).unwrap_or(0));
    }
}

/// A flusher on a thread of its own: storage takes its time, and the event loop has none.
pub(super) struct FlushThread {
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl FlushThread {
    /// Starts `flusher`, which `notifier` wakes.
    ///
    /// # Errors
    ///
    /// Those of making an eventfd or a thread.
    pub(super) fn start(mut flusher: Flusher, notifier: EventFd) -> io::Result<Self> {
        let stop = EventFd::new(EFD_NONBLOCK)?;
        let stopped = stop.try_clone()?;
        let thread = crate::thread("pmem").spawn(move || {
            while wait(&notifier, &stopped) {
                drain(&notifier);
                flusher.turn();
            }
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

/// Waits for work; false, where there will be no more.
fn wait(notifier: &EventFd, stop: &EventFd) -> bool {
    // SAFETY: both descriptors belong to the eventfds, which outlive the call.
    let [notifier, stop] = [notifier, stop].map(|event| unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) });
    loop {
        let mut both = [notifier, stop].map(|event| PollFd::from_borrowed_fd(event, PollFlags::IN));
        match poll(&mut both, None) {
            Ok(_) => {
                let [_, stop] = &both;
                return stop.revents().is_empty();
            }
            Err(Errno::INTR) => {}
            Err(error) => {
                tracing::error!(%error, "cannot wait for flushes");
                return false;
            }
        }
    }
}

impl Drop for FlushThread {
    /// Waits for the flush at work: from here on, nothing touches guest memory.
    fn drop(&mut self) {
        // It fails only where the counter is full, and then the thread is being stopped already.
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has ended as well.
            let _ = thread.join();
        }
    }
}
