//! The bytes between GDB and its stub, and what else is waited for meanwhile.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use gdbstub::conn::Connection as GdbConnection;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, SendFlags, recv, send};

/// What came first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// A byte of the client's.
    Byte(u8),
    /// The client has gone.
    Gone,
    /// The VM has ended.
    Ended,
    /// A vCPU stopped.
    Stopped,
}

/// A client.
pub(super) struct Connection {
    socket: OwnedFd,
    /// What has come and was not asked for yet, backwards.
    received: Vec<u8>,
    unsent: Vec<u8>,
}

impl Connection {
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self { socket, received: Vec::new(), unsent: Vec::new() }
    }

    /// Waits for the next byte or for the VM's end, and where `stops` is given for that, too.
    pub(super) fn wait(&mut self, exit: BorrowedFd<'_>, stops: Option<BorrowedFd<'_>>) -> io::Result<Event> {
        if let Some(byte) = self.received.pop() {
            return Ok(Event::Byte(byte));
        }
        let [ended, stopped, readable] = wait_for([Some(exit), stops, Some(self.socket.as_fd())])?;
        if ended {
            return Ok(Event::Ended);
        }
        if stopped {
            return Ok(Event::Stopped);
        }
        if !readable {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let mut buffer = [0; 4096];
        let (received, _) = recv(&self.socket, &mut buffer, RecvFlags::empty())?;
        self.received.extend(buffer.iter().take(received).rev());
        Ok(self.received.pop().map_or(Event::Gone, Event::Byte))
    }
}

/// Waits until one of `sources` is readable, or gone, and says which are.
pub(super) fn wait_for<const N: usize>(sources: [Option<BorrowedFd<'_>>; N]) -> io::Result<[bool; N]> {
    let mut waiting: Vec<_> =
        sources.iter().flatten().map(|source| PollFd::from_borrowed_fd(*source, PollFlags::IN)).collect();
    loop {
        match poll(&mut waiting, None) {
            Err(rustix::io::Errno::INTR) => {}
            result => {
                result?;
                break;
            }
        }
    }
    let mut results = waiting.iter().map(|source| !source.revents().is_empty());
    Ok(sources.map(|source| source.is_some() && results.next().unwrap_or(false)))
}

/// Waits until `source` is readable, for `time` at most; whether it is.
pub(super) fn wait_at_most(source: BorrowedFd<'_>, time: Duration) -> io::Result<bool> {
    let timeout = Timespec::try_from(time).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut waiting = [PollFd::from_borrowed_fd(source, PollFlags::IN)];
    match poll(&mut waiting, Some(&timeout)) {
        Ok(ready) => Ok(ready > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

impl GdbConnection for Connection {
    type Error = io::Error;

    fn write(&mut self, byte: u8) -> Result<(), io::Error> {
        self.unsent.push(byte);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), io::Error> {
        let unsent = std::mem::take(&mut self.unsent);
        let mut rest = unsent.as_slice();
        while !rest.is_empty() {
            match send(&self.socket, rest, SendFlags::NOSIGNAL) {
                Ok(sent) => rest = rest.get(sent..).unwrap_or_default(),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}
