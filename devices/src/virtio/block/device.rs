//! The device: from chains in the queue to I/O and back.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::{io, iter};

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::super::events::drain;
use super::super::rate_limit::{RateLimiter, RateLimits};
use super::super::{ActivateError, Activation, Queue, StopError, VirtioDevice};
use super::config;
use super::disk::{Disk, DiskId};
use super::engine::Engine;
use super::metrics::BlockMetrics;
use super::worker::Worker;
use crate::metrics::Metrics;

/// The one queue (5.2.2).
const REQUESTS: u16 = 0;
const QUEUE_SIZES: [u16; 1] = [256];
/// Which of the descriptors that wake the device says that operations completed; the other is the limiter's timer.
const COMPLETIONS: usize = 0;

/// What a snapshot has to know of a block device, so that its disk is recognized.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockState {
    /// The capacity in sectors of 512 bytes.
    pub sectors: u64,
    /// Whether the guest may only read.
    pub read_only: bool,
}

/// How a device gets its engine: the disk's, woken through the eventfd.
type OpenEngine = fn(&Disk, &EventFd) -> Engine;

/// A block device.
pub struct Block {
    // Before the disk: it waits for what is in flight when it is dropped.
    worker: Option<Worker>,
    disk: Disk,
    id: DiskId,
    completions: EventFd,
    open_engine: OpenEngine,
    /// It goes on through resets: a guest must not get a full bucket by a reset.
    limiter: RateLimiter,
    metrics: Arc<BlockMetrics>,
}

impl Block {
    /// Makes a device of `disk`, which tells the guest that it is called `id`. Data that is read, written or zeroed
    /// counts for the bandwidth of `limits`, each request for their operations.
    ///
    /// # Errors
    ///
    /// Those of eventfd and timer creation: the process has no descriptor left.
    pub fn new(disk: Disk, id: DiskId, limits: RateLimits) -> io::Result<Self> {
        Self::with_engine(disk, id, limits, Engine::open)
    }

    pub(super) fn with_engine(
        disk: Disk,
        id: DiskId,
        limits: RateLimits,
        open_engine: OpenEngine,
    ) -> io::Result<Self> {
        let (completions, metrics) = (EventFd::new(EFD_NONBLOCK)?, Arc::default());
        let limiter = RateLimiter::new(limits)?;
        Ok(Self { worker: None, disk, id, completions, open_engine, limiter, metrics })
    }

    fn turn(&mut self) {
        if let Some(worker) = &mut self.worker {
            worker.turn(&self.disk, &self.id, &mut self.limiter);
        }
    }
}

impl VirtioDevice for Block {
    type State = BlockState;

    fn device_type(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn features(&self) -> u64 {
        config::features(&self.disk)
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn config_space(&self) -> Vec<u8> {
        config::space(&self.disk).to_vec()
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let engine = (self.open_engine)(&self.disk, &self.completions);
        self.worker = Some(Worker::new(activation, REQUESTS, engine, self.metrics.clone())?);
        Ok(())
    }

    fn reset(&mut self) -> Result<(), StopError> {
        self.worker = None;
        drain(&self.completions);
        Ok(())
    }

    fn suspend(&mut self) -> Result<Vec<Option<Queue>>, StopError> {
        if self.worker.is_some() { Err(StopError::Unsupported) } else { Ok(Vec::new()) }
    }

    fn resume(&mut self, activation: Option<Activation>, _state: BlockState) -> Result<(), ActivateError> {
        activation.map_or(Ok(()), |activation| self.activate(activation))
    }

    fn queue_notified(&mut self, _index: u16) {
        // While requests wait for the rate limit there is nothing to begin, and completions come by themselves.
        if !self.limiter.is_waiting() {
            self.turn();
        }
    }

    fn wake_fds(&self) -> Vec<RawFd> {
        iter::once(self.completions.as_raw_fd()).chain(self.limiter.timer()).collect()
    }

    fn woken(&mut self, index: usize) {
        match index {
            COMPLETIONS => drain(&self.completions),
            _ => self.limiter.timer_expired(),
        }
        self.turn();
    }

    fn metrics(&self) -> Arc<dyn Metrics> {
        self.metrics.clone()
    }

    fn state(&self) -> BlockState {
        BlockState { sectors: self.disk.sectors, read_only: self.disk.read_only }
    }
}
