//! Connections of the host: answers on their way, and streams.

use std::os::fd::OwnedFd;

use agent_protocol::{Decoder, Reply, Request, Stream, VERSION, encode};
use rustix::event::PollFlags;
use rustix::io::Errno;

use super::{MAX_CONNECTIONS, Server};
use crate::error::failure;
use crate::process::{Role, Running};
use crate::streams::{ConnectionId, Lost};
use crate::vsock;

/// The most bytes of answers that the host has not read.
const MAX_UNREAD: usize = 1 << 20;

/// A connection of the host.
pub(super) struct Connection {
    pub(super) fd: OwnedFd,
    pub(super) decoder: Decoder,
    /// Answers that were not sent yet.
    pub(super) answers: Vec<u8>,
    /// Which stream it carries.
    pub(super) stream: Option<(String, Stream)>,
}

impl Server {
    /// What to wait for on a connection.
    pub(super) fn interest(&self, connection: &Connection) -> PollFlags {
        let mut flags = match &connection.stream {
            None => PollFlags::IN,
            Some((name, stream)) => match (self.processes.get(name), stream) {
                (Some(running), Stream::Stdin) => running.input.interest(),
                (Some(running), Stream::Stdout) => running.output.interest(),
                (Some(running), Stream::Stderr) => running.errors.interest(),
                (None, _) => PollFlags::IN,
            },
        };
        if !connection.answers.is_empty() {
            flags |= PollFlags::OUT;
        }
        flags
    }

    /// Takes all connections that wait: each is greeted before the requests of others, which take far longer.
    pub(super) fn accept(&mut self) {
        while self.connections.len() < MAX_CONNECTIONS
            && let Some(fd) = vsock::accept(&self.listener)
        {
            self.add_connection(fd);
        }
    }

    pub(super) fn add_connection(&mut self, fd: OwnedFd) {
        let id = self.next;
        self.next = self.next.wrapping_add(1);
        let connection = Connection { fd, decoder: Decoder::default(), answers: Vec::new(), stream: None };
        self.connections.insert(id, connection);
        self.answer(id, &Reply::Hello { version: VERSION });
    }

    /// Sends an answer, or as much of it as the host takes at once.
    pub(super) fn answer(&mut self, id: ConnectionId, reply: &Reply) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let Ok(bytes) = encode(reply) else { return };
        connection.answers.extend(bytes);
        if connection.answers.len() > MAX_UNREAD {
            self.close(id);
        } else {
            self.send_answers(id);
        }
    }

    pub(super) fn send_answers(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if connection.answers.is_empty() {
            return;
        }
        match rustix::io::write(&connection.fd, &connection.answers) {
            Ok(count) => drop(connection.answers.drain(..count.min(connection.answers.len()))),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.close(id),
        }
    }

    pub(super) fn close(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.remove(&id) else { return };
        let Some((name, stream)) = connection.stream else { return self.leave(id) };
        let Some(running) = self.processes.get_mut(&name) else { return };
        if stream == Stream::Stdin && running.input.connection == Some(id) {
            running.input.connection = None;
        }
        if let Some(output) = running.output_mut(stream).filter(|output| output.connection == Some(id)) {
            output.connection = None;
        }
    }

    /// Has processes run on that connection `control` was for.
    pub(super) fn leave(&mut self, control: ConnectionId) {
        let of = |(_, running): &(&String, &mut Running)| running.control == control;
        let mut left = Vec::new();
        for (name, running) in self.processes.iter_mut().filter(of) {
            if running.is_in_pod
                && let Role::First(home) = &running.role
            {
                home.cgroup.kill();
            }
            running.leave();
            left.push(name.clone());
        }
        for name in left {
            self.forget(&name);
        }
    }

    pub(super) fn serve_connection(&mut self, id: ConnectionId, events: PollFlags) {
        if events.contains(PollFlags::OUT) {
            self.send_answers(id);
        }
        let Some(connection) = self.connections.get(&id) else { return };
        match connection.stream.clone() {
            None => self.read_requests(id),
            Some((name, stream)) if events.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) => {
                self.serve_stream(id, &name, stream);
            }
            Some(_) => {}
        }
    }

    /// Takes what the host sends on the connection of a stream: input, or what it has of an output.
    pub(super) fn serve_stream(&mut self, id: ConnectionId, name: &str, stream: Stream) {
        let (Some(connection), Some(running)) = (self.connections.get_mut(&id), self.processes.get_mut(name))
        else {
            return self.close(id);
        };
        let taken = match running.output_mut(stream) {
            Some(output) => output.acknowledge(&connection.fd).map(|()| false),
            None => running.input.read(&connection.fd).map(|acknowledgement| {
                connection.answers.extend(acknowledgement.into_iter().flatten());
                running.input.write();
                running.input.is_finished()
            }),
        };
        match taken {
            Ok(false) => self.send_answers(id),
            Ok(true) | Err(Lost) => self.close(id),
        }
    }

    pub(super) fn read_requests(&mut self, id: ConnectionId) {
        // One turn reads one message at most.
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let Ok(wanted) = connection.decoder.wants() else { return self.close(id) };
        let mut bytes = vec![0; wanted.clamp(1, 64 << 10)];
        match rustix::io::read(&connection.fd, &mut *bytes) {
            Ok(0) => return self.close(id),
            Ok(count) => connection.decoder.push(bytes.get(..count).unwrap_or_default()),
            Err(Errno::AGAIN | Errno::INTR) => return,
            Err(_) => return self.close(id),
        }
        match connection.decoder.take::<Request>() {
            Ok(Some(request)) => self.handle(id, request),
            Ok(None) => {}
            Err(error) => {
                self.answer(id, &Reply::Failed(failure(error.to_string())));
                self.close(id);
            }
        }
    }
}
