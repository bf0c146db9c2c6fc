//! Unix sockets that mvm listens on: one rule for all of them.
//!
//! A socket that another process listens on is left alone, one that a killed process left behind is replaced, and
//! anything else at the path stays where it is. Only the user that mvm runs as may connect.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{CWD, Mode, RenameFlags, fchmod, renameat_with};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen, socket_with,
};
use thiserror::Error;

/// The longest path of a Unix socket, in bytes: `sun_path` has 108, with a zero at the end (unix(7)).
pub const MAX_PATH: usize = 107;

/// Why mvm can't listen at a path.
#[derive(Debug, Error)]
pub enum SocketError {
    /// Longer than an address of a Unix socket can be.
    #[error("the path has {length} bytes, the limit is {limit}: use a shorter or a relative path")]
    TooLong {
        /// Its length in bytes.
        length: usize,
        /// The most bytes that it may have.
        limit: usize,
    },
    /// Another process listens there.
    #[error("another process listens there: give each VM a path of its own")]
    InUse,
    /// A file or a directory, which mvm does not remove.
    #[error("a file that is not a socket is in the way: remove it, or use another path")]
    NotASocket,
    /// The host refused.
    #[error(transparent)]
    Host(#[from] io::Error),
}

impl From<Errno> for SocketError {
    fn from(error: Errno) -> Self {
        Self::Host(error.into())
    }
}

/// A listening Unix stream socket. It removes its file when it is dropped.
#[derive(Debug)]
pub struct ListeningSocket {
    socket: OwnedFd,
    path: PathBuf,
    file: FileIdentity,
}

impl ListeningSocket {
    /// Listens at `path`, with room for `backlog` processes that wait to be accepted. `flags` may be
    /// [`SocketFlags::NONBLOCK`], for [`accept`](Self::accept).
    ///
    /// # Errors
    ///
    /// [`SocketError`].
    pub fn listen(path: &Path, backlog: i32, flags: SocketFlags) -> Result<Self, SocketError> {
        check_length(path, MAX_PATH)?;
        let address = SocketAddrUnix::new(path)?;
        let flags = flags | SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        // The socket's mode is what its file gets. To change the file's afterwards could change another one's that
        // was put in its place.
        fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
        match bind(&socket, &address) {
            Err(Errno::ADDRINUSE) => {
                remove_stale(path)?;
                bind(&socket, &address)?;
            }
            result => result?,
        }
        let file = identity(&fs::symlink_metadata(path)?);
        let listener = Self { socket, path: path.to_owned(), file };
        files().push((path.to_owned(), file));
        listen(&listener.socket, backlog)?;
        Ok(listener)
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the next connection, with `flags` for its descriptor.
    ///
    /// # Errors
    ///
    /// Those of accept(2).
    pub fn accept(&self, flags: SocketFlags) -> Result<OwnedFd, Errno> {
        accept_with(&self.socket, flags | SocketFlags::CLOEXEC)
    }
}

impl AsFd for ListeningSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for ListeningSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Drop for ListeningSocket {
    fn drop(&mut self) {
        if LEAVES_FILES.load(Ordering::Relaxed) {
            return;
        }
        files().retain(|(path, file)| (path, file) != (&self.path, &self.file));
        remove(&self.path, self.file);
    }
}

/// Device and inode of a socket's file.
type FileIdentity = (u64, u64);

/// The files of all sockets that this process listens on.
static FILES: Mutex<Vec<(PathBuf, FileIdentity)>> = Mutex::new(Vec::new());

/// Another process removes the files.
static LEAVES_FILES: AtomicBool = AtomicBool::new(false);

/// Leaves the files of all sockets to another process: this one gives up the right to remove them.
pub fn leave_files() {
    LEAVES_FILES.store(true, Ordering::Relaxed);
    files().clear();
}

fn files() -> MutexGuard<'static, Vec<(PathBuf, FileIdentity)>> {
    FILES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes the files of all sockets that this process listens on, for a process that ends while some of its threads
/// still have theirs.
pub fn remove_files() {
    for (path, file) in files().drain(..) {
        remove(&path, file);
    }
}

fn remove(path: &Path, file: FileIdentity) {
    // Another process may have replaced it since.
    if fs::symlink_metadata(path).is_ok_and(|metadata| identity(&metadata) == file) {
        // If it stays, the next VM replaces it.
        let _ = fs::remove_file(path);
    }
}

/// Checks that `path` has at most `limit` bytes, which is [`MAX_PATH`] or less where something is appended to it.
///
/// # Errors
///
/// [`SocketError::TooLong`].
pub fn check_length(path: &Path, limit: usize) -> Result<(), SocketError> {
    let length = path.as_os_str().len();
    if length > limit { Err(SocketError::TooLong { length, limit }) } else { Ok(()) }
}

fn identity(metadata: &fs::Metadata) -> FileIdentity {
    (metadata.dev(), metadata.ino())
}

/// Removes the socket at `path` if no process listens there.
fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let metadata = match fs::symlink_metadata(path) {
        Err(gone) if gone.kind() == io::ErrorKind::NotFound => return Ok(()),
        result => result?,
    };
    if !metadata.file_type().is_socket() {
        return Err(SocketError::NotASocket);
    }
    if has_listener(path)? {
        return Err(SocketError::InUse);
    }
    // Another process may have replaced it since. It is renamed first, to a name that no other process uses, where it
    // can be seen which one it is.
    let mut aside = path.as_os_str().to_owned();
    aside.push(format!(".stale-{}", std::process::id()));
    let aside = PathBuf::from(aside);
    match fs::rename(path, &aside) {
        Err(gone) if gone.kind() == io::ErrorKind::NotFound => return Ok(()),
        result => result?,
    }
    if identity(&fs::symlink_metadata(&aside)?) == identity(&metadata) {
        return Ok(fs::remove_file(&aside)?);
    }
    // It is in use, so it goes back, unless there is a third one by now.
    let _ = renameat_with(CWD, &aside, CWD, path, RenameFlags::NOREPLACE);
    Err(SocketError::InUse)
}

/// Removes the socket at `path` where no process listens on it any more, and nothing else that is there: for one that a
/// process which has ended could not remove.
pub fn remove_left(path: &Path) {
    // If it stays, the next VM replaces it.
    let _ = remove_stale(path);
}

/// Whether a process listens at `path`, where there is a socket.
fn has_listener(path: &Path) -> Result<bool, SocketError> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let probe = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match connect(&probe, &SocketAddrUnix::new(path)?) {
        // AGAIN: as many as it has room for wait already. PROTOTYPE: it is a socket of another type.
        Ok(()) | Err(Errno::AGAIN | Errno::INTR | Errno::PROTOTYPE) => Ok(true),
        Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

    use rstest::rstest;
    use tempfile::TempDir;

    use super::*;

    fn place() -> (TempDir, PathBuf) {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("s");
        (directory, path)
    }

    fn names(directory: &TempDir) -> usize {
        fs::read_dir(directory.path()).unwrap().count()
    }

    fn open(path: &Path) -> Result<ListeningSocket, SocketError> {
        ListeningSocket::listen(path, 1, SocketFlags::empty())
    }

    #[rstest]
    #[case(0)]
    #[case(0o022)]
    #[case(0o077)]
    fn it_is_for_the_user_alone_whatever_the_umask_and_goes_when_it_is_dropped(#[case] umask: u32) {
        // The umask is changed for one thread, which does not share it with those of other tests.
        let thread = std::thread::spawn(move || {
            // SAFETY: the thread gets a working directory and umask of its own; no memory changes.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_FS) }, 0);
            rustix::process::umask(Mode::from_bits_truncate(umask));
            let (directory, path) = place();
            let socket = open(&path).unwrap();
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
            UnixStream::connect(&path).unwrap();
            drop(socket);
            assert_eq!(names(&directory), 0);
        });
        thread.join().unwrap();
    }

    #[test]
    fn one_that_is_in_use_stays() {
        let (directory, path) = place();
        let _socket = open(&path).unwrap();
        for _ in 0..3 {
            // The second and third probe find no more room in its queue.
            assert!(matches!(open(&path), Err(SocketError::InUse)));
        }
        assert_eq!(names(&directory), 1);
        let other = directory.path().join("d");
        let _datagrams = UnixDatagram::bind(&other).unwrap();
        assert!(matches!(open(&other), Err(SocketError::InUse)), "also one of another type");
    }

    #[test]
    fn one_that_was_left_behind_is_replaced() {
        let (directory, path) = place();
        drop(UnixListener::bind(&path).unwrap());
        let _socket = open(&path).unwrap();
        assert_eq!(names(&directory), 1);
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn what_is_not_a_socket_stays() {
        let (directory, path) = place();
        fs::write(&path, "precious").unwrap();
        assert!(matches!(open(&path), Err(SocketError::NotASocket)));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        let link = directory.path().join("link");
        for target in [&path, &directory.path().join("missing")] {
            let _ = fs::remove_file(&link);
            symlink(target, &link).unwrap();
            assert!(matches!(open(&link), Err(SocketError::NotASocket)));
            assert_eq!(fs::read_link(&link).unwrap(), *target);
        }
        assert!(matches!(open(directory.path()), Err(SocketError::NotASocket)));
    }

    #[test]
    fn what_has_replaced_it_stays() {
        let (_directory, path) = place();
        let socket = open(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "precious").unwrap();
        drop(socket);
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    /// Another user may do so in a directory that both may write to. The moment is a short one, so that it is tried
    /// until a link was there right after the socket a number of times.
    #[test]
    fn a_link_in_its_place_changes_the_mode_of_nothing_else() {
        use std::sync::atomic::{AtomicBool, Ordering};
        let (directory, path) = place();
        let [precious, link] = ["precious", "link"].map(|name| directory.path().join(name));
        fs::write(&precious, "").unwrap();
        fs::set_permissions(&precious, PermissionsExt::from_mode(0o644)).unwrap();
        let is_over = AtomicBool::new(false);
        let mut swapped = 0;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    let _ = symlink(&precious, &link);
                    if fs::symlink_metadata(&path).is_ok_and(|file| file.file_type().is_socket()) {
                        let _ = fs::rename(&link, &path);
                    }
                }
            });
            for _ in 0..100_000 {
                let socket = open(&path);
                swapped += usize::from(fs::read_link(&path).is_ok());
                drop(socket);
                let _ = fs::remove_file(&path);
                if swapped == 100 {
                    break;
                }
            }
            is_over.store(true, Ordering::Relaxed);
        });
        assert!(swapped > 0, "the link was never there in time");
        assert_eq!(fs::metadata(&precious).unwrap().permissions().mode() & 0o777, 0o644);
    }

    #[test]
    fn what_the_host_refuses_is_said() {
        let (directory, _) = place();
        assert!(matches!(open(&directory.path().join("missing/s")), Err(SocketError::Host(_))));
        let long = directory.path().join("x".repeat(MAX_PATH));
        let error = open(&long).unwrap_err().to_string();
        assert!(error.ends_with("the limit is 107: use a shorter or a relative path"), "{error}");
    }
}
