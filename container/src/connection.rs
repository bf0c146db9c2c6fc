//! Connections to the agent of a VM, through the Unix socket of its vsock device.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use agent_protocol::{Decoder, FrameError, PORT, Reply, Request, Stream, VERSION, encode};
use serde::de::DeserializeOwned;
use thiserror::Error;

/// How long the agent may take to answer a connection: it does nothing else that takes time.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long it may take to answer a request that changes little.
const ANSWER: Duration = Duration::from_secs(5);

/// Why the agent can't be talked to.
#[derive(Debug, Error)]
pub enum ConnectionError {
    /// The connection.
    #[error("the connection to the agent failed")]
    Io(#[from] io::Error),
    /// It ended.
    #[error("the agent closed the connection")]
    Closed,
    /// What it says can't be understood.
    #[error("the agent sent an invalid message")]
    Frame(#[from] FrameError),
    /// It says something else than it should.
    #[error("the agent sent an unexpected message: {0}")]
    Unexpected(String),
    /// Another version of the agent.
    #[error(
        "the agent has version {0} of its messages, and this mvm has {VERSION}: use the agent.erofs of this mvm"
    )]
    Version(u32),
}

/// A connection, after the agent's greeting.
pub struct Connection {
    socket: UnixStream,
    decoder: Decoder,
}

impl Connection {
    /// Takes `socket`, which the agent has connected to or from.
    pub fn greet(socket: UnixStream) -> Result<Self, ConnectionError> {
        socket.set_read_timeout(Some(PATIENCE))?;
        let mut connection = Self { socket, decoder: Decoder::default() };
        match connection.receive::<Reply>()? {
            Reply::Hello { version: VERSION } => {}
            Reply::Hello { version } => return Err(ConnectionError::Version(version)),
            other => return Err(ConnectionError::Unexpected(format!("{other:?}"))),
        }
        connection.socket.set_read_timeout(None)?;
        Ok(connection)
    }

    /// Connects to the agent through the vsock device's socket at `path`.
    pub fn open(path: &Path) -> Result<Self, ConnectionError> {
        let mut socket = UnixStream::connect(path)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.write_all(format!("CONNECT {PORT}\n").as_bytes())?;
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') && line.len() < 32 {
            let mut byte = [0];
            if socket.read(&mut byte)? == 0 {
                return Err(ConnectionError::Closed);
            }
            line.extend(byte);
        }
        if !line.starts_with(b"OK ") {
            return Err(ConnectionError::Unexpected(String::from_utf8_lossy(&line).into_owned()));
        }
        Self::greet(socket)
    }

    /// The same, which waits for answers no longer than [`ANSWER`].
    pub fn with_patience(self) -> Result<Self, ConnectionError> {
        self.socket.set_read_timeout(Some(ANSWER))?;
        self.socket.set_write_timeout(Some(ANSWER))?;
        Ok(self)
    }

    /// Sends a request.
    pub fn send(&mut self, request: &Request) -> Result<(), ConnectionError> {
        Ok(self.socket.write_all(&encode(request)?)?)
    }

    /// Waits for an answer.
    pub fn receive<T: DeserializeOwned>(&mut self) -> Result<T, ConnectionError> {
        loop {
            if let Some(message) = self.decoder.take()? {
                return Ok(message);
            }
            let mut bytes = vec![0; self.decoder.wants()?.clamp(1, 64 << 10)];
            match self.socket.read(&mut bytes) {
                Ok(0) => return Err(ConnectionError::Closed),
                Ok(count) => self.decoder.push(bytes.get(..count).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Makes it the connection of a stream.
    pub fn attach(mut self, container: &str, stream: Stream) -> Result<UnixStream, ConnectionError> {
        self.send(&Request::Attach { container: container.to_owned(), stream })?;
        Ok(self.socket)
    }
}
