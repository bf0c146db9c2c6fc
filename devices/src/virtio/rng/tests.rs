use proptest::prelude::*;

use super::Rng;
use crate::virtio::VirtioDevice;
use crate::virtio::testing::machine::{Machine, steps};
use crate::virtio::testing::{Driver, FREE, WRITE};

fn started(driver: &Driver) -> Rng {
    let mut rng = Rng::new();
    rng.activate(driver.activation(0)).unwrap();
    rng
}

#[test]
fn buffers_are_filled_whatever_their_layout() {
    let mut driver = Driver::with_event_idx(16);
    let mut rng = started(&driver);
    let head = driver.add(&[(FREE, 300, WRITE), (FREE + 500, 0, WRITE), (FREE + 1000, 700, WRITE)]);
    rng.queue_notified(0);
    assert_eq!(driver.take_used(), [(u32::from(head), 1000)]);
    for (at, length) in [(FREE, 300), (FREE + 1000, 700)] {
        // A third of so many random bytes are never zero.
        let zeros = driver.read(at, length).iter().filter(|&&byte| byte == 0).count();
        assert!(zeros < length / 3);
    }
    assert_eq!(driver.read(FREE + 300, 700), [0; 700]);
    assert_eq!(driver.counters.used(), 1);
}

#[test]
fn a_request_without_end_gets_a_part() {
    let mut driver = Driver::new(16);
    let mut rng = started(&driver);
    driver.add(&[(FREE, 0x3_0000, WRITE)]);
    rng.queue_notified(0);
    assert_eq!(driver.take_used()[0].1, 64 << 10);
    assert_eq!(driver.read(FREE + (64 << 10), 100), [0; 100]);
}

#[test]
fn a_request_with_nothing_to_write_to_gets_nothing() {
    let mut driver = Driver::new(16);
    let mut rng = started(&driver);
    driver.write(FREE, &[7; 64]);
    driver.add(&[(FREE, 64, 0)]);
    rng.queue_notified(0);
    assert_eq!(driver.take_used()[0].1, 0);
    assert_eq!(driver.read(FREE, 64), [7; 64]);
}

#[test]
fn a_device_that_was_reset_does_nothing() {
    let mut driver = Driver::new(16);
    let mut rng = started(&driver);
    rng.reset().unwrap();
    driver.add(&[(FREE, 64, WRITE)]);
    rng.queue_notified(0);
    assert_eq!(driver.used_count(), 0);
}

#[test]
fn the_queue_has_to_be_there() {
    let driver = Driver::new(16);
    let mut activation = driver.activation(0);
    activation.queues = vec![None];
    assert!(Rng::new().activate(activation).is_err());
}

proptest! {
    #[test]
    fn nothing_is_lost_or_answered_twice_over_a_suspend(steps in steps()) {
        let mut machine = Machine::new(Rng::new(), 0);
        for step in steps {
            machine.step(step, Rng::new, |machine, number| {
                machine.submit(0, &[(FREE, number.into(), WRITE)]);
            });
        }
        machine.finish(&[0]);
    }

    #[test]
    fn only_writable_buffers_are_written(
        buffers in prop::collection::vec((FREE..FREE + 0x4000, 0..2000u32, any::<bool>()), 1..8),
    ) {
        let mut driver = Driver::new(16);
        let mut rng = started(&driver);
        let chain: Vec<_> =
            buffers.iter().map(|&(at, length, write)| (at, length, if write { WRITE } else { 0 })).collect();
        driver.add(&chain);
        rng.queue_notified(0);
        let inside = |at: u64| {
            buffers.iter().any(|&(start, length, write)| write && (start..start + u64::from(length)).contains(&at))
        };
        for (at, byte) in (FREE..).zip(driver.read(FREE, 0x6000)) {
            prop_assert!(byte == 0 || inside(at), "wrote to {at:#x}");
        }
        let expected: u32 = buffers.iter().filter(|(_, _, write)| *write).map(|(_, length, _)| length).sum();
        match driver.take_used().first() {
            Some(&(_, written)) => prop_assert_eq!(written, expected),
            None => prop_assert!(driver.counters.broken()),
        }
    }
}
