//! The guest's connections, until they are connected with a socket of the host.

use std::time::Instant;

use rustix::io::Errno;

use super::{Muxer, deadlines};
use crate::virtio::vsock::connection::{Connection, Key};
use crate::virtio::vsock::dialer::Answer;
use crate::virtio::vsock::header::Header;
use crate::virtio::vsock::stream::{Attempt, HostStream, path_of_port};
use crate::virtio::vsock::table::{Entry, Id, Role};

/// How many answers are taken before others have their turn.
const MAX_ANSWERS: usize = 64;

impl Muxer {
    /// The guest asks for a connection to the host's socket of its port.
    pub(super) fn connect(&mut self, key: Key, request: &Header) {
        // A socket, its connection and its place in the epoll.
        self.tx.spend(0, 3);
        if self.setup.dialer.is_some() {
            return match self.add_connection(key, request, None, false) {
                Some(id) => self.ask(id, key.host_port),
                None => self.refuse_connection(request),
            };
        }
        let path = path_of_port(self.setup.listener.path(), key.host_port);
        let attempt = HostStream::new().and_then(|stream| Ok((stream.connect(&path)?, stream)));
        let Ok((attempt, stream)) = attempt else { return self.refuse_connection(request) };
        let connected = matches!(attempt, Attempt::Connected);
        let Some(id) = self.add_connection(key, request, Some(stream), connected) else {
            return self.refuse_connection(request);
        };
        if connected {
            self.setup.metrics.opened_connections.increment();
            self.enqueue(id);
        } else {
            self.try_again_later(id);
        }
    }

    fn add_connection(
        &mut self,
        key: Key,
        request: &Header,
        stream: Option<HostStream>,
        connected: bool,
    ) -> Option<Id> {
        let window = self.connections.pool.take();
        let mut connection = Connection::from_guest(key, request, window);
        if connected {
            connection.connected();
        }
        let id = self.insert(Role::Connection(connection), stream, connected);
        if id.is_none() {
            self.connections.pool.give_back(window);
        }
        id
    }

    /// Asks the process that connects for a socket. Its answer is awaited until the deadline.
    fn ask(&mut self, id: Id, port: u32) {
        let asked = self.setup.dialer.as_ref().map(|dialer| dialer.ask(id.to_u64(), port));
        match asked {
            Some(Ok(())) => {
                if let Some(entry) = self.connections.table.get(id) {
                    entry.asked = true;
                    let end = *entry.give_up.get_or_insert(deadlines::in_time(deadlines::CONNECT));
                    self.connections.table.set_deadline(id, Some(end));
                }
            }
            Some(Err(Errno::AGAIN | Errno::INTR)) => self.try_again_later(id),
            Some(Err(_)) | None => self.not_connected(id),
        }
    }

    /// The process that connects may have answered.
    ///
    /// # Errors
    ///
    /// It answers no more.
    pub(in crate::virtio::vsock) fn dialer_ready(&mut self) -> Result<(), Errno> {
        let Some(dialer) = self.setup.dialer.clone() else { return Ok(()) };
        for _ in 0..MAX_ANSWERS {
            match dialer.answer() {
                Ok(Some(answer)) => self.answered(answer),
                Ok(None) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn answered(&mut self, Answer { number, result }: Answer) {
        let id = Id::from_u64(number);
        // The guest may have given up meanwhile.
        let Some(entry) = self.connections.table.get(id).filter(|entry| entry.asked) else { return };
        entry.asked = false;
        match result {
            Ok(stream) => {
                entry.stream = Some(stream);
                // Its place in the epoll.
                self.rx.spend(0, 1);
                self.now_connected(id);
            }
            Err(Errno::AGAIN | Errno::INTR) => self.try_again_later(id),
            Err(_) => self.not_connected(id),
        }
    }

    /// Connects the host's socket of `id` a little later, until the deadline.
    fn try_again_later(&mut self, id: Id) {
        if let Some(entry) = self.connections.table.get(id) {
            entry.give_up.get_or_insert(deadlines::in_time(deadlines::CONNECT));
            self.connections.table.set_deadline(id, Some(deadlines::in_time(deadlines::ATTEMPT)));
        }
    }

    pub(super) fn connect_again(&mut self, id: Id) {
        let Some(entry) = self.connections.table.get(id) else { return };
        if entry.give_up.is_none_or(|at| at <= Instant::now()) {
            return self.not_connected(id);
        }
        let Some(port) = entry.connection().map(|connection| connection.key().host_port) else { return };
        let Some(stream) = &entry.stream else { return self.ask(id, port) };
        match stream.connect(&path_of_port(self.setup.listener.path(), port)) {
            Ok(Attempt::Busy) => self.try_again_later(id),
            Ok(Attempt::Connected) => self.now_connected(id),
            Err(_) => self.not_connected(id),
        }
    }

    /// The socket of `id` is connected.
    fn now_connected(&mut self, id: Id) {
        if self.watch_entry(id).is_err() {
            return self.not_connected(id);
        }
        self.setup.metrics.opened_connections.increment();
        self.connections.table.set_deadline(id, None);
        if let Some(connection) = self.connections.table.get(id).and_then(Entry::connection) {
            connection.connected();
        }
        self.pass_shutdown_on(id);
        self.enqueue(id);
    }

    fn not_connected(&mut self, id: Id) {
        self.setup.metrics.refused_connections.increment();
        self.kill(id);
    }
}
