//! How long a guest waits for a slow reader of its console.
//!
//! A guest can output faster than any terminal shows it. If the device can make it wait (flow control), no output is
//! lost; but a reader that has stopped must not stop the guest. So waiting uses up a credit, which grows with every
//! byte that is read: the guest always waits for a reader of 100 kB/s or more, and for one that has stopped 100 ms in
//! all, until it reads again.

use std::time::{Duration, Instant};

/// The most credit: the longest wait for a reader that does not read. Linux spins with interrupts off meanwhile.
const MOST: Duration = Duration::from_millis(100);
/// The credit for a byte that was read.
const PER_BYTE: Duration = Duration::from_micros(10);

/// The credit of a reader.
pub(super) struct ReaderCredit {
    left: Duration,
    waiting_since: Option<Instant>,
}

impl ReaderCredit {
    pub(super) fn new() -> Self {
        Self { left: MOST, waiting_since: None }
    }

    /// Takes off the time that the guest has waited.
    fn charge(&mut self, now: Instant) {
        if let Some(since) = &mut self.waiting_since {
            self.left = self.left.saturating_sub(now.saturating_duration_since(*since));
            *since = now;
        }
    }

    /// The guest has to wait from `now` on: how long at most, or `None` if no credit is left.
    pub(super) fn wait(&mut self, now: Instant) -> Option<Duration> {
        self.charge(now);
        self.waiting_since = (!self.left.is_zero()).then_some(now);
        self.waiting_since.map(|_| self.left)
    }

    /// The guest no longer waits.
    pub(super) fn stop(&mut self, now: Instant) {
        self.charge(now);
        self.waiting_since = None;
    }

    /// The reader has read `bytes`. Returns whether the guest is waiting.
    pub(super) fn read(&mut self, bytes: usize, now: Instant) -> bool {
        self.charge(now);
        let earned = PER_BYTE.saturating_mul(u32::try_from(bytes).unwrap_or(u32::MAX));
        self.left = self.left.saturating_add(earned).min(MOST);
        self.waiting_since.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_waits_once_for_a_reader_that_has_stopped() {
        let (mut credit, start) = (ReaderCredit::new(), Instant::now());
        assert_eq!(credit.wait(start), Some(MOST));
        assert_eq!(credit.wait(start + MOST / 2), Some(MOST / 2));
        for late in 1..100 {
            assert_eq!(credit.wait(start + MOST * late), None);
        }
    }

    #[test]
    fn the_guest_always_waits_for_a_reader_that_is_fast_enough() {
        let (mut credit, mut now) = (ReaderCredit::new(), Instant::now());
        for _ in 0..1000 {
            assert!(credit.wait(now).is_some());
            now += Duration::from_millis(40);
            assert!(credit.read(4096, now));
        }
    }

    #[test]
    fn the_guest_waits_for_a_slower_reader_only_as_long_as_its_credit_lasts() {
        let (mut credit, mut now) = (ReaderCredit::new(), Instant::now());
        let mut waited = Duration::ZERO;
        for _ in 0..1000 {
            let before = now;
            now += Duration::from_millis(40);
            if let Some(wait) = credit.wait(before) {
                waited += wait.min(now - before);
            }
            credit.read(100, now);
        }
        assert!(
            waited <= MOST + PER_BYTE * 100 * 1000,
            "{waited:?} of {:?}",
            Duration::from_millis(40) * 1000
        );
    }

    #[test]
    fn time_in_which_the_guest_does_not_wait_costs_no_credit() {
        let (mut credit, start) = (ReaderCredit::new(), Instant::now());
        credit.wait(start);
        credit.stop(start);
        assert_eq!(credit.wait(start + 10 * MOST), Some(MOST));
    }
}
