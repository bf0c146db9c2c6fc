//! The socket on which debuggers are awaited.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::Mode;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use thiserror::Error;

use crate::GdbConfig;

/// A client that does not take what it asked for holds up the VM's end no longer than this.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);

/// The longest path of a socket, in bytes (unix(7), without the NUL behind it).
const PATH_MAX: usize = 107;

/// Why debuggers can't be awaited.
#[derive(Debug, Error)]
pub enum GdbError {
    /// The port is taken, or the address is not of this host.
    #[error("cannot wait for GDB on {0}: give --gdb another port or address")]
    Tcp(SocketAddr, #[source] io::Error),
    /// There is a file already.
    #[error(
        "cannot make GDB's socket {}: the file exists; remove it if no other VM uses it, or give --gdb another path",
        .0.display()
    )]
    Exists(PathBuf),
    /// The kernel's limit for names of sockets.
    #[error("cannot make GDB's socket {}: the path is longer than {PATH_MAX} bytes, the most a socket can have", .0.display())]
    TooLong(PathBuf),
    /// The socket can't be made for another reason.
    #[error("cannot make GDB's socket {}", .0.display())]
    Unix(PathBuf, #[source] io::Error),
}

/// A socket that listens; its file is removed with it.
pub struct Listener {
    socket: OwnedFd,
    file: Option<PathBuf>,
}

impl Listener {
    /// Listens where `config` says. A socket in the file system can be used by its owner alone.
    ///
    /// # Errors
    ///
    /// [`GdbError`].
    pub fn bind(config: &GdbConfig) -> Result<Self, GdbError> {
        match config {
            GdbConfig::Tcp(address) => {
                let listener = TcpListener::bind(address).map_err(|error| GdbError::Tcp(*address, error))?;
                Ok(Self { socket: listener.into(), file: None })
            }
            GdbConfig::Unix(path) => bind_unix(path),
        }
    }

    /// The next client.
    ///
    /// # Errors
    ///
    /// Those of accept(2), also where the client has gone again.
    pub(super) fn accept(&self) -> io::Result<OwnedFd> {
        let client = net::accept_with(&self.socket, SocketFlags::CLOEXEC)?;
        sockopt::set_socket_timeout(&client, sockopt::Timeout::Send, Some(SEND_TIMEOUT))?;
        if self.file.is_none() {
            // Packets are small, and each waits for its answer.
            sockopt::set_tcp_nodelay(&client, true)?;
        }
        Ok(client)
    }
}

fn bind_unix(path: &Path) -> Result<Listener, GdbError> {
    let error = |error: rustix::io::Errno| GdbError::Unix(path.to_owned(), error.into());
    // One more is taken by the kernel and by nobody who wants an end to the name.
    if path.as_os_str().len() > PATH_MAX {
        return Err(GdbError::TooLong(path.to_owned()));
    }
    let address = SocketAddrUnix::new(path).map_err(error)?;
    let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .map_err(error)?;
    net::bind(&socket, &address).map_err(|errno| match errno {
        rustix::io::Errno::ADDRINUSE => GdbError::Exists(path.to_owned()),
        errno => error(errno),
    })?;
    // From here on the file is ours, and goes with this.
    let listener = Listener { socket, file: Some(path.to_owned()) };
    // Before it listens, so that nobody else connects meanwhile.
    rustix::fs::chmod(path, Mode::RUSR | Mode::WUSR).map_err(error)?;
    net::listen(&listener.socket, 1).map_err(error)?;
    Ok(listener)
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(path) = &self.file {
            // Whoever removed it already has done what was to do.
            let _ = std::fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_socket_is_its_owners_alone_and_goes_with_the_listener() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("gdb");
        let config = GdbConfig::Unix(path.clone());
        let listener = Listener::bind(&config).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        // A second one neither takes the place nor removes the file.
        assert!(matches!(Listener::bind(&config), Err(GdbError::Exists(_))));
        assert!(path.exists());
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn what_cannot_be_bound_says_why() {
        let long = GdbConfig::Unix("x".repeat(108).into());
        assert!(matches!(Listener::bind(&long), Err(GdbError::TooLong(_))));
        let missing = GdbConfig::Unix("/nonexistent/gdb".into());
        assert!(matches!(Listener::bind(&missing), Err(GdbError::Unix(..))));
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let config = GdbConfig::Tcp(taken.local_addr().unwrap());
        assert!(matches!(Listener::bind(&config), Err(GdbError::Tcp(..))));
    }
}
