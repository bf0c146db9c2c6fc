//! The driver's memory statistics (5.5.6.3).

use serde::{Deserialize, Serialize};

/// Bytes of an entry: a tag of 16 bits, then a value of 64 (`struct virtio_balloon_stat`, packed).
pub(super) const ENTRY: usize = 10;

/// Defines [`Statistics`]: each tag and the field that its value goes to.
macro_rules! statistics {
    ($($(#[$doc:meta])* $tag:literal => $field:ident,)*) => {
        /// The driver's last statistics; `None` for those that it never sent. The guest may send any value.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        pub struct Statistics {
            $($(#[$doc])* #[serde(skip_serializing_if = "Option::is_none")] pub $field: Option<u64>,)*
        }

        impl Statistics {
            /// Takes an entry; one with a tag that is not known is of a newer driver.
            pub(super) fn take(&mut self, entry: [u8; ENTRY]) {
                let [tag_low, tag_high, value @ ..] = entry;
                let value = Some(u64::from_le_bytes(value));
                match u16::from_le_bytes([tag_low, tag_high]) {
                    $($tag => self.$field = value,)*
                    _ => {}
                }
            }
        }
    };
}

statistics! {
    /// Bytes swapped in.
    0 => swap_in,
    /// Bytes swapped out.
    1 => swap_out,
    /// Page faults that needed I/O.
    2 => major_faults,
    /// Other page faults.
    3 => minor_faults,
    /// Bytes that nothing uses.
    4 => free_memory,
    /// Bytes of memory, without the balloon where it can't be taken back.
    5 => total_memory,
    /// Bytes that programs could still get without swapping.
    6 => available_memory,
    /// Bytes of file caches.
    7 => disk_caches,
    /// Huge pages (hugetlb) that were given out.
    8 => hugetlb_allocations,
    /// Huge pages (hugetlb) that could not be given out.
    9 => hugetlb_failures,
    /// Processes killed for lack of memory.
    10 => oom_kill,
    /// Allocations that had to wait for memory.
    11 => alloc_stall,
    /// Pages scanned in the background.
    12 => async_scan,
    /// Pages scanned by those who needed them.
    13 => direct_scan,
    /// Pages reclaimed in the background.
    14 => async_reclaim,
    /// Pages reclaimed by those who needed them.
    15 => direct_reclaim,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_find_their_fields() {
        let mut statistics = Statistics::default();
        statistics.take([15, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
        statistics.take([4, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        // A tag that no version has.
        statistics.take([4, 1, 3, 0, 0, 0, 0, 0, 0, 0]);
        let expected = Statistics { free_memory: Some(256), direct_reclaim: Some(2), ..Default::default() };
        assert_eq!(statistics, expected);
    }
}
