//! The block device (VIRTIO 1.2, section 5.2): a file or a block device of the host as the guest's disk.
//!
//! Each disk has a thread (`thread`), which works on the queue (`worker`) and waits for the host's storage
//! (`engine`).

mod config;
mod device;
mod disk;
mod engine;
mod format;
mod metrics;
mod request;
mod resize;
mod slot;
#[cfg(test)]
mod tests;
mod thread;
mod transfer;
mod worker;

pub use self::device::{Block, BlockState};
pub use self::disk::{Disk, DiskError, DiskId, DiskIdError, MAX_PARTS, Part, Piece};
#[cfg(any(test, fuzzing))]
pub use self::engine::stalled::Valve;
pub use self::format::ImageFormat;
pub use self::resize::{BlockHandle, ResizeError, WeakBlockHandle};
pub use self::slot::SlotError;
