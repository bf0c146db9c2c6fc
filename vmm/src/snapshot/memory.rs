//! A VM's RAM as a sparse file: its regions behind each other, without the pages that are all zeros.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, MemoryRegionAddress};

use super::SnapshotError;

const PAGE: usize = 4096;
/// What pages are compared with: to look at each byte takes fifty times as long, while the VM stands still.
const ZEROS: [u8; PAGE] = [0; PAGE];
/// How much is copied at a time.
const PIECE: usize = 1 << 20;

/// Writes all of `memory`, which does not change meanwhile, to `file`, which is empty.
pub fn write(memory: &GuestMemoryMmap, file: &File) -> io::Result<()> {
    let length = memory.iter().map(GuestMemoryRegion::len).sum();
    file.set_len(length)?;
    let (mut place, mut buffer) = (0, vec![0; PIECE]);
    for region in memory.iter() {
        let mut offset = 0;
        while offset < region.len() {
            let count = (PIECE as u64).min(region.len() - offset);
            let piece = usize::try_from(count).ok().and_then(|count| buffer.get_mut(..count));
            let piece = piece.ok_or(io::ErrorKind::InvalidInput)?;
            region.read_slice(piece, MemoryRegionAddress(offset)).map_err(io::Error::other)?;
            write_piece(piece, file, place + offset)?;
            offset += count;
        }
        place += region.len();
    }
    Ok(())
}

/// Writes the pages of `piece` that are not all zeros, those that follow each other in one call.
fn write_piece(piece: &[u8], file: &File, place: u64) -> io::Result<()> {
    let is_empty = |page: &&[u8]| ZEROS.starts_with(page);
    let mut pages = piece.chunks(PAGE).enumerate().peekable();
    while let Some((first, page)) = pages.next() {
        if is_empty(&page) {
            continue;
        }
        let mut end = first * PAGE + page.len();
        while let Some((_, page)) = pages.next_if(|(_, page)| !is_empty(page)) {
            end += page.len();
        }
        let run = piece.get(first * PAGE..end).unwrap_or_default();
        file.write_all_at(run, place + (first * PAGE) as u64)?;
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
    use std::os::unix::fs::MetadataExt;

    use proptest::prelude::*;
    use vm_memory::GuestAddress;

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
            write(&memory, &file).unwrap();
            let mut found = vec![0; 5 << 20];
            file.read_exact_at(&mut found, 0).unwrap();
            prop_assert!(found == expected);
            prop_assert_eq!(file.metadata().unwrap().len(), 5 << 20);
            // A write touches two pages at the most.
            prop_assert!(file.metadata().unwrap().blocks() * 512 <= (writes.len() * 2 * PAGE) as u64);
        }
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
