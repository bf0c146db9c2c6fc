//! Locks on files.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// A flock(2) on a file, for as long as it is not dropped and the process lives.
#[derive(Debug)]
pub(crate) struct FileLock {
    file: File,
}

impl FileLock {
    /// Waits for the file's lock for itself. The file is made where it does not exist.
    pub(crate) fn exclusive(path: &Path) -> io::Result<Self> {
        Self::acquire(path, FlockOperation::LockExclusive)
    }

    /// Waits for a lock that others may have as well.
    pub(crate) fn shared(path: &Path) -> io::Result<Self> {
        Self::acquire(path, FlockOperation::LockShared)
    }

    /// The file's lock for itself, unless another has it.
    pub(crate) fn try_exclusive(path: &Path) -> io::Result<Option<Self>> {
        match Self::acquire(path, FlockOperation::NonBlockingLockExclusive) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            result => result.map(Some),
        }
    }

    /// The file, which it is safe to write to.
    pub(crate) fn file(&mut self) -> &mut File {
        &mut self.file
    }

    fn acquire(path: &Path, operation: FlockOperation) -> io::Result<Self> {
        loop {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false).mode(0o600);
            let file = options.open(path)?;
            loop {
                match flock(&file, operation) {
                    Ok(()) => break,
                    Err(Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            // Who had it before may have removed the file.
            let is_same = std::fs::metadata(path)
                .is_ok_and(|there| file.metadata().is_ok_and(|here| here.ino() == there.ino()));
            if is_same {
                return Ok(Self { file });
            }
        }
    }
}
