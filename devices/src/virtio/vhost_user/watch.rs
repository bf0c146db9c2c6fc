//! Recognizes that a back end is gone, and watches its queues from then on.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use crate::virtio::events::drain;

/// How many events are handled in one turn; the others are there in the next.
const MAX_EVENTS: usize = 8;
/// The number of the socket; others are those of queues.
const SOCKET: u64 = u64::MAX;

/// What has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// The other end of the socket is closed.
    HangUp,
    /// The driver notified the device of this queue.
    Notification(u16),
}

/// Readable when the other end of a socket is closed, until the socket is forgotten; then, when a notifier of a queue
/// is.
///
/// It is an epoll instance: the event loop watches one descriptor for the device's life, and what is behind it changes.
pub(super) struct Watch {
    epoll: Epoll,
    notifiers: Option<Arc<[EventFd]>>,
}

impl Watch {
    /// Watches `socket`.
    ///
    /// # Errors
    ///
    /// Those of epoll.
    pub(super) fn over(socket: &UnixStream) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        // Bytes to read are an answer, for the device's thread. A hang-up is reported in any case.
        let event = EpollEvent::new(EventSet::READ_HANG_UP, SOCKET);
        epoll.ctl(ControlOperation::Add, socket.as_raw_fd(), event)?;
        Ok(Self { epoll, notifiers: None })
    }

    /// Watches `socket` no more.
    pub(super) fn forget(&self, socket: &UnixStream) {
        // It fails only if the socket is not watched any more.
        let _ = self.epoll.ctl(ControlOperation::Delete, socket.as_raw_fd(), EpollEvent::default());
    }

    /// Also watches these notifiers, which are the same for the device's life.
    pub(super) fn add(&mut self, notifiers: &Arc<[EventFd]>) {
        if self.notifiers.is_some() {
            return;
        }
        for (index, notifier) in (0..).zip(notifiers.iter()) {
            let event = EpollEvent::new(EventSet::IN, index);
            if let Err(error) = self.epoll.ctl(ControlOperation::Add, notifier.as_raw_fd(), event) {
                tracing::error!(%error, "cannot watch a queue of a lost vhost-user back end");
            }
        }
        self.notifiers = Some(Arc::clone(notifiers));
    }

    /// The events since the last call; a hang-up is reported until the socket is forgotten.
    pub(super) fn seen(&self) -> Vec<Seen> {
        let mut events = [EpollEvent::default(); MAX_EVENTS];
        let count = self.epoll.wait(0, &mut events).unwrap_or(0);
        let seen = |event: &EpollEvent| match u16::try_from(event.data()) {
            Ok(queue) => {
                let notifiers = self.notifiers.as_deref().unwrap_or_default();
                notifiers.get(usize::from(queue)).into_iter().for_each(drain);
                Seen::Notification(queue)
            }
            Err(_) => Seen::HangUp,
        };
        events.iter().take(count).map(seen).collect()
    }
}

impl AsRawFd for Watch {
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    #[test]
    fn only_the_end_of_the_peer_is_seen_and_only_until_it_is_forgotten() {
        let (socket, mut peer) = UnixStream::pair().unwrap();
        let watch = Watch::over(&socket).unwrap();
        peer.write_all(b"answer").unwrap();
        assert_eq!(watch.seen(), []);
        drop(peer);
        assert_eq!(watch.seen(), [Seen::HangUp]);
        watch.forget(&socket);
        assert_eq!(watch.seen(), []);
    }

    #[test]
    fn notifiers_are_seen_by_their_queue_once_they_were_added() {
        let (socket, _peer) = UnixStream::pair().unwrap();
        let mut watch = Watch::over(&socket).unwrap();
        let notifiers: Arc<[EventFd]> = (0..2).map(|_| EventFd::new(EFD_NONBLOCK).unwrap()).collect();
        notifiers[1].write(1).unwrap();
        assert_eq!(watch.seen(), []);
        watch.add(&notifiers);
        watch.add(&notifiers);
        assert_eq!(watch.seen(), [Seen::Notification(1)]);
        assert_eq!(watch.seen(), []);
    }
}
