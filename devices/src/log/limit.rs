//! How often a place in the source may log.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tracing::Level;
use tracing::callsite::Identifier;

/// Lines that a bucket lets through at once, and the time after which it lets through one more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rate {
    pub(super) burst: u32,
    pub(super) interval: Duration,
}

/// For errors, warnings and information: enough to see what is wrong, and 300 kB a day at the most.
const USUAL: Rate = Rate { burst: 10, interval: Duration::from_secs(30) };
/// For what is asked for by `--log-level debug` or `trace`.
const DEBUGGING: Rate = Rate { burst: 1000, interval: Duration::from_millis(100) };

/// The most buckets. There is one for each place that has logged and each device of it, so no more are needed; beyond
/// them a place has one bucket for all devices.
const MOST_BUCKETS: usize = 4096;

impl Rate {
    pub(super) fn of(level: Level) -> Self {
        if level <= Level::INFO { USUAL } else { DEBUGGING }
    }
}

/// A place that logs, and a number for the device that it logs of.
pub(super) type Key = (Identifier, u64);

/// What becomes of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is written.
    Written {
        /// How many like it were left out before.
        left_out: u64,
        /// Those that come next will be left out.
        last: bool,
    },
    /// It is left out.
    LeftOut,
}

struct Bucket {
    tokens: u32,
    /// When the last token came that was counted.
    filled: Instant,
    left_out: u64,
}

impl Bucket {
    fn fill(&mut self, rate: Rate, now: Instant) {
        let passed = now.saturating_duration_since(self.filled);
        let new = u32::try_from(passed.as_nanos() / rate.interval.as_nanos().max(1)).unwrap_or(u32::MAX);
        self.tokens = self.tokens.saturating_add(new).min(rate.burst);
        self.filled = match rate.interval.checked_mul(new) {
            Some(time) if self.tokens < rate.burst => self.filled + time,
            _ => now,
        };
    }
}

/// The buckets of all places that have logged.
#[derive(Default)]
pub(super) struct Limiter {
    buckets: HashMap<Key, Bucket>,
}

impl Limiter {
    /// Judges one more line of `key`.
    pub(super) fn judge(&mut self, (place, device): Key, rate: Rate, now: Instant) -> Verdict {
        let full = self.buckets.len() >= MOST_BUCKETS;
        let device = if full && !self.buckets.contains_key(&(place.clone(), device)) { 0 } else { device };
        let bucket = self.buckets.entry((place, device)).or_insert(Bucket {
            tokens: rate.burst,
            filled: now,
            left_out: 0,
        });
        bucket.fill(rate, now);
        if bucket.tokens == 0 {
            bucket.left_out = bucket.left_out.saturating_add(1);
            return Verdict::LeftOut;
        }
        bucket.tokens -= 1;
        Verdict::Written { left_out: std::mem::take(&mut bucket.left_out), last: bucket.tokens == 0 }
    }

    /// Takes the count of all lines that were left out and that no later line has counted.
    pub(super) fn take_left_out(&mut self) -> u64 {
        self.buckets.values_mut().map(|bucket| std::mem::take(&mut bucket.left_out)).sum()
    }
}

#[cfg(test)]
mod tests {
    use tracing::Callsite;
    use tracing::callsite::DefaultCallsite;
    use tracing::field::FieldSet;
    use tracing::metadata::{Kind, Metadata};

    use super::*;

    static SITE: DefaultCallsite = DefaultCallsite::new(&META);
    static META: Metadata<'static> = Metadata::new(
        "a place",
        "target",
        Level::WARN,
        None,
        None,
        None,
        FieldSet::new(&[], Identifier(&SITE)),
        Kind::EVENT,
    );

    fn key(device: u64) -> Key {
        (SITE.metadata().callsite(), device)
    }

    #[test]
    fn a_burst_is_written_then_one_for_each_interval_and_all_others_are_counted() {
        let (mut limiter, start) = (Limiter::default(), Instant::now());
        let mut judge = |seconds| limiter.judge(key(1), USUAL, start + Duration::from_secs(seconds));
        let written = |left_out, last| Verdict::Written { left_out, last };
        for _ in 0..9 {
            assert_eq!(judge(0), written(0, false));
        }
        assert_eq!(judge(0), written(0, true));
        for _ in 0..1000 {
            assert_eq!(judge(29), Verdict::LeftOut);
        }
        assert_eq!(judge(31), written(1000, true));
        assert_eq!(judge(59), Verdict::LeftOut);
        assert_eq!(
            judge(60),
            written(1, true),
            "the second after the first interval counts for the second one"
        );
        for _ in 0..9 {
            assert_eq!(judge(10_000), written(0, false));
        }
        assert_eq!(judge(10_000), written(0, true));
        assert_eq!(judge(10_000), Verdict::LeftOut);
        assert_eq!(limiter.take_left_out(), 1);
        assert_eq!(limiter.take_left_out(), 0);
    }

    #[test]
    fn devices_have_buckets_of_their_own_and_no_more_than_there_may_be() {
        let (mut limiter, now) = (Limiter::default(), Instant::now());
        let mut written = 0;
        for device in 1..=3 {
            for _ in 0..100 {
                written += usize::from(limiter.judge(key(device), USUAL, now) != Verdict::LeftOut);
            }
        }
        assert_eq!(written, 30);
        for device in 0..100_000 {
            limiter.judge(key(device), USUAL, now);
        }
        assert!(limiter.buckets.len() <= MOST_BUCKETS + 1);
    }
}
