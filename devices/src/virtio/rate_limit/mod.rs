//! Rate limits: how much a device moves for its guest, in bytes and in operations a second.

mod bucket;

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use self::bucket::Bucket;
pub use self::bucket::Limit;
use crate::{Timer, lock};

/// What is limited; nothing, as it is by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateLimits {
    /// Bytes of data.
    pub bandwidth: Option<Limit>,
    /// Requests or packets.
    pub operations: Option<Limit>,
}

/// What several threads may do together: what one of them does, the others can't do any more.
///
/// It outlives its limiters, so that new ones begin with what the old ones left over.
#[derive(Clone)]
pub struct Allowance(Option<Arc<Mutex<Buckets>>>);

struct Buckets {
    bandwidth: Option<Bucket>,
    operations: Option<Bucket>,
}

impl Allowance {
    /// An allowance of `limits`, all of it there; it costs nothing where there are none.
    pub fn new(limits: RateLimits) -> Self {
        if limits == RateLimits::default() {
            return Self(None);
        }
        let now = Instant::now();
        let bucket = |limit: Limit| Bucket::new(limit, now);
        let (bandwidth, operations) = (limits.bandwidth.map(bucket), limits.operations.map(bucket));
        Self(Some(Arc::new(Mutex::new(Buckets { bandwidth, operations }))))
    }

    /// Makes a limiter of what there is, with a timer of its own.
    ///
    /// # Errors
    ///
    /// Those of making a timer.
    pub fn limiter(&self) -> io::Result<RateLimiter> {
        let Some(buckets) = self.0.clone() else { return Ok(RateLimiter(None)) };
        Ok(RateLimiter(Some(Limited { buckets, timer: Timer::new()?, waiting: false })))
    }
}

/// Says when a device may go on.
///
/// A device asks [`ready`](Self::ready) before it takes work from its queue, and says what the work costs with
/// [`charge`](Self::charge) once it knows. What may not be done yet stays in the queue, where it is no burden to the
/// host, and the timer wakes the device when it may.
pub struct RateLimiter(Option<Limited>);

/// A limiter with something to limit.
struct Limited {
    buckets: Arc<Mutex<Buckets>>,
    timer: Timer,
    /// The timer is set, and has not been seen to expire.
    waiting: bool,
}

impl RateLimiter {
    /// A limiter for `limits` that shares them with no other; it costs nothing where there are none.
    ///
    /// # Errors
    ///
    /// Those of making a timer.
    pub fn new(limits: RateLimits) -> io::Result<Self> {
        Allowance::new(limits).limiter()
    }

    /// Whether an operation may begin now. If not, the timer becomes readable when one may.
    pub fn ready(&mut self) -> bool {
        let Some(limited) = &mut self.0 else { return true };
        let wait = lock(&limited.buckets).wait(Instant::now());
        // A timer that can't be set would stop the device for good.
        wait.is_none_or(|wait| limited.wait(wait).is_err())
    }

    /// Counts an operation that moves `bytes` bytes.
    pub fn charge(&mut self, bytes: u64) {
        let Some(limited) = &mut self.0 else { return };
        lock(&limited.buckets).take(bytes, Instant::now());
    }

    /// Whether an operation waits for the timer.
    pub fn is_waiting(&self) -> bool {
        self.0.as_ref().is_some_and(|limited| limited.waiting)
    }

    /// The timer, which becomes readable when an operation may begin that could not before.
    pub fn timer(&self) -> Option<RawFd> {
        self.0.as_ref().map(|limited| limited.timer.as_raw_fd())
    }

    /// Takes note that the timer is readable.
    pub fn timer_expired(&mut self) {
        if let Some(limited) = &mut self.0 {
            limited.timer.acknowledge();
            limited.waiting = false;
        }
    }
}

impl Buckets {
    fn wait(&self, now: Instant) -> Option<Duration> {
        let wait = |bucket: &Option<Bucket>| bucket.as_ref().and_then(|bucket| bucket.wait(now));
        wait(&self.bandwidth).max(wait(&self.operations))
    }

    fn take(&mut self, bytes: u64, now: Instant) {
        if let Some(bucket) = &mut self.bandwidth {
            bucket.take(bytes, now);
        }
        if let Some(bucket) = &mut self.operations {
            bucket.take(1, now);
        }
    }
}

impl Limited {
    /// Sets the timer, unless it is set: the wait only becomes shorter while nothing is charged.
    fn wait(&mut self, time: Duration) -> io::Result<()> {
        if !self.waiting {
            self.timer.set_once(time)?;
            self.waiting = true;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::wait_readable;
    use super::*;

    fn limit(per_second: u64, burst: u64) -> Option<Limit> {
        Some(Limit { per_second: per_second.try_into().unwrap(), burst: burst.try_into().unwrap() })
    }

    #[test]
    fn without_limits_there_is_no_timer_and_no_wait() {
        let mut limiter = RateLimiter::new(RateLimits::default()).unwrap();
        assert!(limiter.timer().is_none());
        for _ in 0..1000 {
            assert!(limiter.ready());
            limiter.charge(u64::MAX);
        }
    }

    #[test]
    fn either_limit_stops_and_the_timer_says_when_to_go_on() {
        for limits in [
            RateLimits { bandwidth: limit(100_000, 1000), operations: None },
            RateLimits { bandwidth: None, operations: limit(100, 1) },
            RateLimits { bandwidth: limit(100_000, 1000), operations: limit(1 << 40, 1 << 40) },
        ] {
            let mut limiter = RateLimiter::new(limits).unwrap();
            assert!(limiter.ready() && !limiter.is_waiting());
            limiter.charge(1000);
            assert!(!limiter.ready());
            assert!(limiter.is_waiting());
            wait_readable(limiter.timer().unwrap());
            limiter.timer_expired();
            assert!(limiter.ready(), "the timer does not come too early");
            assert!(!limiter.is_waiting());
        }
    }

    #[test]
    fn limiters_of_one_allowance_take_from_each_other_and_leave_to_those_that_come() {
        let allowance = Allowance::new(RateLimits { bandwidth: None, operations: limit(100, 2) });
        let [mut one, mut other] = [0; 2].map(|_| allowance.limiter().unwrap());
        one.charge(0);
        assert!(one.ready() && other.ready());
        other.charge(0);
        assert!(!one.ready() && !other.ready());
        // Each has its own timer: what wakes one leaves the other's alone.
        for limiter in [&mut one, &mut other] {
            wait_readable(limiter.timer().unwrap());
            limiter.timer_expired();
        }
        assert!(one.ready());
        one.charge(1);
        drop((one, other));
        assert!(!allowance.limiter().unwrap().ready());
    }
}
