//! Where a queue pair's packets come from and go to.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use super::super::iovecs::IoVecs;
use super::config::Offloads;
use super::header::{HEADER, MAX_FRAME};
use super::receive::Room;
use super::stream::{self, Stream};
use super::tap::Tap;

/// The other end of a queue pair.
pub enum Backend {
    /// A queue of a tap of the host's.
    Tap(Tap),
    /// A process that takes and gives Ethernet frames by a Unix socket.
    Stream(Stream),
}

/// How it went with a packet.
#[derive(Debug)]
pub(super) enum Trouble {
    /// There is none now, or no room for one; the backend's descriptor says when that changes.
    NotNow,
    /// This one is lost, but the next may do better.
    Packet(io::Error),
    /// There will never be one again.
    Closed(io::Error),
}

impl Trouble {
    /// What an error of a tap means. A guest can make the kernel refuse a packet, so that is no more than a packet.
    fn of_tap(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EAGAIN) => Self::NotNow,
            // The tap was removed.
            Some(libc::EBADFD) => Self::Closed(error),
            _ => Self::Packet(error),
        }
    }
}

impl Backend {
    pub(super) fn offloads(&self) -> Offloads {
        match self {
            Self::Tap(tap) => Offloads::Kernel { udp_segmentation: tap.has_udp_segmentation() },
            Self::Stream(_) => Offloads::None,
        }
    }

    pub(super) fn tap(&self) -> Option<&Tap> {
        match self {
            Self::Tap(tap) => Some(tap),
            Self::Stream(_) => None,
        }
    }

    /// The room that the next packet needs, its header included: what it has where that is known, or else `most`.
    pub(super) fn next_length(&mut self, most: usize) -> Result<usize, Trouble> {
        match self {
            Self::Tap(_) => Ok(most),
            Self::Stream(stream) => Ok(HEADER + stream.next_length()?),
        }
    }

    /// Receives a packet to `room` and gives its length, header included; more than there is room for, where the
    /// packet was too long. What there is of the header is as [`writes_headers`](Self::writes_headers) says.
    pub(super) fn receive(&mut self, room: &mut Room) -> Result<usize, Trouble> {
        match self {
            Self::Tap(tap) => {
                room.add_overflow();
                // SAFETY: the ranges lie in guest memory or in `room`, which holds both.
                let result = unsafe { again(|| tap.receive(room.ranges())) };
                room.remove_overflow();
                result.map_err(Trouble::of_tap)
            }
            // SAFETY: the ranges lie in guest memory, which `room` holds.
            Self::Stream(stream) => unsafe { stream.receive(HEADER, room) }.map(|length| HEADER + length),
        }
    }

    /// Whether a received packet has its header, but for `num_buffers`.
    pub(super) fn writes_headers(&self) -> bool {
        matches!(self, Self::Tap(_))
    }

    /// The longest packet that may be sent, header included.
    pub(super) fn longest(&self) -> usize {
        match self {
            Self::Tap(_) => HEADER + MAX_FRAME,
            Self::Stream(_) => HEADER + stream::MAX_FRAME,
        }
    }

    /// Whether packets are turned into connections of the host's, so that it matters where they go.
    pub(super) fn connects(&self) -> bool {
        matches!(self, Self::Stream(_))
    }

    /// Sends what is left of `packet`, and takes off it what went. A packet that has begun has to be gone on with.
    ///
    /// # Safety
    ///
    /// The memory that is left of `packet` has to be valid during the call.
    pub(super) unsafe fn send(&mut self, packet: &mut IoVecs) -> Result<(), Trouble> {
        match self {
            // SAFETY: the caller promises the same.
            Self::Tap(tap) => unsafe { again(|| tap.send(packet)) }.map_err(Trouble::of_tap),
            // SAFETY: as above.
            Self::Stream(stream) => unsafe { stream.send(HEADER, packet) },
        }
    }

    /// Forgets all of guest memory: the device is reset. `unsent` is what is left of a packet that has begun.
    pub(super) fn reset(&mut self, unsent: Vec<u8>) {
        if let Self::Stream(stream) = self {
            stream.reset(unsent);
        }
    }
}

impl AsFd for Backend {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tap(tap) => tap.as_fd(),
            Self::Stream(stream) => stream.as_fd(),
        }
    }
}

/// Does a system call as often as a signal interrupts it.
pub(super) fn again<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
