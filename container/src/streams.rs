//! Streams of a container's processes, which outlive their connections to the agent (`agent_protocol::Sender`).

use std::io::{self, IoSlice, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use agent_protocol::{Receiver, Sender, Stream, StreamError};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};

use crate::connection::{Connection, ConnectionError};

/// What is read of an output at once.
const CHUNK: usize = 256 << 10;
/// The same of an output of which little is kept.
const SMALL_CHUNK: usize = 16 << 10;
/// How often a connection that was lost is tried again, and how long between.
const ATTEMPTS: u32 = 50;
const PAUSE: Duration = Duration::from_millis(100);

/// Which stream, and where the agent is found.
#[derive(Clone, Debug)]
pub struct Place {
    /// The socket of the VM's vsock device.
    pub path: PathBuf,
    /// The container, for its first process, or the process.
    pub id: String,
    /// Which of its streams.
    pub stream: Stream,
}

impl Place {
    /// Makes `first` the connection of the stream, or another one if that fails.
    fn connect(&self, first: Connection) -> Option<UnixStream> {
        match first.attach(&self.id, self.stream, 0) {
            Ok((socket, _)) => Some(socket),
            Err(ConnectionError::Refused(_)) => None,
            Err(_) => self.connect_again(0).map(|(socket, _)| socket),
        }
    }

    /// Another connection, for one that was lost; `None` where the stream or its VM is gone.
    fn connect_again(&self, position: u64) -> Option<(UnixStream, u64)> {
        for _ in 0..ATTEMPTS {
            let connection = Connection::open(&self.path).and_then(Connection::with_patience);
            match connection.and_then(|connection| connection.attach(&self.id, self.stream, position)) {
                Ok(attached) => return Some(attached),
                Err(
                    ConnectionError::Refused(_) | ConnectionError::TooOld(_) | ConnectionError::TooNew(_),
                ) => return None,
                Err(ConnectionError::Io(error))
                    if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
                {
                    return None;
                }
                Err(_) => std::thread::sleep(PAUSE),
            }
        }
        None
    }
}

/// Why an output is passed on no more.
enum Broken {
    /// The connection. There may be another one.
    Connection,
    /// Where it goes.
    Target(io::Error),
}

impl From<StreamError> for Broken {
    fn from(_: StreamError) -> Self {
        Self::Connection
    }
}

/// Passes an output on from `first`, and from the connections after it, to `target`, until it ends or its VM does.
///
/// # Errors
///
/// Those of `target`.
pub fn pass_output(first: Connection, place: &Place, mut target: impl Write) -> io::Result<()> {
    let Some(mut connection) = place.connect(first) else { return Ok(()) };
    let mut receiver = Receiver::default();
    let mut bytes = vec![0; CHUNK];
    loop {
        match receive(&mut connection, &mut receiver, &mut bytes, &mut target) {
            Ok(()) if receiver.has_ended() => return Ok(()),
            Ok(()) => {}
            Err(Broken::Target(error)) => return Err(error),
            Err(Broken::Connection) => {
                receiver.resume();
                match place.connect_again(receiver.position()) {
                    Some((other, _)) => connection = other,
                    None => return Ok(()),
                }
            }
        }
    }
}

/// The same from one connection alone, until that is lost or shut down.
///
/// # Errors
///
/// Those of `target`.
pub fn pass_output_once(connection: Connection, place: &Place, mut target: impl Write) -> io::Result<()> {
    let Ok((mut connection, _)) = connection.attach(&place.id, place.stream, 0) else { return Ok(()) };
    let mut receiver = Receiver::default();
    let mut bytes = vec![0; SMALL_CHUNK];
    while !receiver.has_ended() {
        match receive(&mut connection, &mut receiver, &mut bytes, &mut target) {
            Ok(()) => {}
            Err(Broken::Target(error)) => return Err(error),
            Err(Broken::Connection) => break,
        }
    }
    Ok(())
}

/// Passes on what one read gives.
fn receive(
    connection: &mut UnixStream,
    receiver: &mut Receiver,
    bytes: &mut [u8],
    target: &mut impl Write,
) -> Result<(), Broken> {
    let count = match connection.read(bytes) {
        Ok(count @ 1..) => count,
        Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
        Ok(_) | Err(_) => return Err(Broken::Connection),
    };
    receiver.receive(bytes.get(..count).unwrap_or_default(), |bytes| {
        target.write_all(bytes).map_err(Broken::Target)
    })?;
    if let Some(acknowledgement) = receiver.acknowledgement() {
        connection.write_all(&acknowledgement).map_err(|_| Broken::Connection)?;
    }
    Ok(())
}

/// Passes all of `source` on to the input of a process, on `first` and the connections after it, until the process
/// reads no more.
pub fn pass_input(first: Connection, place: &Place, source: impl AsFd) {
    let mut sender = Sender::default();
    let mut connection = place.connect(first);
    while let Some(current) = connection.take() {
        while send(&current, &mut sender, source.as_fd()).is_ok() {}
        let _ = current.shutdown(Shutdown::Both);
        connection = place
            .connect_again(0)
            .filter(|(_, position)| sender.resume(*position).is_ok())
            .map(|(other, _)| other);
    }
}

/// Waits for input, for room in `connection`, or for an acknowledgement, and does what can be done.
fn send(connection: &UnixStream, sender: &mut Sender, source: BorrowedFd<'_>) -> Result<(), Broken> {
    let wanted = if sender.wants_to_send() { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
    let mut fds = vec![PollFd::new(connection, wanted)];
    if sender.has_room() {
        fds.push(PollFd::from_borrowed_fd(source, PollFlags::IN));
    }
    match poll(&mut fds, None) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(_) => return Err(Broken::Connection),
    }
    let events: Vec<PollFlags> = fds.iter().map(PollFd::revents).collect();
    let has = |index: usize| events.get(index).copied().unwrap_or(PollFlags::empty());
    if !has(1).is_empty() {
        match rustix::io::read(source, sender.space()) {
            Ok(count @ 1..) => sender.fill(count),
            Err(Errno::AGAIN | Errno::INTR) => {}
            // A terminal that is gone is an end as well.
            Ok(_) | Err(_) => sender.end(),
        }
    }
    if has(0).intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
        let mut bytes = [0; 64];
        match rustix::io::read(connection, &mut bytes) {
            Ok(count @ 1..) => sender.acknowledge(bytes.get(..count).unwrap_or_default())?,
            Err(Errno::AGAIN | Errno::INTR) => {}
            Ok(_) | Err(_) => return Err(Broken::Connection),
        }
    }
    if sender.wants_to_send() {
        let slices: [IoSlice<'_>; 3] = sender.to_send();
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match sendmsg(connection, &slices, &mut SendAncillaryBuffer::default(), flags) {
            Ok(count) => sender.sent(count),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => return Err(Broken::Connection),
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "streams_tests.rs"]
mod tests;
