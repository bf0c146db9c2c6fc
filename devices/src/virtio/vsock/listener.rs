//! The host's Unix socket.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::SocketFlags;
use thiserror::Error;

use crate::socket::{ListeningSocket, MAX_PATH, SocketError, check_length};

/// The longest suffix that a port of the guest's connections adds: `_4294967295`.
const MAX_SUFFIX: usize = 11;
/// How many processes may wait to be accepted.
const BACKLOG: i32 = 1024;

/// Why there is no socket for processes of the host.
#[derive(Debug, Error)]
#[error("cannot make the vsock socket {}", path.display())]
pub struct VsockPathError {
    /// Where it should be.
    pub path: PathBuf,
    /// Why it is not.
    pub source: SocketError,
}

/// A Unix socket that processes of the host connect to. It removes its file when it is dropped.
#[derive(Debug)]
pub struct VsockListener(ListeningSocket);

impl VsockListener {
    /// Listens at `path`, by the rules of [`ListeningSocket`].
    ///
    /// # Errors
    ///
    /// [`VsockPathError`].
    pub fn open(path: &Path) -> Result<Self, VsockPathError> {
        check_length(path, MAX_PATH - MAX_SUFFIX)
            .and_then(|()| ListeningSocket::listen(path, BACKLOG, SocketFlags::NONBLOCK))
            .map(Self)
            .map_err(|source| VsockPathError { path: path.to_owned(), source })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Takes the next connection, whose descriptor does not block.
    pub(super) fn accept(&self) -> Result<OwnedFd, Errno> {
        self.0.accept(SocketFlags::NONBLOCK)
    }
}

impl AsFd for VsockListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
