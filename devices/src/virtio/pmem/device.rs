//! The device: where the memory is, and the queue for flushes.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_PMEM;
use vm_memory::GuestAddress;

use super::super::queue::ActiveQueue;
use super::super::{ActivateError, Activation, Queue, StopError, VirtioDevice};
use super::file::{PmemFile, PmemMode};
use super::flusher::{FlushThread, Flusher};
use crate::metrics::Metrics;

/// The requests queue (5.19.2).
const REQUESTS: u16 = 0;
const QUEUE_SIZES: [u16; 1] = [64];

/// What a snapshot has to know of persistent memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PmemState {
    /// The guest physical address.
    pub start: u64,
    /// The size in bytes.
    pub size: u64,
}

crate::metrics! {
    /// What persistent memory counts.
    pub struct PmemMetrics {
        /// Flushes that were done.
        flush_operations,
        /// Requests answered with an error.
        failed_operations,
    }
}

/// Who answers requests.
enum Worker {
    /// The event loop, as there is nothing to wait for.
    Here(Flusher),
    /// A thread, held to stop it.
    There(#[expect(dead_code, reason = "it is there to be dropped")] FlushThread),
}

/// Persistent memory, which the vmm has put at its address.
pub struct Pmem {
    worker: Option<Worker>,
    pub(super) file: PmemFile,
    start: GuestAddress,
    failed: Arc<AtomicBool>,
    metrics: Arc<PmemMetrics>,
}

impl Pmem {
    /// Makes the device of `file`, which is mapped at `start` in the guest's physical memory.
    pub fn new(file: PmemFile, start: GuestAddress) -> Self {
        Self { worker: None, file, start, failed: Arc::default(), metrics: Arc::default() }
    }

    /// Whether what the guest writes gets to the file.
    fn writes_through(&self) -> bool {
        self.file.mode == PmemMode::Shared
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

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let flusher = Flusher {
            queue: ActiveQueue::take(&mut activation, REQUESTS)?,
            file: self.writes_through().then(|| self.file.file.clone()),
            failed: self.failed.clone(),
            metrics: self.metrics.clone(),
        };
        self.worker = Some(match activation.notifiers.first() {
            Some(notifier) if self.reads_notifier(REQUESTS) => {
                let notifier = notifier.try_clone().map_err(ActivateError::Host)?;
                Worker::There(FlushThread::start(flusher, notifier).map_err(ActivateError::Host)?)
            }
            _ => Worker::Here(flusher),
        });
        Ok(())
    }

    fn reset(&mut self) -> Result<(), StopError> {
        self.worker = None;
        Ok(())
    }

    fn suspend(&mut self) -> Result<Vec<Option<Queue>>, StopError> {
        if self.worker.is_some() { Err(StopError::Unsupported) } else { Ok(Vec::new()) }
    }

    fn resume(&mut self, activation: Option<Activation>, _state: PmemState) -> Result<(), ActivateError> {
        activation.map_or(Ok(()), |activation| self.activate(activation))
    }

    fn queue_notified(&mut self, _index: u16) {
        if let Some(Worker::Here(flusher)) = &mut self.worker {
            flusher.turn();
        }
    }

    fn reads_notifier(&self, _index: u16) -> bool {
        self.writes_through()
    }

    fn metrics(&self) -> Arc<dyn Metrics> {
        self.metrics.clone()
    }

    fn state(&self) -> PmemState {
        PmemState { start: self.start.0, size: self.file.size }
    }
}
