//! Disks that are composed of several files.

use proptest::prelude::*;
use tempfile::NamedTempFile;

use super::*;
use crate::virtio::block::{BlockHandle, DiskError, Piece};

const SECTORS: usize = 24;

/// Three files with a gap between the last two, and what a guest sees of them.
fn pieces() -> ([NamedTempFile; 3], Vec<Piece>, Vec<u8>) {
    let files = [image(3), image(5), image(7)];
    let starts = [0, 3 * 512, 12 * 512];
    let pieces = files.iter().zip(starts).map(|(file, start)| Piece { path: file.path().to_owned(), start });
    let pieces: Vec<Piece> = pieces.collect();
    let mut whole = vec![0; 19 * 512];
    for (file, start) in files.iter().zip([0, 3 * 512, 12 * 512]) {
        let bytes = content(file.path());
        whole[start..start + bytes.len()].copy_from_slice(&bytes);
    }
    (files, pieces, whole)
}

fn rig(with: With, pieces: &[Piece]) -> Rig {
    let disk = Disk::compose(pieces).unwrap();
    assert_eq!(disk.size(), 19 * 512);
    Rig::with_engine(disk, with.engine(), Driver::with_event_idx(256), RateLimits::default())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Requests over the ends of files, and buffers over them, read what the files have beside each other.
    #[test]
    fn files_follow_each_other(start in 0..19_u64, sectors in 1..SECTORS, split in 1..3000_u32) {
        let (_files, pieces, whole) = pieces();
        for with in BOTH {
            let mut rig = rig(with, &pieces);
            let length = u32::try_from(sectors * 512).unwrap();
            let first = split.min(length - 1);
            let buffers = [(DATA, first, WRITE), (DATA + u64::from(first), length - first, WRITE)];
            let (status, written) = rig.request(VIRTIO_BLK_T_IN, start, &buffers);
            let at = usize::try_from(start).unwrap() * 512;
            match whole.get(at..at + sectors * 512) {
                Some(expected) => {
                    prop_assert_eq!((status, written), (0, length + 1));
                    prop_assert_eq!(rig.driver.read(DATA, sectors * 512), expected);
                }
                None => prop_assert_eq!(status, 1),
            }
        }
    }
}

#[test]
fn a_file_that_was_cut_off_is_an_error_where_it_was() {
    let (files, pieces, whole) = pieces();
    for with in BOTH {
        files[1].as_file().set_len(5 * 512).unwrap();
        let mut rig = rig(with, &pieces);
        files[1].as_file().set_len(512).unwrap();
        assert_eq!(rig.read(4, 512).0, 1);
        assert_eq!(rig.read(12, 512), (0, 513, whole[12 * 512..13 * 512].to_vec()));
    }
}

#[test]
fn it_is_read_only_and_keeps_its_size() {
    let (_files, pieces, _) = pieces();
    let mut rig = rig(With::Uring, &pieces);
    assert_eq!(rig.write(0, &[1; 512]).0, 1);
    let handle = BlockHandle::new(std::sync::Arc::new(std::sync::Mutex::new(rig.block)));
    assert_eq!(handle.resize(None, true).unwrap(), 19 * 512);
    assert!(handle.resize(Some(512), true).is_err());
}

#[test]
fn pieces_that_do_not_follow_each_other_are_refused() {
    let (_files, mut pieces, _) = pieces();
    pieces[1].start -= 512;
    assert!(matches!(Disk::compose(&pieces), Err(DiskError::Piece { .. })));
    pieces[1].start += 512 + 1;
    assert!(matches!(Disk::compose(&pieces), Err(DiskError::Piece { .. })));
    pieces[2].start = u64::MAX / 512 * 512;
    pieces[1].start -= 1;
    assert!(matches!(Disk::compose(&pieces), Err(DiskError::Piece { .. })));
    assert!(matches!(Disk::compose(&[]), Err(DiskError::NoPieces)));
}
