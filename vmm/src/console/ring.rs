//! The console's recent output, bounded whatever its readers do.

use std::collections::VecDeque;

/// How much output waits for a reader at most. Beyond it the oldest goes: what a VM said last matters most.
pub(super) const CAPACITY: usize = 1 << 20;
/// How much is kept that every reader has seen, for one that comes later.
pub(super) const HISTORY: usize = 16 << 10;
/// What has been seen is given up in steps, not byte by byte.
const STEP: usize = 4 << 10;

/// Bytes by their position in all that was ever output.
pub(super) struct Ring {
    capacity: usize,
    bytes: VecDeque<u8>,
    /// The position behind the last byte.
    end: u64,
}

/// What a reader gets next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Taken {
    /// Bytes that came before and are gone.
    pub(super) lost: u64,
    /// Bytes taken.
    pub(super) length: usize,
}

impl Ring {
    /// A ring of at most `capacity` bytes.
    pub(super) fn new(capacity: usize) -> Self {
        Self { capacity, bytes: VecDeque::new(), end: 0 }
    }

    /// The position behind the last byte.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// The position of the first byte that is still there.
    pub(super) fn start(&self) -> u64 {
        self.end - self.bytes.len() as u64
    }

    /// Where a new reader begins: behind a line's end, if there is one, within the history.
    pub(super) fn recent(&self) -> u64 {
        let from = self.start().max(self.end.saturating_sub(HISTORY as u64));
        if from == 0 {
            return 0;
        }
        let history = self.bytes.iter().rev().take(HISTORY);
        // The oldest line's end is the last one that is met backwards.
        let lines = (1..).zip(history).filter(|(_, byte)| **byte == b'\n').last();
        lines.map_or(from, |(back, _): (u64, _)| self.end - back + 1)
    }

    /// Appends `bytes`, of which only as many of the last as the ring holds can stay.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.end += bytes.len() as u64;
        let (_, latest) = bytes.split_at(bytes.len().saturating_sub(self.capacity));
        let excess = (self.bytes.len() + latest.len()).saturating_sub(self.capacity);
        self.bytes.drain(..excess);
        self.bytes.extend(latest);
    }

    /// Discards what no reader needs: all before position `seen` but the last [`HISTORY`] bytes.
    pub(super) fn trim(&mut self, seen: u64) {
        let keep_from = seen.min(self.end.saturating_sub(HISTORY as u64));
        let unneeded = usize::try_from(keep_from.saturating_sub(self.start())).unwrap_or(usize::MAX);
        if unneeded < STEP {
            return;
        }
        self.bytes.drain(..unneeded.min(self.bytes.len()));
        // A reader that was slow once must not cost memory forever.
        if self.bytes.capacity() > 8 * HISTORY && self.bytes.len() <= HISTORY + STEP {
            self.bytes.shrink_to(2 * HISTORY);
        }
    }

    /// Appends to `into` up to `most` bytes from `position` on, or from the first that is still there.
    pub(super) fn take(&self, position: u64, most: usize, into: &mut Vec<u8>) -> Taken {
        let from = position.max(self.start());
        let mut skip = usize::try_from(from - self.start()).unwrap_or(usize::MAX);
        let before = into.len();
        let mut left = most;
        let (older, newer) = self.bytes.as_slices();
        for part in [older, newer] {
            let (skipped, part) = part.split_at(skip.min(part.len()));
            skip -= skipped.len();
            let (part, _) = part.split_at(left.min(part.len()));
            left -= part.len();
            into.extend_from_slice(part);
        }
        Taken { lost: from - position, length: into.len() - before }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn numbered(from: u64, length: usize) -> Vec<u8> {
        (from..).take(length).map(|position| (position % 251) as u8).collect()
    }

    /// Enough for all that differs, and quick to fill.
    const SMALL: usize = 3 * HISTORY;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Whatever is pushed, trimmed and taken, in whatever pieces: a reader sees the bytes in their order,
        /// knows how many it missed, and misses none unless it was behind by more than the capacity.
        #[test]
        fn a_reader_sees_all_but_what_it_is_told_it_lost(
            steps in prop::collection::vec((0..SMALL * 3 / 2, 1..SMALL, any::<bool>()), 1..12),
        ) {
            let (mut ring, mut position) = (Ring::new(SMALL), 0);
            for (pushed, taken, trimmed) in steps {
                ring.push(&numbered(ring.end(), pushed));
                prop_assert!(ring.end() - ring.start() <= SMALL as u64);
                if trimmed {
                    ring.trim(position);
                }
                let behind = ring.end() - position;
                let mut seen = Vec::new();
                let found = ring.take(position, taken, &mut seen);
                prop_assert_eq!(found.length, seen.len());
                prop_assert_eq!(found.lost, behind.saturating_sub(SMALL as u64));
                prop_assert_eq!(seen.len() as u64, (behind - found.lost).min(taken as u64));
                position += found.lost;
                prop_assert!(seen == numbered(position, seen.len()));
                position += seen.len() as u64;
            }
        }
    }

    #[test]
    fn what_all_have_seen_is_kept_as_far_as_the_history_goes() {
        let mut ring = Ring::new(CAPACITY);
        for _ in 0..10 * HISTORY {
            ring.push(b"x");
            ring.trim(ring.end());
        }
        let kept = ring.end() - ring.start();
        assert!((HISTORY as u64..=(HISTORY + STEP) as u64).contains(&kept), "{kept}");
    }

    #[test]
    fn who_comes_late_begins_with_a_whole_line() {
        let mut ring = Ring::new(CAPACITY);
        ring.push(b"first\nsecond\n");
        assert_eq!(ring.recent(), 0);
        ring.push(&vec![b'x'; HISTORY - 5]);
        let mut seen = Vec::new();
        ring.take(ring.recent(), usize::MAX, &mut seen);
        assert_eq!(seen, vec![b'x'; HISTORY - 5], "of the second line only a part is recent");
        ring.push(b"yyyyyyyyyy");
        assert_eq!(ring.recent(), ring.end() - HISTORY as u64, "no line is whole");
    }

    #[test]
    fn the_memory_of_a_slow_reader_is_given_back() {
        let mut ring = Ring::new(CAPACITY);
        ring.push(&[0; CAPACITY]);
        ring.trim(0);
        assert_eq!(ring.end() - ring.start(), CAPACITY as u64);
        ring.trim(ring.end());
        assert!(ring.bytes.capacity() <= 4 * HISTORY, "{}", ring.bytes.capacity());
    }
}
