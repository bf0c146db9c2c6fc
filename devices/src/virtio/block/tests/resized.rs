//! Disks whose size changes while a driver uses them.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use super::*;
use crate::virtio::block::{BlockHandle, BlockState, ResizeError};
use crate::virtio::testing::machine::Machine;

const IO_ERROR: u8 = 1;

/// A driver with a disk of eight sectors that can be resized.
struct Resizable {
    file: tempfile::NamedTempFile,
    block: Arc<Mutex<Block>>,
    handle: BlockHandle,
    driver: Driver,
}

impl Resizable {
    fn new(with: With) -> Self {
        let file = image(8);
        let Rig { driver, block, .. } = Rig::new(with, file.path(), false);
        let block = Arc::new(Mutex::new(block));
        Self { file, handle: BlockHandle::new(block.clone()), block, driver }
    }

    /// The capacity that the driver reads.
    fn capacity(&self) -> u64 {
        let mut bytes = [0; 8];
        self.block.lock().unwrap().read_config(0, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    fn interrupts(&self) -> usize {
        self.driver.counters.config_changed.load(Ordering::SeqCst)
    }

    /// The status of a read of `sector`.
    fn read(&mut self, sector: u64) -> u8 {
        self.driver.write(HEADERS, &[[0; 8], sector.to_le_bytes()].concat());
        self.driver.write(STATUSES, &[UNANSWERED]);
        self.driver.add(&[(HEADERS, 16, 0), (DATA, 512, WRITE), (STATUSES, 1, WRITE)]);
        self.driver.notifier.write(1).unwrap();
        wait_until(|| self.driver.used_count() == 1);
        self.driver.take_used();
        self.driver.read(STATUSES, 1)[0]
    }
}

#[test]
fn a_driver_sees_the_new_size_and_can_use_it() {
    for with in BOTH {
        let mut disk = Resizable::new(with);
        assert_eq!(disk.read(8), IO_ERROR);
        assert_eq!(disk.handle.resize(Some(16 * 512), false).unwrap(), 16 * 512);
        assert_eq!((disk.capacity(), disk.interrupts(), disk.read(15)), (16, 1, 0));
        assert_eq!(disk.file.as_file().metadata().unwrap().len(), 16 * 512);
        // The same size is no news.
        disk.handle.resize(Some(16 * 512), false).unwrap();
        disk.handle.resize(None, false).unwrap();
        assert_eq!(disk.interrupts(), 1);
        // A file that grew by itself; what is not a whole sector does not count.
        disk.file.as_file().set_len(20 * 512 + 100).unwrap();
        assert_eq!(disk.handle.resize(None, false).unwrap(), 20 * 512);
        assert_eq!((disk.capacity(), disk.interrupts(), disk.read(19)), (20, 2, 0));
        assert_eq!(disk.handle.size(), 20 * 512);
    }
}

#[test]
fn a_disk_shrinks_only_where_that_is_asked_for() {
    for with in BOTH {
        let mut disk = Resizable::new(with);
        assert!(matches!(
            disk.handle.resize(Some(2 * 512), false),
            Err(ResizeError::Shrinks { now: 4096, asked: 1024 })
        ));
        assert_eq!(disk.file.as_file().metadata().unwrap().len(), 4096);
        disk.handle.resize(Some(2 * 512), true).unwrap();
        assert_eq!((disk.capacity(), disk.interrupts()), (2, 1));
        assert_eq!((disk.read(1), disk.read(2)), (0, IO_ERROR));
        assert_eq!(content(disk.file.path()).len(), 1024);
        // A file that was truncated.
        disk.file.as_file().set_len(512).unwrap();
        assert!(matches!(disk.handle.resize(None, false), Err(ResizeError::Shrinks { .. })));
        assert_eq!(disk.handle.resize(None, true).unwrap(), 512);
        assert_eq!((disk.capacity(), disk.read(1)), (1, IO_ERROR));
    }
}

#[test]
fn requests_in_flight_end_while_the_disk_shrinks_and_grows() {
    for with in BOTH {
        let mut disk = Resizable::new(with);
        let mut answered = 0;
        for round in 0..100 {
            let sector = round % 8;
            disk.driver.write(HEADERS, &[[1, 0, 0, 0, 0, 0, 0, 0], u64::to_le_bytes(sector)].concat());
            for _ in 0..10 {
                disk.driver.add(&[(HEADERS, 16, 0), (DATA, 512, 0), (STATUSES, 1, WRITE)]);
            }
            disk.driver.notifier.write(1).unwrap();
            disk.handle.resize(Some((1 + round % 2 * 7) * 512), true).unwrap();
            wait_until(|| disk.driver.used_count() == 10);
            answered += disk.driver.take_used().len();
        }
        assert_eq!(answered, 1000);
        assert!(!disk.driver.counters.broken());
    }
}

#[test]
fn a_size_that_cannot_be_is_refused() {
    let disk = Resizable::new(With::Direct);
    for size in [0, 511, 513] {
        assert!(matches!(disk.handle.resize(Some(size), true), Err(ResizeError::Unaligned(_))));
    }
    let error = disk.handle.resize(Some(1 << 63), true).unwrap_err();
    assert!(matches!(error, ResizeError::Host(_)), "{error}");
    assert_eq!((disk.capacity(), disk.interrupts()), (8, 0));
    disk.file.as_file().set_len(100).unwrap();
    assert!(matches!(disk.handle.resize(None, true), Err(ResizeError::Host(_))));

    let file = image(8);
    let block = Rig::new(With::Direct, file.path(), true).block;
    let handle = BlockHandle::new(Arc::new(Mutex::new(block)));
    assert!(handle.is_read_only());
    assert!(matches!(handle.resize(Some(1 << 20), false), Err(ResizeError::ReadOnly)));
    file.as_file().set_len(1 << 20).unwrap();
    assert_eq!(handle.resize(None, false).unwrap(), 1 << 20);
}

#[test]
fn a_size_that_changes_while_the_device_is_suspended_is_told_when_it_goes_on() {
    let file = image(8);
    let device = || {
        let disk = Disk::open(file.path(), false, ImageFormat::Detect).unwrap();
        Block::new(disk, DiskId::default(), RateLimits::default()).unwrap()
    };
    let mut machine = Machine::new(device(), !0);
    machine.suspend();
    let handle = BlockHandle::new(machine.transport().device().clone());
    handle.resize(Some(1 << 20), false).unwrap();
    machine.assert_quiet();
    let state: BlockState = machine.device().state();
    assert!(state.resized);
    // In another device, too.
    drop(handle);
    machine.restore(device);
    assert!(!machine.device().state().resized);
    let mut status = [0; 4];
    crate::BusDevice::read(machine.transport(), 0x60, &mut status);
    assert_eq!(status[0] & 2, 2, "a configuration change");
}
