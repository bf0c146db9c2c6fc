//! Changing the size of a disk while a guest uses it.

use std::io;
use std::sync::{Arc, Mutex, Weak};

use thiserror::Error;

use super::device::Block;
use super::disk::{Disk, SECTOR};
use crate::lock;

/// Why a disk could not be resized.
#[derive(Debug, Error)]
pub enum ResizeError {
    /// The guest only reads the disk, and so does mvm.
    #[error("it is read-only: change the size of the file yourself, then resize without a size")]
    ReadOnly,
    /// There is no disk.
    #[error("there is no disk in it")]
    Empty,
    /// The size of a block device is not mvm's to change.
    #[error("it is a block device: change its size with the host's tools, then resize without a size")]
    BlockDevice,
    /// Not whole sectors, or none.
    #[error("a size of {0} bytes is not a positive multiple of 512")]
    Unaligned(u64),
    /// Data would be lost, and that was not asked for.
    #[error(
        "it has {now} bytes, and the data beyond {asked} would be lost: allow that with --shrink (\"shrink\": true)"
    )]
    Shrinks {
        /// The size now, in bytes.
        now: u64,
        /// The size that was asked for.
        asked: u64,
    },
    /// The host refuses.
    #[error("cannot change its size")]
    Host(#[source] io::Error),
}

/// What changes the size of a disk while the VM runs. Any thread may use it.
#[derive(Clone)]
pub struct BlockHandle(pub(super) Arc<Mutex<Block>>);

/// A handle on a device that may be gone.
#[derive(Clone)]
pub struct WeakBlockHandle(Weak<Mutex<Block>>);

impl WeakBlockHandle {
    /// A handle on the device, if there still is one.
    pub fn upgrade(&self) -> Option<BlockHandle> {
        self.0.upgrade().map(BlockHandle)
    }
}

impl BlockHandle {
    /// A handle on `block`.
    pub fn new(block: Arc<Mutex<Block>>) -> Self {
        Self(block)
    }

    /// The same for who may outlive the VM: it does not keep the device.
    pub fn downgrade(&self) -> WeakBlockHandle {
        WeakBlockHandle(Arc::downgrade(&self.0))
    }

    /// The size in bytes that the guest sees.
    pub fn size(&self) -> u64 {
        lock(&self.0).disk().size()
    }

    /// Whether the guest may only read the disk.
    pub fn is_read_only(&self) -> bool {
        lock(&self.0).disk().is_read_only()
    }

    /// Makes the file `size` bytes long, if a size is given, and tells the guest the size that the file or block device
    /// has then, which is returned. It becomes smaller only with `may_shrink`. It waits for the host's storage.
    ///
    /// # Errors
    ///
    /// [`ResizeError`]; the disk keeps its size.
    pub fn resize(&self, size: Option<u64>, may_shrink: bool) -> Result<u64, ResizeError> {
        // Not under the lock, which vCPUs may wait for.
        let disk = Arc::clone(lock(&self.0).disk());
        let now = disk.size();
        let size = match size {
            None => disk.measure().map_err(ResizeError::Host)?,
            Some(size) => {
                check(&disk, size)?;
                size
            }
        };
        let size = size / SECTOR * SECTOR;
        if size < now && !may_shrink {
            return Err(ResizeError::Shrinks { now, asked: size });
        }
        if size < now {
            // First, so that no request is taken for what is cut off. One that is under way may still land there.
            lock(&self.0).set_sectors(size / SECTOR);
        }
        if let Err(error) = disk.set_length(size) {
            lock(&self.0).set_sectors(now / SECTOR);
            return Err(ResizeError::Host(error));
        }
        lock(&self.0).set_sectors(size / SECTOR);
        Ok(size)
    }
}

/// Whether mvm can give `disk` that size.
fn check(disk: &Disk, size: u64) -> Result<(), ResizeError> {
    if disk.is_empty() {
        Err(ResizeError::Empty)
    } else if disk.is_block_device() {
        Err(ResizeError::BlockDevice)
    } else if disk.is_read_only() {
        Err(ResizeError::ReadOnly)
    } else if size == 0 || !size.is_multiple_of(SECTOR) {
        Err(ResizeError::Unaligned(size))
    } else {
        Ok(())
    }
}
