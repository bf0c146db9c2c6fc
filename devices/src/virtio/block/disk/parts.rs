//! A disk of files that are open already, which one process passes to another.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use rustix::fs::{FileType, OFlags, fcntl_getfl, fstat, major, minor};

use super::{Disk, DiskError, OpenPiece, SECTOR};

/// An open file of a disk, as one process passes it to another.
#[derive(Debug)]
pub struct Part<T> {
    /// The file, which is open.
    pub file: T,
    /// Where it begins on the disk, in bytes; a multiple of 512.
    pub start: u64,
    /// Where it ends there.
    pub end: u64,
}

/// The most files that a disk is composed of where it comes from another process: as many as a message takes (unix(7),
/// `SCM_RIGHTS`).
pub const MAX_PARTS: usize = 253;

impl Disk {
    /// The open files that it is made of, in the order of their places, for another process to make the same disk of. The
    /// locks go with them.
    pub fn parts<'a>(&'a self) -> Vec<Part<BorrowedFd<'a>>> {
        if self.pieces.is_empty() {
            let end = self.size();
            return self.file.iter().map(|file| Part { file: file.as_fd(), start: 0, end }).collect();
        }
        let part =
            |piece: &'a OpenPiece| Part { file: piece.file.as_fd(), start: piece.start, end: piece.end };
        self.pieces.iter().map(part).collect()
    }

    /// Makes a disk of regular files that another process has opened and locked, see [`parts`](Self::parts). One that is
    /// not read-only has one part.
    ///
    /// # Errors
    ///
    /// [`DiskError::Parts`] says what is wrong with them.
    pub fn of_parts(parts: Vec<Part<OwnedFd>>, read_only: bool) -> Result<Self, DiskError> {
        if parts.is_empty() || parts.len() > MAX_PARTS || (parts.len() > 1 && !read_only) {
            return Err(DiskError::Parts("there are none, or too many"));
        }
        let mut end = 0;
        let mut pieces = Vec::with_capacity(parts.len());
        for part in parts {
            if part.start != end || part.end <= end || !part.end.is_multiple_of(SECTOR) {
                return Err(DiskError::Parts("their places do not follow each other"));
            }
            end = part.end;
            let file = File::from(part.file);
            check_part(&file, part.end - part.start, read_only)?;
            pieces.push(OpenPiece { file: Arc::new(file), start: part.start, end });
        }
        let file = pieces.first().map(|piece| Arc::clone(&piece.file));
        if !read_only {
            pieces.clear();
        }
        let sectors = AtomicU64::new(end / SECTOR);
        Ok(Self { file, pieces, read_only, sectors, block_size: 512, is_block_device: false })
    }
}

/// Checks that `file` can have `length` bytes of a disk: a regular file that is open for what the guest may do, or the
/// zeros between files.
fn check_part(file: &File, length: u64, read_only: bool) -> Result<(), DiskError> {
    let unknown = |_| DiskError::Parts("one of them cannot be looked at");
    // File::metadata would be statx(2), which takes any path.
    let stat = fstat(file).map_err(unknown)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    // /dev/zero (Documentation/admin-guide/devices.txt of Linux).
    let is_zeros = kind.is_char_device() && (major(stat.st_rdev), minor(stat.st_rdev)) == (1, 5);
    let is_long = u64::try_from(stat.st_size).is_ok_and(|size| size >= length);
    if !(kind.is_file() && is_long || is_zeros && read_only) {
        return Err(DiskError::Parts("one of them is no regular file, or shorter than its place"));
    }
    let flags = fcntl_getfl(file).map_err(unknown)?;
    let mode = flags & OFlags::RWMODE;
    let is_open = mode == OFlags::RDWR || (read_only && mode == OFlags::RDONLY);
    if !is_open || flags.contains(OFlags::PATH) {
        return Err(DiskError::Parts("one of them is not open to be read, or not to be written"));
    }
    Ok(())
}
