//! Directories with locks on them.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};

/// A lock on a directory, for as long as it is not dropped and the process lives. A child of the process would keep
/// it too, were the descriptor not closed by exec.
pub(super) struct DirectoryLock {
    _directory: OwnedFd,
}

/// Opens the directory at `path` itself, not what a link there points to.
pub(super) fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(open(path, flags, Mode::empty())?)
}

impl DirectoryLock {
    /// Waits for the lock on the directory at `path`.
    pub(super) fn wait(path: &Path) -> io::Result<Self> {
        let directory = open_directory(path)?;
        loop {
            match flock(&directory, FlockOperation::LockExclusive) {
                Ok(()) => return Ok(Self { _directory: directory }),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The lock on the directory at `path`, unless somebody else has it.
    pub(super) fn attempt(path: &Path) -> io::Result<Option<Self>> {
        let directory = open_directory(path)?;
        match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self { _directory: directory })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether somebody has the lock on the directory at `path`.
    pub(super) fn is_held(path: &Path) -> bool {
        // Shared, so that two who look at the same time don't take each other for the owner.
        open_directory(path).is_ok_and(|directory| {
            flock(&directory, FlockOperation::NonBlockingLockShared) == Err(rustix::io::Errno::WOULDBLOCK)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_had_once_and_seen_by_all() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        assert!(!DirectoryLock::is_held(path));
        let lock = DirectoryLock::wait(path).unwrap();
        assert!(DirectoryLock::is_held(path));
        assert!(DirectoryLock::attempt(path).unwrap().is_none());
        drop(lock);
        assert!(!DirectoryLock::is_held(path));
        assert!(DirectoryLock::attempt(path).unwrap().is_some());
    }

    #[test]
    fn links_are_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let (target, link) = (directory.path().join("target"), directory.path().join("link"));
        std::fs::create_dir(&target).unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        assert!(DirectoryLock::attempt(&link).is_err() && !DirectoryLock::is_held(&link));
    }
}
