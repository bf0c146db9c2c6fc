use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use rustix::fs::{OFlags, fcntl_getfl};
use tempfile::TempDir;
use vm_memory::GuestAddress;

use super::{PMEM_ALIGNMENT, Pmem, PmemError, PmemFile, PmemMode, PmemState};
use crate::virtio::block::{ImageFormat, Valve};
use crate::virtio::testing::machine::{Machine, steps};
use crate::virtio::testing::{Driver, FREE, WRITE};
use crate::virtio::{ActivateError, StopError, VirtioDevice};

const START: GuestAddress = GuestAddress(5 << 30);
const MODES: [PmemMode; 3] = [PmemMode::Shared, PmemMode::ReadOnly, PmemMode::CopyOnWrite];

fn file(directory: &TempDir, size: u64) -> PathBuf {
    let path = directory.path().join("pmem");
    File::create(&path).unwrap().set_len(size).unwrap();
    path
}

fn device(mode: PmemMode) -> Pmem {
    let directory = tempfile::tempdir().unwrap();
    Pmem::new(
        PmemFile::open(&file(&directory, 2 * PMEM_ALIGNMENT), mode, ImageFormat::Detect).unwrap(),
        START,
    )
    .unwrap()
}

/// Persistent memory whose flushes fail: a character device has nothing to sync.
fn broken() -> Pmem {
    let file = Arc::new(File::open("/dev/null").unwrap());
    Pmem::new(PmemFile { file, mode: PmemMode::Shared, size: PMEM_ALIGNMENT }, START).unwrap()
}

fn counts(pmem: &Pmem) -> [u64; 2] {
    let mut counts = Vec::new();
    pmem.metrics().visit(&mut |_, count| counts.push(count));
    counts.try_into().unwrap()
}

/// Lets the device look at its queue and waits until it has given back `count` chains.
fn serve(pmem: &mut Pmem, driver: &mut Driver, count: usize) -> Vec<(u32, u32)> {
    if pmem.reads_notifier(0) {
        driver.notifier.write(1).unwrap();
    } else {
        pmem.queue_notified(0);
    }
    wait_until(|| usize::from(driver.used_count()) >= count);
    driver.take_used()
}

fn wait_until(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "the device never answered");
        std::thread::yield_now();
    }
}

#[test]
fn the_config_space_says_where_the_memory_is() {
    let pmem = device(PmemMode::ReadOnly);
    let mut space = [0xaa; 20];
    pmem.read_config(0, &mut space);
    assert_eq!(space[..8], START.0.to_le_bytes());
    assert_eq!(space[8..16], (4_u64 << 20).to_le_bytes());
    assert_eq!(space[16..], [0xaa; 4]);
    let mut byte = [0];
    pmem.read_config(4, &mut byte);
    assert_eq!(byte, [1]);
    pmem.read_config(u64::MAX, &mut byte);
    assert_eq!(pmem.state(), PmemState { start: START.0, size: 4 << 20, failed: false });
}

#[test]
fn flushes_are_answered_in_every_mode() {
    for mode in MODES {
        let mut driver = Driver::new(16);
        let mut pmem = device(mode);
        pmem.activate(driver.activation(0)).unwrap();
        driver.write(FREE + 16, &[0xff; 16]);
        // In one piece, and in parts.
        driver.add(&[(FREE, 4, 0), (FREE + 16, 4, WRITE)]);
        driver.add(&[(FREE, 1, 0), (FREE + 1, 3, 0), (FREE + 24, 3, WRITE), (FREE + 27, 5, WRITE)]);
        let used = serve(&mut pmem, &mut driver, 2);
        assert_eq!(used, [(0, 4), (2, 4)], "{mode:?}");
        let expected = [[0; 4], [0xff; 4], [0; 4], [0xff; 4]].concat();
        assert_eq!(driver.read(FREE + 16, 16), expected);
        wait_until(|| driver.counters.used() == 1);
        assert_eq!(counts(&pmem), [2, 0]);
        // After a reset nothing answers.
        pmem.reset().unwrap();
        driver.add(&[(FREE, 4, 0), (FREE + 16, 4, WRITE)]);
        driver.notifier.write(1).unwrap();
        pmem.queue_notified(0);
        assert_eq!(driver.used_count(), 0);
        // It works again when it is set up again, and serves what was notified before.
        let mut again = Driver::new(16);
        again.notifier = driver.notifier;
        again.add(&[(FREE, 4, 0), (FREE + 16, 4, WRITE)]);
        pmem.activate(again.activation(0)).unwrap();
        assert_eq!(serve(&mut pmem, &mut again, 1), [(0, 4)]);
    }
}

#[test]
fn a_flush_that_failed_makes_all_later_ones_fail() {
    let mut driver = Driver::new(16);
    let mut pmem = broken();
    pmem.activate(driver.activation(0)).unwrap();
    driver.add(&[(FREE, 4, 0), (FREE + 16, 4, WRITE)]);
    assert_eq!(serve(&mut pmem, &mut driver, 1), [(0, 4)]);
    assert_eq!(driver.read(FREE + 16, 4), [0xff; 4]);

    pmem.reset().unwrap();
    assert!(pmem.state().failed);
    pmem.set_storage(Arc::new(tempfile::tempfile().unwrap()));
    let mut driver = Driver::new(16);
    pmem.activate(driver.activation(0)).unwrap();
    driver.add(&[(FREE, 4, 0), (FREE + 16, 4, WRITE)]);
    serve(&mut pmem, &mut driver, 1);
    assert_eq!(driver.read(FREE + 16, 4), [0xff; 4], "the lost writes do not come back");
    assert_eq!(counts(&pmem), [0, 2]);
}

#[test]
fn an_unknown_request_is_an_error_and_one_without_room_for_it_breaks_the_queue() {
    let mut driver = Driver::new(16);
    let mut pmem = device(PmemMode::ReadOnly);
    pmem.activate(driver.activation(0)).unwrap();
    driver.write(FREE, &[1]);
    driver.add(&[(FREE, 4, 0), (FREE + 16, 4, WRITE)]);
    driver.add(&[(FREE + 4, 3, 0), (FREE + 20, 4, WRITE)]);
    driver.add(&[(FREE + 24, 4, WRITE)]);
    assert_eq!(serve(&mut pmem, &mut driver, 3).len(), 3);
    assert_eq!(driver.read(FREE + 16, 12), [0xff; 4].repeat(3));
    assert_eq!(counts(&pmem), [0, 3]);
    assert!(!driver.counters.broken());
    driver.add(&[(FREE + 4, 4, 0), (FREE + 16, 3, WRITE)]);
    pmem.queue_notified(0);
    assert!(driver.counters.broken());
    assert_eq!(driver.used_count(), 0);
}

#[test]
fn without_its_queue_it_does_not_start() {
    let mut activation = Driver::new(16).activation(0);
    activation.queues = vec![None];
    assert!(matches!(device(PmemMode::Shared).activate(activation), Err(ActivateError::QueueMissing(0))));
}

#[test]
fn only_the_shared_mode_can_write_the_file_and_has_it_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = file(&directory, PMEM_ALIGNMENT);
    for mode in MODES {
        let open = PmemFile::open(&path, mode, ImageFormat::Detect).unwrap();
        assert_eq!((open.mode(), open.size()), (mode, PMEM_ALIGNMENT));
        let writable = fcntl_getfl(open.file()).unwrap().contains(OFlags::RDWR);
        assert_eq!(writable, mode == PmemMode::Shared);
        for other in MODES {
            let both = PmemFile::open(&path, other, ImageFormat::Detect).is_ok();
            assert_eq!(both, mode != PmemMode::Shared && other != PmemMode::Shared, "{mode:?} {other:?}");
        }
    }
}

#[test]
fn a_file_that_is_no_multiple_of_2_mib_is_refused_with_the_way_to_mend_it() {
    let directory = tempfile::tempdir().unwrap();
    for size in [512, 4096, PMEM_ALIGNMENT - 1, PMEM_ALIGNMENT + 1, PMEM_ALIGNMENT + 4096] {
        let path = file(&directory, size);
        let error = PmemFile::open(&path, PmemMode::Shared, ImageFormat::Detect).unwrap_err();
        assert!(matches!(error, PmemError::Unaligned { bytes, .. } if bytes == size), "{error}");
        let status = std::process::Command::new("truncate").args(["-s", "%2M"]).arg(&path).status();
        assert!(status.unwrap().success());
        PmemFile::open(&path, PmemMode::Shared, ImageFormat::Detect).unwrap();
    }
    assert!(matches!(
        PmemFile::open(&file(&directory, 0), PmemMode::Shared, ImageFormat::Detect),
        Err(PmemError::File(_))
    ));
    assert!(matches!(
        PmemFile::open(Path::new("/dev/null"), PmemMode::ReadOnly, ImageFormat::Detect),
        Err(PmemError::File(_))
    ));
}

#[test]
fn storage_that_does_not_answer_stops_nothing_for_longer_than_the_deadline() {
    let directory = tempfile::tempdir().unwrap();
    let file = PmemFile::open(&file(&directory, PMEM_ALIGNMENT), PmemMode::Shared, ImageFormat::Detect);
    let mut pmem = Pmem::with_deadline(file.unwrap(), START, Duration::from_millis(50)).unwrap();
    let storage = Arc::new(Valve::closed().unwrap());
    pmem.set_storage(storage.clone());
    let mut driver = Driver::new(16);
    pmem.activate(driver.activation(0)).unwrap();
    driver.add(&[(FREE, 4, 0), (FREE + 16, 4, WRITE)]);
    driver.notifier.write(1).unwrap();
    wait_until(|| storage.started() == 1);
    assert!(matches!(pmem.suspend(), Err(StopError::Thread(_))));
    assert!(matches!(pmem.reset(), Err(StopError::Thread(_))));
    assert!(pmem.activate(Driver::new(16).activation(0)).is_err());
    // It goes on with what it had.
    storage.open();
    wait_until(|| driver.used_count() == 1);
    pmem.reset().unwrap();

    // The memory of a request stays as long as it is used.
    let storage = Arc::new(Valve::closed().unwrap());
    pmem.set_storage(storage.clone());
    let mut driver = Driver::new(16);
    pmem.activate(driver.activation(0)).unwrap();
    driver.add(&[(FREE, 4, 0), (FREE + 16, 4, WRITE)]);
    driver.notifier.write(1).unwrap();
    wait_until(|| storage.started() == 1);
    drop(pmem);
    let memory = Arc::downgrade(&driver.memory);
    drop(driver);
    assert!(memory.upgrade().is_some());
    storage.open();
    wait_until(|| memory.upgrade().is_none());
}

#[test]
fn a_device_goes_on_with_the_memory_that_it_had_or_not_at_all() {
    for mode in MODES {
        let mut pmem = device(mode);
        let state = pmem.state();
        for other in [PmemState { start: 0, ..state }, PmemState { size: PMEM_ALIGNMENT, ..state }] {
            assert!(pmem.resume(None, other).unwrap_err().to_string().contains("persistent memory had"));
        }
        pmem.resume(None, PmemState { failed: true, ..state }).unwrap();
        assert!(pmem.state().failed);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn nothing_is_lost_or_done_twice_over_a_suspend(steps in steps(), mode in 0_usize..3) {
        let directory = tempfile::tempdir().unwrap();
        let path = file(&directory, PMEM_ALIGNMENT);
        let device = || {
            let file = PmemFile::open(&path, MODES[mode], ImageFormat::Detect).unwrap();
            Pmem::new(file, START).unwrap()
        };
        let mut machine = Machine::new(device(), 0);
        let mut requests = 0;
        for step in steps {
            machine.step(step, device, |machine, _| {
                let answer = FREE + 0x100 + 4 * requests;
                machine.drivers[0].write(answer, &[0xff; 4]);
                requests += u64::from(machine.submit(0, &[(FREE, 4, 0), (answer, 4, WRITE)]).is_some());
            });
        }
        machine.finish(&[0]);
        let answers = machine.drivers[0].read(FREE + 0x100, usize::try_from(4 * requests).unwrap());
        prop_assert!(answers.iter().all(|byte| *byte == 0));
        prop_assert_eq!(machine.answers.len() as u64, requests);
    }
}

proptest! {
    #[test]
    fn arbitrary_requests_get_an_answer_or_break_the_queue(
        requests in prop::collection::vec(
            prop::collection::vec((FREE..FREE + 64, 0_u32..9, any::<bool>()), 1..5),
            1..12,
        ),
    ) {
        let mut driver = Driver::new(64);
        let mut pmem = device(PmemMode::CopyOnWrite);
        pmem.activate(driver.activation(0)).unwrap();
        for request in &requests {
            let buffers: Vec<_> =
                request.iter().map(|&(at, length, write)| (at, length, if write { WRITE } else { 0 })).collect();
            driver.add(&buffers);
        }
        pmem.queue_notified(0);
        prop_assert!(driver.counters.broken() || usize::from(driver.used_count()) == requests.len());
        let answers = counts(&pmem).iter().sum::<u64>();
        prop_assert!(answers <= requests.len() as u64);
        prop_assert!(driver.counters.used.load(Ordering::SeqCst) <= 1);
        pmem.file.file().read_exact_at(&mut [0; 1], 0).unwrap();
    }
}
