//! A token bucket that counts in time.
//!
//! Instead of tokens it keeps the moment at which the bucket will be full again. What is taken moves that moment
//! on by the time it takes to refill; how far the moment lies ahead is how much the bucket lacks. There is nothing
//! to refill, and no remainder that is lost between two refills.

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

/// How much of something there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// How much there is in a second in the long run.
    pub per_second: NonZeroU64,
    /// How much there is at once after a pause.
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

/// No debt makes anything wait longer, however large a request or small a limit is.
const LONGEST_DEBT: Duration = Duration::from_secs(3600);

impl Bucket {
    /// A full bucket.
    pub(super) fn new(limit: Limit, now: Instant) -> Self {
        Self { limit, capacity: cost(limit.burst.get(), limit), full_at: now }
    }

    /// How long until there is a token; `None`, where there is one.
    ///
    /// One is enough to begin with: what is taken may be more than there is, and those that come later wait for
    /// it. So a request larger than the bucket passes as well, and the rate holds in the long run.
    pub(super) fn wait(&self, now: Instant) -> Option<Duration> {
        let lacks = self.full_at.saturating_duration_since(now);
        let with_one_less = lacks.saturating_add(cost(1, self.limit));
        with_one_less.checked_sub(self.capacity).filter(|wait| !wait.is_zero())
    }

    /// Takes `count` tokens, whether they are there or not.
    pub(super) fn take(&mut self, count: u64, now: Instant) {
        let full_at = self.full_at.max(now).checked_add(cost(count, self.limit));
        let latest = now.checked_add(self.capacity.saturating_add(LONGEST_DEBT));
        // Neither is `None` unless the clock is near its end.
        self.full_at = full_at.min(latest).unwrap_or(now);
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
    fn no_debt_is_without_end() {
        let now = Instant::now();
        let mut bucket = Bucket::new(limit(1, 1), now);
        bucket.take(u64::MAX, now);
        assert!(bucket.wait(now).unwrap() <= LONGEST_DEBT + Duration::from_secs(1));
        let mut bucket = Bucket::new(limit(1, u64::MAX), now);
        assert_eq!(bucket.wait(now), None);
        bucket.take(1 << 32, now);
        assert_eq!(bucket.wait(now), None);
    }

    proptest! {
        /// Whoever takes as soon as it may gets neither more nor less than the limit says.
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
