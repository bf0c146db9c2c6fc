//! Containers that stand still.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use agent_protocol::Reply;

use super::{Server, unknown};
use crate::cgroup;
use crate::error::{During, Result, failure};
use crate::process::Role;
use crate::streams::ConnectionId;

/// The most that are waited for at a time.
const MAX_FREEZING: usize = 64;

/// A container that is about to stand still, or to go on.
pub struct Freezing {
    /// Who waits for it.
    waiter: ConnectionId,
    events: OwnedFd,
    freezes: bool,
}

impl Freezing {
    /// What has an event when the container's state changes.
    pub fn events(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}

impl Server {
    /// Has a container stand still or go on, and `waiter` hear of it when it does.
    pub(super) fn freeze(&mut self, waiter: ConnectionId, container: &str, freezes: bool) -> Result<()> {
        if self.freezing.len() >= MAX_FREEZING {
            return Err(failure(format!("{MAX_FREEZING} containers are being paused, which is the most")));
        }
        let copied = self.is_copied(container);
        let first = self.processes.get_mut(container).ok_or_else(|| unknown(container))?;
        if !first.is_command() {
            return Err(failure(format!("container {container} is not running")));
        }
        let Role::First(home) = &mut first.role else { return Err(unknown(container)) };
        let events = home.cgroup.events().during("open a control group")?;
        home.is_paused = freezes;
        // One whose layer is being copied goes on when that is done.
        if freezes || !copied {
            home.cgroup.freeze(freezes)?;
            self.freezing.push(Freezing { waiter, events, freezes });
        } else {
            self.answer(waiter, &Reply::Done);
        }
        Ok(())
    }

    /// Tells those who wait for a container's state.
    pub(super) fn report_frozen(&mut self) {
        let mut reached = Vec::new();
        self.freezing.retain(|freezing| match cgroup::is_frozen(freezing.events.as_fd()) {
            Ok(is_frozen) if is_frozen != freezing.freezes => true,
            // It has ended, if its state can't be read.
            _ => {
                reached.push(freezing.waiter);
                false
            }
        });
        for waiter in reached {
            self.answer(waiter, &Reply::Done);
        }
    }

    /// Whether a container was asked to stand still, and not to go on since.
    pub(super) fn is_frozen(&self, container: &str) -> Result<bool> {
        self.home(container).map(|home| home.is_paused).ok_or_else(|| unknown(container))
    }
}
