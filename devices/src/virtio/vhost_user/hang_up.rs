//! Sees the other end of a socket go away.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// Readable when the other end of a socket has gone, whatever is left to read; and no more, once that was seen.
///
/// An epoll instance in an epoll instance: the event loop watches one descriptor for the device's life, and what is
/// behind it can be given up.
pub(super) struct HangUp(Epoll);

impl HangUp {
    /// Watches `socket`.
    ///
    /// # Errors
    ///
    /// Those of epoll.
    pub(super) fn of(socket: &UnixStream) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        // A hang-up is reported without being asked for. What can be read is an answer that somebody waits for.
        let events = EpollEvent::new(EventSet::READ_HANG_UP, 0);
        epoll.ctl(ControlOperation::Add, socket.as_raw_fd(), events)?;
        Ok(Self(epoll))
    }

    /// Whether the other end has gone.
    pub(super) fn has_happened(&self) -> bool {
        let mut events = [EpollEvent::default()];
        self.0.wait(0, &mut events).is_ok_and(|count| count > 0)
    }

    /// Watches `socket` no more.
    pub(super) fn forget(&self, socket: &UnixStream) {
        // It fails only where the socket is not watched any more.
        let _ = self.0.ctl(ControlOperation::Delete, socket.as_raw_fd(), EpollEvent::default());
    }
}

impl AsRawFd for HangUp {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn only_the_end_of_the_peer_is_seen_and_only_until_it_is_forgotten() {
        let (socket, mut peer) = UnixStream::pair().unwrap();
        let hang_up = HangUp::of(&socket).unwrap();
        peer.write_all(b"answer").unwrap();
        assert!(!hang_up.has_happened());
        drop(peer);
        assert!(hang_up.has_happened());
        hang_up.forget(&socket);
        assert!(!hang_up.has_happened());
    }
}
