//! What a queue pair exchanges packets with.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use super::config::Offloads;
use super::header::{HEADER, MAX_FRAME};
use super::receive::Room;
use super::stream::{self, Stream, StreamState};
use super::tap::Tap;
use crate::virtio::iovecs::IoVecs;

/// The other end of a queue pair.
pub enum Backend {
    /// A queue of a tap.
    Tap(Tap),
    /// A process that exchanges Ethernet frames on a Unix socket.
    Stream(Stream),
}

/// Why a packet was not received or sent.
#[derive(Debug)]
pub(super) enum BackendError {
    /// There is none now, or no room for one; epoll says when that changes.
    WouldBlock,
    /// The operation has made [`CALLS`](super::stream::CALLS) system calls and is not at its end: it goes on when it is
    /// called again.
    Unfinished,
    /// This packet is lost; the next may not be.
    Packet(io::Error),
    /// The backend is gone.
    Closed(io::Error),
}

impl BackendError {
    /// What an error of a tap means. A guest can make the kernel refuse a packet, so most concern one packet alone.
    fn of_tap(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EAGAIN) => Self::WouldBlock,
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

    /// The room that the next packet needs, header included; `most` if its length is not known.
    pub(super) fn next_length(&mut self, most: usize) -> Result<usize, BackendError> {
        match self {
            Self::Tap(_) => Ok(most),
            Self::Stream(stream) => Ok(HEADER + stream.next_length()?),
        }
    }

    /// Receives a packet to `room` and returns its length, header included, which is more than `room` has if the packet
    /// was too long. [`writes_headers`](Self::writes_headers) says what is in the header.
    pub(super) fn receive(&mut self, room: &mut Room) -> Result<usize, BackendError> {
        match self {
            Self::Tap(tap) => {
                room.add_overflow();
                // SAFETY: the ranges lie in guest memory or in `room`, which holds both.
                let result = unsafe { retry(|| tap.receive(room.ranges())) };
                tap.count_call();
                room.remove_overflow();
                result.map_err(BackendError::of_tap)
            }
            // SAFETY: the ranges lie in guest memory, which `room` holds.
            Self::Stream(stream) => unsafe { stream.receive(HEADER, room) }.map(|length| HEADER + length),
        }
    }

    /// The number of system calls since it was last asked, those of one packet at least.
    pub(super) fn take_calls(&mut self) -> u64 {
        match self {
            Self::Tap(tap) => tap.take_calls(),
            Self::Stream(stream) => stream.take_calls(),
        }
    }

    /// Whether it writes the header of a received packet, except for `num_buffers`.
    pub(super) fn writes_headers(&self) -> bool {
        matches!(self, Self::Tap(_))
    }

    /// The length of the longest packet that can be sent, header included.
    pub(super) fn longest(&self) -> usize {
        match self {
            Self::Tap(_) => HEADER + MAX_FRAME,
            Self::Stream(_) => HEADER + stream::MAX_FRAME,
        }
    }

    /// Whether it turns packets into connections of the host, so that their destination matters.
    pub(super) fn connects(&self) -> bool {
        matches!(self, Self::Stream(_))
    }

    /// Sends what is left of `packet`, and removes from it what was sent. After [`BackendError::WouldBlock`] it has to
    /// be called with the same packet, or [`give_up`](Self::give_up) before another one.
    ///
    /// # Safety
    ///
    /// The memory that is left of `packet` has to be valid during the call.
    pub(super) unsafe fn send(&mut self, packet: &mut IoVecs) -> Result<(), BackendError> {
        match self {
            Self::Tap(tap) => {
                tap.count_call();
                // SAFETY: the caller promises the same.
                unsafe { retry(|| tap.send(packet)) }.map_err(BackendError::of_tap)
            }
            // SAFETY: as above.
            Self::Stream(stream) => unsafe { stream.send(HEADER, packet) },
        }
    }

    /// Whether a part of the packet that is being sent was sent, so that the rest has to be.
    pub(super) fn has_sent_a_part(&self) -> bool {
        match self {
            Self::Tap(_) => false,
            Self::Stream(stream) => stream.has_sent_a_part(),
        }
    }

    /// Gives up the packet that is being sent. If a part of it was sent, `rest` is what is left of it, and is sent
    /// before the next packet.
    pub(super) fn give_up(&mut self, rest: Vec<u8>) {
        if let Self::Stream(stream) = self {
            stream.give_up_outgoing(rest);
        }
    }

    /// Discards the rest of a packet of which a part was received to a room that is no longer there.
    pub(super) fn discard_received_part(&mut self) {
        if let Self::Stream(stream) = self {
            stream.discard_incoming();
        }
    }

    /// Keeps the part of a packet that was received to `room`, for the next room.
    pub(super) fn hold_received_part(&mut self, room: &Room) {
        if let Self::Stream(stream) = self {
            // SAFETY: the ranges lie in guest memory, which `room` holds.
            unsafe { stream.hold_incoming(HEADER, room) };
        }
    }

    /// The packets under way, if it can have any between two calls.
    pub(super) fn state(&self) -> Option<StreamState> {
        match self {
            Self::Tap(_) => None,
            Self::Stream(stream) => stream.state(),
        }
    }

    /// Goes on with the packets of `state`.
    ///
    /// # Errors
    ///
    /// Says why `state` is not one of such a backend.
    pub(super) fn restore(&mut self, state: &StreamState) -> Result<(), &'static str> {
        match self {
            Self::Tap(_) => Err("a tap has no stream"),
            Self::Stream(stream) => stream.restore(state),
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

/// Repeats a system call that a signal has interrupted.
pub(super) fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
