//! Disks of the host that do not answer.

use std::sync::Arc;

use proptest::prelude::*;

use super::suspended::submit;
use super::*;
use crate::Suspend;
use crate::virtio::StopError;
use crate::virtio::mailbox::CallError;
use crate::virtio::testing::machine::{Machine, Step, steps};

/// The thread waits for the disk like with io_uring, or is stuck in a system call.
const EITHER: [bool; 2] = [false, true];

/// A stalled disk with a read of sector 1 in flight, and where its status will be.
fn reading(valve: &Valve, blocks: bool) -> (tempfile::NamedTempFile, Rig, u64) {
    let file = image(4);
    let mut rig = Rig::stalled(file.path(), valve, blocks);
    let status = rig.add(VIRTIO_BLK_T_IN, 1, &[(DATA, 512, WRITE)]);
    rig.notify();
    wait_until(|| valve.started() == 1);
    (file, rig, status)
}

#[test]
fn a_reset_of_a_stalled_disk_ends_in_time_and_succeeds_once_the_disk_answers() {
    for blocks in EITHER {
        let valve = Valve::closed().unwrap();
        let (_file, mut rig, status) = reading(&valve, blocks);
        for _ in 0..2 {
            let error = rig.block.reset().unwrap_err();
            assert!(matches!(error, StopError::Thread(_)), "{error}");
        }
        // What the driver had before is the device's still.
        assert!(rig.block.activate(Driver::new(16).activation(0)).is_err());
        valve.open();
        rig.block.reset().unwrap();
        if !blocks {
            // The thread knew of the reset before the disk answered.
            assert_eq!((rig.driver.used_count(), rig.driver.read(status, 1)), (0, vec![UNANSWERED]));
        }
        let driver = Driver::with_event_idx(256);
        rig.block.activate(driver.activation(1 << VIRTIO_BLK_F_FLUSH)).unwrap();
        rig.driver = driver;
        assert_eq!(rig.read(1, 512), (0, 513, vec![2; 512]));
    }
}

#[test]
fn a_stalled_disk_is_not_suspended_and_goes_on() {
    for blocks in EITHER {
        let valve = Valve::closed().unwrap();
        let (_file, mut rig, status) = reading(&valve, blocks);
        let error = rig.block.suspend().unwrap_err();
        let expected = if blocks { CallError::NotTaken } else { CallError::NotAnswered };
        assert!(matches!(error, StopError::Thread(error) if error == expected(Duration::from_millis(100))));
        // Requests are taken again.
        let second = rig.add(VIRTIO_BLK_T_IN, 2, &[(DATA + 512, 512, WRITE)]);
        rig.notify();
        valve.open();
        wait_until(|| rig.driver.used_count() == 2);
        assert_eq!([status, second].map(|at| rig.driver.read(at, 1)), [[0], [0]]);
        assert_eq!(rig.driver.read(DATA, 1024), [[2; 512], [3; 512]].concat());
        rig.settle();
    }
}

#[test]
fn a_device_with_a_stalled_disk_is_dropped_in_time_and_its_memory_stays_as_long_as_it_is_used() {
    for blocks in EITHER {
        let valve = Valve::closed().unwrap();
        let (_file, Rig { driver, block, .. }, _) = reading(&valve, blocks);
        let start = Instant::now();
        drop(block);
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        // The disk answers after all: the read goes to memory that is there.
        let memory = Arc::downgrade(&driver.memory);
        drop(driver);
        assert!(memory.upgrade().is_some(), "the memory of a request in flight is gone");
        valve.open();
        wait_until(|| memory.upgrade().is_none());
    }
}

#[test]
fn a_dropped_device_waits_for_what_is_in_flight() {
    for with in BOTH {
        let file = image(8);
        let Rig { driver, block, .. } = Rig::busy(with, file.path());
        drop(block);
        assert_eq!(Arc::strong_count(&driver.memory), 1);
    }
}

/// What happens to a device and to its disk.
#[derive(Clone, Copy, Debug)]
enum Turn {
    Device(Step),
    Stall,
    Release,
}

fn turns() -> impl Strategy<Value = Vec<Turn>> {
    let stalls = prop_oneof![Just(Turn::Stall), Just(Turn::Release)];
    // A stall or its end behind some of the steps.
    let with_stalls = move |steps: Vec<Step>| {
        let count = steps.len();
        (Just(steps), prop::collection::vec(prop::option::weighted(0.3, stalls.clone()), count))
    };
    steps().prop_flat_map(with_stalls).prop_map(|(steps, stalls)| {
        let device = steps.into_iter().map(Turn::Device);
        device.zip(stalls).flat_map(|(step, stall)| [Some(step), stall]).flatten().collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn nothing_is_lost_or_done_twice_over_stalls(turns in turns(), blocks in any::<bool>()) {
        let (file, valve, deadline) = (image(64), Valve::closed().unwrap(), Duration::from_millis(200));
        valve.open();
        let device = || {
            let disk = Disk::open(file.path(), false, ImageFormat::Detect).unwrap();
            Block::stalled(disk, &valve, blocks, deadline).unwrap()
        };
        let mut machine = Machine::new(device(), !0);
        let (mut requests, mut is_stalled) = (0, false);
        for turn in turns {
            match turn {
                Turn::Stall => {
                    valve.close();
                    is_stalled = true;
                }
                Turn::Release => {
                    valve.open();
                    is_stalled = false;
                }
                Turn::Device(Step::Pause | Step::Replace) if is_stalled && machine.outstanding(0) > 0 => {
                    // It may have answered all that is outstanding before the stall.
                    let start = Instant::now();
                    if machine.transport().suspend().is_ok() {
                        machine.suspend();
                        machine.resume();
                    }
                    prop_assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
                }
                Turn::Device(step) => {
                    if matches!(step, Step::Pause | Step::Replace) {
                        // A busy machine may take longer than this deadline.
                        wait_until(|| machine.transport().suspend().is_ok());
                    }
                    machine.step(step, device, |machine, number| {
                        requests += u64::from(submit(machine, requests, number).is_some());
                    });
                }
            }
        }
        valve.open();
        machine.finish(&[0]);
        for slot in 0..requests {
            prop_assert_eq!(machine.drivers[0].read(STATUSES + slot, 1), [0]);
        }
        prop_assert_eq!(machine.answers.len() as u64, requests);
    }
}
