//! Files in the guest's physical memory.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use devices::virtio::pmem::PmemFile;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use rustix::fs::{FileType, fstat, inotify};
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap};

use crate::MemorySize;
use crate::arch::current::layout;
use crate::exit::{ExitReason, ExitSlot};
use crate::memory::{self, MemoryError};

/// The persistent memory of a VM, mapped and placed.
pub struct PersistentMemory {
    /// Where each file is.
    pub regions: Vec<Arc<GuestRegionMmap>>,
    /// RAM and the files: where the data of a request to a device may lie.
    pub dma: Arc<GuestMemoryMmap>,
}

/// Maps `files` and places them behind `ram`.
///
/// # Errors
///
/// [`MemoryError`] where the host or the address space has no room for them.
pub fn place(files: &[&PmemFile], ram: &Arc<GuestMemoryMmap>) -> Result<PersistentMemory, MemoryError> {
    let ram_size = ram.iter().map(GuestMemoryRegion::len).sum();
    let sizes = files.iter().map(|file| file.size());
    let addresses = layout::pmem_addresses(ram_size, sizes.clone()).ok_or_else(|| MemoryError::Map {
        size: MemorySize::from_bytes(sizes.fold(0, u64::saturating_add)),
        source: io::ErrorKind::OutOfMemory.into(),
    })?;
    let mut dma = Arc::clone(ram);
    let mut regions = Vec::new();
    for (file, address) in files.iter().zip(addresses) {
        let region = Arc::new(memory::map_file(address, file)?);
        dma = Arc::new(dma.insert_region(region.clone()).map_err(MemoryError::Layout)?);
        regions.push(region);
    }
    Ok(PersistentMemory { regions, dma })
}

/// Ends the VM when one of its files is truncated. A vCPU that used a page which is gone would not come to an
/// end: KVM tries again and again to get it.
pub struct LengthWatcher {
    watch: LengthWatch,
    exit: Arc<ExitSlot>,
}

/// What watches files of persistent memory, while there is no VM yet.
pub struct LengthWatch {
    changes: OwnedFd,
    /// Each file and the size that it is mapped with.
    files: Vec<(File, u64)>,
}

impl LengthWatch {
    /// Watches `files`.
    ///
    /// # Errors
    ///
    /// Those of making an inotify instance or of duplicating a descriptor: the process has no descriptor left.
    pub fn open(files: &[&PmemFile]) -> io::Result<Self> {
        let changes = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
        let files = files
            .iter()
            .map(|file| Ok((file.file().try_clone()?, file.size())))
            .collect::<io::Result<Vec<_>>>()?;
        for (file, _) in &files {
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            if let Err(error) = inotify::add_watch(&changes, path, inotify::WatchFlags::MODIFY) {
                tracing::warn!(%error, "cannot watch a file of --pmem: the VM will not end if it is truncated");
            }
        }
        Ok(Self { changes, files })
    }

    /// Ends the VM by `exit` from now on.
    pub fn end_by(self, exit: Arc<ExitSlot>) -> LengthWatcher {
        LengthWatcher { watch: self, exit }
    }
}

impl MutEventSubscriber for LengthWatcher {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(Events::new(&self.watch.changes, EventSet::IN)) {
            tracing::error!(%error, "cannot watch the files of --pmem: the VM will not end if one is truncated");
        }
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {
        // What happened does not matter, only what the files are now. It fails only where nothing happened.
        let _ = rustix::io::read(&self.watch.changes, &mut [0; 4096]);
        let shorter = |(file, size): &(File, u64)| {
            // Where File::metadata would be statx(2), which takes any path.
            fstat(file).is_ok_and(|file| {
                FileType::from_raw_mode(file.st_mode).is_file()
                    && u64::try_from(file.st_size).is_ok_and(|length| length < *size)
            })
        };
        if self.watch.files.iter().any(shorter) {
            self.exit.end(ExitReason::MemoryCutOff);
        }
    }
}
