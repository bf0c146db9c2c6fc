//! A request in flight: the operation that comes next after the host completed a part of it, or refused one.

use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::super::iovecs::IoVecs;
use super::super::queue::{Chain, Head};
use super::super::rate_limit::Reservation;
use super::config::SEG_MAX;
use super::engine::Operation;
use super::request::{Action, Range, Status};

/// How often an operation is started again without progress, before the request fails.
const MAX_RETRIES: u8 = 32;
/// Zeros to write where the host can't zero by itself.
static ZEROES: [u8; 4096] = [0; 4096];
/// How many times [`ZEROES`] is written by one operation: 1 MiB.
const ZEROES_AT_ONCE: usize = 256;

const PUNCH_HOLE: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
const ZERO_RANGE: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;

/// What is done to the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    /// From the file to the ranges.
    Read,
    /// From the ranges to the file.
    Write,
    /// Zeros to the file.
    Fill,
    /// The range is freed.
    Discard,
    /// The range is zeroed by the file system, and its blocks freed.
    Unmap,
    /// The range is zeroed by the file system.
    Zero,
    /// What was written becomes durable.
    Sync,
}

/// A request in flight.
pub(super) struct Transfer {
    /// Whether the host has it, or will get it. Between requests it does not.
    pub(super) in_flight: bool,
    pub(super) head: Head,
    pub(super) status: GuestAddress,
    /// What the driver asked for.
    pub(super) action: Action,
    work: Work,
    /// Where in the file it goes on.
    pub(super) offset: u64,
    /// The bytes that are still to come.
    left: u64,
    /// The bytes that were read into the guest's memory.
    pub(super) read: u64,
    ranges: IoVecs,
    /// What the operation gets of `ranges` where a file of the disk ends before them.
    part: IoVecs,
    retries: u8,
    /// Zeros were written, as the host could not zero the range by itself.
    has_filled: bool,
    /// What the rate limit allowed for the request.
    pub(super) reserved: Reservation,
}

/// What comes after a completion.
pub(super) enum Next {
    /// The operation, or its rest, has to be started.
    Start,
    /// The request is done.
    Answer(Status),
}

impl Transfer {
    pub(super) fn new() -> Self {
        Self {
            in_flight: false,
            head: Head::default(),
            status: GuestAddress(0),
            action: Action::Flush,
            work: Work::Sync,
            offset: 0,
            left: 0,
            read: 0,
            ranges: IoVecs::default(),
            part: IoVecs::default(),
            retries: 0,
            has_filled: false,
            reserved: Reservation::default(),
        }
    }

    /// Sets the transfer up for `action` on the buffers that are left in `chain`.
    pub(super) fn set_up(
        &mut self,
        action: Action,
        chain: &Chain,
        memory: &GuestMemoryMmap,
    ) -> Result<(), Status> {
        self.ranges.clear();
        self.action = action;
        self.has_filled = false;
        let (work, range, buffers) = match action {
            Action::Read(range) => (Work::Read, range, Some(&chain.writable)),
            Action::Write(range) => (Work::Write, range, Some(&chain.readable)),
            Action::Discard(range) => (Work::Discard, range, None),
            Action::WriteZeroes { range, unmap: true } => (Work::Unmap, range, None),
            Action::WriteZeroes { range, unmap: false } => (Work::Zero, range, None),
            Action::Flush | Action::GetId => (Work::Sync, Range { offset: 0, length: 0 }, None),
        };
        self.begin(work, range);
        let Some(buffers) = buffers else { return Ok(()) };
        buffers.append_to(memory, &mut self.ranges).map_err(|_| Status::IoError)?;
        // Header and status may share a buffer with data, so there may be two more of them.
        let count = self.ranges.left().len();
        if count > usize::from(SEG_MAX) + 2 { Err(Status::IoError) } else { Ok(()) }
    }

    fn begin(&mut self, work: Work, range: Range) {
        self.work = work;
        self.offset = range.offset;
        self.left = range.length;
        self.read = 0;
        self.retries = 0;
    }

    pub(super) fn operation(&self) -> Operation {
        let allocate = |mode| Operation::Allocate { mode, length: self.left };
        match self.work {
            Work::Read => Operation::Read,
            Work::Write | Work::Fill => Operation::Write,
            Work::Discard | Work::Unmap => allocate(PUNCH_HOLE),
            Work::Zero => allocate(ZERO_RANGE),
            Work::Sync => Operation::Sync,
        }
    }

    /// The bytes that the next operation moves, frees or zeroes.
    pub(super) fn operation_bytes(&self) -> u64 {
        match self.work {
            Work::Fill => u64::try_from(self.ranges.length()).unwrap_or(u64::MAX),
            Work::Sync => 0,
            Work::Read | Work::Write | Work::Discard | Work::Unmap | Work::Zero => self.left,
        }
    }

    /// The ranges for the next operation, which moves up to `most` bytes. What it leaves over comes next, as after any
    /// operation that moved less than it was asked for.
    pub(super) fn ranges_within(&mut self, most: u64) -> &IoVecs {
        match usize::try_from(most) {
            Ok(most) if most < self.ranges.length() => {
                self.part.clear();
                self.ranges.copy_part(0, most, &mut self.part);
                &self.part
            }
            _ => &self.ranges,
        }
    }

    /// Whether the host had nothing to write though the request might have made it: it freed the blocks.
    pub(super) fn freed(&self) -> bool {
        matches!(self.action, Action::WriteZeroes { unmap: true, .. }) && !self.has_filled
    }

    /// Takes the result of the operation that was started last.
    pub(super) fn completed(&mut self, result: i32, write_through: bool) -> Next {
        match u32::try_from(result) {
            Ok(done) => self.progressed(u64::from(done), write_through),
            Err(_) => self.failed(-result),
        }
    }

    fn progressed(&mut self, done: u64, write_through: bool) -> Next {
        match self.work {
            Work::Sync => return Next::Answer(Status::Ok),
            Work::Discard | Work::Unmap | Work::Zero => self.left = 0,
            // The file is shorter than the disk: it was truncated.
            Work::Read | Work::Write | Work::Fill if done == 0 => return Next::Answer(Status::IoError),
            Work::Read | Work::Write | Work::Fill => self.advance(done),
        }
        if self.left > 0 {
            Next::Start
        } else if write_through && self.work != Work::Read {
            self.begin(Work::Sync, Range { offset: 0, length: 0 });
            Next::Start
        } else {
            Next::Answer(Status::Ok)
        }
    }

    fn advance(&mut self, done: u64) {
        let done = done.min(self.left);
        self.offset += done;
        self.left -= done;
        self.retries = 0;
        match self.work {
            Work::Fill => self.refill(),
            Work::Read => self.read += done,
            _ => {}
        }
        if self.work != Work::Fill {
            self.ranges.advance(usize::try_from(done).unwrap_or(usize::MAX));
        }
    }

    fn failed(&mut self, errno: i32) -> Next {
        match (errno, self.work) {
            (libc::EINTR | libc::EAGAIN, _) if self.retries < MAX_RETRIES => {
                self.retries += 1;
                Next::Start
            }
            // A discard is a hint; a host that can't free blocks ignores it.
            (libc::EOPNOTSUPP, Work::Discard) => Next::Answer(Status::Ok),
            (libc::EOPNOTSUPP, Work::Unmap | Work::Zero) => {
                self.work = Work::Fill;
                self.has_filled = true;
                self.refill();
                Next::Start
            }
            _ => {
                let error = std::io::Error::from_raw_os_error(errno);
                tracing::warn!(%error, offset = self.offset, work = ?self.work, "disk I/O failed");
                Next::Answer(Status::IoError)
            }
        }
    }

    /// Makes the ranges those of the next zeros to write.
    fn refill(&mut self) {
        self.ranges.clear();
        let mut left = usize::try_from(self.left).unwrap_or(usize::MAX);
        for _ in 0..ZEROES_AT_ONCE {
            let length = left.min(ZEROES.len());
            if length == 0 {
                break;
            }
            // Nothing is ever read into them: `Work::Fill` is a write.
            self.ranges.push_raw(ZEROES.as_ptr().cast_mut().cast(), length);
            left -= length;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RANGE: Range = Range { offset: 4096, length: 1024 };

    fn transfer(work: Work) -> Transfer {
        let mut transfer = Transfer::new();
        transfer.begin(work, RANGE);
        for length in [100, 924] {
            transfer.ranges.push_raw(std::ptr::without_provenance_mut(0x1000), length);
        }
        transfer
    }

    fn lengths(transfer: &Transfer) -> Vec<usize> {
        transfer.ranges.left().iter().map(|range| range.iov_len).collect()
    }

    fn answer(next: &Next) -> Option<Status> {
        match next {
            Next::Start => None,
            Next::Answer(status) => Some(*status),
        }
    }

    #[test]
    fn a_short_transfer_goes_on_where_it_stopped() {
        for work in [Work::Read, Work::Write] {
            let mut transfer = transfer(work);
            assert_eq!(answer(&transfer.completed(300, false)), None);
            assert_eq!((transfer.offset, transfer.left), (4396, 724));
            assert_eq!(lengths(&transfer), [724]);
            assert_eq!(answer(&transfer.completed(724, false)), Some(Status::Ok));
            assert_eq!(transfer.read, if work == Work::Read { 1024 } else { 0 });
        }
    }

    #[test]
    fn a_transfer_without_progress_ends() {
        for work in [Work::Read, Work::Write, Work::Fill] {
            assert_eq!(answer(&transfer(work).completed(0, false)), Some(Status::IoError));
            for errno in [libc::EIO, libc::ENOSPC, libc::EFBIG] {
                assert_eq!(answer(&transfer(work).completed(-errno, false)), Some(Status::IoError));
            }
            let mut transfer = transfer(work);
            for _ in 0..MAX_RETRIES {
                assert_eq!(answer(&transfer.completed(-libc::EAGAIN, false)), None);
            }
            assert_eq!(answer(&transfer.completed(-libc::EINTR, false)), Some(Status::IoError));
        }
    }

    #[test]
    fn what_the_file_system_cannot_zero_is_filled_and_what_it_cannot_free_stays() {
        for work in [Work::Unmap, Work::Zero] {
            let mut transfer = transfer(work);
            assert_eq!(answer(&transfer.completed(-libc::EOPNOTSUPP, false)), None);
            assert_eq!(transfer.operation(), Operation::Write);
            assert_eq!(lengths(&transfer), [1024]);
            assert_eq!(answer(&transfer.completed(1000, false)), None);
            assert_eq!(lengths(&transfer), [24]);
            assert_eq!(answer(&transfer.completed(24, false)), Some(Status::Ok));
        }
        assert_eq!(answer(&transfer(Work::Discard).completed(-libc::EOPNOTSUPP, false)), Some(Status::Ok));
    }

    #[test]
    fn write_through_makes_each_change_durable_before_its_answer() {
        for (work, result) in [(Work::Write, 1024), (Work::Fill, 1024), (Work::Zero, 0), (Work::Unmap, 0)] {
            let mut transfer = transfer(work);
            assert_eq!(answer(&transfer.completed(result, true)), None);
            assert_eq!(transfer.operation(), Operation::Sync);
            assert_eq!(answer(&transfer.completed(0, true)), Some(Status::Ok));
        }
        assert_eq!(answer(&transfer(Work::Read).completed(1024, true)), Some(Status::Ok));
    }
}
