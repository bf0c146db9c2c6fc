//! The socket by which others attach to the console.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use devices::socket::ListeningSocket;
use event_manager::{EventOps, EventSet};
use rustix::io::Errno;
use rustix::net::SocketFlags;

use super::ConsoleError;
use super::client::Client;
use super::hub::Hub;
use super::input::InputPort;
use super::watch::{Watch, Watched};

/// How many can be attached at once.
const MOST_CLIENTS: usize = 16;
/// How many may wait to be accepted.
const BACKLOG: i32 = 128;
/// How long it is waited for a descriptor to be free.
const RETRY: Duration = Duration::from_secs(1);
/// How long the end of a VM waits for all clients together.
const END: Duration = Duration::from_secs(1);

/// The socket and its clients.
pub(super) struct Server {
    listener: ListeningSocket,
    watch: Watch,
    /// The host has no descriptor for another client; with the next tick of the hub it is tried again.
    paused: bool,
    hub: Arc<Hub>,
    first_token: u32,
    /// Each at the place that its token says.
    clients: [Option<Client>; MOST_CLIENTS],
}

impl Server {
    /// Listens at `path`, by the rules of [`ListeningSocket`]: a client of the console can do what root in the guest
    /// can.
    ///
    /// # Errors
    ///
    /// [`ConsoleError::Socket`].
    pub(super) fn listen(path: PathBuf) -> Result<ListeningSocket, ConsoleError> {
        ListeningSocket::listen(&path, BACKLOG, SocketFlags::NONBLOCK)
            .map_err(|source| ConsoleError::Socket { path, source })
    }

    /// Serves `listener`. Its events come with `token`, those of clients with the following ones.
    pub(super) fn new(listener: ListeningSocket, hub: &Arc<Hub>, token: u32) -> Self {
        let watch = Watch::new(listener.as_raw_fd(), token);
        let (hub, clients) = (Arc::clone(hub), Default::default());
        Self { listener, watch, paused: false, hub, first_token: token + 1, clients }
    }

    /// The event loop has seen `events` for `token`, which is the socket's or a client's.
    pub(super) fn ready(&mut self, token: u32, events: EventSet, port: &InputPort, ops: &mut EventOps<'_>) {
        let Some(index) = token.checked_sub(self.first_token) else { return self.accept(ops) };
        let client = usize::try_from(index).ok().and_then(|index| self.clients.get_mut(index));
        if let Some(client) = client.and_then(Option::as_mut) {
            client.ready(events, port);
        }
    }

    fn accept(&mut self, ops: &mut EventOps<'_>) {
        // One a turn; the event loop comes again where there are more.
        match self.listener.accept(SocketFlags::NONBLOCK) {
            Ok(stream) => self.admit(UnixStream::from(stream), ops),
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => {}
            Err(error) => {
                // The client waits in the socket's queue, and the event loop would come back for it forever.
                tracing::warn!(%error, "the console's socket cannot accept a client; it is tried again");
                self.paused = true;
                self.hub.tick_in(RETRY);
            }
        }
    }

    /// The hub has ticked: clients are accepted again.
    pub(super) fn tick(&mut self) {
        self.paused = false;
    }

    fn admit(&mut self, stream: UnixStream, ops: &mut EventOps<'_>) {
        let places = &mut self.clients;
        let free = places.iter().position(Option::is_none);
        // A client that has disconnected and whose input the guest has not read yet is replaced.
        let gone = || places.iter().position(|client| client.as_ref().is_some_and(Client::has_hung_up));
        let Some(index) = free.or_else(gone) else {
            tracing::warn!("{MOST_CLIENTS} are attached to the console already; no other can");
            return;
        };
        let token = u32::try_from(index).unwrap_or(u32::MAX).saturating_add(self.first_token);
        let mut client = Client::new(stream, token, self.hub.late_reader());
        client.send();
        if let Some(place) = places.get_mut(index)
            && let Some(mut gone) = place.replace(client)
        {
            gone.leave(ops);
        }
    }

    /// There is new output.
    pub(super) fn send(&mut self) {
        self.clients.iter_mut().flatten().for_each(Client::send);
    }

    /// After an event: removes clients that have disconnected, and sets what the event loop watches for the others.
    pub(super) fn settle(&mut self, port: &InputPort, ops: &mut EventOps<'_>) {
        let wanted = (!self.paused).then_some(EventSet::IN);
        if self.watch.set(wanted, ops) != Watched::Yes {
            tracing::warn!("the console's socket cannot be watched: no client can attach");
        }
        for place in &mut self.clients {
            if let Some(client) = place {
                client.settle(port, ops);
                if client.is_done() {
                    client.leave(ops);
                    *place = None;
                }
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let deadline = Instant::now() + END;
        self.clients.iter_mut().flatten().for_each(|client| client.finish(deadline));
    }
}
