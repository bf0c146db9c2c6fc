//! How long a guest may be made to wait for a slow reader.
//!
//! A guest can output faster than any terminal shows it. Where the device can make it wait, a moment's wait loses
//! nothing; but a reader that stands still must not make the guest stand still. So waiting is paid for with what
//! the reader reads: one that keeps up a modest rate is waited for as long as it takes, one that has stopped for
//! a tenth of a second altogether, until it reads again.

use std::time::{Duration, Instant};

/// The longest wait for a reader that does not read. Linux spins with interrupts off meanwhile.
const LONGEST: Duration = Duration::from_millis(100);
/// What a byte that was read is worth: a reader of 100 kB/s is always waited for.
const PER_BYTE: Duration = Duration::from_micros(10);

/// The wait that is left.
pub(super) struct Patience {
    left: Duration,
    waiting_since: Option<Instant>,
}

impl Patience {
    pub(super) fn new() -> Self {
        Self { left: LONGEST, waiting_since: None }
    }

    fn pass(&mut self, now: Instant) {
        if let Some(since) = &mut self.waiting_since {
            self.left = self.left.saturating_sub(now.saturating_duration_since(*since));
            *since = now;
        }
    }

    /// The guest has to wait from `now` on: how long at most, or `None` where it has waited enough.
    pub(super) fn wait(&mut self, now: Instant) -> Option<Duration> {
        self.pass(now);
        self.waiting_since = (!self.left.is_zero()).then_some(now);
        self.waiting_since.map(|_| self.left)
    }

    /// The guest waits no more.
    pub(super) fn stop(&mut self, now: Instant) {
        self.pass(now);
        self.waiting_since = None;
    }

    /// The reader has read `bytes`; says whether the guest is waiting for that.
    pub(super) fn read(&mut self, bytes: usize, now: Instant) -> bool {
        self.pass(now);
        let worth = PER_BYTE.saturating_mul(u32::try_from(bytes).unwrap_or(u32::MAX));
        self.left = self.left.saturating_add(worth).min(LONGEST);
        self.waiting_since.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_stands_still_is_waited_for_once() {
        let (mut patience, start) = (Patience::new(), Instant::now());
        assert_eq!(patience.wait(start), Some(LONGEST));
        assert_eq!(patience.wait(start + LONGEST / 2), Some(LONGEST / 2));
        for late in 1..100 {
            assert_eq!(patience.wait(start + LONGEST * late), None);
        }
    }

    #[test]
    fn a_reader_of_a_modest_rate_is_always_waited_for() {
        let (mut patience, mut now) = (Patience::new(), Instant::now());
        for _ in 0..1000 {
            assert!(patience.wait(now).is_some());
            now += Duration::from_millis(40);
            assert!(patience.read(4096, now));
        }
    }

    #[test]
    fn a_reader_below_that_rate_holds_the_guest_up_no_longer_than_what_it_reads_is_worth() {
        let (mut patience, mut now) = (Patience::new(), Instant::now());
        let mut waited = Duration::ZERO;
        for _ in 0..1000 {
            let before = now;
            now += Duration::from_millis(40);
            if let Some(wait) = patience.wait(before) {
                waited += wait.min(now - before);
            }
            patience.read(100, now);
        }
        assert!(
            waited <= LONGEST + PER_BYTE * 100 * 1000,
            "{waited:?} of {:?}",
            Duration::from_millis(40) * 1000
        );
    }

    #[test]
    fn time_without_a_wait_costs_no_patience() {
        let (mut patience, start) = (Patience::new(), Instant::now());
        patience.wait(start);
        patience.stop(start);
        assert_eq!(patience.wait(start + 10 * LONGEST), Some(LONGEST));
    }
}
