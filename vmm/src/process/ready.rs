//! What a keeper waits for.

use rustix::event::{PollFd, PollFlags};

/// That the process has said something, or has ended.
#[derive(Clone, Copy)]
pub(super) struct Ready {
    has_ended: bool,
    /// No process has its end of the socket any more.
    is_closed: bool,
}

impl Ready {
    /// By what `VmProcess::polled` gave, once it was polled; `None` where neither is so.
    pub(super) fn of(polled: &[PollFd<'_>]) -> Option<Self> {
        let [tie, child, ..] = polled else { return None };
        let has_ended = !child.revents().is_empty();
        (has_ended || !tie.revents().is_empty())
            .then_some(Self { has_ended, is_closed: tie.revents().contains(PollFlags::HUP) })
    }

    /// Whether it has ended and others have its end of the socket.
    pub(super) fn needs_hang_up(self) -> bool {
        self.has_ended && !self.is_closed
    }
}
