//! Files in the guest's physical memory.

use std::sync::Arc;

use devices::virtio::pmem::PmemFile;
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap};

use crate::arch::current::layout;
use crate::memory::{self, MemoryError};
use crate::vm::VmError;
use crate::{MemorySize, VmConfig};

/// The persistent memory of a VM, mapped and placed.
pub struct PersistentMemory {
    /// Each file and where it is.
    pub files: Vec<(PmemFile, Arc<GuestRegionMmap>)>,
    /// RAM and the files: where the data of a request to a device may lie.
    pub dma: Arc<GuestMemoryMmap>,
}

/// Opens and locks the files of `config`.
///
/// # Errors
///
/// [`VmError::Pmem`], which names the file and says what to do.
pub fn open(config: &VmConfig) -> Result<Vec<PmemFile>, VmError> {
    config.pmem.iter().map(|pmem| Ok(PmemFile::open(&pmem.path, pmem.mode)?)).collect()
}

/// Maps `files` and places them behind `ram`.
///
/// # Errors
///
/// [`MemoryError`] where the host or the address space has no room for them.
pub fn place(files: Vec<PmemFile>, ram: &Arc<GuestMemoryMmap>) -> Result<PersistentMemory, MemoryError> {
    let ram_size = ram.iter().map(GuestMemoryRegion::len).sum();
    let sizes = files.iter().map(PmemFile::size);
    let addresses = layout::pmem_addresses(ram_size, sizes.clone()).ok_or_else(|| MemoryError::Map {
        size: MemorySize::from_bytes(sizes.fold(0, u64::saturating_add)),
        source: std::io::ErrorKind::OutOfMemory.into(),
    })?;
    let mut dma = Arc::clone(ram);
    let mut placed = Vec::new();
    for (file, address) in files.into_iter().zip(addresses) {
        let region = Arc::new(memory::map_file(address, &file)?);
        dma = Arc::new(dma.insert_region(region.clone()).map_err(MemoryError::Layout)?);
        placed.push((file, region));
    }
    Ok(PersistentMemory { files: placed, dma })
}
