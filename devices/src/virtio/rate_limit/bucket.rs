//! A token bucket that counts in time.
//!
//! Instead of a number of tokens it keeps the moment at which the bucket will be full. Taking tokens moves that moment
//! later by the time that it takes to refill them; how far it lies ahead is how much the bucket lacks. There is nothing
//! to refill, and no remainder is lost between two refills.

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

/// A long-term rate and a burst.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Tokens a second in the long run.
    pub per_second: NonZeroU64,
    /// Tokens that are available at once after a pause.
    pub burst: NonZeroU64,
}

/// A bucket that holds [`Limit::burst`] tokens and gets [`Limit::per_second`] of them a second.
#[derive(Debug)]
pub(super) struct Bucket {
    limit: Limit,
    /// How long an empty bucket takes to become full.
    capacity: Duration,
    full_at: Instant,
}

impl Bucket {
    /// A full bucket.
    pub(super) fn new(limit: Limit, now: Instant) -> Self {
        Self { limit, capacity: cost(limit.burst.get(), limit), full_at: now }
    }

    /// How long until there is a token; `None` if there is one.
    ///
    /// One token is enough to start: an operation may take more than there is, and those behind it wait for the debt.
    /// So an operation larger than the bucket passes as well, and the rate holds in the long run.
    pub(super) fn wait(&self, now: Instant) -> Option<Duration> {
        let with_one_less = self.lacks(now).saturating_add(cost(1, self.limit));
        with_one_less.checked_sub(self.capacity).filter(|wait| !wait.is_zero())
    }

    /// Takes `count` tokens, more than there are if need be. No debt is ever forgotten.
    pub(super) fn take(&mut self, count: u64, now: Instant) {
        self.full_at = later(self.full_at.max(now), cost(count, self.limit));
    }

    /// Takes back what [`take`](Self::take) did with the same `count`.
    pub(super) fn give_back(&mut self, count: u64, now: Instant) {
        self.full_at = self.full_at.checked_sub(cost(count, self.limit)).unwrap_or(now);
    }

    /// How long until the bucket is full.
    pub(super) fn lacks(&self, now: Instant) -> Duration {
        self.full_at.saturating_duration_since(now)
    }

    /// Sets how long it takes until the bucket is full.
    pub(super) fn set_lacks(&mut self, lacks: Duration, now: Instant) {
        self.full_at = later(now, lacks);
    }
}

/// `time` after `instant`; beyond the end of the clock, which is billions of years away, as late as can be told.
fn later(instant: Instant, mut time: Duration) -> Instant {
    loop {
        match instant.checked_add(time) {
            Some(later) => return later,
            None => time /= 2,
        }
    }
}

/// The time in which `count` tokens come, rounded up to the nanosecond.
fn cost(count: u64, limit: Limit) -> Duration {
    let nanoseconds = (u128::from(count) * 1_000_000_000).div_ceil(u128::from(limit.per_second.get()));
    Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn limit(per_second: u64, burst: u64) -> Limit {
        Limit { per_second: per_second.try_into().unwrap(), burst: burst.try_into().unwrap() }
    }

    #[test]
    fn a_full_bucket_gives_its_burst_and_then_the_rate() {
        let mut now = Instant::now();
        let mut bucket = Bucket::new(limit(10, 3), now);
        for _ in 0..3 {
            assert_eq!(bucket.wait(now), None);
            bucket.take(1, now);
        }
        for _ in 0..5 {
            assert_eq!(bucket.wait(now), Some(Duration::from_millis(100)));
            now += Duration::from_millis(99);
            assert_eq!(bucket.wait(now), Some(Duration::from_millis(1)));
            now += Duration::from_millis(1);
            assert_eq!(bucket.wait(now), None);
            bucket.take(1, now);
        }
    }

    #[test]
    fn more_than_the_bucket_holds_is_given_and_paid_for_later() {
        let now = Instant::now();
        let mut bucket = Bucket::new(limit(100, 10), now);
        bucket.take(1010, now);
        assert_eq!(bucket.wait(now), Some(Duration::from_millis(10_010)));
    }

    #[test]
    fn no_debt_is_forgotten() {
        let now = Instant::now();
        let mut bucket = Bucket::new(limit(1, 1), now);
        for _ in 0..3 {
            bucket.take(1 << 32, now);
        }
        assert_eq!(bucket.wait(now), Some(Duration::from_secs(3 << 32)));
        // More than the clock can count.
        let mut bucket = Bucket::new(limit(1, 1), now);
        bucket.set_lacks(Duration::MAX, now);
        bucket.take(u64::MAX, now);
        assert!(bucket.wait(now) > Some(Duration::from_secs(1 << 60)));
        let mut bucket = Bucket::new(limit(1, u64::MAX), now);
        assert_eq!(bucket.wait(now), None);
        bucket.take(1 << 32, now);
        assert_eq!(bucket.wait(now), None);
    }

    #[test]
    fn what_is_given_back_was_never_taken() {
        let start = Instant::now();
        let mut bucket = Bucket::new(limit(10, 3), start);
        let later = start + Duration::from_millis(50);
        bucket.take(1, start);
        bucket.take(7, later);
        bucket.give_back(7, later);
        assert_eq!(bucket.lacks(later), Duration::from_millis(50));
    }

    proptest! {
        /// Taking as early as possible gives neither more nor less than the limit.
        #[test]
        fn the_rate_holds(
            per_second in 1_u64..2_000_000_000,
            burst in 1_u64..4_000_000,
            sizes in proptest::collection::vec(1_u64..2_000_000, 1..200),
            pauses in proptest::collection::vec(0_u64..50_000_000, 200),
        ) {
            let start = Instant::now();
            let (mut now, mut taken, mut idle) = (start, 0, Duration::ZERO);
            let mut bucket = Bucket::new(limit(per_second, burst), now);
            let largest = sizes.iter().copied().max().unwrap_or(0);
            for (size, pause) in sizes.into_iter().zip(pauses) {
                if let Some(wait) = bucket.wait(now) {
                    // It says how long, and not longer than need be.
                    if let Some(less) = wait.checked_sub(Duration::from_nanos(1)) {
                        prop_assert!(bucket.wait(now + less).is_some());
                    }
                    now += wait;
                    prop_assert_eq!(bucket.wait(now), None);
                } else {
                    let pause = Duration::from_nanos(pause);
                    now += pause;
                    idle += pause;
                }
                bucket.take(size, now);
                taken += size;
            }
            let most = (now - start).as_secs_f64() * per_second as f64 + (burst + largest) as f64;
            prop_assert!(taken as f64 <= most * 1.0001 + 1.0, "{} of {}", taken, most);
            // Where it never paused, it got what the time was good for.
            let least = (now - start - idle).as_secs_f64() * per_second as f64;
            prop_assert!(taken as f64 * 1.0001 + 200.0 >= least, "{} of {}", taken, least);
        }
    }
}
