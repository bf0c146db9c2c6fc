//! Why a file is no disk.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// Why a file can't be used as a disk.
#[derive(Debug, Error)]
pub enum DiskError {
    /// The file can't be opened.
    #[error("cannot open disk {path}")]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The file or device can be read but not written.
    #[error("cannot write to disk {path}; add `,readonly` to use it without writing")]
    NotWritable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// Neither a regular file nor a block device.
    #[error("cannot use {path} as a disk: it is {kind}; give a disk image or a block device")]
    Kind {
        /// The file.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// Not a raw image.
    #[error(
        "disk {path} is {name}, and a guest needs a raw image: make one with `{command}`, or add `,format=raw` if the \
         guest is to have the file as it is"
    )]
    Format {
        /// The file.
        path: PathBuf,
        /// What it is.
        name: &'static str,
        /// The command that makes a raw image of it.
        command: String,
    },
    /// Its size or block size is not known.
    #[error("cannot get the size of disk {path}")]
    Size {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// Smaller than a sector.
    #[error(
        "disk {path} is too small: it has {bytes} bytes and needs at least 512; `truncate -s 1G {path}` makes it larger"
    )]
    TooSmall {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// A disk that is composed of no file.
    #[error("cannot compose a disk of no files")]
    NoPieces,
    /// Pieces of a disk that do not follow each other.
    #[error(
        "cannot compose a disk: {path} would begin at byte {start}, which is inside of the file before it or of a sector"
    )]
    Piece {
        /// The file.
        path: PathBuf,
        /// Where it was to begin.
        start: u64,
    },
    /// Files that another process has opened, and that make no disk.
    #[error("cannot make a disk of the files that were passed: {0}")]
    Parts(&'static str),
    /// Another VM has it.
    #[error("disk {path} is in use by another VM; stop that VM, or let both open the disk with `,readonly`")]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// It can't be locked for another reason.
    #[error("cannot lock disk {path}")]
    Lock {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
}
