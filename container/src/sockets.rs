//! Sockets of the host in a container: the keeper connects who asks for one by vsock with the host's socket, and with
//! nothing else. The VM's process opens no path while the guest runs.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::thread::Builder;

use agent_protocol::{End, Relays};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use crate::machine::VSOCK;
use crate::mounts::Forward;

/// The most connections at once, to all sockets together. Further ones wait until one is closed.
const MAX_RELAYS: usize = 128;
/// The last port that is tried for a socket of a container in a pod.
const LAST_PORT: u32 = 9999;
/// How many failures to connect are said.
const MAX_SAID: u32 = 5;

/// Sockets of the host that are forwarded.
pub struct Forwards {
    sockets: Vec<(UnixListener, PathBuf)>,
    relays: Relays,
    /// How many failures were said.
    said: u32,
}

/// Sockets in the directory of a pod's VM.
#[derive(Default)]
pub struct Bound(Vec<PathBuf>);

impl Drop for Bound {
    fn drop(&mut self) {
        for path in &self.0 {
            // With the pod's VM the directory goes.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// What is ready.
#[derive(Clone, Copy)]
enum Source {
    Listener(usize),
    Relay(u64, End),
}

impl Forwards {
    /// Listens for the guest's connections in the VM's directory.
    ///
    /// # Errors
    ///
    /// Those of making sockets.
    pub fn open(directory: &Path, forwards: &[Forward]) -> io::Result<Self> {
        let open = |forward: &Forward| {
            let listener = UnixListener::bind(directory.join(format!("{VSOCK}_{}", forward.port)))?;
            listener.set_nonblocking(true)?;
            Ok((listener, forward.path.clone()))
        };
        let sockets = forwards.iter().map(open).collect::<io::Result<_>>()?;
        Ok(Self { sockets, relays: Relays::new(MAX_RELAYS), said: 0 })
    }

    /// The same in the directory of a pod's VM, which other containers have sockets in too: at free ports in place of
    /// those that `forwards` names, which they get. What is returned besides removes the sockets when it is dropped.
    ///
    /// # Errors
    ///
    /// Those of making sockets.
    pub fn open_free(directory: &Path, forwards: &mut [Forward]) -> io::Result<(Self, Bound)> {
        let (mut sockets, mut bound) = (Vec::new(), Bound::default());
        for forward in forwards {
            let (listener, path) = loop {
                let path = directory.join(format!("{VSOCK}_{}", forward.port));
                match UnixListener::bind(&path) {
                    // One of a container whose keeper was killed stays as long as the pod.
                    Err(error) if error.kind() == io::ErrorKind::AddrInUse && forward.port < LAST_PORT => {
                        forward.port += 1;
                    }
                    bound => break (bound?, path),
                }
            };
            bound.0.push(path);
            listener.set_nonblocking(true)?;
            sockets.push((listener, forward.path.clone()));
        }
        Ok((Self { sockets, relays: Relays::new(MAX_RELAYS), said: 0 }, bound))
    }

    /// Forwards on a thread of its own, for as long as this process lives.
    ///
    /// # Errors
    ///
    /// Where no thread can be started.
    pub fn start(mut self) -> io::Result<()> {
        if self.sockets.is_empty() {
            return Ok(());
        }
        let serve = move || while self.turn().is_ok() {};
        Builder::new().name("sockets".into()).stack_size(256 << 10).spawn(serve).map(drop)
    }

    /// Waits until something is ready, and does it.
    fn turn(&mut self) -> io::Result<()> {
        for (source, events) in self.wait()? {
            match source {
                Source::Relay(id, end) => self.relays.turn(id, end, events),
                Source::Listener(index) => self.accept(index),
            }
        }
        Ok(())
    }

    fn wait(&self) -> io::Result<Vec<(Source, PollFlags)>> {
        let mut watched: Vec<(Source, BorrowedFd<'_>, PollFlags)> = Vec::new();
        if !self.relays.is_full() {
            let listeners = self.sockets.iter().enumerate();
            watched
                .extend(listeners.map(|(index, (listener, _))| {
                    (Source::Listener(index), listener.as_fd(), PollFlags::IN)
                }));
        }
        let relays = self.relays.interests();
        watched.extend(relays.map(|(id, end, fd, flags)| (Source::Relay(id, end), fd, flags)));
        let mut fds: Vec<_> =
            watched.iter().map(|(_, fd, flags)| PollFd::from_borrowed_fd(*fd, *flags)).collect();
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let events = fds.iter().map(PollFd::revents);
        let ready = watched.iter().map(|(source, ..)| *source).zip(events);
        Ok(ready.filter(|(_, events)| !events.is_empty()).collect())
    }

    /// Takes a connection of the guest's, and connects it with the host's socket.
    fn accept(&mut self, index: usize) {
        let Some((listener, path)) = self.sockets.get(index) else { return };
        let Ok((guest, _)) = listener.accept() else { return };
        match guest.set_nonblocking(true).and_then(|()| connected(path)) {
            Ok(host) => self.relays.add(guest.into(), host, false),
            // The guest sees that its connection is closed, as by a server that has gone.
            Err(error) if self.said < MAX_SAID => {
                self.said += 1;
                tracing::warn!(%error, "cannot connect to {} for the container", path.display());
            }
            Err(_) => {}
        }
    }
}

/// A connection to the socket at `path`. One whose queue is full refuses it.
fn connected(path: &Path) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::Shutdown;
    use std::os::unix::net::UnixStream;
    use std::thread;
    use std::time::Duration;

    use super::*;

    fn client(directory: &Path, port: u32) -> UnixStream {
        let stream = UnixStream::connect(directory.join(format!("{VSOCK}_{port}"))).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream
    }

    #[test]
    fn connections_reach_their_socket_and_come_to_an_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("host.sock");
        let server = UnixListener::bind(&path).unwrap();
        let missing = directory.path().join("missing.sock");
        let forwards = [Forward { port: 2000, path }, Forward { port: 2001, path: missing }];
        Forwards::open(directory.path(), &forwards).unwrap().start().unwrap();
        let serving = thread::spawn(move || {
            for _ in 0..3 {
                let (mut stream, _) = server.accept().unwrap();
                let mut text = String::new();
                stream.read_to_string(&mut text).unwrap();
                stream.write_all(text.to_uppercase().as_bytes()).unwrap();
            }
        });
        for _ in 0..3 {
            let mut stream = client(directory.path(), 2000);
            stream.write_all(b"hello").unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            assert_eq!(text, "HELLO");
        }
        serving.join().unwrap();
        let mut text = String::new();
        assert_eq!(client(directory.path(), 2001).read_to_string(&mut text).unwrap(), 0);
    }

    #[test]
    fn containers_of_a_pod_have_ports_of_their_own() {
        let directory = tempfile::tempdir().unwrap();
        let forward = |port| Forward { port, path: directory.path().join("host.sock") };
        let (mut one, mut other, mut third) =
            ([forward(2000), forward(2001)], [forward(2000)], [forward(2000)]);
        let first = Forwards::open_free(directory.path(), &mut one).unwrap();
        let _second = Forwards::open_free(directory.path(), &mut other).unwrap();
        assert_eq!((one[0].port, one[1].port, other[0].port), (2000, 2001, 2002));
        drop(first);
        let _third = Forwards::open_free(directory.path(), &mut third).unwrap();
        assert_eq!(third[0].port, 2000);
    }

    #[test]
    fn connections_beyond_the_most_wait() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("host.sock");
        let server = UnixListener::bind(&path).unwrap();
        Forwards::open(directory.path(), &[Forward { port: 2000, path }]).unwrap().start().unwrap();
        let clients: Vec<_> = (0..=MAX_RELAYS).map(|_| client(directory.path(), 2000)).collect();
        let mut accepted: Vec<_> = (0..MAX_RELAYS).map(|_| server.accept().unwrap().0).collect();
        server.set_nonblocking(true).unwrap();
        assert!(server.accept().is_err());
        server.set_nonblocking(false).unwrap();
        drop(accepted.pop());
        let last = &clients[MAX_RELAYS - 1];
        last.shutdown(Shutdown::Both).unwrap();
        server.accept().unwrap();
    }
}
