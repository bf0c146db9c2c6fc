//! The backing file of a block device, open and locked.

mod error;
mod id;
mod parts;

use std::fs::{File, FileType, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FlockOperation, OFlags, fcntl_setfl, flock, ioctl_blksszget};
use rustix::io::Errno;
use rustix::ioctl;

pub use self::error::DiskError;
pub use self::id::{DiskId, DiskIdError};
pub use self::parts::{MAX_PARTS, Part};

use super::engine::Place;
use super::format::{ForeignFormat, ImageFormat};

/// Asks whether a block device is read-only (`linux/fs.h`).
const BLKROGET: ioctl::Opcode = ioctl::opcode::none(0x12, 94);

/// Bytes in a sector, the unit of a block device's capacity and addresses (5.2.4).
pub(super) const SECTOR: u64 = 512;

/// A file that a disk is composed of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The file.
    pub path: PathBuf,
    /// Where it begins on the disk, in bytes; a multiple of 512.
    pub start: u64,
}

/// A piece that is open: what the disk has from `start` up to `end`.
#[derive(Debug)]
struct OpenPiece {
    file: Arc<File>,
    start: u64,
    end: u64,
}

/// What is read where a disk has no piece.
fn open_zeros() -> Result<Arc<File>, DiskError> {
    let path = Path::new("/dev/zero");
    File::open(path).map(Arc::new).map_err(|source| DiskError::Open { path: path.into(), source })
}

/// A file or block device of the host, open and locked for one VM, or for several that only read; or none.
#[derive(Debug)]
pub struct Disk {
    /// `None` for the disk that an empty slot has.
    file: Option<Arc<File>>,
    /// The files of a disk that is composed of several.
    pieces: Vec<OpenPiece>,
    pub(super) read_only: bool,
    /// The capacity; it changes when the disk is resized.
    sectors: AtomicU64,
    /// The smallest unit in bytes that the host reads and writes.
    pub(super) block_size: u32,
    is_block_device: bool,
}

impl Disk {
    /// Opens the regular file or block device at `path`, whose content is of `format`, and locks it: for this VM alone,
    /// or, with `read_only`, for all that only read. The lock ends with the disk.
    ///
    /// # Errors
    ///
    /// [`DiskError`], which names `path` and says what to do.
    pub fn open(path: &Path, read_only: bool, format: ImageFormat) -> Result<Self, DiskError> {
        let file = open(path, read_only)?;
        let size = |source: io::Error| DiskError::Size { path: path.into(), source };
        let metadata = file.metadata().map_err(size)?;
        let kind = metadata.file_type();
        if let Some(kind) = not_a_disk(kind) {
            return Err(DiskError::Kind { path: path.into(), kind });
        }
        // It was for the opening only: with it, io_uring fails with EAGAIN where it would have to wait.
        fcntl_setfl(&file, OFlags::empty()).map_err(|error| size(error.into()))?;
        if kind.is_block_device() && !read_only && is_read_only(&file).map_err(size)? {
            let source = io::Error::from(io::ErrorKind::ReadOnlyFilesystem);
            return Err(DiskError::NotWritable { path: path.into(), source });
        }
        lock(&file, path, read_only)?;
        let bytes = length(&file).map_err(size)?;
        let block_size = if kind.is_block_device() {
            ioctl_blksszget(&file).map_err(|error| size(error.into()))?
        } else {
            512
        };
        if format == ImageFormat::Detect
            && let Some(foreign) = ForeignFormat::of(&file, bytes)
        {
            let (name, command) = (foreign.name, foreign.conversion(path));
            return Err(DiskError::Format { path: path.into(), name, command });
        }
        if bytes < SECTOR {
            return Err(DiskError::TooSmall { path: path.into(), bytes });
        }
        if !bytes.is_multiple_of(SECTOR) {
            tracing::warn!(
                path = %path.display(),
                bytes,
                "the size of the disk is not a multiple of 512 bytes: the guest does not see the last, partial sector"
            );
        }
        Ok(Self {
            file: Some(Arc::new(file)),
            pieces: Vec::new(),
            read_only,
            sectors: AtomicU64::new(bytes / SECTOR),
            block_size,
            is_block_device: kind.is_block_device(),
        })
    }

    /// Opens a read-only disk that is made of `pieces`, in the order of their places. Between them are zeros. As with
    /// [`open`](Self::open), no file of it is open to write elsewhere while it is used.
    ///
    /// # Errors
    ///
    /// [`DiskError`], which names the piece and says what to do.
    pub fn compose(pieces: &[Piece]) -> Result<Self, DiskError> {
        let mut first: Option<Self> = None;
        let mut open = Vec::new();
        let mut zeros: Option<Arc<File>> = None;
        let mut end = 0;
        for Piece { path, start } in pieces {
            let invalid = || DiskError::Piece { path: path.clone(), start: *start };
            if *start < end || !start.is_multiple_of(SECTOR) {
                return Err(invalid());
            }
            if *start > end {
                let file = match &zeros {
                    Some(file) => Arc::clone(file),
                    None => open_zeros()?,
                };
                zeros = Some(Arc::clone(&file));
                open.push(OpenPiece { file, start: end, end: *start });
            }
            let piece = Self::open(path, true, ImageFormat::Raw)?;
            end = start.checked_add(piece.size()).ok_or_else(invalid)?;
            open.extend(piece.file.iter().map(|file| OpenPiece {
                file: Arc::clone(file),
                start: *start,
                end,
            }));
            first.get_or_insert(piece);
        }
        let mut disk = first.ok_or(DiskError::NoPieces)?;
        disk.pieces = open;
        disk.set_sectors(end / SECTOR);
        Ok(disk)
    }

    /// No disk: it has no sector.
    pub fn empty() -> Self {
        Self {
            file: None,
            pieces: Vec::new(),
            read_only: true,
            sectors: AtomicU64::new(0),
            block_size: 512,
            is_block_device: false,
        }
    }

    /// Whether there is no disk.
    pub(super) fn is_empty(&self) -> bool {
        self.file.is_none()
    }

    /// The file that has what is at `offset`, where it is there, and up to how many bytes follow in that file.
    pub(super) fn locate(&self, offset: u64) -> (Place, u64) {
        let index = self.pieces.partition_point(|piece| piece.end <= offset);
        match self.pieces.get(index) {
            Some(piece) => {
                let place = Place { fd: piece.file.as_raw_fd(), offset: offset.saturating_sub(piece.start) };
                (place, piece.end.saturating_sub(offset))
            }
            None => (Place { fd: self.file.as_ref().map_or(NO_FILE, AsRawFd::as_raw_fd), offset }, u64::MAX),
        }
    }

    /// The open file, with its lock; the first one, where there are several.
    pub(in crate::virtio) fn file(&self) -> Option<&Arc<File>> {
        self.file.as_ref()
    }

    /// The size in bytes that a guest sees.
    pub fn size(&self) -> u64 {
        self.sectors() * SECTOR
    }

    /// Whether the guest may only read it.
    pub(super) fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Whether it is a block device of the host.
    pub(super) fn is_block_device(&self) -> bool {
        self.is_block_device
    }

    /// The length in bytes of the file or block device now; at least a sector. A disk of several files keeps its own.
    pub(super) fn measure(&self) -> io::Result<u64> {
        if !self.pieces.is_empty() {
            return Ok(self.size());
        }
        let file = self.file.as_ref().ok_or_else(|| io::Error::other("there is no disk in it"))?;
        let bytes = length(file)?;
        if bytes < SECTOR {
            Err(io::Error::other("it is smaller than a sector of 512 bytes"))
        } else {
            Ok(bytes)
        }
    }

    /// Sets the length of the file, unless it has it, in whole sectors.
    pub(super) fn set_length(&self, bytes: u64) -> io::Result<()> {
        match &self.file {
            Some(file) if self.measure()? / SECTOR != bytes / SECTOR => file.set_len(bytes),
            _ => Ok(()),
        }
    }

    /// Sets the capacity; whether it was another.
    pub(super) fn set_sectors(&self, sectors: u64) -> bool {
        self.sectors.swap(sectors, Ordering::AcqRel) != sectors
    }

    /// The capacity in sectors.
    pub(super) fn sectors(&self) -> u64 {
        self.sectors.load(Ordering::Acquire)
    }
}

/// In place of a descriptor, for a system call that fails.
const NO_FILE: i32 = -1;

fn open(path: &Path, read_only: bool) -> Result<File, DiskError> {
    let with = |write| {
        // A FIFO without a writer, or a terminal without a line, would block the opening.
        let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
        let flags = i32::try_from(flags.bits()).unwrap_or_default();
        OpenOptions::new().read(true).write(write).custom_flags(flags).open(path)
    };
    with(!read_only).map_err(|source| match source.kind() {
        io::ErrorKind::IsADirectory => DiskError::Kind { path: path.into(), kind: "a directory" },
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
            if !read_only && with(false).is_ok() =>
        {
            DiskError::NotWritable { path: path.into(), source }
        }
        _ => DiskError::Open { path: path.into(), source },
    })
}

/// The length in bytes of a file or block device.
fn length(mut file: &File) -> io::Result<u64> {
    file.seek(SeekFrom::End(0))
}

/// Whether a block device takes no writes (`blockdev --setro`, `losetup -r`). It can be opened for writing all the
/// same.
fn is_read_only(device: &File) -> io::Result<bool> {
    // SAFETY: BLKROGET writes one `int`, which the getter has room for.
    let getter = unsafe { ioctl::Getter::<BLKROGET, libc::c_int>::new() };
    // SAFETY: it changes nothing.
    Ok(unsafe { ioctl::ioctl(device, getter) }? != 0)
}

fn not_a_disk(kind: FileType) -> Option<&'static str> {
    if kind.is_file() || kind.is_block_device() {
        None
    } else if kind.is_dir() {
        Some("a directory")
    } else if kind.is_char_device() {
        Some("a character device")
    } else if kind.is_fifo() {
        Some("a FIFO")
    } else {
        Some("not a file with data")
    }
}

/// Locks the open file, not the process: two disks of one VM exclude each other like those of two.
fn lock(file: &File, path: &Path, read_only: bool) -> Result<(), DiskError> {
    let operation = if read_only {
        FlockOperation::NonBlockingLockShared
    } else {
        FlockOperation::NonBlockingLockExclusive
    };
    match flock(file, operation) {
        Ok(()) => Ok(()),
        Err(Errno::WOULDBLOCK) => Err(DiskError::InUse { path: path.into() }),
        Err(error @ (Errno::OPNOTSUPP | Errno::NOLCK | Errno::NOSYS)) => {
            tracing::warn!(
                path = %path.display(),
                %error,
                "the file system of the disk has no locks: another VM could use the disk at the same time"
            );
            Ok(())
        }
        Err(error) => Err(DiskError::Lock { path: path.into(), source: error.into() }),
    }
}
