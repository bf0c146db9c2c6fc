//! A container's standard input and output on their way to and from connections.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::PollFlags;

use crate::buffer::{Buffer, Moved};

/// The number of a connection.
pub type ConnectionId = u32;

/// What a process writes. Without a connection, the process waits once the buffer is full.
#[derive(Debug, Default)]
pub struct Output {
    source: Option<OwnedFd>,
    buffer: Buffer,
    pub connection: Option<ConnectionId>,
}

impl Output {
    pub fn new(source: Option<OwnedFd>) -> Self {
        Self { source, ..Self::default() }
    }

    /// The descriptor to poll for more, if there is room.
    pub fn source(&self) -> Option<BorrowedFd<'_>> {
        self.source.as_ref().filter(|_| self.buffer.has_room()).map(AsFd::as_fd)
    }

    /// What to wait for on the connection.
    pub fn interest(&self) -> PollFlags {
        if self.buffer.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT }
    }

    /// Takes what there is.
    pub fn read(&mut self) {
        if let Some(source) = &self.source
            && !matches!(self.buffer.fill(source), Ok(Moved::Some))
        {
            self.source = None;
        }
    }

    /// Passes on what was taken; false where the connection is gone.
    pub fn write(&mut self, connection: impl AsFd) -> bool {
        self.buffer.is_empty() || matches!(self.buffer.drain(connection), Ok(Moved::Some))
    }

    /// Whether all that there will be was passed on.
    pub fn is_finished(&self) -> bool {
        self.source.is_none() && self.buffer.is_empty()
    }
}

/// What a process reads.
#[derive(Debug, Default)]
pub struct Input {
    target: Option<OwnedFd>,
    buffer: Buffer,
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
        if self.buffer.has_room() && !self.has_ended { PollFlags::IN } else { PollFlags::empty() }
    }

    /// Takes what the host has sent.
    pub fn read(&mut self, connection: impl AsFd) {
        match self.buffer.fill(connection) {
            Ok(Moved::Some) => {}
            Ok(Moved::End) | Err(_) => self.end(),
        }
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
