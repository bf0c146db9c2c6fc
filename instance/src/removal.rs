//! Notices when a running VM's directory is removed, as logging out removes /run/user/UID.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

use super::record;

/// Bytes of events that are read at once; what they say is not looked at.
const EVENTS: usize = 4096;

/// A watch on the directory of this process's VM.
pub struct RemovalWatch {
    directory: PathBuf,
    events: OwnedFd,
    reported: Arc<AtomicBool>,
}

impl RemovalWatch {
    /// Watches `directory`. `reported` is set once its removal is known, or is this process's own doing.
    pub(super) fn new(directory: &Path, reported: Arc<AtomicBool>) -> io::Result<Self> {
        let events = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        // That of the directory itself comes only when this process closes it, so that of its files is waited for.
        let flags = WatchFlags::DELETE | WatchFlags::MOVED_FROM | WatchFlags::MOVE_SELF | WatchFlags::ONLYDIR;
        inotify::add_watch(&events, directory, flags)?;
        Ok(Self { directory: directory.to_owned(), events, reported })
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Takes what has happened since the last call, and returns whether the VM's record is gone, which makes other
    /// commands lose the VM. It returns true once.
    pub fn is_removed(&self) -> bool {
        // Without an event it fails at once.
        let happened = rustix::io::read(&self.events, &mut [0; EVENTS]).is_ok();
        happened && record::is_missing(&self.directory) && !self.reported.swap(true, Ordering::SeqCst)
    }
}

impl AsFd for RemovalWatch {
    /// Readable when something in the directory was removed.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn watched() -> (tempfile::TempDir, Arc<AtomicBool>, RemovalWatch) {
        let directory = tempfile::tempdir().unwrap();
        for name in ["vm.json", "control.sock"] {
            fs::write(directory.path().join(name), "").unwrap();
        }
        let reported = Arc::default();
        let watch = RemovalWatch::new(directory.path(), Arc::clone(&reported)).unwrap();
        (directory, reported, watch)
    }

    #[test]
    fn a_removed_record_is_reported_once_and_another_file_is_not() {
        let (directory, reported, watch) = watched();
        assert!(!watch.is_removed());
        fs::remove_file(directory.path().join("control.sock")).unwrap();
        assert!(!watch.is_removed());
        fs::remove_dir_all(directory.path()).unwrap();
        assert!(watch.is_removed() && reported.load(Ordering::SeqCst));
        assert!(!watch.is_removed());
    }

    #[test]
    fn a_directory_that_was_renamed_is_reported() {
        let (directory, _, watch) = watched();
        let elsewhere = tempfile::tempdir().unwrap();
        fs::rename(directory.path(), elsewhere.path().join("vm")).unwrap();
        assert!(watch.is_removed());
    }

    #[test]
    fn what_the_process_removes_itself_is_not_reported() {
        let (directory, reported, watch) = watched();
        reported.store(true, Ordering::SeqCst);
        fs::remove_dir_all(directory.path()).unwrap();
        assert!(!watch.is_removed());
    }
}
