//! The control socket of a VM: HTTP/1.1 over a Unix socket, with JSON.
//!
//! [`ControlServer`] runs on the event loop, [`instance::Client`] in other processes. What can be asked is described by
//! `openapi.json`, which the socket gives out as well.

mod answers;
mod body;
mod connection;
mod drives;
mod request;
mod response;
mod router;
mod server;
mod snapshot;
#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;

use devices::socket::SocketError;
use thiserror::Error;

#[cfg(test)]
use router::OPENAPI;
pub use server::ControlServer;

/// Why there is no control socket.
#[derive(Debug, Error)]
pub enum ControlError {
    /// The socket could not be made.
    #[error("cannot make the control socket {}", path.display())]
    Socket {
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: SocketError,
    },
    /// What the server needs beside it could not be made.
    #[error("cannot set up the control socket")]
    Setup(#[source] io::Error),
}
