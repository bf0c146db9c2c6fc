//! Directories with locks on them.

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, RawDir, flock, fstat, lstat, open, unlinkat};

/// A lock on a directory, for as long as it is not dropped and the process lives. A child of the process would keep
/// it too, were the descriptor not closed by exec.
pub(super) struct DirectoryLock {
    directory: OwnedFd,
}

/// How many bytes of entries are read from a directory at once: those of a VM's, and of a few VMs'.
const ENTRIES: usize = 1024;

/// Opens the directory at `path` itself, not what a link there points to.
pub(super) fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(open(path, flags, Mode::empty())?)
}

impl DirectoryLock {
    /// Waits for the lock on the directory at `path`.
    pub(super) fn wait(path: &Path) -> io::Result<Self> {
        Self::wait_for(open_directory(path)?)
    }

    /// Waits for the lock on `directory`.
    pub(super) fn wait_for(directory: OwnedFd) -> io::Result<Self> {
        loop {
            match flock(&directory, FlockOperation::LockExclusive) {
                Ok(()) => return Ok(Self { directory }),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The lock on the directory at `path`, unless another process has it.
    pub(super) fn attempt(path: &Path) -> io::Result<Option<Self>> {
        let directory = open_directory(path)?;
        match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self { directory })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether the directory is the one at `path`, and not another one that was made in its place. It is not where there
    /// is none.
    pub(super) fn is_at(&self, path: &Path) -> bool {
        let (Ok(own), Ok(there)) = (fstat(&self.directory), lstat(path)) else { return false };
        (own.st_dev, own.st_ino) == (there.st_dev, there.st_ino)
    }

    /// The names of the first entries of the directory, as many as one call gives.
    pub(super) fn some_entries(&self) -> Vec<CString> {
        let mut buffer = [MaybeUninit::uninit(); ENTRIES];
        let mut entries = RawDir::new(&self.directory, &mut buffer);
        let mut names = Vec::new();
        while let Some(Ok(entry)) = entries.next() {
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                names.push(entry.file_name().to_owned());
            }
            if entries.is_buffer_empty() {
                break;
            }
        }
        names
    }

    /// Removes what [`Self::some_entries`] gives and is not a directory itself.
    pub(super) fn remove_some_entries(&self) {
        for name in self.some_entries() {
            // The next process that removes the directory finds what is left.
            let _ = unlinkat(&self.directory, name, AtFlags::empty());
        }
    }

    /// Whether another process has the lock on the directory at `path`.
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
    fn a_directory_made_in_the_place_of_a_removed_one_is_another_one() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("vm");
        std::fs::create_dir(&path).unwrap();
        let lock = DirectoryLock::wait(&path).unwrap();
        assert!(lock.is_at(&path));
        std::fs::remove_dir(&path).unwrap();
        assert!(!lock.is_at(&path));
        std::fs::create_dir(&path).unwrap();
        assert!(!lock.is_at(&path));
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
