//! The queues whose requests name pages: what the driver gives up, and what it takes back.

use super::super::queue::{ActiveQueue, Chain};
use super::device::BalloonMetrics;
use super::ranges::{PAGE, Ranges};

/// The most pages that the device takes from one chain: 64 MiB. Linux names 256.
const MAX_PAGES: u64 = 16 << 10;
/// After so many bytes in a turn, others have theirs: to free 64 MiB of small pages takes some milliseconds.
const TURN: u64 = 64 << 20;

/// Collects the pages that `chain` names by number.
fn collect_pages(chain: &mut Chain, queue: &ActiveQueue, ranges: &mut Ranges) {
    let mut piece = [0; 1024];
    let mut left = (chain.readable.len() / 4).min(MAX_PAGES) * 4;
    while left > 0 {
        let count = usize::try_from(left).unwrap_or(usize::MAX).min(piece.len());
        let Some(piece) = piece.get_mut(..count) else { return };
        if !chain.readable.take(queue.memory(), piece) {
            return;
        }
        for number in piece.as_chunks::<4>().0 {
            ranges.push_page(u32::from_le_bytes(*number));
        }
        left -= u64::try_from(count).unwrap_or(left);
    }
}

/// Takes what the driver has available on the inflate queue, or with `reported` on the reporting queue.
pub(super) fn discard(
    queue: &mut ActiveQueue,
    reported: bool,
    (chain, ranges): (&mut Chain, &mut Ranges),
    metrics: &BalloonMetrics,
) {
    let mut freed = 0;
    while queue.pop(chain) {
        ranges.clear();
        if reported {
            chain.writable.ranges().for_each(|(address, length)| ranges.push_buffer(address, length));
        } else {
            collect_pages(chain, queue, ranges);
        }
        let discarded = ranges.discard(queue.memory());
        queue.add_used(chain.head, 0);
        let counter = if reported { &metrics.reported_bytes } else { &metrics.inflated_bytes };
        counter.add(discarded.bytes);
        metrics.refused_bytes.add(discarded.refused);
        freed += discarded.bytes;
        if freed >= TURN {
            queue.leave_the_rest();
        }
    }
}

/// Lets the driver have pages back: nothing has to be done, as the host gives memory where the guest touches it.
pub(super) fn deflate(queue: &mut ActiveQueue, chain: &mut Chain, metrics: &BalloonMetrics) {
    while queue.pop(chain) {
        metrics.deflated_bytes.add((chain.readable.len() / 4).min(MAX_PAGES) * PAGE);
        queue.add_used(chain.head, 0);
    }
}
