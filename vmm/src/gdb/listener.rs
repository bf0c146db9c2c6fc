//! The socket on which debuggers are awaited.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use devices::socket::{ListeningSocket, SocketError};
use rustix::net::{self, SocketFlags, sockopt};
use thiserror::Error;

use crate::GdbConfig;

/// A client that does not read what it asked for holds up the VM's end no longer than this.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);

/// Why GDB can't connect.
#[derive(Debug, Error)]
pub enum GdbError {
    /// The port is taken, or the address is not of this host.
    #[error("cannot listen for GDB on {0}: give --gdb another port or address")]
    Tcp(SocketAddr, #[source] io::Error),
    /// The socket can't be made.
    #[error("cannot make the GDB socket {}", .0.display())]
    Unix(PathBuf, #[source] SocketError),
}

/// A socket that listens for GDB.
pub enum Listener {
    /// A TCP port.
    Tcp(TcpListener),
    /// A Unix socket, whose file is removed with it.
    Unix(ListeningSocket),
}

impl Listener {
    /// Listens where `config` says, at a path by the rules of [`ListeningSocket`].
    ///
    /// # Errors
    ///
    /// [`GdbError`].
    pub fn bind(config: &GdbConfig) -> Result<Self, GdbError> {
        match config {
            GdbConfig::Tcp(address) => {
                TcpListener::bind(address).map(Self::Tcp).map_err(|error| GdbError::Tcp(*address, error))
            }
            GdbConfig::Unix(path) => ListeningSocket::listen(path, 1, SocketFlags::empty())
                .map(Self::Unix)
                .map_err(|error| GdbError::Unix(path.clone(), error)),
        }
    }

    /// The next client.
    ///
    /// # Errors
    ///
    /// Those of accept(2), also where the client has disconnected already.
    pub(super) fn accept(&self) -> io::Result<OwnedFd> {
        let client = match self {
            Self::Tcp(socket) => {
                let client = net::accept_with(socket, SocketFlags::CLOEXEC)?;
                // Packets are small, and each waits for its answer.
                sockopt::set_tcp_nodelay(&client, true)?;
                client
            }
            Self::Unix(socket) => socket.accept(SocketFlags::empty())?,
        };
        sockopt::set_socket_timeout(&client, sockopt::Timeout::Send, Some(SEND_TIMEOUT))?;
        Ok(client)
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(socket) => socket.as_fd(),
            Self::Unix(socket) => socket.as_fd(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_socket_that_a_killed_vm_left_behind_is_replaced_and_one_in_use_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("gdb");
        let config = GdbConfig::Unix(path.clone());
        drop(UnixListener::bind(&path).unwrap());
        let listener = Listener::bind(&config).unwrap();
        assert!(matches!(Listener::bind(&config), Err(GdbError::Unix(_, SocketError::InUse))));
        drop(listener);
        assert!(!path.exists());
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(Listener::bind(&config), Err(GdbError::Unix(_, SocketError::NotASocket))));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn what_cannot_be_bound_says_why() {
        let long = GdbConfig::Unix("x".repeat(108).into());
        assert!(matches!(Listener::bind(&long), Err(GdbError::Unix(_, SocketError::TooLong { .. }))));
        let missing = GdbConfig::Unix("/nonexistent/gdb".into());
        assert!(matches!(Listener::bind(&missing), Err(GdbError::Unix(_, SocketError::Host(_)))));
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let config = GdbConfig::Tcp(taken.local_addr().unwrap());
        assert!(matches!(Listener::bind(&config), Err(GdbError::Tcp(..))));
    }
}
