//! The device: where the memory is, and the queue for flushes.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_PMEM;
use vm_memory::GuestAddress;

use super::file::{PmemFile, PmemMode};
use super::flusher::{self, Answer, Command, FlushThread, Flusher, Target};
use crate::metrics::Metrics;
#[cfg(any(test, fuzzing))]
use crate::virtio::block::Valve;
use crate::virtio::mailbox::{CallError, DEADLINE};
use crate::virtio::{ActivateError, Activation, Queue, StopError, VirtioDevice};

const QUEUE_SIZES: [u16; 1] = [64];

/// The saved state of persistent memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PmemState {
    /// The guest physical address.
    pub start: u64,
    /// The size in bytes.
    pub size: u64,
    /// A flush failed, so that all later ones do.
    pub failed: bool,
}

crate::metrics! {
    /// The counters of persistent memory.
    pub struct PmemMetrics {
        /// Flushes that were done.
        flush_operations,
        /// Requests answered with an error.
        failed_operations,
    }
}

/// What answers requests.
enum Worker {
    /// The event loop, since there is nothing to flush.
    EventLoop(Option<Box<Flusher>>),
    /// A thread.
    Thread(FlushThread),
}

/// Persistent memory, which the vmm has mapped at its address.
pub struct Pmem {
    worker: Worker,
    pub(super) file: PmemFile,
    start: GuestAddress,
    target: Target,
}

impl Pmem {
    /// Makes the device of `file`, which is mapped at `start` in the guest's physical memory. Where the guest writes to
    /// the file, it starts the thread that flushes it.
    ///
    /// # Errors
    ///
    /// The process has no file descriptor or no thread left.
    pub fn new(file: PmemFile, start: GuestAddress) -> io::Result<Self> {
        Self::with_deadline(file, start, DEADLINE)
    }

    /// The same with another deadline for the thread's answers.
    pub(super) fn with_deadline(file: PmemFile, start: GuestAddress, deadline: Duration) -> io::Result<Self> {
        let writes_through = file.mode == PmemMode::Shared;
        let worker =
            if writes_through { Worker::Thread(flusher::start(deadline)?) } else { Worker::EventLoop(None) };
        let storage = writes_through.then(|| Arc::clone(&file.file) as Arc<_>);
        let target = Target { storage, failed: Arc::new(AtomicBool::new(false)), metrics: Arc::default() };
        Ok(Self { worker, file, start, target })
    }

    /// A device of a file whose flushes wait while `valve` is closed. Its thread has to answer within `deadline`.
    ///
    /// # Errors
    ///
    /// The process has no file descriptor or no thread left.
    #[cfg(any(test, fuzzing))]
    pub fn stalled(
        file: PmemFile,
        start: GuestAddress,
        valve: &Valve,
        deadline: Duration,
    ) -> io::Result<Self> {
        let mut pmem = Self::with_deadline(file, start, deadline)?;
        pmem.target.storage = pmem.target.storage.map(|_| Arc::new(valve.clone()) as Arc<_>);
        Ok(pmem)
    }

    /// Has flushes go to `storage`.
    #[cfg(test)]
    pub(super) fn set_storage(&mut self, storage: Arc<dyn flusher::Storage>) {
        self.target.storage = Some(storage);
    }
}

impl VirtioDevice for Pmem {
    type State = PmemState;

    fn device_type(&self) -> u32 {
        VIRTIO_ID_PMEM
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn config_space(&self) -> Vec<u8> {
        [self.start.0.to_le_bytes(), self.file.size.to_le_bytes()].concat()
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let flusher = Box::new(Flusher::new(activation, self.target.clone())?);
        match &mut self.worker {
            Worker::EventLoop(place) => *place = Some(flusher),
            Worker::Thread(thread) => {
                thread.call(Command::Activate(flusher))?;
            }
        }
        Ok(())
    }

    fn reset(&mut self) -> Result<(), StopError> {
        match &mut self.worker {
            Worker::EventLoop(flusher) => *flusher = None,
            Worker::Thread(thread) => {
                thread.call(Command::Reset)?;
            }
        }
        Ok(())
    }

    fn suspend(&mut self) -> Result<Vec<Option<Queue>>, StopError> {
        let queue = match &mut self.worker {
            Worker::EventLoop(flusher) => flusher.take().map(|flusher| flusher.into_queue().0),
            Worker::Thread(thread) => match thread.call(Command::Suspend)? {
                Answer::Suspended(queue) => queue,
                // A thread answers what it was asked.
                Answer::Done => return Err(CallError::Ended.into()),
            },
        };
        Ok(queue.map(|queue| vec![Some(queue)]).unwrap_or_default())
    }

    fn resume(&mut self, activation: Option<Activation>, state: PmemState) -> Result<(), ActivateError> {
        let (start, size) = (self.start.0, self.file.size);
        if (state.start, state.size) != (start, size) {
            return Err(ActivateError::State(format!(
                "persistent memory had {} bytes at {:#x} and has {size} bytes at {start:#x}",
                state.size, state.start
            )));
        }
        self.target.failed.fetch_or(state.failed, Ordering::Relaxed);
        activation.map_or(Ok(()), |activation| self.activate(activation))
    }

    fn queue_notified(&mut self, _index: u16) {
        if let Worker::EventLoop(Some(flusher)) = &mut self.worker {
            flusher.turn();
        }
    }

    fn reads_notifier(&self, _index: u16) -> bool {
        matches!(self.worker, Worker::Thread(_))
    }

    fn metrics(&self) -> Arc<dyn Metrics> {
        self.target.metrics.clone()
    }

    fn state(&self) -> PmemState {
        let failed = self.target.failed.load(Ordering::Relaxed);
        PmemState { start: self.start.0, size: self.file.size, failed }
    }
}
