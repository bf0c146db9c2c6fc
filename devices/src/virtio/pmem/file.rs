//! The file behind persistent memory.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;

use crate::virtio::block::{Disk, DiskError, ImageFormat};

/// Address and size are multiples of it, in bytes: Linux uses memory in sections of 2 MiB.
pub const PMEM_ALIGNMENT: u64 = 2 << 20;

/// Why a file can't be used as persistent memory.
#[derive(Debug, Error)]
pub enum PmemError {
    /// It can't be opened or locked.
    #[error(transparent)]
    File(#[from] DiskError),
    /// Its size is not a multiple of [`PMEM_ALIGNMENT`].
    #[error(
        "cannot use {path} as persistent memory: its size, {bytes} bytes, is not a multiple of 2 MiB; `truncate -s %2M \
         {path}` extends it"
    )]
    Unaligned {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
}

/// What a guest may do to the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PmemMode {
    /// Write to it.
    #[default]
    Shared,
    /// Only read it. Writes have no effect.
    ReadOnly,
    /// Write to copies of its pages, which end with the VM.
    CopyOnWrite,
}

/// A file or block device, open and locked: for this VM alone where it may write, or for all that only read.
#[derive(Debug)]
pub struct PmemFile {
    /// The lock ends with it.
    pub(super) file: Arc<File>,
    pub(super) mode: PmemMode,
    pub(super) size: u64,
}

impl PmemFile {
    /// Opens and locks what is at `path`, whose content is of `format`.
    ///
    /// # Errors
    ///
    /// [`PmemError`], which names `path` and says what to do.
    pub fn open(path: &Path, mode: PmemMode, format: ImageFormat) -> Result<Self, PmemError> {
        let disk = Disk::open(path, mode != PmemMode::Shared, format).map_err(|error| match error {
            DiskError::TooSmall { path, bytes: bytes @ 1.. } => PmemError::Unaligned { path, bytes },
            error => error.into(),
        })?;
        let file = disk.file().cloned().ok_or(DiskError::NoPieces)?;
        // A disk leaves out a last, partial sector; memory does not.
        let bytes = file.metadata().map_or(0, |metadata| metadata.len()).max(disk.size());
        if !bytes.is_multiple_of(PMEM_ALIGNMENT) {
            return Err(PmemError::Unaligned { path: path.into(), bytes });
        }
        Ok(Self { file, mode, size: bytes })
    }

    /// The open file, to be mapped.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// What the guest may do to it.
    pub fn mode(&self) -> PmemMode {
        self.mode
    }

    /// The size in bytes, a multiple of [`PMEM_ALIGNMENT`] that is not zero.
    pub fn size(&self) -> u64 {
        self.size
    }
}
