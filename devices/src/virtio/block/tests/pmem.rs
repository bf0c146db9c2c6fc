//! Requests whose data lies in files that the guest has as memory, and what else must not lie there.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use vm_memory::{FileOffset, GuestAddress, GuestRegionMmap, MmapRegion};

use super::*;

const IO_ERROR: u8 = 1;
/// A file that can be written; its second page was cut off.
const WRITABLE: u64 = 0x400_0000;
/// A file that can only be read.
const READABLE: u64 = 0x500_0000;

fn region(file: &File, at: u64, size: usize, protection: i32) -> Arc<GuestRegionMmap> {
    let file = FileOffset::new(file.try_clone().unwrap(), 0);
    let region = MmapRegion::build(Some(file), size, protection, libc::MAP_SHARED).unwrap();
    Arc::new(GuestRegionMmap::new(region, GuestAddress(at)).unwrap())
}

/// A driver with both files, and the first of them.
fn driver() -> (Driver, File) {
    let mut driver = Driver::with_event_idx(256);
    let (writable, readable) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    writable.set_len(8192).unwrap();
    readable.write_all_at(&[0x77; 4096], 0).unwrap();
    let both = libc::PROT_READ | libc::PROT_WRITE;
    let dma = driver.memory.insert_region(region(&writable, WRITABLE, 8192, both)).unwrap();
    let dma = dma.insert_region(region(&readable, READABLE, 4096, libc::PROT_READ)).unwrap();
    writable.set_len(4096).unwrap();
    driver.dma = Some(Arc::new(dma));
    (driver, writable)
}

#[test]
fn data_moves_between_the_disk_and_memory_that_is_a_file_or_the_request_fails() {
    for with in BOTH {
        let (driver, writable) = driver();
        let image = image(4);
        let mut rig = Rig::with_driver(with, image.path(), false, driver);
        assert_eq!(rig.request(VIRTIO_BLK_T_IN, 1, &[(WRITABLE, 512, WRITE)]), (0, 513), "{with:?}");
        let mut read = [0; 512];
        writable.read_exact_at(&mut read, 0).unwrap();
        assert_eq!(read, [2; 512]);

        assert_eq!(rig.request(VIRTIO_BLK_T_OUT, 0, &[(READABLE, 512, 0)]), (0, 1), "{with:?}");
        let mut first = [0; 1024];
        image.as_file().read_exact_at(&mut first, 0).unwrap();
        assert_eq!(first, [[0x77; 512], [2; 512]].as_flattened());

        // The kernel finds what a touch would be killed by.
        for (kind, at, flags) in [
            (VIRTIO_BLK_T_IN, READABLE, WRITE),
            (VIRTIO_BLK_T_IN, WRITABLE + 4096, WRITE),
            (VIRTIO_BLK_T_OUT, WRITABLE + 4096, 0),
        ] {
            assert_eq!(rig.request(kind, 2, &[(at, 512, flags)]).0, IO_ERROR, "{with:?} {at:#x}");
        }
        assert!(!rig.driver.counters.broken());
    }
}

#[test]
fn what_the_device_itself_touches_has_to_be_in_ram() {
    for buffers in [
        // The header, then the status byte.
        [(READABLE, 16, 0), (DATA, 512, WRITE), (STATUSES, 1, WRITE)],
        [(HEADERS, 16, 0), (DATA, 512, WRITE), (WRITABLE + 4096, 1, WRITE)],
    ] {
        let (driver, _) = driver();
        let image = image(4);
        let mut rig = Rig::with_driver(With::Direct, image.path(), false, driver);
        rig.driver.add(&buffers);
        rig.notify();
        rig.driver.counters.wait_until(|| rig.driver.counters.broken());
        assert_eq!(rig.driver.used_count(), 0);
    }
}
