//! Slots: disks that come and go while a driver uses the device.

use std::cell::Cell;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use virtio_bindings::virtio_blk::{VIRTIO_BLK_F_RO, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_GET_ID};

use super::suspended::submit;
use super::*;
use crate::lock;
use crate::virtio::block::{BlockHandle, DiskError, Part, Piece, ResizeError, SlotError};
use crate::virtio::testing::machine::{Machine, steps};

const IO_ERROR: u8 = 1;

/// A driver with a slot.
struct Slot {
    block: Arc<Mutex<Block>>,
    handle: BlockHandle,
    driver: Driver,
}

impl Slot {
    fn new(with: With) -> Self {
        Self::of(Block::slot_with_engine(None, with.engine(), DEADLINE).unwrap())
    }

    fn of(mut block: Block) -> Self {
        let driver = Driver::with_event_idx(256);
        block.activate(driver.activation(1 << VIRTIO_BLK_F_FLUSH)).unwrap();
        let block = Arc::new(Mutex::new(block));
        Self { handle: BlockHandle::new(block.clone()), block, driver }
    }

    fn capacity(&self) -> u64 {
        let mut bytes = [0; 8];
        lock(&self.block).read_config(0, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    fn interrupts(&self) -> usize {
        self.driver.counters.config_changed.load(Ordering::SeqCst)
    }

    fn add(&mut self, kind: u32, sector: u64, flags: u16) {
        self.driver.write(HEADERS, &[&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat());
        self.driver.write(STATUSES, &[UNANSWERED]);
        self.driver.add(&[(HEADERS, 16, 0), (DATA, 512, flags), (STATUSES, 1, WRITE)]);
        self.driver.notifier.write(1).unwrap();
    }

    fn status(&mut self) -> u8 {
        wait_until(|| self.driver.used_count() == 1);
        self.driver.take_used();
        self.driver.read(STATUSES, 1)[0]
    }

    /// The status of a request.
    fn request(&mut self, kind: u32, sector: u64, flags: u16) -> u8 {
        self.add(kind, sector, flags);
        self.status()
    }
}

fn open(path: &Path, read_only: bool) -> Disk {
    Disk::open(path, read_only, ImageFormat::Raw).unwrap()
}

#[test]
fn a_slot_has_no_sector_and_fails_every_request_until_a_disk_is_in_it() {
    let kinds = [
        (VIRTIO_BLK_T_IN, WRITE),
        (VIRTIO_BLK_T_OUT, 0),
        (VIRTIO_BLK_T_FLUSH, 0),
        (VIRTIO_BLK_T_GET_ID, WRITE),
        (VIRTIO_BLK_T_DISCARD, 0),
        (99, 0),
    ];
    for with in BOTH {
        let mut slot = Slot::new(with);
        let file = image(8);
        for round in 1..=3 {
            assert!(!slot.handle.has_disk());
            assert_eq!(slot.capacity(), 0);
            for (kind, flags) in kinds {
                assert_eq!(slot.request(kind, 0, flags), IO_ERROR, "{kind}");
            }
            slot.handle.insert(open(file.path(), false)).unwrap();
            assert_eq!((slot.capacity(), slot.interrupts(), slot.handle.size()), (8, 2 * round - 1, 4096));
            slot.driver.write(DATA, &[0xab; 512]);
            assert_eq!(slot.request(VIRTIO_BLK_T_OUT, 7, 0), 0);
            assert_eq!(slot.request(VIRTIO_BLK_T_IN, 6, WRITE), 0);
            assert_eq!(slot.driver.read(DATA, 512), [7; 512]);
            assert_eq!(slot.request(VIRTIO_BLK_T_IN, 8, WRITE), IO_ERROR);
            assert!(matches!(slot.handle.insert(open(image(1).path(), false)), Err(SlotError::Taken)));
            slot.handle.eject().unwrap();
            assert_eq!(slot.interrupts(), 2 * round);
            // It is closed, and so unlocked.
            drop(open(file.path(), false));
        }
        slot.handle.eject().unwrap();
        assert_eq!(slot.interrupts(), 6);
        assert!(matches!(slot.handle.resize(None, true), Err(ResizeError::Empty | ResizeError::Host(_))));
        assert_eq!(content(file.path())[7 * 512..], [0xab; 512]);
        assert!(!slot.driver.counters.broken());
    }
}

#[test]
fn a_disk_that_is_only_read_fails_writes_in_a_slot() {
    for with in BOTH {
        let mut slot = Slot::new(with);
        let files = [image(3), image(5)];
        let piece = |file: &tempfile::NamedTempFile, start| Piece { path: file.path().to_owned(), start };
        slot.handle.insert(Disk::compose(&[piece(&files[0], 0), piece(&files[1], 2048)]).unwrap()).unwrap();
        assert_eq!(slot.block.lock().unwrap().features() & (1 << VIRTIO_BLK_F_RO), 0);
        assert_eq!(slot.request(VIRTIO_BLK_T_OUT, 0, 0), IO_ERROR);
        assert_eq!(slot.request(VIRTIO_BLK_T_IN, 8, WRITE), 0);
        assert_eq!(slot.driver.read(DATA, 512), [5; 512]);
        assert_eq!(slot.request(VIRTIO_BLK_T_IN, 3, WRITE), 0);
        assert_eq!(slot.driver.read(DATA, 512), [0; 512]);
    }
}

#[test]
fn a_device_with_a_disk_of_its_own_is_no_slot() {
    let file = image(8);
    let block = Rig::new(With::Direct, file.path(), false).block;
    let handle = BlockHandle::new(Arc::new(Mutex::new(block)));
    assert!(matches!(handle.eject(), Err(SlotError::NoSlot)));
    assert!(matches!(handle.insert(open(image(1).path(), true)), Err(SlotError::NoSlot)));
    assert_eq!(handle.size(), 4096);
}

#[test]
fn a_busy_disk_stays_until_what_is_in_flight_is_answered() {
    for blocks in [false, true] {
        let valve = Valve::closed().unwrap();
        let mut slot = Slot::of(Block::stalled_slot(&valve, blocks, Duration::from_millis(100)).unwrap());
        let file = image(8);
        slot.handle.insert(open(file.path(), false)).unwrap();
        slot.add(VIRTIO_BLK_T_IN, 3, WRITE);
        wait_until(|| valve.started() == 1);
        assert!(matches!(slot.handle.eject(), Err(SlotError::Busy(_))));
        assert!(slot.handle.has_disk());
        assert_eq!(slot.capacity(), 8);
        assert!(matches!(Disk::open(file.path(), false, ImageFormat::Raw), Err(DiskError::InUse { .. })));
        valve.open();
        assert_eq!(slot.status(), 0);
        assert_eq!(slot.driver.read(DATA, 512), [4; 512]);
        assert_eq!(slot.request(VIRTIO_BLK_T_IN, 7, WRITE), 0);
        slot.handle.eject().unwrap();
        assert_eq!((slot.capacity(), slot.request(VIRTIO_BLK_T_IN, 3, WRITE)), (0, IO_ERROR));
    }
}

#[test]
fn requests_in_flight_end_before_the_disk_goes() {
    for with in BOTH {
        let mut slot = Slot::new(with);
        for _ in 0..50 {
            let file = image(8);
            slot.handle.insert(open(file.path(), false)).unwrap();
            slot.driver.write(HEADERS, &[&[1, 0, 0, 0, 0, 0, 0, 0][..], &2_u64.to_le_bytes()].concat());
            slot.driver.write(DATA, &[0xcd; 512]);
            for _ in 0..20 {
                slot.driver.add(&[(HEADERS, 16, 0), (DATA, 512, 0), (STATUSES, 1, WRITE)]);
            }
            slot.driver.notifier.write(1).unwrap();
            slot.handle.eject().unwrap();
            let at_eject = content(file.path());
            wait_until(|| slot.driver.used_count() == 20);
            slot.driver.take_used();
            // Nothing lands on it afterwards.
            assert_eq!(content(file.path()), at_eject);
        }
        assert!(!slot.driver.counters.broken());
    }
}

/// The parts of `disk` as another process gets them.
fn passed(disk: &Disk) -> Vec<Part<OwnedFd>> {
    let owned = |part: Part<std::os::fd::BorrowedFd<'_>>| Part {
        file: part.file.try_clone_to_owned().unwrap(),
        start: part.start,
        end: part.end,
    };
    disk.parts().into_iter().map(owned).collect()
}

#[test]
fn a_disk_of_passed_files_is_the_same_disk_with_its_locks() {
    let files = [image(3), image(5)];
    let piece = |file: &tempfile::NamedTempFile, start| Piece { path: file.path().to_owned(), start };
    let composed = Disk::compose(&[piece(&files[0], 0), piece(&files[1], 2048)]).unwrap();
    let parts = passed(&composed);
    assert_eq!(
        parts.iter().map(|part| (part.start, part.end)).collect::<Vec<_>>(),
        [(0, 1536), (1536, 2048), (2048, 4608)]
    );
    let disk = Disk::of_parts(parts, true).unwrap();
    drop(composed);
    assert_eq!(disk.size(), 4608);
    assert!(matches!(Disk::open(files[1].path(), false, ImageFormat::Raw), Err(DiskError::InUse { .. })));
    let mut slot = Slot::new(With::Uring);
    slot.handle.insert(disk).unwrap();
    assert_eq!((slot.request(VIRTIO_BLK_T_IN, 5, WRITE), slot.driver.read(DATA, 512)), (0, vec![2; 512]));
    slot.handle.eject().unwrap();
    let plain = open(files[1].path(), false);
    slot.handle.insert(Disk::of_parts(passed(&plain), false).unwrap()).unwrap();
    assert_eq!(slot.request(VIRTIO_BLK_T_OUT, 0, 0), 0);
}

#[test]
fn files_that_make_no_disk_are_refused() {
    let file = image(8);
    let (writable, readable) = (open(file.path(), false), File::open(file.path()).unwrap());
    let part = |file: &File, start, end| Part { file: file.try_clone().unwrap().into(), start, end };
    let (reader, _writer) = std::io::pipe().unwrap();
    let pipe = || Part { file: OwnedFd::from(reader.try_clone().unwrap()), start: 0, end: 512 };
    let zeros = File::open("/dev/zero").unwrap();
    let null = File::open("/dev/null").unwrap();
    let many = (0..300).map(|number| part(&readable, number * 512, (number + 1) * 512)).collect();
    let cases: Vec<(Vec<Part<OwnedFd>>, bool, &str)> = vec![
        (vec![], true, "none, or too many"),
        (many, true, "too many"),
        (vec![part(&readable, 0, 512), part(&readable, 512, 1024)], false, "too many"),
        (vec![part(&readable, 512, 1024)], true, "follow each other"),
        (vec![part(&readable, 0, 0)], true, "follow each other"),
        (vec![part(&readable, 0, 511)], true, "follow each other"),
        (vec![part(&readable, 0, 512), part(&readable, 1024, 2048)], true, "follow each other"),
        (vec![part(&readable, 0, 9 * 512)], true, "shorter than its place"),
        (vec![part(&readable, 0, 4096)], false, "not to be written"),
        (vec![part(&zeros, 0, 512)], false, "no regular file"),
        (vec![part(&null, 0, 512)], true, "no regular file"),
        (vec![pipe()], true, "no regular file"),
    ];
    for (parts, read_only, says) in cases {
        let error = Disk::of_parts(parts, read_only).unwrap_err().to_string();
        assert!(error.contains(says), "{error} / {says}");
    }
    drop(writable);
}

#[test]
fn a_disk_that_comes_while_the_device_is_suspended_is_told_when_it_goes_on() {
    let file = image(8);
    let mut machine = Machine::new(Block::slot(None).unwrap(), !0);
    machine.suspend();
    let handle = BlockHandle::new(machine.transport().device().clone());
    handle.insert(open(file.path(), true)).unwrap();
    machine.assert_quiet();
    assert!(machine.device().state().resized);
    drop(handle);
    let restored = || {
        let block = Arc::new(Mutex::new(Block::slot(None).unwrap()));
        BlockHandle::new(block.clone()).insert(open(file.path(), true)).unwrap();
        Arc::into_inner(block).unwrap().into_inner().unwrap()
    };
    machine.restore(restored);
    assert!(!machine.device().state().resized);
    let mut status = [0; 4];
    crate::BusDevice::read(machine.transport(), 0x60, &mut status);
    assert_eq!(status[0] & 2, 2, "a configuration change");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Disks come and go in mid-traffic, and devices are suspended and replaced: each request is answered once, and those
    /// that succeeded have done what they say.
    #[test]
    fn nothing_is_lost_or_done_twice_while_disks_come_and_go(steps in steps()) {
        for with in BOTH {
            let file = image(64);
            let has_disk = Cell::new(false);
            let device = || {
                let block = Arc::new(Mutex::new(Block::slot_with_engine(None, with.engine(), DEADLINE).unwrap()));
                if has_disk.get() {
                    BlockHandle::new(block.clone()).insert(open(file.path(), false)).unwrap();
                }
                Arc::into_inner(block).unwrap().into_inner().unwrap()
            };
            let mut machine = Machine::new(device(), !0);
            let mut requests = Vec::new();
            for &step in &steps {
                machine.step(step, device, |machine, number| {
                    if number.is_multiple_of(3) {
                        let handle = BlockHandle::new(machine.transport().device().clone());
                        match has_disk.replace(!has_disk.get()) {
                            true => handle.eject().unwrap(),
                            false => handle.insert(open(file.path(), false)).unwrap(),
                        }
                    }
                    let slot = requests.len() as u64;
                    if submit(machine, slot, number).is_some() {
                        requests.push(number);
                    }
                });
            }
            machine.finish(&[0]);
            let disk = content(file.path());
            for (slot, &number) in requests.iter().enumerate() {
                let status = machine.drivers[0].read(STATUSES + slot as u64, 1)[0];
                prop_assert!(status <= IO_ERROR, "{}", status);
                let was = u8::try_from(slot + 1).unwrap();
                let is_write = number.is_multiple_of(2);
                let expected = if is_write && status == 0 { number } else { was };
                prop_assert_eq!(&disk[512 * slot..][..512], &[expected; 512]);
                if !is_write {
                    let read = machine.drivers[0].read(DATA + 512 * slot as u64, 512);
                    prop_assert_eq!(read, vec![if status == 0 { was } else { number }; 512]);
                }
            }
            prop_assert_eq!(machine.answers.len(), requests.len());
        }
    }
}
