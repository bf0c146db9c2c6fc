//! Directories with locks on them.

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::thread::{sleep, yield_now};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, RawDir, flock, fstat, lstat, open, unlinkat};
use rustix::io::Errno;

/// A lock on a directory, for as long as it is not dropped and the process lives. A child of the process would keep
/// it too, were the descriptor not closed by exec.
pub(super) struct DirectoryLock {
    directory: OwnedFd,
}

/// How many bytes of entries are read from a directory at once: those of a VM's, and of a few VMs'.
const ENTRIES: usize = 1024;
/// How long a lock is waited for. Who has it adds or removes a directory, with a disk of many gigabytes at most.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long those are waited for that look whether a lock is held, which takes them microseconds.
const LOOKERS: Duration = Duration::from_millis(200);
/// How often it is tried, at the least.
const LONGEST_PAUSE: Duration = Duration::from_millis(20);

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

    /// Waits for the lock on `directory`, which others have for moments.
    pub(super) fn wait_for(directory: OwnedFd) -> io::Result<Self> {
        Self::wait_until(directory, Instant::now() + PATIENCE)
    }

    /// Waits for the lock on what `file` is, which is no directory, no longer than `patience`.
    pub(super) fn wait_for_file(file: OwnedFd, patience: Duration) -> io::Result<Self> {
        Self::wait_until(file, Instant::now() + patience)
    }

    fn wait_until(directory: OwnedFd, deadline: Instant) -> io::Result<Self> {
        let mut pause = Duration::from_millis(1);
        loop {
            match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Self { directory }),
                Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) if Instant::now() < deadline => {
                    // flock(2) has no deadline of its own, but in a signal.
                    sleep(pause);
                    pause = LONGEST_PAUSE.min(pause * 2);
                }
                Err(Errno::WOULDBLOCK) => {
                    let line = "another process has had it for long: is a process of mvm stopped?";
                    return Err(io::Error::new(io::ErrorKind::TimedOut, line));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The lock on the directory at `path`, unless another process has it. One that looks whether it is held, see
    /// [`Self::is_held`], does not count.
    pub(super) fn attempt(path: &Path) -> io::Result<Option<Self>> {
        let directory = open_directory(path)?;
        let deadline = Instant::now() + LOOKERS;
        loop {
            match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Some(Self { directory })),
                Err(Errno::WOULDBLOCK) => {}
                Err(error) => return Err(error.into()),
            }
            // Who has it does not let it be shared; who looks does.
            match flock(&directory, FlockOperation::NonBlockingLockShared) {
                Ok(()) if Instant::now() < deadline => yield_now(),
                Ok(()) | Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The lock that `directory` has already, as a descriptor that another program has passed on; `None` where another
    /// process has it.
    pub(super) fn adopt(directory: OwnedFd) -> Option<Self> {
        flock(&directory, FlockOperation::NonBlockingLockExclusive).ok()?;
        Some(Self { directory })
    }

    /// A lock on the directory at `path` that others may share, unless another process has it for itself.
    pub(super) fn share(path: &Path) -> io::Result<Option<Self>> {
        let directory = open_directory(path)?;
        match flock(&directory, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(Some(Self { directory })),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The directory itself.
    pub(super) fn directory(&self) -> &OwnedFd {
        &self.directory
    }

    /// Whether the directory is the one at `path`, and not another one that was made in its place. It is not where
    /// there is none.
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
            flock(&directory, FlockOperation::NonBlockingLockShared) == Err(Errno::WOULDBLOCK)
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
    fn a_lock_that_is_looked_at_is_free() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        std::thread::scope(|scope| {
            let looking = scope.spawn(|| (0..2000).filter(|_| DirectoryLock::is_held(path)).count());
            while !looking.is_finished() {
                drop(DirectoryLock::attempt(path).unwrap().expect("no process has it"));
            }
        });
    }

    #[test]
    fn a_lock_is_not_waited_for_without_end() {
        let directory = tempfile::tempdir().unwrap();
        let lock = DirectoryLock::wait(directory.path()).unwrap();
        let wait = || {
            let deadline = Instant::now() + Duration::from_millis(10);
            DirectoryLock::wait_until(open_directory(directory.path()).unwrap(), deadline)
        };
        let error = wait().err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(error.to_string().contains("another process"), "{error}");
        drop(lock);
        assert!(wait().is_ok());
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
