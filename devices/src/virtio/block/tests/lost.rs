//! Completions of the host's that belong to no request.

use std::sync::Arc;

use super::super::super::iovecs::IoVecs;
use super::super::super::rate_limit::RateLimiter;
use super::super::engine::Operation;
use super::super::worker::{Host, Worker};
use super::*;

/// A worker of an active device on a file of four sectors.
struct Served {
    driver: Driver,
    worker: Worker,
    host: Host,
    _file: tempfile::NamedTempFile,
}

impl Served {
    fn new() -> Self {
        let file = image(4);
        let disk = Disk::open(file.path(), false, ImageFormat::Detect).unwrap();
        let limiter = RateLimiter::new(RateLimits::default()).unwrap();
        let (id, engine, metrics) = (DiskId::default(), Engine::direct(), Arc::default());
        let host = Host { disk: Arc::new(disk), id, engine, limiter, metrics };
        let driver = Driver::with_event_idx(16);
        let worker = Worker::new(driver.activation(1 << VIRTIO_BLK_F_FLUSH)).unwrap();
        Self { driver, worker, host, _file: file }
    }

    /// Has the host complete an operation that the worker did not start.
    fn complete(&mut self, number: u16) {
        let (place, _) = self.host.disk.locate(0);
        // SAFETY: the operation has no ranges, and the file is open as long as `self`.
        unsafe { self.host.engine.start(number, Operation::Sync, place, &IoVecs::default()) };
    }

    fn turn(&mut self) {
        self.worker.turn(&mut self.host);
    }

    /// Makes a flush available.
    fn flush(&mut self) {
        self.driver.write(HEADERS, &[&VIRTIO_BLK_T_FLUSH.to_le_bytes()[..], &[0; 12]].concat());
        self.driver.write(STATUSES, &[UNANSWERED]);
        self.driver.add(&[(HEADERS, 16, 0), (STATUSES, 1, WRITE)]);
    }
}

#[test]
fn a_completion_of_a_request_that_was_never_made_needs_a_reset() {
    for number in [0, 5, u16::MAX] {
        let mut served = Served::new();
        served.complete(number);
        assert!(!served.worker.turn(&mut served.host), "there is nothing left to do");
        assert!(served.driver.counters.broken(), "{number}");
        // Nothing is answered in a queue that is broken.
        served.flush();
        served.turn();
        assert_eq!((served.driver.used_count(), served.driver.read(STATUSES, 1)), (0, vec![UNANSWERED]));
        assert!(served.worker.is_idle(), "so that a reset ends");
    }
}

#[test]
fn a_second_completion_of_one_request_needs_a_reset() {
    let mut served = Served::new();
    served.flush();
    // The second turn takes the completion.
    served.turn();
    served.turn();
    assert_eq!((served.driver.used_count(), served.driver.read(STATUSES, 1)), (1, vec![0]));
    assert!(!served.driver.counters.broken());
    served.complete(0);
    served.turn();
    assert!(served.driver.counters.broken());
    assert_eq!(served.driver.used_count(), 1, "it was answered once");
    assert!(served.worker.is_idle());
}

#[test]
fn completions_of_no_request_do_not_disturb_a_reset() {
    let mut served = Served::new();
    served.flush();
    served.turn();
    for number in [0, 0, 7] {
        served.complete(number);
    }
    served.worker.discard(&mut served.host);
    assert!(served.worker.is_idle() && !served.driver.counters.broken());
}
