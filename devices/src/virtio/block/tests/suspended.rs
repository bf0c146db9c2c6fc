//! Suspending a device in the middle of its work, and going on in it or in a new one.

use proptest::prelude::*;

use super::super::super::testing::dump;
use super::super::super::testing::machine::{Machine, steps};
use super::super::BlockState;
use super::*;

#[test]
fn what_is_in_flight_is_answered_and_what_comes_later_waits() {
    for with in BOTH {
        let file = image(200);
        let mut rig = Rig::new(with, file.path(), false);
        for sector in 0..100 {
            rig.add(VIRTIO_BLK_T_OUT, sector, &[(DATA, 512, 0)]);
        }
        rig.notify();
        let queues = rig.block.suspend().unwrap();
        let state = queues[0].as_ref().unwrap().state();
        assert_eq!(
            (state.next_available, state.next_used),
            (rig.driver.used_count(), rig.driver.used_count())
        );
        // Neither a notification nor a message wakes it.
        let memory = rig.driver.memory.clone();
        let before = dump(&memory);
        rig.notify();
        assert!(rig.block.suspend().unwrap().is_empty());
        assert!(dump(&memory) == before);

        let activation = Activation { queues, ..rig.driver.activation(1 << VIRTIO_BLK_F_FLUSH) };
        let saved = rig.block.state();
        rig.block.resume(Some(activation), saved).unwrap();
        wait_until(|| rig.driver.used_count() == 100);
        let mut heads: Vec<_> = rig.driver.take_used().into_iter().map(|(head, _)| head).collect();
        heads.sort_unstable();
        heads.dedup();
        assert_eq!(heads.len(), 100);
    }
}

/// Writes the kind of the request, the sector and its data where chain `slot` has them, and makes the chain available.
pub(super) fn submit(machine: &mut Machine<Block>, slot: u64, number: u8) -> Option<usize> {
    let (header, status, data) = (HEADERS + 16 * slot, STATUSES + slot, DATA + 512 * slot);
    let kind = if number.is_multiple_of(2) { VIRTIO_BLK_T_OUT } else { VIRTIO_BLK_T_IN };
    let driver = &machine.drivers[0];
    driver.write(header, &[kind.to_le_bytes(), [0; 4]].concat());
    driver.write(header + 8, &slot.to_le_bytes());
    driver.write(status, &[UNANSWERED]);
    driver.write(data, &[number; 512]);
    let flags = if kind == VIRTIO_BLK_T_IN { WRITE } else { 0 };
    machine.submit(0, &[(header, 16, 0), (data, 512, flags), (status, 1, WRITE)])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn nothing_is_lost_or_done_twice_over_a_suspend(steps in steps()) {
        for with in BOTH {
            let file = image(64);
            let device = || {
                let disk = Disk::open(file.path(), false, ImageFormat::Detect).unwrap();
                let engine = with.engine();
                Block::with_engine(disk, DiskId::default(), RateLimits::default(), engine, DEADLINE).unwrap()
            };
            let mut machine = Machine::new(device(), !0);
            // What each chain wrote, or read, by its number.
            let mut requests = Vec::new();
            for &step in &steps {
                machine.step(step, device, |machine, number| {
                    let slot = requests.len() as u64;
                    if submit(machine, slot, number).is_some() {
                        requests.push(number);
                    }
                });
            }
            machine.finish(&[0]);
            let disk = content(file.path());
            for (slot, &number) in requests.iter().enumerate() {
                let at = slot as u64;
                prop_assert_eq!(machine.drivers[0].read(STATUSES + at, 1), [0]);
                let sector = &disk[512 * slot..][..512];
                let was = u8::try_from(slot + 1).unwrap();
                if number.is_multiple_of(2) {
                    prop_assert_eq!(sector, &[number; 512]);
                } else {
                    prop_assert_eq!(sector, &[was; 512]);
                    prop_assert_eq!(machine.drivers[0].read(DATA + 512 * at, 512), [was; 512]);
                }
            }
            prop_assert_eq!(machine.answers.len(), requests.len());
        }
    }
}

#[test]
fn a_device_goes_on_with_the_disk_that_it_had_or_not_at_all() {
    let file = image(8);
    let mut block = Rig::new(With::Direct, file.path(), false).block;
    block.reset().unwrap();
    let state = block.state();
    let text = serde_json::to_string(&state).unwrap();
    assert_eq!(serde_json::from_str::<BlockState>(&text).unwrap(), state);
    block.resume(None, state.clone()).unwrap();
    for other in [BlockState { sectors: 9, ..state.clone() }, BlockState { read_only: true, ..state }] {
        let error = block.resume(None, other).unwrap_err();
        assert!(error.to_string().contains("the disk had"), "{error}");
    }
}
