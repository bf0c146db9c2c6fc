//! Rate limits, and the counters that show what they did.

use std::time::{Duration, Instant};

use super::super::super::rate_limit::Limit;
use super::super::super::testing;
use super::*;

fn limit(per_second: u64, burst: u64) -> Option<Limit> {
    Some(Limit { per_second: per_second.try_into().unwrap(), burst: burst.try_into().unwrap() })
}

impl Rig {
    fn counter(&self, name: &str) -> u64 {
        let mut found = None;
        self.block.metrics().visit(&mut |counter, count| {
            if counter == name {
                found = Some(count);
            }
        });
        found.unwrap()
    }

    /// Runs the device until it used `count` chains, woken by its completions and its timer.
    fn run_limited(&mut self, count: u16) {
        self.block.queue_notified(0);
        while self.driver.used_count() < count {
            let fds = self.block.wake_fds();
            let index = testing::wait_any_readable(&fds);
            self.block.woken(index);
        }
    }
}

#[test]
fn requests_beyond_the_limit_wait_in_the_queue_and_all_are_answered() {
    let file = image(64);
    for with in BOTH {
        for limits in [
            // 20 reads of 4 KiB at 400 KiB a second after a burst of 40 KiB, or at 100 a second after ten.
            RateLimits { bandwidth: limit(400 << 10, 40 << 10), operations: None },
            RateLimits { bandwidth: None, operations: limit(100, 10) },
        ] {
            let driver = Driver::with_event_idx(256);
            let mut rig = Rig::with_limits(with, file.path(), true, driver, limits);
            let start = Instant::now();
            for _ in 0..20 {
                rig.add(VIRTIO_BLK_T_IN, 0, &[(DATA, 4096, WRITE)]);
            }
            rig.run_limited(20);
            assert!(
                start.elapsed() >= Duration::from_millis(85),
                "the ten reads beyond the burst take a tenth of a second, less what the last one owes"
            );
            assert_eq!(rig.counter("read_operations"), 20);
            assert_eq!(rig.counter("read_bytes"), 20 * 4096);
            assert!(rig.counter("rate_limit_waits") > 0);
        }
    }
}

#[test]
fn a_reset_fills_no_bucket() {
    let file = image(8);
    let limits = RateLimits { bandwidth: None, operations: limit(20, 1) };
    let mut rig = Rig::with_limits(With::Direct, file.path(), true, Driver::with_event_idx(256), limits);
    let start = Instant::now();
    for _ in 0..3 {
        rig.add(VIRTIO_BLK_T_IN, 0, &[(DATA, 512, WRITE)]);
        rig.run_limited(1);
        rig.block.reset().unwrap();
        rig.driver = Driver::with_event_idx(256);
        rig.block.activate(rig.driver.activation(1 << VIRTIO_BLK_F_FLUSH)).unwrap();
    }
    assert!(start.elapsed() >= Duration::from_millis(90));
}

#[test]
fn what_was_done_is_counted() {
    let file = image(16);
    let mut rig = Rig::new(With::Uring, file.path(), false);
    rig.read(0, 1024);
    rig.write(1, &[7; 512]);
    rig.request(virtio_bindings::virtio_blk::VIRTIO_BLK_T_FLUSH, 0, &[]);
    rig.read(1000, 512);
    let names = ["read_bytes", "read_operations", "write_bytes", "write_operations", "flush_operations"];
    assert_eq!(names.map(|name| rig.counter(name)), [1024, 1, 512, 1, 1]);
    assert_eq!(rig.counter("rate_limit_waits"), 0);
    // One that the host refused, and one that makes no sense.
    assert_eq!(rig.counter("failed_operations"), 1);
}
