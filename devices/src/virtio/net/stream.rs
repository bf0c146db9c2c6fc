//! Ethernet frames on a Unix stream socket, each behind its length: the protocol of QEMU's `-netdev stream`, which
//! passt speaks. It has no header for offloads.

mod state;

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use libc::msghdr;

pub use self::state::StreamState;
use super::backend::{BackendError, retry};
use super::receive::Room;
use super::tap::length;
use crate::virtio::iovecs::IoVecs;

/// The longest frame of either side: 64 KiB, as in passt.
pub(super) const MAX_FRAME: usize = 64 << 10;
/// The length of a frame goes before it, in big endian.
const PREFIX: usize = 4;
/// The most system calls of an operation. The other side could make it one for each byte.
pub(super) const CALLS: u64 = 64;

/// What is known of the next frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Incoming {
    /// So many bytes of its length were read.
    Prefix { have: usize },
    /// Its length, and how many of its bytes were read.
    Frame { length: usize, have: usize },
    /// So many of its bytes are still to be read and discarded.
    Unwanted { left: usize },
}

/// The socket, with the frames that are under way in both directions.
pub struct Stream {
    socket: UnixStream,
    incoming: Incoming,
    incoming_prefix: [u8; PREFIX],
    /// The bytes of the next frame that were read and are not in the guest's buffers.
    held: Vec<u8>,
    /// The frame that is being sent: its prefix, and how much of that was sent.
    outgoing: Option<([u8; PREFIX], usize)>,
    /// The rest of a frame that is no longer in the guest's memory. It is sent before the next frame.
    unsent: Vec<u8>,
    /// Room for the ranges of one call.
    call: IoVecs,
    /// System calls since they were last counted for a turn.
    calls: u64,
}

impl Stream {
    /// Makes a backend of a connected socket.
    ///
    /// # Errors
    ///
    /// The socket can't be made non-blocking.
    pub fn new(socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            incoming: Incoming::Prefix { have: 0 },
            incoming_prefix: [0; PREFIX],
            held: Vec::new(),
            outgoing: None,
            unsent: Vec::new(),
            call: IoVecs::default(),
            calls: 0,
        })
    }

    /// The number of system calls since this was last asked.
    pub(super) fn take_calls(&mut self) -> u64 {
        std::mem::take(&mut self.calls)
    }

    /// Counts a system call of an operation that has made `made` so far.
    fn count_call(&mut self, made: &mut u64) -> Result<(), BackendError> {
        if *made == CALLS {
            return Err(BackendError::Unfinished);
        }
        *made += 1;
        self.calls += 1;
        Ok(())
    }

    /// The length of the next frame, once it is known.
    pub(super) fn next_length(&mut self) -> Result<usize, BackendError> {
        let mut calls = 0;
        loop {
            match self.incoming {
                Incoming::Frame { length, .. } => return Ok(length),
                Incoming::Unwanted { left: 0 } => self.incoming = Incoming::Prefix { have: 0 },
                Incoming::Unwanted { left } => {
                    self.count_call(&mut calls)?;
                    let mut waste = [0; 4096];
                    let here = waste.get_mut(..left.min(4096)).unwrap_or_default();
                    let read = retry(|| (&self.socket).read(here)).map_err(error)?;
                    self.incoming = Incoming::Unwanted { left: left - nonzero(read)? };
                }
                Incoming::Prefix { have: PREFIX } => {
                    let length =
                        usize::try_from(u32::from_be_bytes(self.incoming_prefix)).unwrap_or(usize::MAX);
                    if length == 0 || length > MAX_FRAME {
                        let message = format!("it sent a frame of {length} bytes");
                        return Err(BackendError::Closed(io::Error::new(
                            io::ErrorKind::InvalidData,
                            message,
                        )));
                    }
                    self.incoming = Incoming::Frame { length, have: 0 };
                }
                Incoming::Prefix { have } => {
                    self.count_call(&mut calls)?;
                    let rest = self.incoming_prefix.get_mut(have..).unwrap_or_default();
                    let read = retry(|| (&self.socket).read(rest)).map_err(error)?;
                    self.incoming = Incoming::Prefix { have: have + nonzero(read)? };
                }
            }
        }
    }

    /// Receives the frame whose length [`next_length`](Self::next_length) has returned to `room`, from `offset` on, and
    /// returns its length. Until it was received as a whole, `room` has to stay the same. A frame that has no room is
    /// discarded.
    ///
    /// # Safety
    ///
    /// The ranges of `room` have to be valid memory.
    pub(super) unsafe fn receive(&mut self, offset: usize, room: &Room) -> Result<usize, BackendError> {
        let mut calls = 0;
        while let Incoming::Frame { length, have } = self.incoming {
            self.count_call(&mut calls)?;
            if room.capacity() < offset + length {
                self.incoming = Incoming::Unwanted { left: length - have };
                self.held.clear();
                return Ok(length);
            }
            if !self.held.is_empty() {
                self.call.clear();
                room.ranges().copy_part(offset, self.held.len(), &mut self.call);
                // SAFETY: the caller says that the ranges of `room` are valid.
                unsafe { self.call.write(&self.held) };
                self.held.clear();
            }
            self.call.clear();
            room.ranges().copy_part(offset + have, length - have, &mut self.call);
            // The length of the frame behind it is read by the same call, so that each frame takes one.
            self.call.push_raw(self.incoming_prefix.as_mut_ptr().cast(), PREFIX);
            let ranges = self.call.left();
            let count = libc::c_int::try_from(ranges.len()).unwrap_or(libc::c_int::MAX);
            let fd = self.socket.as_raw_fd();
            // SAFETY: `ranges` has `count` elements; the caller says that those of `room` are valid, and the other
            // is ours.
            let read = retry(|| self::length(unsafe { libc::readv(fd, ranges.as_ptr(), count) }));
            let have = have + nonzero(read.map_err(error)?)?;
            self.incoming = match have.checked_sub(length) {
                Some(have) => {
                    self.incoming = Incoming::Prefix { have };
                    return Ok(length);
                }
                None => Incoming::Frame { length, have },
            };
        }
        Err(BackendError::WouldBlock)
    }

    /// Sends what is left of `packet` without the `header` that it begins with, and removes from it what was sent.
    ///
    /// # Safety
    ///
    /// The memory that is left of `packet` has to be valid.
    pub(super) unsafe fn send(&mut self, header: usize, packet: &mut IoVecs) -> Result<(), BackendError> {
        let mut calls = 0;
        while !self.unsent.is_empty() {
            self.count_call(&mut calls)?;
            let sent = retry(|| (&self.socket).write(&self.unsent)).map_err(error)?;
            self.unsent.drain(..sent);
        }
        let (prefix, mut gone) = match self.outgoing {
            Some(outgoing) => outgoing,
            None => {
                packet.advance(header);
                (u32::try_from(packet.length()).unwrap_or(u32::MAX).to_be_bytes(), 0)
            }
        };
        while gone < PREFIX || packet.length() > 0 {
            self.outgoing = Some((prefix, gone));
            self.count_call(&mut calls)?;
            self.call.clear();
            let rest = prefix.get(gone..).unwrap_or_default();
            self.call.push_raw(rest.as_ptr().cast_mut().cast(), rest.len());
            packet.copy_part(0, usize::MAX, &mut self.call);
            // SAFETY: the ranges are a part of `prefix` and, as the caller says, valid memory.
            let sent = unsafe { self.send_call() }.map_err(error)?;
            let of_prefix = sent.min(PREFIX - gone);
            gone += of_prefix;
            packet.advance(sent - of_prefix);
        }
        self.outgoing = None;
        Ok(())
    }

    /// Sends what the socket takes of `self.call`.
    ///
    /// # Safety
    ///
    /// Its ranges have to be valid memory.
    unsafe fn send_call(&self) -> io::Result<usize> {
        let ranges = self.call.left();
        // SAFETY: all zeros is a valid message without address and control data.
        let mut message: msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = ranges.as_ptr().cast_mut();
        // Its type depends on the C library.
        message.msg_iovlen = ranges.len() as _;
        // SAFETY: the message has as many ranges as it says, and the caller says that they are valid; they are only
        // read.
        retry(|| length(unsafe { libc::sendmsg(self.socket.as_raw_fd(), &message, libc::MSG_NOSIGNAL) }))
    }

    /// Whether a part of the frame that is being sent was sent, so that the rest has to be.
    pub(super) fn has_sent_a_part(&self) -> bool {
        self.outgoing.is_some_and(|(_, gone)| gone > 0)
    }

    /// Gives up the frame that is being sent. If a part of it was sent, `rest` is what is left behind its prefix, and
    /// is sent before the next frame.
    pub(super) fn give_up_outgoing(&mut self, rest: Vec<u8>) {
        if let Some((prefix, gone @ 1..)) = self.outgoing.take() {
            self.unsent.extend(prefix.get(gone..).unwrap_or_default());
            self.unsent.extend(rest);
        }
        self.call.clear();
    }

    /// Discards what is still to be received of a frame of which a part was received.
    pub(super) fn discard_incoming(&mut self) {
        if let Incoming::Frame { length, have } = self.incoming {
            self.incoming = Incoming::Unwanted { left: length - have };
        }
        self.held.clear();
    }

    /// Copies the part of a frame that was received out of `room`, where it is from `offset` on. It is written to the
    /// next room.
    ///
    /// # Safety
    ///
    /// The ranges of `room` have to be valid memory.
    pub(super) unsafe fn hold_incoming(&mut self, offset: usize, room: &Room) {
        let Incoming::Frame { have, .. } = self.incoming else { return };
        if have == 0 || !self.held.is_empty() {
            return;
        }
        self.call.clear();
        room.ranges().copy_part(offset, have, &mut self.call);
        self.held.resize(have, 0);
        // SAFETY: the caller says that the ranges are valid.
        unsafe { self.call.read(&mut self.held) };
        self.call.clear();
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// What an error of the socket means: all but one are final.
fn error(error: io::Error) -> BackendError {
    if error.kind() == io::ErrorKind::WouldBlock {
        BackendError::WouldBlock
    } else {
        BackendError::Closed(error)
    }
}

/// The count of bytes that were read; 0 is the end of the stream.
fn nonzero(read: usize) -> Result<usize, BackendError> {
    match read {
        0 => Err(BackendError::Closed(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "it closed the connection",
        ))),
        read => Ok(read),
    }
}
