//! Bytes that pass between two sockets, as for a Unix socket of the host in a container: the same on both sides.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown, sockopt};

/// Bytes that are on their way in one direction at most. Further ones stay with the sender.
const BUFFER: usize = 32 << 10;

/// Which end of a relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The first.
    Near,
    /// The second.
    Far,
}

/// What passes in one direction.
struct Way {
    buffer: Box<[u8]>,
    /// The first byte that was not passed on.
    start: usize,
    /// The end of those that were read.
    end: usize,
    /// No more come.
    has_ended: bool,
    /// The receiver was told so.
    is_shut: bool,
}

impl Way {
    fn new() -> Self {
        let buffer = vec![0; BUFFER].into_boxed_slice();
        Self { buffer, start: 0, end: 0, has_ended: false, is_shut: false }
    }

    fn wants_more(&self) -> bool {
        self.start == self.end && !self.has_ended
    }

    fn read(&mut self, from: &OwnedFd) -> Result<(), Errno> {
        match recv(from, &mut *self.buffer, RecvFlags::DONTWAIT) {
            Ok((0, _)) => self.has_ended = true,
            Ok((count, _)) => (self.start, self.end) = (0, count),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn write(&mut self, to: &OwnedFd) -> Result<(), Errno> {
        let waiting = self.buffer.get(self.start..self.end).unwrap_or_default();
        if !waiting.is_empty() {
            match send(to, waiting, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(count) => self.start = self.start.saturating_add(count).min(self.end),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        if self.has_ended && self.start == self.end && !self.is_shut {
            shutdown(to, Shutdown::Write)?;
            self.is_shut = true;
        }
        Ok(())
    }
}

/// Two sockets that are connected with each other.
struct Relay {
    near: OwnedFd,
    far: OwnedFd,
    /// From the near end to the far one, and back.
    out: Way,
    back: Way,
    /// The far end is not connected yet.
    is_connecting: bool,
}

impl Relay {
    fn interest(&self, end: End) -> PollFlags {
        let (from_it, to_it) = match end {
            End::Near => (&self.out, &self.back),
            End::Far if self.is_connecting => return PollFlags::OUT,
            End::Far => (&self.back, &self.out),
        };
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, from_it.wants_more());
        flags.set(PollFlags::OUT, to_it.start < to_it.end);
        flags
    }

    /// Does what `end`, of which poll(2) says `ready`, allows; returns whether there is more to do.
    fn turn(&mut self, end: End, ready: PollFlags) -> Result<bool, Errno> {
        let has_failed = ready.intersects(PollFlags::ERR | PollFlags::HUP);
        if self.is_connecting && end == End::Far && (has_failed || ready.contains(PollFlags::OUT)) {
            sockopt::socket_error(&self.far)??;
            self.is_connecting = false;
        }
        let (from_it, socket) = match end {
            End::Near => (&mut self.out, &self.near),
            End::Far => (&mut self.back, &self.far),
        };
        let is_connected = end == End::Near || !self.is_connecting;
        if from_it.wants_more() && is_connected && (has_failed || ready.contains(PollFlags::IN)) {
            from_it.read(socket)?;
        }
        if !self.is_connecting {
            self.out.write(&self.far)?;
        }
        self.back.write(&self.near)?;
        Ok(!(self.out.is_shut && self.back.is_shut))
    }
}

/// Relays, of which there are a bounded number.
pub struct Relays {
    relays: BTreeMap<u64, Relay>,
    next: u64,
    most: usize,
}

impl Relays {
    /// None yet, and up to `most`: each takes 64 KiB.
    pub fn new(most: usize) -> Self {
        Self { relays: BTreeMap::new(), next: 0, most }
    }

    /// Whether it has as many as it can have: who wants another one waits.
    pub fn is_full(&self) -> bool {
        self.relays.len() >= self.most
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.relays.is_empty()
    }

    /// Connects two stream sockets. The `far` one may still be connecting.
    pub fn add(&mut self, near: OwnedFd, far: OwnedFd, is_connecting: bool) {
        if self.is_full() {
            return;
        }
        let (out, back) = (Way::new(), Way::new());
        self.relays.insert(self.next, Relay { near, far, out, back, is_connecting });
        self.next = self.next.wrapping_add(1);
    }

    /// What to wait for: which relay's which end.
    pub fn interests(&self) -> impl Iterator<Item = (u64, End, BorrowedFd<'_>, PollFlags)> {
        let ends = self.relays.iter().flat_map(|(&id, relay)| {
            [
                (id, End::Near, relay.near.as_fd(), relay.interest(End::Near)),
                (id, End::Far, relay.far.as_fd(), relay.interest(End::Far)),
            ]
        });
        // One that nothing is wanted of would say again and again that its other side has gone.
        ends.filter(|(.., flags)| !flags.is_empty())
    }

    /// Passes on what can be, where poll(2) says `ready` of an end. A relay that is done is closed.
    pub fn turn(&mut self, id: u64, end: End, ready: PollFlags) {
        let Some(relay) = self.relays.get_mut(&id) else { return };
        if !relay.turn(end, ready).is_ok_and(|goes_on| goes_on) {
            self.relays.remove(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::Shutdown;
    use std::os::unix::net::UnixStream;
    use std::thread;
    use std::time::Duration;

    use rustix::event::{PollFd, Timespec, poll};

    use super::*;

    /// Serves a relay between two sockets until it is done, or for as long as `goes_on`.
    fn serve(relays: &mut Relays, mut goes_on: impl FnMut() -> bool) {
        while !relays.is_empty() && goes_on() {
            let ready: Vec<_> = {
                let interests: Vec<_> = relays.interests().collect();
                let mut fds: Vec<_> =
                    interests.iter().map(|(_, _, fd, flags)| PollFd::from_borrowed_fd(*fd, *flags)).collect();
                let patience = Timespec { tv_sec: 5, tv_nsec: 0 };
                assert!(poll(&mut fds, Some(&patience)).unwrap() > 0 || fds.is_empty(), "nothing happens");
                let events = fds.iter().map(PollFd::revents);
                interests.iter().map(|(id, end, ..)| (*id, *end)).zip(events).collect()
            };
            for ((id, end), events) in ready {
                if !events.is_empty() {
                    relays.turn(id, end, events);
                }
            }
        }
    }

    fn relayed() -> (UnixStream, UnixStream, Relays) {
        let (client, near) = UnixStream::pair().unwrap();
        let (server, far) = UnixStream::pair().unwrap();
        let mut relays = Relays::new(2);
        relays.add(near.into(), far.into(), false);
        for stream in [&client, &server] {
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        }
        (client, server, relays)
    }

    #[test]
    fn much_passes_both_ways_and_each_way_ends_by_itself() {
        let (mut client, mut server, mut relays) = relayed();
        let sent: Vec<u8> = (0..3_000_000_u32).map(|number| (number % 251) as u8).collect();
        let expected = sent.clone();
        let serving = thread::spawn(move || serve(&mut relays, || true));
        let echoing = thread::spawn(move || {
            let mut received = Vec::new();
            server.read_to_end(&mut received).unwrap();
            // The other way still works.
            server.write_all(&received).unwrap();
        });
        client.write_all(&sent).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut received = Vec::new();
        client.read_to_end(&mut received).unwrap();
        assert!(received == expected);
        echoing.join().unwrap();
        serving.join().unwrap();
    }

    #[test]
    fn a_reader_that_reads_nothing_stops_the_writer() {
        let (client, mut server, mut relays) = relayed();
        client.set_nonblocking(true).unwrap();
        let mut total = 0;
        while total < 4 << 20 {
            let written = (&client).write(&[7; 4096]).unwrap_or(0);
            total += written;
            let is_ready = relays.interests().any(|(_, _, fd, flags)| {
                poll(&mut [PollFd::from_borrowed_fd(fd, flags)], Some(&Timespec::default())).unwrap() > 0
            });
            if is_ready {
                let mut turns = 0;
                serve(&mut relays, || std::mem::replace(&mut turns, 1) == 0);
            } else if written == 0 {
                break;
            }
        }
        assert!(total < 4 << 20, "{total}");
        // And it goes on where it stopped.
        drop(client);
        let serving = thread::spawn(move || serve(&mut relays, || true));
        let mut received = Vec::new();
        server.read_to_end(&mut received).unwrap();
        assert_eq!(received.len(), total);
        drop(server);
        serving.join().unwrap();
    }

    #[test]
    fn who_closes_ends_the_relay_and_a_connection_that_fails_too() {
        let (client, server, mut relays) = relayed();
        drop((client, server));
        serve(&mut relays, || true);
        assert!(relays.is_empty());
    }

    #[test]
    fn there_are_no_more_than_allowed() {
        let (_client, _server, mut relays) = relayed();
        for _ in 0..5 {
            let (near, far) = UnixStream::pair().unwrap();
            relays.add(near.into(), far.into(), false);
        }
        assert!(relays.is_full() && relays.relays.len() == 2);
    }
}
