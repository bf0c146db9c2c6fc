//! Ranges of guest memory on their way back to the host.

use std::collections::VecDeque;

use rustix::io::Errno;
use rustix::mm::{Advice, madvise};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap};

/// The size of a page, for the balloon (5.5.6) as for the host.
pub(super) const PAGE: u64 = 4096;

/// The size of a huge page of the host. Regions of guest memory start with one.
const HUGE_PAGE: u64 = 2 << 20;

/// The most bytes that one system call gives back.
const PIECE: u64 = 8 << 20;

/// Pages of guest memory, as ranges of addresses. The driver names them in any order, also twice, and they need not
/// exist.
#[derive(Default)]
pub(super) struct Ranges(VecDeque<(u64, u64)>);

/// What became of some ranges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Discarded {
    /// Bytes that the host has back.
    pub(super) bytes: u64,
    /// Bytes that the guest keeps: there is no memory there, or madvise failed.
    pub(super) refused: u64,
    /// The system calls that it took.
    pub(super) host_calls: u64,
}

impl Ranges {
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Adds the page with number `number`.
    pub(super) fn push_page(&mut self, number: u32) {
        let start = u64::from(number) * PAGE;
        self.push(start, start + PAGE);
    }

    /// Adds the whole pages in a buffer: what shares a page with it may be in use.
    pub(super) fn push_buffer(&mut self, address: GuestAddress, length: u32) {
        let end = address.0.saturating_add(u64::from(length));
        if let Some(start) = address.0.checked_next_multiple_of(PAGE) {
            self.push(start, end - end % PAGE);
        }
    }

    fn push(&mut self, start: u64, end: u64) {
        match self.0.back_mut() {
            _ if start >= end => {}
            Some(last) if last.1 == start => last.1 = end,
            _ => self.0.push_back((start, end)),
        }
    }

    /// Sorts the ranges and makes one of those that touch: each page is given back once, in as few calls as it takes.
    pub(super) fn merge(&mut self) {
        let mut all = Vec::from(std::mem::take(&mut self.0));
        all.sort_unstable();
        all.dedup_by(|next, last| {
            let touches = next.0 <= last.1;
            if touches {
                last.1 = last.1.max(next.1);
            }
            touches
        });
        self.0 = all.into();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The bytes in all ranges together, which were merged.
    pub(super) fn bytes(&self) -> u64 {
        self.0.iter().map(|(start, end)| end - start).sum()
    }

    /// Whether a range has a part of a huge page, and the rest of it stays.
    pub(super) fn split_huge_pages(&self) -> bool {
        self.0.iter().any(|(start, end)| start % HUGE_PAGE != 0 || end % HUGE_PAGE != 0)
    }

    /// Takes the first range off, or a piece of it, and gives its pages that are pages of `memory` back to the host.
    /// The guest finds them zeroed.
    pub(super) fn discard_some(&mut self, memory: &GuestMemoryMmap) -> Discarded {
        let mut discarded = Discarded::default();
        let Some((start, end)) = self.0.pop_front() else { return discarded };
        let piece_end = end.min(start + PIECE);
        if piece_end < end {
            self.0.push_front((piece_end, end));
        }
        for region in memory.iter() {
            match discard_part(region, start, piece_end) {
                Ok(0) => {}
                Ok(bytes) => {
                    discarded.bytes += bytes;
                    discarded.host_calls += 1;
                }
                Err(error) => {
                    tracing::warn!(%error, start, end = piece_end, "cannot give memory of the balloon back to the host");
                    discarded.host_calls += 1;
                }
            }
        }
        discarded.refused = piece_end - start - discarded.bytes;
        discarded
    }
}

/// Gives the part of `start..end` that lies in `region` back, and returns its bytes.
fn discard_part(region: &GuestRegionMmap, start: u64, end: u64) -> Result<u64, Errno> {
    let base = region.start_addr().0;
    let first = start.max(base) - base;
    // A region ends with a whole page in all that mvm builds; where one did not, its last page would stay.
    let behind = end.saturating_sub(base).min(region.len() / PAGE * PAGE);
    let Some(length) = behind.checked_sub(first).filter(|length| *length > 0) else { return Ok(0) };
    // Shared memory belongs to a file, and leaves the host only with the file's pages.
    let shared = region.flags() & libc::MAP_SHARED != 0;
    let advice = if shared { Advice::LinuxRemove } else { Advice::LinuxDontNeed };
    let has_part = !(first | length).is_multiple_of(HUGE_PAGE);
    // Both are within the region, whose size is a `usize`.
    let (first, bytes) = (usize::try_from(first).unwrap_or(0), usize::try_from(length).unwrap_or(0));
    let start = region.as_ptr().wrapping_add(first).cast();
    if !shared && has_part {
        // What is taken out of the middle of a huge page stays there until the host runs short of memory, unless the
        // huge page is split first. Linux does that for other advice on a part of it, whatever comes of that.
        // SAFETY: the range is as below, and its contents stay.
        let _ = unsafe { madvise(start, bytes, Advice::LinuxCold) };
    }
    // SAFETY: `first..first + bytes` is within the region, which is a mapping of guest memory that `memory` keeps. Its
    // pages become zeros, which is what any byte of guest memory may become at any time: nothing in Rust holds a
    // reference to it.
    unsafe { madvise(start, bytes, advice) }?;
    Ok(length)
}

/// Has the host make no more huge pages of `memory`: those that it has stay. It would fill what a guest has given back
/// of one.
pub(super) fn stop_huge_pages(memory: &GuestMemoryMmap) {
    for region in memory.iter() {
        let size = usize::try_from(region.len()).unwrap_or(0);
        // SAFETY: the range is a mapping of guest memory that `memory` keeps, and its contents stay. Without huge pages
        // in the host's kernel the call fails, and nothing depends on it.
        let _ = unsafe { madvise(region.as_ptr().cast(), size, Advice::LinuxNoHugepage) };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pages_that_touch_become_one_range() {
        let mut ranges = Ranges::default();
        for number in [7, 3, 4, 5, 5, 9, 6] {
            ranges.push_page(number);
        }
        ranges.merge();
        assert_eq!(ranges.0, [(3 * PAGE, 8 * PAGE), (9 * PAGE, 10 * PAGE)]);
    }

    #[test]
    fn huge_pages_are_split_by_parts_of_them_alone() {
        for (ranges, expected) in [
            (vec![], false),
            (vec![(HUGE_PAGE, 3 * HUGE_PAGE)], false),
            (vec![(0, HUGE_PAGE), (2 * HUGE_PAGE, 2 * HUGE_PAGE + PAGE)], true),
            (vec![(HUGE_PAGE - PAGE, HUGE_PAGE)], true),
        ] {
            assert_eq!(Ranges(ranges.clone().into()).split_huge_pages(), expected, "{ranges:?}");
        }
    }

    /// The flags of the mapping that has the first byte of `memory`.
    fn flags(memory: &GuestMemoryMmap) -> String {
        let start = memory.iter().next().unwrap().as_ptr() as usize;
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut lines = maps.lines().skip_while(|line| {
            let range = line.split_once(' ').and_then(|(range, _)| range.split_once('-'));
            let number = |text| usize::from_str_radix(text, 16).ok();
            let range = range.and_then(|(from, to)| Some(number(from)?..number(to)?));
            range.is_none_or(|range| !range.contains(&start))
        });
        lines.find(|line| line.starts_with("VmFlags:")).unwrap().to_owned()
    }

    #[test]
    fn memory_has_no_more_huge_pages_once_it_was_said() {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 4 << 20)]).unwrap();
        assert!(!flags(&memory).contains(" nh"));
        stop_huge_pages(&memory);
        // A kernel without huge pages has no flag for them.
        let has = std::path::Path::new("/sys/kernel/mm/transparent_hugepage").exists();
        assert_eq!(flags(&memory).contains(" nh"), has);
    }

    #[test]
    fn a_buffer_gives_its_whole_pages() {
        for (address, length, expected) in [
            (PAGE, 4096, vec![(PAGE, 2 * PAGE)]),
            (PAGE + 1, 4096, vec![]),
            (PAGE - 1, 4098, vec![(PAGE, 2 * PAGE)]),
            (PAGE + 1, 3 * 4096, vec![(2 * PAGE, 4 * PAGE)]),
            (u64::MAX, u32::MAX, vec![]),
            (u64::MAX - PAGE, u32::MAX, vec![]),
        ] {
            let mut ranges = Ranges::default();
            ranges.push_buffer(GuestAddress(address), length);
            assert_eq!(ranges.0, expected, "{address:#x} {length:#x}");
        }
    }

    proptest! {
        #[test]
        fn merging_keeps_every_page_and_adds_none(
            pushed in prop::collection::vec((0_u64..60, 0_u64..9), 0..40)
        ) {
            let mut ranges = Ranges::default();
            let mut expected = std::collections::BTreeSet::new();
            for (first, count) in pushed {
                ranges.push(first * PAGE, (first + count) * PAGE);
                expected.extend(first..first + count);
            }
            ranges.merge();
            let pages: Vec<_> =
                ranges.0.iter().flat_map(|(start, end)| start / PAGE..end / PAGE).collect();
            prop_assert_eq!(pages, expected.into_iter().collect::<Vec<_>>());
            prop_assert!(ranges.0.make_contiguous().windows(2).all(|pair| pair[0].1 < pair[1].0));
        }
    }
}
