//! Ethernet frames over a Unix stream socket, each behind its length: the protocol of QEMU's `-netdev stream`, which
//! passt speaks. There is no header for offloads in it.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use libc::msghdr;

use super::super::iovecs::IoVecs;
use super::backend::{Trouble, again};
use super::receive::Room;
use super::tap::length;

/// The longest frame either side may send: 64 KiB, as passt has it.
pub(super) const MAX_FRAME: usize = 64 << 10;
/// The length of a frame goes before it, in big endian.
const PREFIX: usize = 4;

/// What is known of the frame that comes next.
#[derive(Clone, Copy, Debug)]
enum Incoming {
    /// So many bytes of its length have come.
    Prefix { have: usize },
    /// Its length, and how much of it has come.
    Frame { length: usize, have: usize },
    /// So much of it is still to be thrown away.
    Unwanted { left: usize },
}

/// The socket with what is under way in both directions.
pub struct Stream {
    socket: UnixStream,
    incoming: Incoming,
    incoming_prefix: [u8; PREFIX],
    /// A frame that has begun to be sent: its prefix, and how much of that has gone.
    outgoing: Option<([u8; PREFIX], usize)>,
    /// The rest of a frame that the guest has forgotten since it was begun.
    unsent: Vec<u8>,
    /// Room for what one call takes.
    call: IoVecs,
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
            outgoing: None,
            unsent: Vec::new(),
            call: IoVecs::default(),
        })
    }

    /// The length of the next frame, once it is known.
    pub(super) fn next_length(&mut self) -> Result<usize, Trouble> {
        loop {
            match self.incoming {
                Incoming::Frame { length, .. } => return Ok(length),
                Incoming::Unwanted { left: 0 } => self.incoming = Incoming::Prefix { have: 0 },
                Incoming::Unwanted { left } => {
                    let mut waste = [0; 4096];
                    let here = waste.get_mut(..left.min(4096)).unwrap_or_default();
                    let read = again(|| (&self.socket).read(here)).map_err(trouble)?;
                    self.incoming = Incoming::Unwanted { left: left - some(read)? };
                }
                Incoming::Prefix { have: PREFIX } => {
                    let length =
                        usize::try_from(u32::from_be_bytes(self.incoming_prefix)).unwrap_or(usize::MAX);
                    if length == 0 || length > MAX_FRAME {
                        let message = format!("it sent a frame of {length} bytes");
                        return Err(Trouble::Closed(io::Error::new(io::ErrorKind::InvalidData, message)));
                    }
                    self.incoming = Incoming::Frame { length, have: 0 };
                }
                Incoming::Prefix { have } => {
                    let rest = self.incoming_prefix.get_mut(have..).unwrap_or_default();
                    let read = again(|| (&self.socket).read(rest)).map_err(trouble)?;
                    self.incoming = Incoming::Prefix { have: have + some(read)? };
                }
            }
        }
    }

    /// Receives the frame that [`next_length`](Self::next_length) has told of to `room`, from `offset` on, and gives
    /// its length. Until it has come as a whole, `room` has to stay the same. A frame without room is thrown away.
    ///
    /// # Safety
    ///
    /// The ranges of `room` have to be valid memory.
    pub(super) unsafe fn receive(&mut self, offset: usize, room: &Room) -> Result<usize, Trouble> {
        while let Incoming::Frame { length, have } = self.incoming {
            if room.capacity() < offset + length {
                self.incoming = Incoming::Unwanted { left: length - have };
                return Ok(length);
            }
            self.call.clear();
            room.ranges().copy_part(offset + have, length - have, &mut self.call);
            // With the frame comes the length of the one behind it, so that each takes one call.
            self.call.push_raw(self.incoming_prefix.as_mut_ptr().cast(), PREFIX);
            let ranges = self.call.left();
            let count = libc::c_int::try_from(ranges.len()).unwrap_or(libc::c_int::MAX);
            let fd = self.socket.as_raw_fd();
            // SAFETY: `ranges` has `count` elements; the caller says that those of `room` are valid, and the other
            // is ours.
            let read = again(|| self::length(unsafe { libc::readv(fd, ranges.as_ptr(), count) }));
            let have = have + some(read.map_err(trouble)?)?;
            self.incoming = match have.checked_sub(length) {
                Some(have) => {
                    self.incoming = Incoming::Prefix { have };
                    return Ok(length);
                }
                None => Incoming::Frame { length, have },
            };
        }
        Err(Trouble::NotNow)
    }

    /// Sends what is left of `packet`, but for the `header` that it begins with, and takes off it what went.
    ///
    /// # Safety
    ///
    /// The memory that is left of `packet` has to be valid.
    pub(super) unsafe fn send(&mut self, header: usize, packet: &mut IoVecs) -> Result<(), Trouble> {
        while !self.unsent.is_empty() {
            let sent = again(|| (&self.socket).write(&self.unsent)).map_err(trouble)?;
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
            self.call.clear();
            let rest = prefix.get(gone..).unwrap_or_default();
            self.call.push_raw(rest.as_ptr().cast_mut().cast(), rest.len());
            packet.copy_part(0, usize::MAX, &mut self.call);
            // SAFETY: the ranges are a part of `prefix` and, as the caller says, valid memory.
            let sent = unsafe { self.send_call() }.map_err(trouble)?;
            let of_prefix = sent.min(PREFIX - gone);
            gone += of_prefix;
            packet.advance(sent - of_prefix);
        }
        self.outgoing = None;
        Ok(())
    }

    /// Sends what it can of `self.call`.
    ///
    /// # Safety
    ///
    /// Its ranges have to be valid memory.
    unsafe fn send_call(&self) -> io::Result<usize> {
        let ranges = self.call.left();
        // SAFETY: all zeros is a message of nothing to nobody.
        let mut message: msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = ranges.as_ptr().cast_mut();
        message.msg_iovlen = ranges.len();
        // SAFETY: the message has as many ranges as it says, and the caller says that they are valid; they are only
        // read.
        again(|| length(unsafe { libc::sendmsg(self.socket.as_raw_fd(), &message, libc::MSG_NOSIGNAL) }))
    }

    /// Forgets guest memory. What of a frame is still to come is unwanted; what of one is still to go, which is
    /// `rest` and maybe its prefix, goes before the next.
    pub(super) fn reset(&mut self, rest: Vec<u8>) {
        if let Incoming::Frame { length, have } = self.incoming {
            self.incoming = Incoming::Unwanted { left: length - have };
        }
        if let Some((prefix, gone)) = self.outgoing.take() {
            self.unsent.extend(prefix.get(gone..).unwrap_or_default());
            self.unsent.extend(rest);
        }
        self.call.clear();
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// What an error of the socket means: all but one are final.
fn trouble(error: io::Error) -> Trouble {
    if error.kind() == io::ErrorKind::WouldBlock { Trouble::NotNow } else { Trouble::Closed(error) }
}

/// The count of bytes that were read; none is the end.
fn some(read: usize) -> Result<usize, Trouble> {
    match read {
        0 => Err(Trouble::Closed(io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection"))),
        read => Ok(read),
    }
}
