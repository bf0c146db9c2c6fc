//! The host's Unix socket.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, RenameFlags, chmod, renameat_with};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, socket_with,
};
use thiserror::Error;

use super::stream::{Attempt, HostStream};

/// The longest path of a Unix socket, in bytes: `sun_path` has 108, with a zero at the end.
const MAX_SOCKET_PATH: usize = 107;
/// The longest suffix that a port of the guest's connections adds: `_4294967295`.
const MAX_SUFFIX: usize = 11;
/// How many processes may wait to be accepted.
const QUEUE_LENGTH: i32 = 1024;

/// Why the host's socket can't be had.
#[derive(Debug, Error)]
pub enum VsockPathError {
    /// Longer than an address of a Unix socket can be.
    #[error(
        "the vsock path {} has {} bytes, {most} are possible: give a shorter one, or a relative one",
        .0.display(), .0.as_os_str().len(), most = MAX_SOCKET_PATH - MAX_SUFFIX
    )]
    TooLong(PathBuf),
    /// Another process listens there.
    #[error("the vsock path {} is in use, by another VM as it seems: give each VM one of its own", .0.display())]
    InUse(PathBuf),
    /// Something that mvm does not remove.
    #[error("the vsock path {} exists and is no socket: give another one, or remove it", .0.display())]
    Occupied(PathBuf),
    /// The host refused.
    #[error("cannot make the vsock socket {}", path.display())]
    Host {
        /// Where it should be.
        path: PathBuf,
        /// The host's refusal.
        #[source]
        source: io::Error,
    },
}

/// A Unix socket that processes of the host connect to. Its file goes when it goes.
#[derive(Debug)]
pub struct VsockListener {
    socket: OwnedFd,
    path: PathBuf,
    /// Device and inode of the socket's file.
    file: (u64, u64),
}

impl VsockListener {
    /// Listens at `path`. Only the user that mvm runs as may connect. A socket that a VM left behind when it was
    /// killed is replaced.
    ///
    /// # Errors
    ///
    /// [`VsockPathError`].
    pub fn open(path: &Path) -> Result<Self, VsockPathError> {
        if path.as_os_str().len() > MAX_SOCKET_PATH - MAX_SUFFIX {
            return Err(VsockPathError::TooLong(path.to_owned()));
        }
        let error = |source: Errno| VsockPathError::Host { path: path.to_owned(), source: source.into() };
        let address = SocketAddrUnix::new(path.as_os_str().as_bytes()).map_err(error)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(error)?;
        match bind(&socket, &address) {
            Ok(()) => {}
            Err(Errno::ADDRINUSE) => {
                remove_stale(path)?;
                bind(&socket, &address).map_err(error)?;
            }
            Err(refusal) => return Err(error(refusal)),
        }
        let io_error = |source| VsockPathError::Host { path: path.to_owned(), source };
        let metadata = fs::symlink_metadata(path).map_err(io_error)?;
        let listener = Self { socket, path: path.to_owned(), file: identity(&metadata) };
        // Before anybody can connect.
        chmod(path, Mode::RUSR | Mode::WUSR).map_err(error)?;
        listen(&listener.socket, QUEUE_LENGTH).map_err(error)?;
        Ok(listener)
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the next connection, as one that never waits.
    pub(super) fn accept(&self) -> Result<OwnedFd, Errno> {
        accept_with(&self.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)
    }
}

impl AsFd for VsockListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for VsockListener {
    fn drop(&mut self) {
        // What is at the path now may be somebody else's.
        if fs::symlink_metadata(&self.path).is_ok_and(|metadata| identity(&metadata) == self.file) {
            // If it stays, the next VM finds that nobody listens there.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(metadata: &fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// Removes the socket at `path` if nobody listens there.
fn remove_stale(path: &Path) -> Result<(), VsockPathError> {
    let error = |source| VsockPathError::Host { path: path.to_owned(), source };
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(gone) if gone.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(refusal) => return Err(error(refusal)),
    };
    if !metadata.file_type().is_socket() {
        return Err(VsockPathError::Occupied(path.to_owned()));
    }
    match HostStream::new().and_then(|probe| probe.connect(path)) {
        Ok(Attempt::Connected | Attempt::Busy) => return Err(VsockPathError::InUse(path.to_owned())),
        Err(Errno::CONNREFUSED) => {}
        // A socket, but of another type.
        Err(Errno::PROTOTYPE) => return Err(VsockPathError::InUse(path.to_owned())),
        Err(refusal) => return Err(error(refusal.into())),
    }
    // Another VM that starts at the same time may have replaced it since. Aside, where nobody else looks, it can be
    // seen which one it is.
    let mut aside = path.as_os_str().to_owned();
    aside.push(format!(".stale-{}", std::process::id()));
    let aside = PathBuf::from(aside);
    match fs::rename(path, &aside) {
        Err(gone) if gone.kind() == io::ErrorKind::NotFound => return Ok(()),
        result => result.map_err(error)?,
    }
    let moved = fs::symlink_metadata(&aside).map_err(error)?;
    if identity(&moved) == identity(&metadata) {
        return fs::remove_file(&aside).map_err(error);
    }
    // Where something is at the path again, there is no place to go back to.
    let _ = renameat_with(CWD, &aside, CWD, path, RenameFlags::NOREPLACE);
    Err(VsockPathError::InUse(path.to_owned()))
}
