//! The device, as the transport has it; its work is done on the disk's thread.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;

use super::super::mailbox::{CallError, DEADLINE, DeviceThread};
use super::super::rate_limit::{Allowance, RateLimitState, RateLimits};
use super::super::{ActivateError, Activation, Queue, StopError, VirtioDevice, VirtioInterrupt};
use super::config;
use super::disk::{Disk, DiskId};
use super::engine::Engine;
#[cfg(any(test, fuzzing))]
use super::engine::stalled::{Stalled, Valve};
use super::metrics::BlockMetrics;
use super::thread::{Answer, Command, DiskThread};
use super::worker::Host;
use crate::metrics::Metrics;

const QUEUE_SIZES: [u16; 1] = [256];

/// The saved state of a block device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockState {
    /// The capacity in sectors of 512 bytes.
    pub sectors: u64,
    /// Whether the guest may only read.
    pub read_only: bool,
    /// The capacity changed while the device was suspended, so that the driver was not interrupted for it.
    pub resized: bool,
    /// How full the buckets of the rate limit are.
    pub limits: RateLimitState,
}

/// A block device.
pub struct Block {
    thread: DeviceThread<Command, Answer>,
    disk: Arc<Disk>,
    /// The driver was told that it may only read.
    read_only: bool,
    /// Disks may be put into it and taken out.
    is_slot: bool,
    /// It stays through resets: a guest must not get a full bucket by a reset.
    allowance: Allowance,
    /// Of the driver that works with the device.
    interrupt: Option<Arc<dyn VirtioInterrupt>>,
    is_suspended: bool,
    resized: bool,
    metrics: Arc<BlockMetrics>,
}

impl Block {
    /// Makes a device of `disk`, which tells the guest the serial number `id`, and starts its thread. Data that is
    /// read, written or zeroed counts for the bandwidth of `limits`, each request for their operations.
    ///
    /// # Errors
    ///
    /// The process has no file descriptor or no thread left.
    pub fn new(disk: Disk, id: DiskId, limits: RateLimits) -> io::Result<Self> {
        let engine = Engine::open();
        Self::with_engine(disk, id, limits, engine, DEADLINE)
    }

    /// Makes a device whose disk can be taken out, and another one put in, see
    /// [`BlockHandle::insert`](super::BlockHandle::insert). Without a `disk` it has no sector, and every request fails
    /// (5.2). The driver may write, as far as its disk allows.
    ///
    /// # Errors
    ///
    /// The process has no file descriptor or no thread left.
    pub fn slot(disk: Option<Disk>) -> io::Result<Self> {
        Self::slot_with_engine(disk, Engine::open(), DEADLINE)
    }

    /// The same with `engine`, and with another deadline for the thread's answers.
    pub(super) fn slot_with_engine(
        disk: Option<Disk>,
        engine: Engine,
        deadline: Duration,
    ) -> io::Result<Self> {
        let (id, limits) = (DiskId::default(), RateLimits::default());
        let disk = disk.unwrap_or_else(Disk::empty);
        let block = Self::with_engine(disk, id, limits, engine, deadline)?;
        Ok(Self { read_only: false, is_slot: true, ..block })
    }

    /// A slot whose disks carry nothing out while `valve` is closed, as [`stalled`](Self::stalled).
    ///
    /// # Errors
    ///
    /// The process has no file descriptor or no thread left.
    #[cfg(any(test, fuzzing))]
    pub fn stalled_slot(valve: &Valve, blocks: bool, deadline: Duration) -> io::Result<Self> {
        Self::slot_with_engine(None, Engine::Stalled(Stalled::new(valve.clone(), blocks)), deadline)
    }

    /// A device of a disk that carries nothing out while `valve` is closed, and whose thread, if it `blocks`, is stuck
    /// meanwhile as in a system call. The thread has to answer within `deadline`.
    ///
    /// # Errors
    ///
    /// The process has no file descriptor or no thread left.
    #[cfg(any(test, fuzzing))]
    pub fn stalled(disk: Disk, valve: &Valve, blocks: bool, deadline: Duration) -> io::Result<Self> {
        let engine = Engine::Stalled(Stalled::new(valve.clone(), blocks));
        Self::with_engine(disk, DiskId::default(), RateLimits::default(), engine, deadline)
    }

    /// The same with `engine`, and with another deadline for the thread's answers.
    pub(super) fn with_engine(
        disk: Disk,
        id: DiskId,
        limits: RateLimits,
        engine: Engine,
        deadline: Duration,
    ) -> io::Result<Self> {
        let read_only = disk.read_only;
        let (disk, metrics) = (Arc::new(disk), Arc::<BlockMetrics>::default());
        let allowance = Allowance::new(limits);
        let limiter = allowance.limiter()?;
        let host = Host { disk: Arc::clone(&disk), id, engine, limiter, metrics: Arc::clone(&metrics) };
        let run = |mailbox| DiskThread::run(mailbox, host);
        let thread = DeviceThread::with_deadline("block", deadline, run)?;
        Ok(Self {
            thread,
            disk,
            read_only,
            is_slot: false,
            allowance,
            interrupt: None,
            is_suspended: false,
            resized: false,
            metrics,
        })
    }
}

impl Block {
    pub(super) fn disk(&self) -> &Arc<Disk> {
        &self.disk
    }

    /// Changes the capacity, and interrupts the driver for that (5.2.5.1), or will when the device is resumed.
    pub(super) fn set_sectors(&mut self, sectors: u64) {
        if self.disk.set_sectors(sectors) {
            self.tell_size();
        }
    }

    fn tell_size(&mut self) {
        match &self.interrupt {
            Some(interrupt) => interrupt.config_changed(&config::space(&self.disk, self.read_only)),
            None => self.resized = self.is_suspended,
        }
    }

    /// Whether disks may be put into it.
    pub(super) fn is_slot(&self) -> bool {
        self.is_slot
    }

    /// Has the device work on `disk` once what is in flight on the one before is answered. Its capacity is told to the
    /// driver.
    ///
    /// # Errors
    ///
    /// The thread has not done it by its deadline: the device goes on with the disk that it had.
    pub(super) fn set_disk(&mut self, disk: Disk) -> Result<(), StopError> {
        let (disk, before) = (Arc::new(disk), self.disk.sectors());
        // First, so that nothing more is started on it.
        if disk.is_empty() {
            self.set_sectors(0);
        }
        match self.thread.call(Command::Replace(Arc::clone(&disk))) {
            // The old one is closed here, and not by the thread later.
            Ok(Answer::Replaced(_)) => {
                let had = self.disk.sectors();
                self.disk = disk;
                if self.disk.sectors() != had {
                    self.tell_size();
                }
                Ok(())
            }
            failed => {
                let error = failed.err().unwrap_or(CallError::Ended);
                if matches!(error, CallError::NotAnswered(_)) {
                    let _ = self.thread.call(Command::Continue);
                }
                self.set_sectors(before);
                Err(error.into())
            }
        }
    }
}

impl VirtioDevice for Block {
    type State = BlockState;

    fn device_type(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn features(&self) -> u64 {
        config::features(self.read_only)
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn config_space(&self) -> Vec<u8> {
        config::space(&self.disk, self.read_only).to_vec()
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let interrupt = Arc::clone(&activation.interrupt);
        match self.thread.call(Command::Activate(Box::new(activation)))? {
            Answer::Refused(error) => Err(error),
            Answer::Done | Answer::Suspended(_) | Answer::Replaced(_) => {
                self.interrupt = Some(interrupt);
                Ok(())
            }
        }
    }

    fn reset(&mut self) -> Result<(), StopError> {
        self.interrupt = None;
        self.resized = false;
        self.thread.call(Command::Reset)?;
        Ok(())
    }

    fn suspend(&mut self) -> Result<Vec<Option<Queue>>, StopError> {
        match self.thread.call(Command::Suspend) {
            Ok(Answer::Suspended(queue)) => {
                self.interrupt = None;
                self.is_suspended = true;
                Ok(queue.map(|queue| vec![Some(queue)]).unwrap_or_default())
            }
            // A thread answers what it was asked.
            Ok(Answer::Done | Answer::Refused(_) | Answer::Replaced(_)) => Err(CallError::Ended.into()),
            Err(error) => {
                if matches!(error, CallError::NotAnswered(_)) {
                    // It waits for the host's storage and can go on meanwhile. If it does not take this message either,
                    // it goes on when its answer comes too late.
                    let _ = self.thread.call(Command::Continue);
                }
                Err(error.into())
            }
        }
    }

    fn resume(&mut self, activation: Option<Activation>, state: BlockState) -> Result<(), ActivateError> {
        let (sectors, read_only) = (self.disk.sectors(), self.read_only);
        if (state.sectors, state.read_only) != (sectors, read_only) {
            return Err(ActivateError::State(format!(
                "the disk had {} sectors (read-only: {}) and has {sectors} (read-only: {read_only})",
                state.sectors, state.read_only
            )));
        }
        self.allowance.restore(&state.limits);
        self.resized = state.resized;
        self.is_suspended = false;
        if let Some(activation) = activation {
            self.activate(activation)?;
        }
        if let Some(interrupt) = &self.interrupt
            && std::mem::take(&mut self.resized)
        {
            interrupt.config_changed(&config::space(&self.disk, self.read_only));
        }
        Ok(())
    }

    fn end(&mut self) {
        self.thread.close();
    }

    fn state(&self) -> BlockState {
        BlockState {
            sectors: self.disk.sectors(),
            read_only: self.read_only,
            resized: self.resized,
            limits: self.allowance.state(),
        }
    }

    /// The thread reads the notifier.
    fn queue_notified(&mut self, _index: u16) {}

    fn reads_notifier(&self, _index: u16) -> bool {
        true
    }

    fn metrics(&self) -> Arc<dyn Metrics> {
        self.metrics.clone()
    }
}
