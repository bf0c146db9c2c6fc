//! Which descriptors the event loop watches, as what they are wanted for changes.

use std::os::fd::RawFd;

use event_manager::{EventOps, EventSet, Events};

/// A descriptor's place in the event loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Watch {
    fd: RawFd,
    token: u32,
    /// What it is watched for; `None` where it is not, and where it can't be: epoll takes no regular file.
    current: Option<EventSet>,
}

/// What became of a descriptor that is to be watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Watched {
    /// Done.
    Yes,
    /// It is a file, which never blocks.
    AlwaysReady,
    /// The event loop can't.
    No,
}

impl Watch {
    /// A descriptor that is not watched yet, and comes with `token` once it is.
    pub(super) fn new(fd: RawFd, token: u32) -> Self {
        Self { fd, token, current: None }
    }

    /// Watches for `wanted`, and for a hang-up in any case; for nothing at all where it is `None`.
    pub(super) fn set(&mut self, wanted: Option<EventSet>, ops: &mut EventOps<'_>) -> Watched {
        if wanted == self.current {
            return Watched::Yes;
        }
        let events = Events::with_data_raw(self.fd, self.token, wanted.unwrap_or(EventSet::empty()));
        let result = match (self.current, wanted) {
            (None, Some(_)) => ops.add(events),
            (Some(_), Some(_)) => ops.modify(events),
            (_, None) => ops.remove(events),
        };
        match result {
            Ok(()) => {
                self.current = wanted;
                Watched::Yes
            }
            Err(event_manager::Error::Epoll(error)) if error.errno() == libc::EPERM => Watched::AlwaysReady,
            Err(error) => {
                tracing::warn!(%error, "cannot watch a descriptor of the console");
                Watched::No
            }
        }
    }
}
