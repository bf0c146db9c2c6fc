//! What happens at the host's sockets.

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;

use super::{Muxer, deadlines};
use crate::virtio::vsock::connection::{Connection, Key};
use crate::virtio::vsock::handshake::{self, Line};
use crate::virtio::vsock::header::shutdown;
use crate::virtio::vsock::stream::HostStream;
use crate::virtio::vsock::table::{Id, Role};

/// The host's ports of the host's connections: above those that programs choose, as in Firecracker.
pub(super) const FIRST_PORT: u32 = 1 << 30;
const LAST_PORT: u32 = (1 << 31) - 1;
/// How many processes of the host are accepted before others have their turn.
const MAX_ACCEPTED: usize = 64;
/// How many processes may have connected and not said to which port.
const MAX_HANDSHAKES: usize = 256;

impl Muxer {
    /// The listener may have connections to accept.
    pub(in crate::virtio::vsock) fn listener_ready(&mut self) {
        self.connections.accepting = true;
    }

    pub(super) fn accept(&mut self) {
        for _ in 0..MAX_ACCEPTED {
            if self.connections.table.handshakes() >= MAX_HANDSHAKES && !self.refuse_a_silent_one() {
                self.connections.accepting = false;
                self.accept_later();
                return;
            }
            // The connection, its place in the epoll, its line.
            self.rx.spend(0, 3);
            match self.setup.listener.accept() {
                Ok(socket) => self.accepted(HostStream::accepted(socket)),
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(Errno::AGAIN) => {
                    self.connections.accepting = false;
                    return;
                }
                Err(error) => {
                    // Out of descriptors. A waiting connection is not reported again.
                    tracing::warn!(%error, "cannot accept a connection for vsock");
                    self.connections.accepting = false;
                    self.accept_later();
                    return;
                }
            }
        }
    }

    fn accepted(&mut self, stream: HostStream) {
        let Some(id) = self.insert(Role::Handshake, Some(stream), true) else {
            self.setup.metrics.refused_connections.increment();
            return;
        };
        self.connections.table.set_deadline(id, Some(deadlines::in_time(deadlines::HANDSHAKE)));
        // Most write their line at once.
        self.read_line(id);
    }

    /// Makes room for a process that may have something to say. False, where none has had the time to.
    fn refuse_a_silent_one(&mut self) -> bool {
        match self.connections.table.first_handshake() {
            Some((patience_ends, id)) if patience_ends <= deadlines::in_time(deadlines::SPARE) => {
                self.refuse_host(id);
                true
            }
            _ => false,
        }
    }

    fn refuse_host(&mut self, id: Id) {
        self.setup.metrics.refused_connections.increment();
        self.remove(id);
    }

    /// Something happened at the socket of entry `id`.
    pub(in crate::virtio::vsock) fn event(&mut self, id: Id, flags: EventFlags) {
        let Some(entry) = self.connections.table.get(id) else { return };
        match &mut entry.role {
            Role::Handshake => self.read_line(id),
            Role::Draining { .. } => {
                if flags.intersects(EventFlags::HUP | EventFlags::ERR) {
                    self.remove(id);
                } else if flags.contains(EventFlags::OUT) {
                    self.flush(id);
                }
            }
            Role::Connection(connection) => {
                let gone = flags.contains(EventFlags::HUP);
                connection.host_readable(gone || flags.contains(EventFlags::RDHUP));
                if gone && connection.is_requested() {
                    return self.kill(id);
                }
                if flags.contains(EventFlags::OUT) {
                    self.flush(id);
                }
                if gone {
                    self.host_shut_receive(id, 0);
                }
                self.enqueue(id);
            }
        }
    }

    /// Reads the line of a process that connected, and no more than the line: what follows is for the guest.
    fn read_line(&mut self, id: Id) {
        let Some(entry) = self.connections.table.get(id) else { return };
        let Some(stream) = &entry.stream else { return };
        let mut bytes = [0; handshake::MAX_LENGTH];
        let line = match stream.peek(&mut bytes) {
            Ok(0) => Line::Invalid,
            Ok(length) => handshake::parse(bytes.get(..length).unwrap_or_default()),
            Err(Errno::AGAIN | Errno::INTR) => Line::Unfinished,
            Err(_) => Line::Invalid,
        };
        match line {
            Line::Unfinished => {}
            Line::Invalid => self.refuse_host(id),
            Line::Connect { port, length } => {
                let line = bytes.get_mut(..length).unwrap_or_default();
                match stream.read_bytes(line) {
                    Ok(read) if read == length => self.request(id, port),
                    _ => self.refuse_host(id),
                }
            }
        }
    }

    /// Asks the guest to take the connection of a process to its port.
    fn request(&mut self, id: Id, guest_port: u32) {
        let key = self.free_key(guest_port);
        let connection = Connection::from_host(key, self.setup.guest_cid, self.connections.pool.take());
        self.connections.table.set_connection(id, connection);
        self.connections.table.set_deadline(id, Some(deadlines::in_time(deadlines::REQUEST)));
        self.enqueue(id);
    }

    fn free_key(&mut self, guest_port: u32) -> Key {
        loop {
            let key = Key { host_port: self.connections.next_port, guest_port };
            self.connections.next_port =
                if key.host_port == LAST_PORT { FIRST_PORT } else { key.host_port + 1 };
            // There are far more ports than entries in the table.
            if self.connections.table.find(key).is_none() {
                return key;
            }
        }
    }

    /// Tells a process of the host that the guest took its connection.
    pub(super) fn answer_host(&mut self, id: Id) {
        self.connections.table.set_deadline(id, None);
        let Some(entry) = self.connections.table.get(id) else { return };
        let Some(port) = entry.connection().map(|connection| connection.key().host_port) else { return };
        let Some(stream) = &entry.stream else { return };
        let answer = handshake::answer(port);
        match stream.write_bytes(&[std::io::IoSlice::new(answer.as_bytes())]) {
            Ok(length) if length == answer.len() => self.setup.metrics.opened_connections.increment(),
            _ => self.kill(id),
        }
    }

    /// Writes what waits for room in the host's socket.
    fn flush(&mut self, id: Id) {
        let Some(entry) = self.connections.table.get(id) else { return };
        while !entry.backlog.is_empty() {
            let Some(stream) = &entry.stream else { return };
            match stream.write_bytes(&entry.backlog.slices()) {
                Ok(count) => {
                    entry.backlog.remove(count);
                    if let Some(connection) = entry.connection() {
                        connection.forwarded(u32::try_from(count).unwrap_or(u32::MAX));
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) if entry.connection().is_some() => return self.host_shut_receive(id, 0),
                Err(_) => return self.remove(id),
            }
        }
        match entry.connection().map(|connection| connection.guest_shut() & shutdown::SEND != 0) {
            None => self.remove(id),
            Some(shut) => {
                self.watch_room(id, false);
                if shut {
                    self.pass_shutdown_on(id);
                }
            }
        }
    }
}
