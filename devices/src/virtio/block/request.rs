//! The request in a chain (5.2.6), checked against the disk.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryMmap, Permissions};

use super::config::{MAX_DATA, MAX_DISCARD_SECTORS, MAX_WRITE_ZEROES_SECTORS};
use super::disk::{Disk, SECTOR};
use crate::virtio::queue::Chain;

/// How a request ends (the status byte of `struct virtio_blk_req`, 5.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    Ok,
    /// VIRTIO_BLK_S_IOERR: it failed, or makes no sense.
    IoError,
    /// VIRTIO_BLK_S_UNSUPP: it's of a type, or has a flag, that the device doesn't know.
    Unsupported,
}

impl Status {
    /// The status byte.
    pub(super) fn byte(self) -> u8 {
        const { assert!(VIRTIO_BLK_S_IOERR == 1 && VIRTIO_BLK_S_UNSUPP == 2) };
        match self {
            Self::Ok => 0,
            Self::IoError => 1,
            Self::Unsupported => 2,
        }
    }
}

/// A part of the disk in bytes, wholly inside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) offset: u64,
    pub(super) length: u64,
}

impl Range {
    /// The same for data that is read or written.
    fn of_data(disk: &Disk, sector: u64, length: u64) -> Result<Self, Status> {
        if length > MAX_DATA { Err(Status::IoError) } else { Self::new(disk, sector, length) }
    }

    /// The range of `length` bytes at `sector`: whole sectors and at least one, inside of `disk`.
    fn new(disk: &Disk, sector: u64, length: u64) -> Result<Self, Status> {
        let offset = sector.checked_mul(SECTOR).ok_or(Status::IoError)?;
        let end = offset.checked_add(length).ok_or(Status::IoError)?;
        if length == 0 || !length.is_multiple_of(SECTOR) || end > disk.size() {
            return Err(Status::IoError);
        }
        Ok(Self { offset, length })
    }
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Read the range into the chain's writable buffers.
    Read(Range),
    /// Write the chain's readable buffers to the range.
    Write(Range),
    /// Make durable what was written.
    Flush,
    /// Write the disk's ID into the chain's writable buffers.
    GetId,
    /// The range's content is of no use any more.
    Discard(Range),
    /// Make the range read as zeros.
    WriteZeroes {
        range: Range,
        /// Whether its blocks may be freed.
        unmap: bool,
    },
}

impl Action {
    /// The bytes of data that the host may have to read or write for it. Where blocks are to be freed and zeroed, the
    /// host writes zeros if it can't free them; a discard writes nothing.
    pub(super) fn data_bytes(self) -> u64 {
        match self {
            Self::Read(range) | Self::Write(range) | Self::WriteZeroes { range, .. } => range.length,
            Self::Discard(_) | Self::Flush | Self::GetId => 0,
        }
    }
}

/// A request and where its answer goes. What it transfers is what is left in the chain.
pub(super) struct Request {
    /// Where the status byte is.
    pub(super) status: GuestAddress,
    /// What is to be done, or how it was refused.
    pub(super) action: Result<Action, Status>,
}

impl Request {
    /// Takes header and status byte off `chain`, in whatever way the driver laid them out (2.7.4): the header
    /// is the first 16 readable bytes, the status the last writable one. `None` where the chain has no room for
    /// them, so that it can't be answered.
    pub(super) fn parse(chain: &mut Chain, memory: &GuestMemoryMmap, disk: &Disk) -> Option<Self> {
        let status = chain.writable.take_last()?;
        if !memory.check_range(status, 1, Permissions::Write) {
            return None;
        }
        let mut header = [0; 16];
        if !chain.readable.take(memory, &mut header) {
            return None;
        }
        let [a, b, c, d, _, _, _, _, sector @ ..] = header;
        let kind = u32::from_le_bytes([a, b, c, d]);
        Some(Self { status, action: action(kind, u64::from_le_bytes(sector), chain, memory, disk) })
    }
}

fn action(
    kind: u32,
    sector: u64,
    chain: &mut Chain,
    memory: &GuestMemoryMmap,
    disk: &Disk,
) -> Result<Action, Status> {
    if disk.is_empty() {
        return Err(Status::IoError);
    }
    let writes = matches!(kind, VIRTIO_BLK_T_OUT | VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES);
    if writes && disk.read_only {
        return Err(Status::IoError);
    }
    match kind {
        VIRTIO_BLK_T_IN => Range::of_data(disk, sector, chain.writable.len()).map(Action::Read),
        VIRTIO_BLK_T_OUT => Range::of_data(disk, sector, chain.readable.len()).map(Action::Write),
        VIRTIO_BLK_T_FLUSH => Ok(Action::Flush),
        VIRTIO_BLK_T_GET_ID => Ok(Action::GetId),
        VIRTIO_BLK_T_DISCARD => {
            let (range, flags) = segment(chain, memory, disk, MAX_DISCARD_SECTORS)?;
            // 5.2.6.2: no flag is defined for a discard.
            if flags != 0 { Err(Status::Unsupported) } else { range.map(Action::Discard) }
        }
        VIRTIO_BLK_T_WRITE_ZEROES => {
            let (range, flags) = segment(chain, memory, disk, MAX_WRITE_ZEROES_SECTORS)?;
            if flags & !VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 {
                return Err(Status::Unsupported);
            }
            range.map(|range| Action::WriteZeroes { range, unmap: flags != 0 })
        }
        _ => Err(Status::Unsupported),
    }
}

/// Reads the one `struct virtio_blk_discard_write_zeroes` (5.2.6) that a request has, and returns its range and
/// its flags.
fn segment(
    chain: &mut Chain,
    memory: &GuestMemoryMmap,
    disk: &Disk,
    max_sectors: u32,
) -> Result<(Result<Range, Status>, u32), Status> {
    let mut segment = [0; 16];
    if !chain.readable.take(memory, &mut segment) || chain.readable.len() != 0 {
        return Err(Status::IoError);
    }
    let [a, b, c, d, e, f, g, h, i, j, k, l, flags @ ..] = segment;
    let sector = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
    let sectors = u32::from_le_bytes([i, j, k, l]);
    let range = if sectors > max_sectors {
        Err(Status::IoError)
    } else {
        Range::new(disk, sector, u64::from(sectors) * SECTOR)
    };
    Ok((range, u32::from_le_bytes(flags)))
}
