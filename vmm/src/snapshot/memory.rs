//! A VM's RAM as a sparse file: its regions behind each other, without the pages that are all zeros.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::RawFd;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap};

use super::SnapshotError;

const PAGE: usize = 4096;
/// What pages are compared with: to look at each byte takes fifty times as long, while the VM stands still.
const ZEROS: [u8; PAGE] = [0; PAGE];
/// How many bytes are looked at between two questions whether to go on.
const PIECE: usize = 1 << 20;

/// A part of the RAM, and where it is in the file.
pub(super) struct Extent {
    start: *const u8,
    bytes: usize,
    place: u64,
}

/// The regions of `memory`, for which `file` gets its length.
pub(super) fn extents(memory: &GuestMemoryMmap, file: &File) -> io::Result<Vec<Extent>> {
    let (mut place, mut extents) = (0, Vec::new());
    for region in memory.iter() {
        let bytes = usize::try_from(region.len()).map_err(|_| io::ErrorKind::OutOfMemory)?;
        for Range { start: from, end } in parts_with_data(region, bytes) {
            // SAFETY: it is in the region.
            let start = unsafe { region.as_ptr().add(from) };
            extents.push(Extent { start, bytes: end - from, place: place + from as u64 });
        }
        place += region.len();
    }
    file.set_len(place)?;
    Ok(extents)
}

/// The parts of a region of so many bytes in which something may be. To read what its file has not, where it has one,
/// would make pages of zeros.
fn parts_with_data(region: &GuestRegionMmap, bytes: usize) -> Vec<Range<usize>> {
    let Some(file) = region.file_offset() else { return vec![Range { start: 0, end: bytes }] };
    let place = |offset: usize| file.start().saturating_add(offset as u64);
    let offset = |place: u64| usize::try_from(place.saturating_sub(file.start())).unwrap_or(bytes).min(bytes);
    let (mut parts, mut next) = (Vec::new(), 0);
    while next < bytes {
        let start = match seek(file.file(), SeekFrom::Data(place(next))) {
            Ok(data) => offset(data),
            Err(Errno::NXIO) => break,
            // The file system does not say where it is.
            Err(_) => next,
        };
        let end = seek(file.file(), SeekFrom::Hole(place(start))).map_or(bytes, offset);
        if end <= start {
            break;
        }
        parts.push(Range { start, end });
        next = end;
    }
    parts
}

/// Writes all of `extents` to `file`, which is empty, as long as `goes_on` says so. It takes no memory and no lock.
/// Returns the number of the error (errno(3)) where there is one.
///
/// # Safety
///
/// The regions are mapped, and no thread or process changes them.
pub(super) unsafe fn write(extents: &[Extent], file: RawFd, goes_on: impl Fn() -> bool) -> Result<(), i32> {
    for Extent { start, bytes, place } in extents {
        for from in (0..*bytes).step_by(PIECE) {
            if !goes_on() {
                return Err(libc::ECANCELED);
            }
            let count = PIECE.min(*bytes - from);
            // SAFETY: it is a part of a region.
            let piece = unsafe { std::slice::from_raw_parts(start.add(from), count) };
            write_piece(piece, file, *place + from as u64)?;
        }
    }
    Ok(())
}

/// Writes the pages of `piece` that are not all zeros, those that follow each other in one call.
fn write_piece(piece: &[u8], file: RawFd, place: u64) -> Result<(), i32> {
    let page = |at: usize| piece.get(at..piece.len().min(at + PAGE)).unwrap_or_default();
    let mut from = 0;
    while from < piece.len() {
        if ZEROS.starts_with(page(from)) {
            from += PAGE;
            continue;
        }
        let mut end = from + PAGE;
        while end < piece.len() && !ZEROS.starts_with(page(end)) {
            end += PAGE;
        }
        let end = end.min(piece.len());
        while from < end {
            let run = piece.get(from..end).unwrap_or_default();
            let offset = libc::off_t::try_from(place + from as u64).map_err(|_| libc::EFBIG)?;
            // SAFETY: `run` is memory of this process.
            match unsafe { libc::pwrite(file, run.as_ptr().cast(), run.len(), offset) } {
                0 => return Err(libc::ENOSPC),
                count if count > 0 => from += count.cast_unsigned(),
                _ => match io::Error::last_os_error().raw_os_error() {
                    Some(libc::EINTR) => {}
                    code => return Err(code.unwrap_or(libc::EIO)),
                },
            }
        }
    }
    Ok(())
}

/// Checks that `file` has `length` bytes.
///
/// # Errors
///
/// [`SnapshotError`]: it has not, or can't be looked at.
pub fn check_length(file: &File, length: u64) -> Result<(), SnapshotError> {
    let metadata = file.metadata().map_err(|source| SnapshotError::Memory { doing: "read", source })?;
    if metadata.len() == length {
        return Ok(());
    }
    let found = metadata.len();
    Err(SnapshotError::Invalid(format!(
        "the file of its memory has {found} bytes, and not {length}: it was cut off or is another one's"
    )))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::{FileExt, MetadataExt};

    use proptest::prelude::*;
    use vm_memory::{Bytes, GuestAddress};

    use super::*;

    proptest! {
        // Each has some MiB to look through.
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn the_file_has_what_the_guest_wrote_and_holes(
            writes in proptest::collection::vec((0..(5_u64 << 20) - 100, proptest::collection::vec(any::<u8>(), 1..100)), 0..40),
        ) {
            let regions = [(GuestAddress(0), 3 << 20), (GuestAddress(1 << 32), 2 << 20)];
            let memory = crate::memory::reserve(&regions).unwrap();
            let mut expected = vec![0; 5 << 20];
            for (place, bytes) in &writes {
                let at = usize::try_from(*place).unwrap();
                // Not over the end of the first region.
                if at < 3 << 20 && at + bytes.len() > 3 << 20 {
                    continue;
                }
                let address = if at < 3 << 20 { *place } else { (1 << 32) + place - (3 << 20) };
                memory.write_slice(bytes, GuestAddress(address)).unwrap();
                expected[at..at + bytes.len()].copy_from_slice(bytes);
            }
            let file = tempfile::tempfile().unwrap();
            let extents = extents(&memory, &file).unwrap();
            // SAFETY: nothing else has the memory.
            unsafe { write(&extents, file.as_raw_fd(), || true) }.unwrap();
            let mut found = vec![0; 5 << 20];
            file.read_exact_at(&mut found, 0).unwrap();
            prop_assert!(found == expected);
            prop_assert_eq!(file.metadata().unwrap().len(), 5 << 20);
            // A write touches two pages at the most.
            prop_assert!(file.metadata().unwrap().blocks() * 512 <= (writes.len() * 2 * PAGE) as u64);
        }
    }

    #[test]
    fn shared_memory_that_was_not_used_stays_a_hole() {
        let memory = crate::memory::reserve_shared(&[(GuestAddress(0), 8 << 20)]).unwrap();
        memory.write_obj(7_u64, GuestAddress(5 << 20)).unwrap();
        let file = tempfile::tempfile().unwrap();
        let extents = extents(&memory, &file).unwrap();
        // SAFETY: nothing else has the memory.
        unsafe { write(&extents, file.as_raw_fd(), || true) }.unwrap();
        let mut found = [0; 8];
        file.read_exact_at(&mut found, 5 << 20).unwrap();
        assert_eq!((u64::from_ne_bytes(found), file.metadata().unwrap().len()), (7, 8 << 20));
        let shared = memory.iter().next().and_then(GuestMemoryRegion::file_offset).unwrap();
        // What is written to is at most a huge page.
        assert!(shared.file().metadata().unwrap().blocks() * 512 <= 2 << 20);
    }

    #[test]
    fn a_file_of_another_length_is_refused() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(PAGE as u64).unwrap();
        check_length(&file, PAGE as u64).unwrap();
        for length in [0, 4095, 8192] {
            let error = check_length(&file, length).unwrap_err().to_string();
            assert!(error.contains("4096 bytes") && error.contains(&length.to_string()), "{error}");
        }
    }
}
