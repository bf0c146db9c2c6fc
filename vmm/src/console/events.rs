//! The console's part of the event loop: who types, who looks on, and the log.

use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use super::ConsoleError;
use super::hub::Hub;
use super::input::InputPort;
use super::keyboard::Keyboard;
use super::log::Log;
use super::server::Server;
use crate::exit::ExitSlot;

/// What a descriptor is registered with.
const TICK: u32 = 0;
const DRAINED: u32 = 1;
const KEYBOARD: u32 = 2;
/// The socket, and from there on its clients.
const SERVER: u32 = 3;

/// The names in a VM's directory.
const LOG_NAME: &str = "console.log";
const SOCKET_NAME: &str = "console.sock";

/// The console's subscriber.
pub struct ConsoleEvents {
    hub: Arc<Hub>,
    port: InputPort,
    keyboard: Option<Keyboard>,
    log: Option<Log>,
    server: Option<Server>,
}

impl ConsoleEvents {
    /// A console that nobody types at and nobody looks on, whose input goes to `port`.
    pub(super) fn new(hub: &Arc<Hub>, port: InputPort) -> Self {
        Self { hub: Arc::clone(hub), port, keyboard: None, log: None, server: None }
    }

    /// Lets `source` type. Where it `is_terminal`, it has an escape character, by which the user can end the VM
    /// through `exit`.
    pub(super) fn add_keyboard(&mut self, source: Box<dyn AsFd>, is_terminal: bool, exit: Arc<ExitSlot>) {
        self.keyboard = Some(Keyboard::new(source, KEYBOARD, is_terminal, exit));
    }

    /// Lets others look on and type by way of `directory`, which is the VM's own.
    ///
    /// # Errors
    ///
    /// [`ConsoleError::Open`] and [`ConsoleError::Socket`].
    pub(super) fn add_directory(&mut self, directory: &Path) -> Result<(), ConsoleError> {
        self.log = Some(Log::create(directory.join(LOG_NAME), self.hub.reader())?);
        self.server = Some(Server::bind(directory.join(SOCKET_NAME), &self.hub, SERVER)?);
        Ok(())
    }

    fn output(&mut self) {
        self.hub.tick();
        self.log.iter_mut().for_each(Log::write);
        self.server.iter_mut().for_each(Server::send);
    }

    fn settle(&mut self, ops: &mut EventOps<'_>) {
        let port = &self.port;
        if let Some(keyboard) = &mut self.keyboard {
            keyboard.settle(port, ops);
        }
        if let Some(server) = &mut self.server {
            server.settle(port, ops);
        }
    }
}

impl MutEventSubscriber for ConsoleEvents {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        for (fd, token) in [(self.hub.tick_fd(), TICK), (self.port.drained().as_raw_fd(), DRAINED)] {
            if let Err(error) = ops.add(Events::with_data_raw(fd, token, EventSet::IN)) {
                tracing::error!(%error, "cannot watch the console");
            }
        }
        self.settle(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        let port = &self.port;
        match (events.data(), &mut self.keyboard, &mut self.server) {
            (TICK, ..) => self.output(),
            // Another event may have emptied it.
            (DRAINED, ..) => drop(port.drained().read()),
            (KEYBOARD, Some(keyboard), _) => keyboard.ready(port),
            (token, _, Some(server)) => server.ready(token, events.event_set(), port, ops),
            _ => {}
        }
        self.settle(ops);
    }
}

impl Drop for ConsoleEvents {
    fn drop(&mut self) {
        // What the guest said last; the server sends it to its clients as it ends.
        self.output();
    }
}
