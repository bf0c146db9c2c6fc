//! Connections to the agent of a VM, through the Unix socket of its vsock device.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use agent_protocol::{Decoder, FrameError, OLDEST, PORT, Reply, Request, Stream, VERSION, encode};
use instance::{ENDING, Signals, connect_within};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde::de::DeserializeOwned;
use thiserror::Error;

use crate::activity::Activity;

/// How long the agent may take to answer a connection where nothing else is heard of its guest either.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// How long it may take to greet at the most. Where hundreds of commands begin at once on a host that is busy, each
/// waits for its turn.
const TURN: Duration = Duration::from_secs(600);

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
    /// A signal came before it had answered.
    #[error("ended by signal {0} before the agent had answered")]
    Cancelled(i32),
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
        let mut connection = Self::new(socket);
        connection.hear_greeting(limit, None)?;
        Ok(connection)
    }

    fn new(socket: UnixStream) -> Self {
        Self { socket, decoder: Decoder::default(), version: OLDEST }
    }

    fn hear_greeting(&mut self, limit: Duration, signals: Option<&Signals>) -> Result<(), ConnectionError> {
        match self.receive_unless::<Reply>(limit, signals)? {
            Reply::Hello { version: version @ OLDEST..=VERSION } => self.version = version,
            Reply::Hello { version: version @ ..OLDEST } => return Err(ConnectionError::TooOld(version)),
            Reply::Hello { version } => return Err(ConnectionError::TooNew(version)),
            other => return Err(ConnectionError::Unexpected(format!("{other:?}"))),
        }
        Ok(())
    }

    /// The version of the agent's messages.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Connects to the agent through the vsock device's socket at `path`. It is waited for as long as something is
    /// heard of its guest: where many connect at once, each waits for its turn.
    pub fn open(path: &Path) -> Result<Self, ConnectionError> {
        Self::open_unless(path, PATIENCE, None)
    }

    /// The same where the guest's kernel has `limit` to answer, and a signal that asks this process to end ends the
    /// wait.
    pub fn open_unless(
        path: &Path,
        limit: Duration,
        signals: Option<&Signals>,
    ) -> Result<Self, ConnectionError> {
        let mut connection = Self::new(ask(path, limit, signals)?);
        let mut activity = Activity::of(path);
        connection.greet_in_turn(limit, signals, || activity.goes_on())?;
        Ok(connection)
    }

    /// Waits for the greeting, and asks whether something `goes_on` in the guest when some of `limit` has passed, and
    /// then each time that all of it has.
    fn greet_in_turn(
        &mut self,
        limit: Duration,
        signals: Option<&Signals>,
        mut goes_on: impl FnMut() -> bool,
    ) -> Result<(), ConnectionError> {
        let start = Instant::now();
        let mut step = limit / 3;
        loop {
            match self.hear_greeting(step, signals) {
                Err(ConnectionError::Silent(_)) if start.elapsed() < TURN && goes_on() => step = limit,
                Err(ConnectionError::Silent(_)) => return Err(ConnectionError::Silent(start.elapsed())),
                result => return result,
            }
        }
    }

    /// The same, where each step of it may take so long.
    pub fn open_within(path: &Path, limit: Duration) -> Result<Self, ConnectionError> {
        Self::greet_within(ask(path, limit, None)?, limit)
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
        loop {
            if let Some(message) = self.receive_some()? {
                return Ok(message);
            }
        }
    }

    /// The same for a request that changes little: for [`ANSWER`] at the most.
    pub fn answer<T: DeserializeOwned>(&mut self) -> Result<T, ConnectionError> {
        self.receive_within(ANSWER)
    }

    /// The same, for `limit` at the most, however slowly it comes. Other answers are waited for without a limit then.
    pub fn receive_within<T: DeserializeOwned>(&mut self, limit: Duration) -> Result<T, ConnectionError> {
        self.receive_unless(limit, None)
    }

    /// The same, unless a signal comes that asks this process to end. Others are forgotten.
    pub fn receive_unless<T: DeserializeOwned>(
        &mut self,
        limit: Duration,
        signals: Option<&Signals>,
    ) -> Result<T, ConnectionError> {
        let deadline = Instant::now() + limit;
        self.socket.set_read_timeout(None)?;
        loop {
            wait(&self.socket, deadline, signals).map_err(|error| match error {
                ConnectionError::NoAnswer => ConnectionError::Silent(limit),
                error => error,
            })?;
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

/// Asks the vsock device behind the socket at `path` for a connection to the agent, which the guest's kernel makes.
fn ask(path: &Path, limit: Duration, signals: Option<&Signals>) -> Result<UnixStream, ConnectionError> {
    let deadline = Instant::now() + limit;
    let mut socket = connect_within(path, limit)?;
    socket.write_all(format!("CONNECT {PORT}\n").as_bytes())?;
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') && line.len() < 32 {
        wait(&socket, deadline, signals)?;
        let mut byte = [0];
        if socket.read(&mut byte)? == 0 {
            return Err(ConnectionError::Closed);
        }
        line.extend(byte);
    }
    if !line.starts_with(b"OK ") {
        return Err(ConnectionError::Unexpected(String::from_utf8_lossy(&line).trim_end().to_owned()));
    }
    Ok(socket)
}

/// Waits until there is something to read from `socket`.
fn wait(socket: &UnixStream, deadline: Instant, signals: Option<&Signals>) -> Result<(), ConnectionError> {
    loop {
        let left = Timespec::try_from(deadline.saturating_duration_since(Instant::now())).ok();
        let mut fds = vec![PollFd::new(socket, PollFlags::IN)];
        fds.extend(signals.map(|signals| PollFd::new(signals, PollFlags::IN)));
        match poll(&mut fds, left.as_ref()) {
            Ok(0) => return Err(ConnectionError::NoAnswer),
            Ok(_) if fds.first().is_some_and(|fd| !fd.revents().is_empty()) => return Ok(()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(ConnectionError::Io(error.into())),
        }
        while let Some(signal) = signals.and_then(Signals::next) {
            if ENDING.contains(&signal) {
                return Err(ConnectionError::Cancelled(signal));
            }
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
    #[case(VERSION + 1, Some("knows none after 7: use the mvm that has started the VM, or a newer one"))]
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
    fn a_greeting_is_waited_for_as_long_as_something_goes_on_in_the_guest() {
        let limit = Duration::from_millis(30);
        let (near, mut far) = UnixStream::pair().unwrap();
        let mut connection = Connection::new(near);
        // What has come of it stays.
        let hello = encode(&Reply::Hello { version: VERSION }).unwrap();
        let mut parts = hello.iter();
        let greeted = connection
            .greet_in_turn(limit, None, || parts.next().is_some_and(|byte| far.write_all(&[*byte]).is_ok()));
        assert!(greeted.is_ok() && parts.next().is_none(), "{greeted:?}");
        let mut left = 3;
        let silent = connection.greet_in_turn(limit, None, || {
            left -= 1;
            left > 0
        });
        assert!(matches!(silent, Err(ConnectionError::Silent(waited)) if waited >= 2 * limit), "{silent:?}");
        assert_eq!(left, 0);
        drop(far);
        assert!(connection.greet_in_turn(limit, None, || true).unwrap_err().is_closed());
    }

    #[test]
    fn a_signal_that_asks_to_end_ends_the_wait_for_a_greeting() {
        let signals = Signals::block(&[libc::SIGWINCH, libc::SIGTERM]).unwrap();
        let (near, _far) = UnixStream::pair().unwrap();
        for signal in [libc::SIGWINCH, libc::SIGTERM] {
            // SAFETY: it sends this thread a signal, which is blocked.
            unsafe { libc::raise(signal) };
        }
        let greeted = Connection::new(near).greet_in_turn(PATIENCE * 10, Some(&signals), || true);
        assert!(matches!(greeted, Err(ConnectionError::Cancelled(libc::SIGTERM))), "{greeted:?}");
    }

    #[test]
    fn a_device_that_does_not_answer_is_not_waited_for_without_an_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vsock.sock");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let limit = Duration::from_millis(20);
        // The first one is taken by the kernel, and the second one finds no room.
        let _first = UnixStream::connect(&path).unwrap();
        for _ in 0..2 {
            let error = Connection::open_unless(&path, limit, None).err().unwrap();
            assert!(matches!(error, ConnectionError::NoAnswer), "{error}");
        }
        assert!(Connection::open(&directory.path().join("none")).err().unwrap().is_closed());
    }

    #[test]
    fn later_answers_have_no_deadline_of_an_earlier_one() {
        let (mut connection, mut far) = greeted();
        far.write_all(&encode(&Reply::Started).unwrap()).unwrap();
        assert!(matches!(connection.receive_within(Duration::from_secs(20)).unwrap(), Reply::Started));
        assert_eq!(connection.socket.read_timeout().unwrap(), None);
    }
}
