//! The queues whose requests name pages: what the driver gives up, and what it takes back.

use super::device::BalloonMetrics;
use super::ranges::{PAGE, Ranges, stop_huge_pages};
use crate::virtio::queue::{ActiveQueue, Chain, Head};

/// The most pages that the device takes from one chain: 64 MiB. Linux names 256.
const MAX_PAGES: u64 = 16 << 10;

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

/// Gives the pages that the inflate queue or the reporting queue names back to the host, as many in a turn as its
/// budget allows.
pub(super) struct Discarder {
    /// Whether it is the reporting queue, whose chains are the pages.
    reported: bool,
    /// What is left of the chain at work.
    ranges: Ranges,
    /// The chain at work.
    head: Option<Head>,
    /// The driver reports parts of huge pages.
    has_parts: bool,
}

impl Discarder {
    pub(super) fn new(reported: bool) -> Self {
        Self { reported, ranges: Ranges::default(), head: None, has_parts: false }
    }

    /// Takes what the driver has available.
    pub(super) fn turn(&mut self, queue: &mut ActiveQueue, chain: &mut Chain, metrics: &BalloonMetrics) {
        loop {
            let head = match self.head {
                Some(head) => head,
                None if queue.pop(chain) => self.begin(queue, chain),
                None => return,
            };
            self.head = Some(head);
            while !self.ranges.is_empty() {
                if !queue.may_go_on() {
                    return queue.notify_again();
                }
                let discarded = self.ranges.discard_some(queue.memory());
                queue.spend(discarded.bytes, discarded.host_calls);
                self.counter(metrics).add(discarded.bytes);
                metrics.refused_bytes.add(discarded.refused);
            }
            self.head = None;
            queue.add_used(head, 0);
        }
    }

    fn begin(&mut self, queue: &mut ActiveQueue, chain: &mut Chain) -> Head {
        self.ranges.clear();
        if self.reported {
            chain.writable.ranges().for_each(|(address, length)| self.ranges.push_buffer(address, length));
        } else {
            queue.spend(chain.readable.len().min(MAX_PAGES * 4), 0);
            collect_pages(chain, queue, &mut self.ranges);
        }
        self.ranges.merge();
        if self.reported && !self.has_parts && self.ranges.split_huge_pages() {
            self.has_parts = true;
            stop_huge_pages(queue.memory());
        }
        chain.head
    }

    fn counter<'a>(&self, metrics: &'a BalloonMetrics) -> &'a crate::metrics::Counter {
        if self.reported { &metrics.reported_bytes } else { &metrics.inflated_bytes }
    }

    /// Gives the chain at work back as it is: the host keeps what it has, and goes without the rest.
    pub(super) fn give_up(&mut self, queue: &mut ActiveQueue, metrics: &BalloonMetrics) {
        if let Some(head) = self.head.take() {
            metrics.refused_bytes.add(self.ranges.bytes());
            queue.add_used(head, 0);
        }
        self.clear();
    }

    /// Forgets the chain at work.
    pub(super) fn clear(&mut self) {
        self.head = None;
        self.ranges.clear();
    }
}

/// Lets the driver have pages back: nothing has to be done, as the host gives memory where the guest touches it.
pub(super) fn deflate(queue: &mut ActiveQueue, chain: &mut Chain, metrics: &BalloonMetrics) {
    while queue.pop(chain) {
        metrics.deflated_bytes.add((chain.readable.len() / 4).min(MAX_PAGES) * PAGE);
        queue.add_used(chain.head, 0);
    }
}
