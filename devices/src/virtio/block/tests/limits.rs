//! Rate limits, and the counters that show what they did.

use std::time::{Duration, Instant};

use super::*;
use crate::virtio::rate_limit::Limit;

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
            rig.run(20);
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
        rig.run(1);
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

/// How long the bucket of bytes takes to become full.
fn debt(rig: &Rig) -> Duration {
    rig.block.state().limits.bandwidth.unwrap()
}

#[test]
fn zeroes_count_as_what_is_written_for_them() {
    use virtio_bindings::virtio_blk::VIRTIO_BLK_T_WRITE_ZEROES;
    // 2 MiB of zeros at 1 MiB a second.
    let limits = RateLimits { bandwidth: limit(1 << 20, 4 << 20), operations: None };
    let seconds = |rig: &Rig| debt(rig).as_secs_f64();
    for with in BOTH {
        // Blocks of a file on tmpfs can be freed, and then nothing is written.
        let file = tempfile::NamedTempFile::new_in("/dev/shm").unwrap();
        file.as_file().set_len(8 << 20).unwrap();
        let driver = || Driver::with_event_idx(256);
        let mut rig = Rig::with_limits(with, file.path(), false, driver(), limits);
        assert_eq!(rig.range(VIRTIO_BLK_T_WRITE_ZEROES, 0, 4096, 1), (0, 1));
        assert!(seconds(&rig) < 0.5, "{with:?}: {}", seconds(&rig));
        // They can't be zeroed without being written, though.
        assert_eq!(rig.range(VIRTIO_BLK_T_WRITE_ZEROES, 0, 4096, 0), (0, 1));
        assert!(seconds(&rig) > 1.5, "{with:?}: {}", seconds(&rig));

        // On a file system that can't free blocks, zeros are written whatever the driver asked for.
        let Some(directory) = super::errors::MountedFs::new("ramfs", "size=64m") else {
            eprintln!("skipped: a file system without holes can't be mounted without root");
            continue;
        };
        let file = tempfile::NamedTempFile::new_in(directory.path()).unwrap();
        file.as_file().set_len(8 << 20).unwrap();
        let mut rig = Rig::with_limits(with, file.path(), false, driver(), limits);
        assert_eq!(rig.range(VIRTIO_BLK_T_WRITE_ZEROES, 0, 4096, 1), (0, 1));
        assert!(seconds(&rig) > 1.5, "{with:?}: {}", seconds(&rig));
    }
}

#[test]
fn a_request_is_bounded_so_that_its_debt_is() {
    use crate::virtio::block::config::MAX_DATA;
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 30).unwrap();
    let limits = RateLimits { bandwidth: limit(1 << 20, 1 << 20), operations: None };
    for with in BOTH {
        let mut rig = Rig::with_limits(with, file.path(), true, Driver::with_event_idx(256), limits);
        let buffer = (DATA, 0x2_0000, WRITE);
        let most = usize::try_from(MAX_DATA / 0x2_0000).unwrap();
        assert_eq!(rig.request(VIRTIO_BLK_T_IN, 0, &vec![buffer; most + 1]), (1, 1));
        assert!(debt(&rig) < Duration::from_secs(1));
        let (status, written) = rig.request(VIRTIO_BLK_T_IN, 0, &vec![buffer; most]);
        assert_eq!((status, u64::from(written)), (0, MAX_DATA + 1));
        assert!(debt(&rig) > Duration::from_secs(10));
    }
}
