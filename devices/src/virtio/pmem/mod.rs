//! Persistent memory (VIRTIO 1.2, section 5.19): a file of the host in the guest's physical memory.
//!
//! The guest reads and writes the file's pages in the host's page cache, without a copy in its own RAM. The device only
//! says where the memory is, and flushes it.

mod device;
mod file;
mod flusher;
#[cfg(test)]
mod tests;

pub use self::device::{Pmem, PmemMetrics, PmemState};
pub use self::file::{PMEM_ALIGNMENT, PmemError, PmemFile, PmemMode};
