//! How long the device waits for whom.

use std::time::{Duration, Instant};

use super::{Connections, Muxer};
use crate::virtio::vsock::table::Role;

/// For the line of a process of the host.
pub(super) const HANDSHAKE: Duration = Duration::from_secs(2);
/// What may be left of it when another process needs the place.
pub(super) const SPARE: Duration = Duration::from_millis(1800);
/// For the guest's answer to a connection of the host. Linux answers in its kernel, whether a program listens or not.
pub(super) const REQUEST: Duration = Duration::from_secs(10);
/// For the guest's RST once both ends have heard that neither will send any more.
pub(super) const CLOSE: Duration = Duration::from_secs(2);
/// For the host to read the last bytes of a connection that the guest has forgotten.
pub(super) const DRAIN: Duration = Duration::from_secs(30);
/// Between two attempts to connect to a listener of the host that has as many waiting as it takes.
pub(super) const ATTEMPT: Duration = Duration::from_millis(20);
/// For such a listener. Linux gives up after two seconds.
pub(super) const CONNECT: Duration = Duration::from_secs(2);
/// For the driver to take the event that its connections are gone.
pub(super) const EVENT: Duration = Duration::from_secs(5);
/// Until accepting is tried again, when there were no descriptors.
const ACCEPT: Duration = Duration::from_millis(200);

/// The time at which `timeout` is over that begins now.
pub(super) fn in_time(timeout: Duration) -> Instant {
    Instant::now() + timeout
}

impl Muxer {
    /// How long the device may sleep; `None`: forever.
    pub(in crate::virtio::vsock) fn timeout(&self) -> Option<Duration> {
        let Connections { table, accept_at, hold, .. } = &self.connections;
        let held = hold.as_ref().map(|hold| hold.until).filter(|_| self.has_news());
        let next = [table.earliest(), *accept_at, held].into_iter().flatten().min()?;
        Some(next.saturating_duration_since(Instant::now()))
    }

    /// Does what is due.
    pub(super) fn expire(&mut self) {
        if self.connections.accept_at.is_none() && self.connections.table.earliest().is_none() {
            return;
        }
        let now = Instant::now();
        if self.connections.accept_at.is_some_and(|at| at <= now) {
            self.connections.accept_at = None;
            self.connections.accepting = true;
        }
        for id in self.connections.table.expired(now) {
            let Some(entry) = self.connections.table.get(id) else { continue };
            match &entry.role {
                Role::Connection(connection) if connection.is_connecting() => self.connect_again(id),
                Role::Connection(_) => self.kill(id),
                Role::Handshake | Role::Draining { .. } => self.remove(id),
            }
        }
    }

    /// Accepts again a little later.
    pub(super) fn accept_later(&mut self) {
        self.connections.accept_at = Some(in_time(ACCEPT));
    }
}
