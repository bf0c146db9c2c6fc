//! Locks on files.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// How long a lock is waited for that others have for moments: while they remove layers, at most.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is tried, at the least.
const LONGEST_PAUSE: Duration = Duration::from_millis(20);

/// A flock(2) on a file, for as long as it is not dropped and the process lives.
#[derive(Debug)]
pub(crate) struct FileLock {
    file: File,
}

impl FileLock {
    /// Waits for the file's lock for itself, however long another has it. The file is made where it does not exist.
    pub(crate) fn exclusive(path: &Path) -> io::Result<Self> {
        Self::acquire(path, FlockOperation::LockExclusive)
    }

    /// The same for a lock that others have for moments.
    pub(crate) fn soon(path: &Path) -> io::Result<Self> {
        Self::within(path, FlockOperation::NonBlockingLockExclusive, PATIENCE)
    }

    /// The same for a lock that others may have as well.
    pub(crate) fn shared(path: &Path) -> io::Result<Self> {
        Self::within(path, FlockOperation::NonBlockingLockShared, PATIENCE)
    }

    fn within(path: &Path, operation: FlockOperation, limit: Duration) -> io::Result<Self> {
        let deadline = Instant::now() + limit;
        let mut pause = Duration::from_millis(1);
        loop {
            match Self::acquire(path, operation) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return result,
            }
            if Instant::now() >= deadline {
                let line = "another process has had it for long: is a process of mvm stopped?";
                return Err(io::Error::new(io::ErrorKind::TimedOut, line));
            }
            // flock(2) has no deadline of its own, but in a signal.
            sleep(pause);
            pause = LONGEST_PAUSE.min(pause * 2);
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_not_waited_for_without_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let lock = FileLock::soon(&path).unwrap();
        for operation in [FlockOperation::NonBlockingLockExclusive, FlockOperation::NonBlockingLockShared] {
            let error = FileLock::within(&path, operation, Duration::from_millis(10)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
            assert!(error.to_string().contains("another process"), "{error}");
        }
        drop(lock);
        assert!(FileLock::shared(&path).is_ok());
    }
}
