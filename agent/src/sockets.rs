//! Sockets of the host: who connects to one in a container is connected with the host by vsock.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, chown};

use agent_protocol::{Container, End, MountKind, Relays};
use rustix::event::PollFlags;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, socket_with,
};

use crate::error::{During, Result};
use crate::system::RUN;
use crate::vsock;

/// The most connections at once, to all sockets together. Further ones wait until one is closed.
const MAX_RELAYS: usize = 128;
/// How many connections may wait.
const BACKLOG: i32 = 128;

/// Where the agent listens for a container's socket, which is mounted in the container.
pub fn place(container: &str, port: u32) -> String {
    format!("{RUN}/{container}.socket{port}")
}

/// What a descriptor that is waited for belongs to.
#[derive(Clone, Copy, Debug)]
pub enum Source {
    Listener(u32),
    Relay(u64, End),
}

/// Where a container's processes connect to.
struct Listener {
    container: String,
    port: u32,
    socket: OwnedFd,
}

/// Sockets of all containers.
pub struct Sockets {
    listeners: Vec<Listener>,
    relays: Relays,
}

impl Sockets {
    pub fn new() -> Self {
        Self { listeners: Vec::new(), relays: Relays::new(MAX_RELAYS) }
    }

    /// Listens for those of `container`.
    pub fn add(&mut self, container: &Container) -> Result<()> {
        for mount in &container.mounts {
            let MountKind::Socket { port, mode, user, group } = mount.kind else { continue };
            let path = place(&container.id, port);
            let what = || format!("listen for {}", mount.target);
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).during(what())?;
            let address = SocketAddrUnix::new(path.as_str()).during(what())?;
            bind(&socket, &address).during(what())?;
            chown(&path, Some(user), Some(group)).during(what())?;
            fs::set_permissions(&path, fs::Permissions::from_mode(mode & 0o777)).during(what())?;
            listen(&socket, BACKLOG).during(what())?;
            self.listeners.push(Listener { container: container.id.clone(), port, socket });
        }
        Ok(())
    }

    /// Listens no more for those of the container with this ID. Connections that there are end by themselves.
    pub fn remove(&mut self, container: &str) {
        self.listeners.retain(|listener| {
            let stays = listener.container != container;
            if !stays {
                let _ = fs::remove_file(place(container, listener.port));
            }
            stays
        });
    }

    /// Those of the container with the ID `before` are those of the one with the ID `now`.
    pub fn rename(&mut self, before: &str, now: &str) {
        for listener in self.listeners.iter_mut().filter(|listener| listener.container == before) {
            listener.container = now.to_owned();
        }
    }

    /// Calls `watch` for each descriptor that is to be waited for.
    pub fn watch(&self, mut watch: impl FnMut(Source, BorrowedFd<'_>, PollFlags)) {
        if !self.relays.is_full() {
            for Listener { port, socket, .. } in &self.listeners {
                watch(Source::Listener(*port), socket.as_fd(), PollFlags::IN);
            }
        }
        for (id, end, fd, flags) in self.relays.interests() {
            watch(Source::Relay(id, end), fd, flags);
        }
    }

    /// Does what can be done.
    pub fn serve(&mut self, source: Source, events: PollFlags) {
        match source {
            Source::Listener(port) => self.accept(port),
            Source::Relay(id, end) => self.relays.turn(id, end, events),
        }
    }

    fn accept(&mut self, port: u32) {
        let Some(listener) = self.listeners.iter().find(|listener| listener.port == port) else { return };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let Ok(client) = accept_with(&listener.socket, flags) else { return };
        // Without the host the client sees that its connection is closed.
        if let Ok(host) = vsock::begin_to_connect(port) {
            self.relays.add(client, host, true);
        }
    }
}
