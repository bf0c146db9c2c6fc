//! Guest RAM.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use devices::virtio::pmem::{PmemFile, PmemMode};
use rustix::fs::{MemfdFlags, SealFlags, SeekFrom, fcntl_add_seals, memfd_create, seek, sendfile};
use rustix::io::Errno;
use thiserror::Error;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use crate::MemorySize;
use crate::snapshot::Touched;

/// The size and alignment of a transparent huge page.
const HUGE_PAGE: usize = 2 << 20;
/// In how many pieces a file is mapped at the most: each is a mapping of the process's.
const MOST_PIECES: usize = 256;
/// The most bytes of a file that are copied in one go.
const MOST_COPIED: usize = 8 << 20;
/// The name of the file in memory that is the RAM of a VM which shares it, as /proc/PID/maps shows it.
pub const SHARED_MEMORY: &str = "mvm-memory";
/// The size of a page.
pub const PAGE: u64 = 4096;

/// Why guest RAM could not be allocated or filled.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// The host has no address space or no memory for it.
    #[error("cannot reserve {size} of memory for the guest (give a smaller --memory)")]
    Reserve {
        /// What was asked for.
        size: MemorySize,
        /// The host's refusal.
        #[source]
        source: io::Error,
    },
    /// Regions that vm-memory refuses.
    #[error("cannot lay out the guest's memory")]
    Layout(#[source] vm_memory::GuestRegionCollectionError),
    /// A file could not be mapped.
    #[error("cannot map {size} of persistent memory")]
    Map {
        /// Its size.
        size: MemorySize,
        /// The host's refusal.
        #[source]
        source: io::Error,
    },
    /// A part of a file could not be brought into guest RAM.
    #[error("cannot put {length:#x} bytes at guest address {address:#x}")]
    Fill {
        /// Guest physical address.
        address: u64,
        /// Bytes.
        length: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Reserves private anonymous memory for each `(guest address, bytes)` of `regions`.
///
/// Each region starts at a multiple of 2 MiB on the host, so that where guest and host addresses are equally
/// aligned a huge page serves both, and the region asks for huge pages: the fewer the pages, the fewer the
/// faults, and under nested virtualization each of those costs many times over. The mapping lives as long as
/// the process: a process runs one VM, and a device may hold the memory for just as long.
///
/// # Errors
///
/// [`MemoryError::Reserve`] where the host refuses.
pub fn reserve(regions: &[(GuestAddress, u64)]) -> Result<Arc<GuestMemoryMmap>, MemoryError> {
    build(regions, |_| Ok(Backing::Anonymous))
}

/// As [`reserve`], where the memory begins as the content of `file`, in which the regions lie behind each other. What
/// is written stays out of the file. One that becomes shorter ends what reads beyond its end. What is `touched` is
/// there without a fault.
///
/// # Errors
///
/// [`MemoryError::Reserve`] where the host refuses.
pub fn reserve_copy(
    regions: &[(GuestAddress, u64)],
    file: &File,
    touched: &[Touched],
) -> Result<Arc<GuestMemoryMmap>, MemoryError> {
    let mut place = places(file);
    build(regions, |length| Ok(Backing::Copy(place(length)?, touched)))
}

/// As [`reserve`], but of a file without a name (memfd), which other processes can map too. Only for a VM that has a
/// device in another process: huge pages of such a file are a setting of the host
/// (/sys/kernel/mm/transparent_hugepage/shmem_enabled) that is off nearly everywhere.
///
/// # Errors
///
/// [`MemoryError::Reserve`] where the host refuses.
pub fn reserve_shared(regions: &[(GuestAddress, u64)]) -> Result<Arc<GuestMemoryMmap>, MemoryError> {
    let memory = memory_file(regions)?;
    let mut place = places(&memory);
    build(regions, |length| place(length).map(Backing::Shared))
}

/// As [`reserve_shared`], where the memory begins as the content of `file`, in which the regions lie behind each other.
/// What has data there is copied: other processes map this memory, and what they write must not be in the file. What is
/// `touched` is there without a fault.
///
/// # Errors
///
/// [`MemoryError::Reserve`] where the host refuses, or the file can't be read.
pub fn reserve_shared_copy(
    regions: &[(GuestAddress, u64)],
    file: &File,
    touched: &[Touched],
) -> Result<Arc<GuestMemoryMmap>, MemoryError> {
    let memory = memory_file(regions)?;
    copy(file, &memory, total(regions))
        .map_err(|source| MemoryError::Reserve { size: size_of(regions), source })?;
    let mut place = places(&memory);
    build(regions, |length| Ok(Backing::SharedCopy(place(length)?, touched)))
}

/// Bytes of all of them.
fn total(regions: &[(GuestAddress, u64)]) -> u64 {
    regions.iter().map(|(_, length)| length).sum()
}

/// The same as [`MemoryError::Reserve`] has it.
fn size_of(regions: &[(GuestAddress, u64)]) -> MemorySize {
    MemorySize::from_bytes(total(regions))
}

/// What gives each region its place in `file`, in which they lie behind each other, by their lengths in order.
fn places(file: &File) -> impl FnMut(u64) -> io::Result<FileOffset> {
    let mut next = 0;
    move |length| {
        let start = next;
        next += length;
        Ok(FileOffset::new(file.try_clone()?, start))
    }
}

/// What is behind a region of RAM.
enum Backing<'a> {
    /// Memory without a file.
    Anonymous,
    /// A file that other processes map too.
    Shared(FileOffset),
    /// The same, of which these pages are used at once.
    SharedCopy(FileOffset, &'a [Touched]),
    /// A file that it begins as, and that does not change by it.
    Copy(FileOffset, &'a [Touched]),
}

/// Reserves `regions`, each of them backed by what `backing` makes for its length.
fn build<'a>(
    regions: &[(GuestAddress, u64)],
    mut backing: impl FnMut(u64) -> io::Result<Backing<'a>>,
) -> Result<Arc<GuestMemoryMmap>, MemoryError> {
    let size = size_of(regions);
    let regions = regions.iter().map(|(address, length)| {
        let region = backing(*length).and_then(|backing| reserve_region(*address, *length, backing));
        region.map_err(|source| MemoryError::Reserve { size, source })
    });
    let regions = regions.collect::<Result<Vec<_>, _>>()?;
    GuestMemoryMmap::from_regions(regions).map(Arc::new).map_err(MemoryError::Layout)
}

/// A file in memory for `regions`, all holes, in which they lie behind each other. Its length is sealed: a process that
/// shares it could otherwise cut it short, and an access to what is gone would end mvm.
fn memory_file(regions: &[(GuestAddress, u64)]) -> Result<File, MemoryError> {
    let make = || {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = File::from(memfd_create(SHARED_MEMORY, flags)?);
        file.set_len(total(regions))?;
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Ok(file)
    };
    make().map_err(|source| MemoryError::Reserve { size: size_of(regions), source })
}

fn reserve_region(address: GuestAddress, length: u64, backing: Backing<'_>) -> io::Result<GuestRegionMmap> {
    let size = usize::try_from(length).map_err(|_| io::ErrorKind::OutOfMemory)?;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let private = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let start = map_aligned(size, protection, private)?;
    let flags = match &backing {
        Backing::Anonymous => private,
        Backing::Shared(file) | Backing::SharedCopy(file, _) => {
            let kind = libc::MAP_SHARED | libc::MAP_NORESERVE;
            map_over(start, size, (protection, kind), file)?;
            kind
        }
        Backing::Copy(file, _) => {
            let kind = libc::MAP_PRIVATE | libc::MAP_NORESERVE;
            for (from, length) in pieces_with_data(file, size) {
                let place =
                    FileOffset::new(file.file().try_clone()?, file.start().saturating_add(from as u64));
                // SAFETY: the piece is a part of the mapping.
                map_over(unsafe { start.add(from) }, length, (protection, kind), &place)?;
            }
            private
        }
    };
    // The boot structures are in the guest's first 2 MiB, and little else: to clear a huge page for some small ones is
    // a tenth of the time in which a guest starts.
    let small = if address == GuestAddress(0) { size.min(HUGE_PAGE) } else { 0 };
    // SAFETY: the range is a part of a mapping of our own. Without huge pages in the host's kernel the call fails, and
    // nothing depends on it.
    unsafe { libc::madvise(start.add(small).cast(), size - small, libc::MADV_HUGEPAGE) };
    // SAFETY: as above. What a guest keeps stays out of core dumps of mvm.
    unsafe { libc::madvise(start.cast(), size, libc::MADV_DONTDUMP) };
    match &backing {
        Backing::Copy(file, touched) | Backing::SharedCopy(file, touched) => {
            populate(start, size, file.start(), touched);
        }
        Backing::Anonymous | Backing::Shared(_) => {}
    }
    let mut builder = MmapRegionBuilder::new(size).with_mmap_prot(protection).with_mmap_flags(flags);
    if let Backing::Shared(file) | Backing::SharedCopy(file, _) = backing {
        builder = builder.with_file_offset(file);
    }
    // SAFETY: the mapping has `size` bytes and is never unmapped.
    let builder = unsafe { builder.with_raw_mmap_pointer(start) };
    let region = builder.build().map_err(io::Error::other)?;
    GuestRegionMmap::new(region, address).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
}

/// The pieces of a region of `size` bytes that have to be mapped from its file, as it has data there: offset and
/// length, in multiples of [`HUGE_PAGE`]. The rest is memory without a file, which has huge pages: what a guest takes
/// that goes on costs no more than one that boots.
fn pieces_with_data(file: &FileOffset, size: usize) -> Vec<(usize, usize)> {
    let mut pieces: Vec<(usize, usize)> = Vec::new();
    let mut next = 0;
    while next < size {
        let data = match seek(file.file(), SeekFrom::Data(file.start().saturating_add(next as u64))) {
            Ok(data) => data.saturating_sub(file.start()),
            // There is none behind it.
            Err(Errno::NXIO) => break,
            // The file system does not say where it is.
            Err(_) => next as u64,
        };
        let Some(from) = usize::try_from(data).ok().filter(|from| *from < size) else { break };
        let from = from / HUGE_PAGE * HUGE_PAGE;
        next = size.min(from.saturating_add(HUGE_PAGE));
        match pieces.last_mut() {
            Some((before, length)) if before.saturating_add(*length) == from => *length += next - from,
            _ => pieces.push((from, next - from)),
        }
    }
    if pieces.len() > MOST_PIECES { vec![(0, size)] } else { pieces }
}

/// Makes the pages of what is `touched` and lies in the `size` bytes at `start`, which are those at `place` of a file.
fn populate(start: *mut u8, size: usize, place: u64, touched: &[Touched]) {
    for Touched { place: from, bytes, is_written } in touched {
        let from = from.checked_sub(place).and_then(|from| usize::try_from(from).ok());
        let Some((from, room)) = from.and_then(|from| Some((from, size.checked_sub(from)?))) else {
            continue;
        };
        let bytes = usize::try_from(*bytes).unwrap_or(usize::MAX).min(room);
        let advice = if *is_written { libc::MADV_POPULATE_WRITE } else { libc::MADV_POPULATE_READ };
        // SAFETY: the piece is a part of a mapping of our own. A kernel that does not know this, or has no memory,
        // makes the pages when they are used.
        unsafe { libc::madvise(start.add(from).cast(), bytes, advice) };
    }
}

/// Copies what has data in the first `size` bytes of `file` to the same places of `memory`, which is all holes. The kernel
/// copies it, without a mapping: that makes no page twice, of which most are not used.
fn copy(file: &File, memory: &File, size: u64) -> io::Result<()> {
    let mut next = 0;
    while next < size {
        let mut from = match seek(file, SeekFrom::Data(next)) {
            Ok(data) => data,
            // There is none behind it.
            Err(Errno::NXIO) => break,
            // The file system does not say where it is.
            Err(_) => next,
        };
        let end = seek(file, SeekFrom::Hole(from)).unwrap_or(size).min(size);
        seek(memory, SeekFrom::Start(from))?;
        while from < end {
            let most = usize::try_from(end - from).unwrap_or(MOST_COPIED).min(MOST_COPIED);
            if sendfile(memory, file, Some(&mut from), most)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        next = end;
    }
    Ok(())
}

/// Maps `size` bytes of `file` in place of the `size` bytes that were reserved at `start`.
fn map_over(
    start: *mut u8,
    size: usize,
    (protection, flags): (i32, i32),
    file: &FileOffset,
) -> io::Result<()> {
    let (fd, offset) = (file.file().as_raw_fd(), file.start());
    let offset = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the range is a mapping that was just made and has no other user.
    let mapping = unsafe { libc::mmap(start.cast(), size, protection, flags | libc::MAP_FIXED, fd, offset) };
    if mapping == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Maps `size` bytes at a multiple of [`HUGE_PAGE`].
fn map_aligned(size: usize, protection: i32, flags: i32) -> io::Result<*mut u8> {
    let padded = size.checked_add(HUGE_PAGE).ok_or(io::ErrorKind::OutOfMemory)?;
    // SAFETY: a new anonymous mapping at an address of the kernel's choice touches nothing that exists.
    let mapping = unsafe { libc::mmap(std::ptr::null_mut(), padded, protection, flags, -1, 0) };
    if mapping == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let head = mapping.cast::<u8>().align_offset(HUGE_PAGE);
    let tail = HUGE_PAGE - head;
    // SAFETY: `head` and `tail` are what the mapping just made has before the aligned start and behind the
    // `size` bytes from there on, and it has no other user yet.
    unsafe {
        let start = mapping.cast::<u8>().add(head);
        if head > 0 {
            libc::munmap(mapping, head);
        }
        libc::munmap(start.add(size).cast(), tail);
        Ok(start)
    }
}

/// Maps the whole of `file`, to be at `address` in the guest's physical memory.
///
/// If it is writable, a page for which the file's storage has no room cannot be allocated, nor can a page that
/// somebody cuts off the file. To touch such a page is a signal's death for mvm, an error for a system call, and for
/// KVM_RUN an error or no end: so nothing here touches a page of the mapping. As guest RAM, it lives as long as the
/// process.
///
/// # Errors
///
/// [`MemoryError::Map`] where the host refuses.
pub fn map_file(address: GuestAddress, file: &PmemFile) -> Result<GuestRegionMmap, MemoryError> {
    map_file_region(address, file)
        .map_err(|source| MemoryError::Map { size: MemorySize::from_bytes(file.size()), source })
}

fn map_file_region(address: GuestAddress, file: &PmemFile) -> io::Result<GuestRegionMmap> {
    let size = usize::try_from(file.size()).map_err(|_| io::ErrorKind::OutOfMemory)?;
    let (protection, kind) = match file.mode() {
        PmemMode::Shared => (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED),
        PmemMode::ReadOnly => (libc::PROT_READ, libc::MAP_SHARED),
        PmemMode::CopyOnWrite => (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE),
    };
    let flags = kind | libc::MAP_NORESERVE;
    // Where guest and host addresses are equally aligned, a huge page can serve both.
    let start =
        map_aligned(size, libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE)?;
    // SAFETY: the file takes the place of the mapping just made, which has no other user.
    let mapping = unsafe {
        libc::mmap(start.cast(), size, protection, flags | libc::MAP_FIXED, file.file().as_raw_fd(), 0)
    };
    if mapping == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the mapping has `size` bytes and is never unmapped.
    let region = unsafe { MmapRegion::build_raw(start, size, protection, flags) };
    let region = region.map_err(io::Error::other)?;
    GuestRegionMmap::new(region, address).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
}

/// Reads `length` bytes of `file` from `offset` on into guest RAM at `address`.
///
/// A mapping of the file would not copy, but serves a kernel badly: its pages are small ones in the middle of huge
/// ones, each costs a fault in guest and host, and as a kernel patches itself when it starts, nearly all of them are
/// copied in the end and none stays shared.
///
/// # Errors
///
/// [`MemoryError::Fill`] where the range is not in guest RAM or the file is shorter or can't be read.
pub fn read_file(
    memory: &GuestMemoryMmap,
    address: GuestAddress,
    file: &File,
    offset: u64,
    length: u64,
) -> Result<(), MemoryError> {
    use std::io::{Seek, SeekFrom};

    let error = |source| MemoryError::Fill { address: address.0, length, source };
    if length == 0 {
        return Ok(());
    }
    let size = usize::try_from(length).map_err(|other| error(io::Error::other(other)))?;
    let mut reader = file;
    reader.seek(SeekFrom::Start(offset)).map_err(error)?;
    memory
        .read_exact_volatile_from(address, &mut reader, size)
        .map_err(|other| error(io::Error::other(other)))
}

#[cfg(test)]
#[path = "memory_tests.rs"]
mod tests;
