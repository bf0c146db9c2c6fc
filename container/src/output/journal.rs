//! systemd's journal, by its native protocol: a datagram has the fields of one line
//! (systemd.io/JOURNAL_NATIVE_PROTOCOL).

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use agent_protocol::Stream;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SendFlags, send};

/// Where the journal takes datagrams.
pub const SOCKET: &str = "/run/systemd/journal/socket";
/// How long a journal that does not read is waited for. The next lines are not waited for until it reads again.
const PATIENCE: Duration = Duration::from_secs(2);
/// The most bytes of fields that all lines have.
const MAX_FIELDS: usize = 32 << 10;
/// Priorities of syslog, as docker gives them.
const INFO: &str = "6";
const ERROR: &str = "3";

/// What sends lines to the journal.
pub struct Journal {
    path: PathBuf,
    socket: UnixDatagram,
    /// Fields of all lines, as they are sent.
    fields: Vec<u8>,
    /// How many lines in a row could not be sent.
    dropped: u64,
    /// That was logged once.
    has_warned: bool,
}

/// Adds a field. One of several lines, or of bytes that are no text, has its length in front.
fn add(message: &mut Vec<u8>, name: &str, value: &[u8]) {
    message.extend_from_slice(name.as_bytes());
    if value.iter().any(|byte| *byte < b' ') || std::str::from_utf8(value).is_err() {
        message.push(b'\n');
        message.extend_from_slice(&u64::try_from(value.len()).unwrap_or(u64::MAX).to_le_bytes());
    } else {
        message.push(b'=');
    }
    message.extend_from_slice(value);
    message.push(b'\n');
}

/// `name` as that of a field: capitals, digits and `_`, which does not come first.
pub fn field_name(name: &str) -> String {
    let plain = |letter: char| if letter.is_ascii_alphanumeric() { letter.to_ascii_uppercase() } else { '_' };
    name.chars().map(plain).skip_while(|letter| *letter == '_').take(64).collect()
}

impl Journal {
    /// Connects to the journal at `path`. All lines have `fields`, of which those beyond 32 KiB are left out.
    ///
    /// # Errors
    ///
    /// Those of the system calls: there is no journal.
    pub fn open(path: &Path, fields: &[(String, String)]) -> io::Result<Self> {
        let mut encoded = Vec::new();
        for (name, value) in fields.iter().filter(|(name, _)| !name.is_empty()) {
            let length = encoded.len();
            add(&mut encoded, name, value.as_bytes());
            if encoded.len() > MAX_FIELDS {
                encoded.truncate(length);
            }
        }
        let socket = connect(path)?;
        Ok(Self { path: path.to_owned(), socket, fields: encoded, dropped: 0, has_warned: false })
    }

    /// Sends a line, or a part of one that goes on. One that can't be sent is counted, and missing.
    pub fn line(&mut self, stream: Stream, text: &[u8], is_whole: bool) {
        if self.dropped > 0 {
            let text =
                format!("mvm: {} lines are missing here, which the journal did not take", self.dropped);
            if self.send(Stream::Stderr, text.as_bytes(), true, Duration::ZERO).is_err() {
                self.dropped = self.dropped.saturating_add(1);
                return;
            }
            self.dropped = 0;
        }
        if let Err(error) = self.send(stream, text, is_whole, PATIENCE) {
            self.dropped = 1;
            if !std::mem::replace(&mut self.has_warned, true) {
                tracing::warn!(%error, "the journal takes no lines: some of the container's output will be missing there");
            }
        }
    }

    fn send(&mut self, stream: Stream, text: &[u8], is_whole: bool, patience: Duration) -> io::Result<()> {
        let mut message = Vec::new();
        add(&mut message, "MESSAGE", text);
        let priority = if stream == Stream::Stderr { ERROR } else { INFO };
        add(&mut message, "PRIORITY", priority.as_bytes());
        if !is_whole {
            add(&mut message, "CONTAINER_PARTIAL_MESSAGE", b"true");
        }
        message.extend_from_slice(&self.fields);
        match send_within(&self.socket, &message, patience) {
            // It was started anew.
            Err(Errno::CONNREFUSED | Errno::CONNRESET | Errno::NOTCONN | Errno::PIPE) => {
                self.socket = connect(&self.path)?;
                Ok(send_within(&self.socket, &message, patience)?)
            }
            sent => Ok(sent?),
        }
    }
}

fn connect(path: &Path) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(path)?;
    Ok(socket)
}

/// Sends a datagram, once there is room for it, within `patience`.
fn send_within(socket: &UnixDatagram, message: &[u8], patience: Duration) -> Result<(), Errno> {
    let deadline = Instant::now() + patience;
    loop {
        match send(socket, message, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => continue,
            Err(Errno::AGAIN) => {}
            Err(error) => return Err(error),
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Errno::AGAIN);
        }
        let left = Timespec::try_from(left).ok();
        match poll(&mut [PollFd::new(socket, PollFlags::OUT)], left.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    struct Fake {
        directory: tempfile::TempDir,
        socket: UnixDatagram,
    }

    impl Fake {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let socket = UnixDatagram::bind(directory.path().join("socket")).unwrap();
            socket.set_nonblocking(true).unwrap();
            Self { directory, socket }
        }

        fn journal(&self, fields: &[(&str, &str)]) -> Journal {
            let fields: Vec<_> =
                fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            Journal::open(&self.directory.path().join("socket"), &fields).unwrap()
        }

        fn message(&self) -> Option<Vec<u8>> {
            let mut buffer = vec![0; 256 << 10];
            let count = self.socket.recv(&mut buffer).ok()?;
            buffer.truncate(count);
            Some(buffer)
        }
    }

    #[test]
    fn lines_have_dockers_fields_and_bytes_their_length() {
        let fake = Fake::new();
        let mut journal = fake.journal(&[("CONTAINER_NAME", "web"), ("", "x"), ("NOTE", "a\nb")]);
        journal.line(Stream::Stdout, b"hello", true);
        journal.line(Stream::Stderr, b"half", false);
        journal.line(Stream::Stdout, b"\xff=\n", true);
        let rest = b"CONTAINER_NAME=web\nNOTE\n\x03\0\0\0\0\0\0\0a\nb\n".as_slice();
        let expected = |start: &[u8]| Some([start, rest].concat());
        assert_eq!(fake.message(), expected(b"MESSAGE=hello\nPRIORITY=6\n"));
        assert_eq!(fake.message(), expected(b"MESSAGE=half\nPRIORITY=3\nCONTAINER_PARTIAL_MESSAGE=true\n"));
        assert_eq!(fake.message(), expected(b"MESSAGE\n\x03\0\0\0\0\0\0\0\xff=\n\nPRIORITY=6\n"));
        assert_eq!(fake.message(), None);
    }

    #[test]
    fn fields_have_a_bound() {
        let fake = Fake::new();
        let long = "x".repeat(MAX_FIELDS);
        fake.journal(&[("LONG", &long), ("A", "1")]).line(Stream::Stdout, b"y", true);
        assert_eq!(fake.message().unwrap(), b"MESSAGE=y\nPRIORITY=6\nA=1\n");
    }

    #[test]
    fn a_journal_that_does_not_read_is_waited_for_once_and_what_is_missing_is_said() {
        let fake = Fake::new();
        let mut journal = fake.journal(&[]);
        let start = Instant::now();
        for number in 0..5000 {
            journal.line(Stream::Stdout, format!("line {number}").as_bytes(), true);
        }
        assert!(start.elapsed() < PATIENCE * 3, "{:?}", start.elapsed());
        let sent = std::iter::from_fn(|| fake.message()).count();
        assert!((1..5000).contains(&sent), "{sent}");
        journal.line(Stream::Stdout, b"again", true);
        let said = format!("MESSAGE=mvm: {} lines are missing here", 5000 - sent);
        assert!(String::from_utf8(fake.message().unwrap()).unwrap().starts_with(&said), "{said}");
        assert!(fake.message().unwrap().starts_with(b"MESSAGE=again\n"));
    }

    #[test]
    fn one_that_is_started_anew_is_found_again() {
        let fake = Fake::new();
        let mut journal = fake.journal(&[]);
        let path = fake.directory.path().join("socket");
        std::fs::remove_file(&path).unwrap();
        let Fake { directory, socket } = fake;
        drop(socket);
        journal.line(Stream::Stdout, b"lost", true);
        let fake = Fake { socket: UnixDatagram::bind(&path).unwrap(), directory };
        fake.socket.set_nonblocking(true).unwrap();
        journal.line(Stream::Stdout, b"there", true);
        assert!(fake.message().unwrap().starts_with(b"MESSAGE=mvm: 1 lines are missing"));
        assert!(fake.message().unwrap().starts_with(b"MESSAGE=there\n"));
        assert!(Journal::open(&fake.directory.path().join("none"), &[]).is_err());
    }

    #[rstest]
    #[case("com.example.team", "COM_EXAMPLE_TEAM")]
    #[case("__a-1", "A_1")]
    #[case("ü", "")]
    #[case("", "")]
    fn names_of_fields_are_plain(#[case] name: &str, #[case] expected: &str) {
        assert_eq!(field_name(name), expected);
    }
}
