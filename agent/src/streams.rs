//! A process's standard input and output on their way to and from connections, which may be lost.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use agent_protocol::{Receiver, Sender, StreamError};
use rustix::event::PollFlags;
use rustix::io::{Errno, read, writev};

use crate::buffer::{Buffer, Moved};

/// The number of a connection.
pub type ConnectionId = u32;

/// The connection can carry no more of its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost;

impl From<StreamError> for Lost {
    fn from(_: StreamError) -> Self {
        Self
    }
}

/// What a process writes. Without a connection, the process waits once as much is kept as can be.
#[derive(Debug, Default)]
pub struct Output {
    source: Option<OwnedFd>,
    sender: Sender,
    pub connection: Option<ConnectionId>,
    /// No process will read it.
    is_dropped: bool,
}

impl Output {
    pub fn new(source: Option<OwnedFd>) -> Self {
        let mut sender = Sender::default();
        if source.is_none() {
            sender.end();
        }
        Self { source, sender, ..Self::default() }
    }

    /// The descriptor to poll for more, if there is room.
    pub fn source(&self) -> Option<BorrowedFd<'_>> {
        self.source.as_ref().filter(|_| self.sender.has_room()).map(AsFd::as_fd)
    }

    /// What to wait for on the connection.
    pub fn interest(&self) -> PollFlags {
        if self.sender.wants_to_send() { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN }
    }

    /// Takes what there is; how many bytes.
    pub fn read(&mut self) -> usize {
        let Some(source) = self.source.as_ref().filter(|_| self.sender.has_room()) else { return 0 };
        let result = read(source, self.sender.space());
        match result {
            Ok(count @ 1..) => self.sender.fill(count),
            Err(Errno::AGAIN | Errno::INTR) => {}
            // A terminal whose last user has gone fails.
            Ok(_) | Err(_) => {
                self.source = None;
                self.sender.end();
            }
        }
        if self.is_dropped {
            self.sender.drop_kept();
        }
        result.unwrap_or_default()
    }

    /// Drops what was taken and what will be.
    pub fn drop_all(&mut self) {
        self.is_dropped = true;
        self.sender.drop_kept();
    }

    /// Goes on from `position` on another connection; `None` where what comes next is not kept.
    pub fn resume(&mut self, position: u64) -> Option<u64> {
        self.sender.resume(position).ok().map(|()| position)
    }

    /// Begins anew for another host, with what the one before was not sent.
    pub fn begin_anew(&mut self) {
        self.sender.begin_anew();
        self.connection = None;
    }

    /// Takes what the host acknowledges.
    pub fn acknowledge(&mut self, connection: impl AsFd) -> Result<(), Lost> {
        let mut bytes = [0; 64];
        match read(connection, &mut bytes) {
            Ok(count @ 1..) => Ok(self.sender.acknowledge(bytes.get(..count).unwrap_or_default())?),
            Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Ok(_) | Err(_) => Err(Lost),
        }
    }

    /// Passes on what was taken.
    pub fn write(&mut self, connection: impl AsFd) -> Result<(), Lost> {
        if !self.sender.wants_to_send() {
            return Ok(());
        }
        match writev(connection, &self.sender.to_send()) {
            Ok(count) => self.sender.sent(count),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => return Err(Lost),
        }
        Ok(())
    }
}

/// What a process reads.
#[derive(Debug, Default)]
pub struct Input {
    target: Option<OwnedFd>,
    buffer: Buffer,
    receiver: Receiver,
    pub connection: Option<ConnectionId>,
    /// The host has sent all.
    has_ended: bool,
}

impl Input {
    pub fn new(target: Option<OwnedFd>) -> Self {
        Self { target, ..Self::default() }
    }

    /// The descriptor to poll for room, if there is something to write.
    pub fn target(&self) -> Option<BorrowedFd<'_>> {
        self.target.as_ref().filter(|_| !self.buffer.is_empty()).map(AsFd::as_fd)
    }

    /// What to wait for on the connection.
    pub fn interest(&self) -> PollFlags {
        if self.buffer.has_room() { PollFlags::IN } else { PollFlags::empty() }
    }

    /// Goes on with what comes on another connection; how much has come before.
    pub fn resume(&mut self) -> Option<u64> {
        self.receiver.resume();
        (!self.is_finished()).then(|| self.receiver.position())
    }

    /// Takes what another host sends, from its beginning on.
    pub fn begin_anew(&mut self) {
        self.receiver = Receiver::default();
        self.connection = None;
    }

    /// Takes what the host has sent; the acknowledgement that is due, if any.
    pub fn read(&mut self, connection: impl AsFd) -> Result<Option<[u8; 8]>, Lost> {
        let mut space = [0; 16 << 10];
        let room = self.buffer.room().min(space.len());
        let count = match read(connection, space.get_mut(..room).unwrap_or_default()) {
            Ok(count @ 1..) => count,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
            Ok(_) | Err(_) => return Err(Lost),
        };
        let buffer = &mut self.buffer;
        self.receiver.receive(space.get(..count).unwrap_or_default(), |bytes| {
            buffer.extend(bytes);
            Ok::<_, Lost>(())
        })?;
        if self.receiver.has_ended() {
            self.end();
        }
        Ok(self.receiver.acknowledgement())
    }

    /// The host sends no more.
    pub fn end(&mut self) {
        self.has_ended = true;
        self.close_if_done();
    }

    /// Passes on what was taken.
    pub fn write(&mut self) {
        if let Some(target) = &self.target
            && !self.buffer.is_empty()
            && !matches!(self.buffer.drain(target), Ok(Moved::Some))
        {
            self.target = None;
        }
        self.close_if_done();
    }

    /// The process reads the end once it has read the rest.
    fn close_if_done(&mut self) {
        if self.has_ended && self.buffer.is_empty() {
            self.target = None;
        }
    }

    /// Whether nothing will be passed on any more.
    pub fn is_finished(&self) -> bool {
        self.target.is_none()
    }
}
