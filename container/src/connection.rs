//! Connections to the agent of a VM, through the Unix socket of its vsock device.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use agent_protocol::{Decoder, FrameError, OLDEST, PORT, Reply, Request, Stream, VERSION, encode};
use serde::de::DeserializeOwned;
use thiserror::Error;

/// How long the agent may take to answer a connection: it does nothing else that takes time.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// How long it may take to answer a request that changes little.
const ANSWER: Duration = Duration::from_secs(5);

/// Why the agent can't be talked to.
#[derive(Debug, Error)]
pub enum ConnectionError {
    /// The connection.
    #[error("the connection to the agent failed")]
    Io(#[source] io::Error),
    /// It did not answer within the connection's limit.
    #[error("the agent does not answer")]
    NoAnswer,
    /// It did not answer.
    #[error("the agent did not answer within {} s", .0.as_secs())]
    Silent(Duration),
    /// It ended.
    #[error("the agent closed the connection")]
    Closed,
    /// What it says can't be understood.
    #[error("the agent sent an invalid message")]
    Frame(#[from] FrameError),
    /// It says something else than it should.
    #[error("the agent sent an unexpected message: {0}")]
    Unexpected(String),
    /// No agent takes connections in the guest of a VM.
    #[error(
        "mvm's agent does not answer in the guest: it has not started yet, or is not installed there, as `mvm boot \
        --help` says at --agent"
    )]
    NotInGuest,
    /// It does not do what it was asked for.
    #[error("the agent refuses: {0}")]
    Refused(String),
    /// An agent that is older than any that this program talks to.
    #[error(
        "the agent's messages have version {0}, and this mvm knows none before {OLDEST}: use the mvm that has started \
         the VM, or the agent.erofs of this one"
    )]
    TooOld(u32),
    /// An agent that is older than what is asked of it.
    #[error(
        "{0} needs an agent whose messages have version {2}, and the VM's have {1}: use the agent.erofs of this mvm"
    )]
    TooOldFor(&'static str, u32, u32),
    /// An agent that is newer than this program.
    #[error(
        "the agent's messages have version {0}, and this mvm knows none after {VERSION}: use the mvm that has started \
         the VM, or a newer one"
    )]
    TooNew(u32),
}

impl ConnectionError {
    /// Whether the other side has gone.
    pub fn is_closed(&self) -> bool {
        use ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionRefused, ConnectionReset, NotFound};
        match self {
            Self::Closed => true,
            Self::Io(error) => matches!(
                error.kind(),
                BrokenPipe | ConnectionAborted | ConnectionRefused | ConnectionReset | NotFound
            ),
            _ => false,
        }
    }
}

impl From<io::Error> for ConnectionError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => Self::NoAnswer,
            _ => Self::Io(error),
        }
    }
}

/// A connection, after the agent's greeting.
pub struct Connection {
    socket: UnixStream,
    decoder: Decoder,
    /// That of the agent's messages.
    version: u32,
}

impl Connection {
    /// Takes `socket`, which the agent has connected to or from. A guest that does not read is written to for no longer
    /// than [`PATIENCE`].
    pub fn greet(socket: UnixStream) -> Result<Self, ConnectionError> {
        socket.set_write_timeout(Some(PATIENCE))?;
        Self::greet_within(socket, PATIENCE)
    }

    fn greet_within(socket: UnixStream, limit: Duration) -> Result<Self, ConnectionError> {
        let mut connection = Self { socket, decoder: Decoder::default(), version: OLDEST };
        match connection.receive_within::<Reply>(limit)? {
            Reply::Hello { version: version @ OLDEST..=VERSION } => connection.version = version,
            Reply::Hello { version: version @ ..OLDEST } => return Err(ConnectionError::TooOld(version)),
            Reply::Hello { version } => return Err(ConnectionError::TooNew(version)),
            other => return Err(ConnectionError::Unexpected(format!("{other:?}"))),
        }
        Ok(connection)
    }

    /// The version of the agent's messages.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Connects to the agent through the vsock device's socket at `path`.
    pub fn open(path: &Path) -> Result<Self, ConnectionError> {
        Self::open_within(path, PATIENCE)
    }

    /// The same, where each step of it may take so long.
    pub fn open_within(path: &Path, limit: Duration) -> Result<Self, ConnectionError> {
        let mut socket = UnixStream::connect(path)?;
        socket.set_write_timeout(Some(limit))?;
        socket.write_all(format!("CONNECT {PORT}\n").as_bytes())?;
        let deadline = Instant::now() + limit;
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') && line.len() < 32 {
            let mut byte = [0];
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ConnectionError::NoAnswer);
            }
            socket.set_read_timeout(Some(left))?;
            if socket.read(&mut byte)? == 0 {
                return Err(ConnectionError::Closed);
            }
            line.extend(byte);
        }
        if !line.starts_with(b"OK ") {
            return Err(ConnectionError::Unexpected(String::from_utf8_lossy(&line).trim_end().to_owned()));
        }
        Self::greet_within(socket, limit)
    }

    /// The same, whose agent may take [`ANSWER`] to take a request.
    pub fn with_patience(self) -> Result<Self, ConnectionError> {
        self.socket.set_write_timeout(Some(ANSWER))?;
        Ok(self)
    }

    /// A connection of which a stream has passed, between two messages.
    pub fn behind_stream(socket: UnixStream) -> Self {
        Self { socket, decoder: Decoder::default(), version: VERSION }
    }

    /// Whether the agent knows what came with this version of its messages.
    pub fn has_version(&self, version: u32) -> bool {
        self.version >= version
    }

    /// The socket, for what is no message; all that the agent has sent was received as messages.
    pub fn into_socket(self) -> UnixStream {
        self.socket
    }

    /// The socket, for who closes it.
    pub fn try_clone(&self) -> io::Result<UnixStream> {
        self.socket.try_clone()
    }

    /// Sends a request.
    pub fn send(&mut self, request: &Request) -> Result<(), ConnectionError> {
        Ok(self.socket.write_all(&encode(request)?)?)
    }

    /// Waits for an answer.
    pub fn receive<T: DeserializeOwned>(&mut self) -> Result<T, ConnectionError> {
        self.receive_with(|_| Ok(()))
    }

    /// The same for a request that changes little: for [`ANSWER`] at the most.
    pub fn answer<T: DeserializeOwned>(&mut self) -> Result<T, ConnectionError> {
        self.receive_within(ANSWER)
    }

    /// The same, for `limit` at the most, however slowly it comes. Other answers are waited for without a limit then.
    pub fn receive_within<T: DeserializeOwned>(&mut self, limit: Duration) -> Result<T, ConnectionError> {
        let deadline = Instant::now() + limit;
        let answer = self.receive_with(|socket| {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(left) };
            left.and_then(|left| socket.set_read_timeout(Some(left)))
        });
        self.socket.set_read_timeout(None)?;
        answer.map_err(|error| match error {
            ConnectionError::NoAnswer => ConnectionError::Silent(limit),
            error => error,
        })
    }

    /// Calls `before` before each part of an answer is waited for.
    fn receive_with<T: DeserializeOwned>(
        &mut self,
        mut before: impl FnMut(&UnixStream) -> io::Result<()>,
    ) -> Result<T, ConnectionError> {
        loop {
            before(&self.socket)?;
            if let Some(message) = self.receive_some()? {
                return Ok(message);
            }
        }
    }

    /// Reads once, and no further than to the end of a message: the message, if that was its last part.
    pub fn receive_some<T: DeserializeOwned>(&mut self) -> Result<Option<T>, ConnectionError> {
        let mut bytes = vec![0; self.decoder.wants()?.clamp(1, 64 << 10)];
        match self.socket.read(&mut bytes) {
            Ok(0) => return Err(ConnectionError::Closed),
            Ok(count) => self.decoder.push(bytes.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
        Ok(self.decoder.take()?)
    }

    /// Waits for answers as long as it takes.
    pub fn without_deadline(&self) -> Result<(), ConnectionError> {
        Ok(self.socket.set_read_timeout(None)?)
    }

    /// Makes it the connection of a stream, of which the host has `position` bytes if it is an output; how many bytes
    /// the receiver has.
    pub fn attach(
        mut self,
        id: &str,
        stream: Stream,
        position: u64,
    ) -> Result<(UnixStream, u64), ConnectionError> {
        self.send(&Request::Attach { container: id.to_owned(), stream, position })?;
        match self.receive_within(PATIENCE)? {
            Reply::Attached { position } => {
                self.socket.set_write_timeout(None)?;
                Ok((self.socket, position))
            }
            Reply::Failed(failure) => Err(ConnectionError::Refused(failure.message)),
            other => Err(ConnectionError::Unexpected(format!("{other:?}"))),
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use rstest::rstest;

    use super::*;

    /// A connection to an agent that has greeted, and its end of it.
    fn greeted() -> (Connection, UnixStream) {
        let (near, mut far) = UnixStream::pair().unwrap();
        far.write_all(&encode(&Reply::Hello { version: VERSION }).unwrap()).unwrap();
        (Connection::greet(near).unwrap(), far)
    }

    #[rstest]
    #[case(OLDEST, None)]
    #[case(VERSION, None)]
    #[case(0, Some("have version 0, and this mvm knows none before 3: use"))]
    #[case(OLDEST - 1, Some("knows none before 3"))]
    #[case(VERSION + 1, Some("knows none after 4: use the mvm that has started the VM, or a newer one"))]
    #[case(u32::MAX, Some("have version 4294967295, and"))]
    fn agents_of_other_versions_are_talked_to_or_named(#[case] version: u32, #[case] says: Option<&str>) {
        let (near, mut far) = UnixStream::pair().unwrap();
        far.write_all(&encode(&Reply::Hello { version }).unwrap()).unwrap();
        let said = Connection::greet(near).err().map(|error| error.to_string());
        assert_eq!(said.is_some(), says.is_some(), "{said:?}");
        let said = said.unwrap_or_default();
        assert!(said.contains(says.unwrap_or_default()) && !said.contains('\n'), "{said}");
    }

    #[test]
    fn a_guest_that_does_not_read_is_not_written_to_for_ever() {
        let (connection, _far) = greeted();
        assert_eq!(connection.socket.write_timeout().unwrap(), Some(PATIENCE));
    }

    #[test]
    fn an_agent_that_is_silent_after_its_greeting_is_waited_for_until_the_deadline() {
        let (mut connection, _far) = greeted();
        let error = connection.receive_within::<Reply>(Duration::from_millis(20)).unwrap_err();
        assert!(matches!(error, ConnectionError::Silent(_)), "{error}");
        assert_eq!(error.to_string(), "the agent did not answer within 0 s");
    }

    #[test]
    fn bytes_that_come_one_by_one_do_not_extend_the_deadline() {
        let (mut connection, mut far) = greeted();
        // A long message, of which the beginning comes.
        let kind = agent_protocol::FailureKind::Other;
        let failure = agent_protocol::Failure { kind, message: "x".repeat(1 << 10) };
        let message = encode(&Reply::Failed(failure)).unwrap();
        let limit = Duration::from_millis(100);
        let start = Instant::now();
        thread::spawn(move || {
            for byte in message {
                // The time between two bytes is what is tested: less than the deadline, all together much more.
                thread::sleep(limit / 10);
                if far.write_all(&[byte]).is_err() {
                    return;
                }
            }
        });
        let error = connection.receive_within::<Reply>(limit).unwrap_err();
        assert!(matches!(error, ConnectionError::Silent(_)), "{error}");
        assert!(start.elapsed() < 50 * limit, "{:?}", start.elapsed());
    }

    #[test]
    fn later_answers_have_no_deadline_of_an_earlier_one() {
        let (mut connection, mut far) = greeted();
        far.write_all(&encode(&Reply::Started).unwrap()).unwrap();
        assert!(matches!(connection.receive_within(Duration::from_secs(20)).unwrap(), Reply::Started));
        assert_eq!(connection.socket.read_timeout().unwrap(), None);
    }
}
