//! What a block device counts.

use super::request::{Action, Status};

crate::metrics! {
    /// The counters of a block device. Requests count when they were answered.
    pub struct BlockMetrics {
        /// Bytes read by the guest.
        read_bytes,
        /// Reads.
        read_operations,
        /// Bytes written by the guest.
        write_bytes,
        /// Writes.
        write_operations,
        /// Requests to make durable what was written.
        flush_operations,
        /// Bytes discarded or zeroed.
        discard_bytes,
        /// Requests to discard or to zero.
        discard_operations,
        /// Requests answered with an error.
        failed_operations,
        /// Times that requests had to wait in the queue because as many as may be were in flight.
        queue_stalls,
        /// Times that requests had to wait in the queue for the rate limit.
        rate_limit_waits,
    }
}

impl BlockMetrics {
    /// Counts a request for `action` that was answered with `status`.
    pub(super) fn answered(&self, action: Action, status: Status) {
        let (operations, bytes) = match action {
            _ if status != Status::Ok => (&self.failed_operations, None),
            Action::Read(range) => (&self.read_operations, Some((&self.read_bytes, range.length))),
            Action::Write(range) => (&self.write_operations, Some((&self.write_bytes, range.length))),
            Action::Discard(range) | Action::WriteZeroes { range, .. } => {
                (&self.discard_operations, Some((&self.discard_bytes, range.length)))
            }
            Action::Flush => (&self.flush_operations, None),
            Action::GetId => return,
        };
        operations.increment();
        if let Some((counter, count)) = bytes {
            counter.add(count);
        }
    }
}
