//! Putting disks into a device and taking them out while a guest uses it.

use std::sync::Arc;

use thiserror::Error;

use super::super::StopError;
use super::disk::Disk;
use super::resize::BlockHandle;
use crate::lock;

/// Why a disk could not be put into a slot, or taken out.
#[derive(Debug, Error)]
pub enum SlotError {
    /// Its disk is its own.
    #[error("it is no slot: its disk stays for as long as the VM")]
    NoSlot,
    /// There is a disk.
    #[error("there is a disk in it: take that out first")]
    Taken,
    /// A disk that a driver would not notice, as the size of its blocks is told once.
    #[error("the disk has blocks of {0} bytes, and a slot takes disks with blocks of 512")]
    BlockSize(u32),
    /// What is in flight does not end.
    #[error("the disk is busy")]
    Busy(#[source] StopError),
}

impl BlockHandle {
    /// Puts `disk` into the slot, and tells the driver its capacity.
    ///
    /// # Errors
    ///
    /// [`SlotError`]; the slot is as it was.
    pub fn insert(&self, disk: Disk) -> Result<(), SlotError> {
        let mut block = lock(&self.0);
        if !block.is_slot() {
            return Err(SlotError::NoSlot);
        }
        if !block.disk().is_empty() {
            return Err(SlotError::Taken);
        }
        if disk.block_size != 512 {
            return Err(SlotError::BlockSize(disk.block_size));
        }
        block.set_disk(disk).map_err(SlotError::Busy)
    }

    /// Takes the disk out of the slot, if there is one: tells the driver that it has no sector any more, waits for what
    /// is in flight, and closes the files. It waits for the host's storage, 5 s at most.
    ///
    /// # Errors
    ///
    /// [`SlotError`]; the disk is still there.
    pub fn eject(&self) -> Result<(), SlotError> {
        let mut block = lock(&self.0);
        if !block.is_slot() {
            return Err(SlotError::NoSlot);
        }
        if block.disk().is_empty() {
            return Ok(());
        }
        block.set_disk(Disk::empty()).map_err(SlotError::Busy)
    }

    /// Whether there is a disk.
    pub fn has_disk(&self) -> bool {
        let disk = Arc::clone(lock(&self.0).disk());
        !disk.is_empty()
    }
}
