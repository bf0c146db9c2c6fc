//! One who is attached to the console by its socket.

use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use event_manager::{EventOps, EventSet};
use rustix::io::Errno;
use rustix::net::{SendFlags, send};

use super::hub::Reader;
use super::input::{InputPort, pump};
use super::watch::{Watch, Watched};

/// How often a client is sent to before others have their turn.
const SENDS_PER_TURN: usize = 8;

/// A client: output as fast as it reads, input as fast as the guest does.
pub(super) struct Client {
    stream: UnixStream,
    watch: Watch,
    reader: Reader,
    /// What was taken from the reader and not sent yet.
    staged: Vec<u8>,
    /// There is more to send than the socket took.
    behind: bool,
    /// It takes no more output.
    deaf: bool,
    /// It gives no more input.
    mute: bool,
}

impl Client {
    /// A client at the other end of `stream`, which does not block.
    pub(super) fn new(stream: UnixStream, token: u32, reader: Reader) -> Self {
        let watch = Watch::new(stream.as_raw_fd(), token);
        Self { stream, watch, reader, staged: Vec::new(), behind: false, deaf: false, mute: false }
    }

    /// Whether it has gone; what it typed before is still to be read.
    pub(super) fn has_hung_up(&self) -> bool {
        self.deaf
    }

    /// Whether there is nothing left to do for it.
    pub(super) fn is_done(&self) -> bool {
        self.deaf && self.mute
    }

    /// The event loop has seen `events` on its descriptor.
    pub(super) fn ready(&mut self, events: EventSet, port: &InputPort) {
        if events.intersects(EventSet::HANG_UP | EventSet::ERROR) {
            self.deaf = true;
        }
        if !self.mute && !pump(&self.stream, port.room(), |typed| port.enqueue(typed)) {
            self.mute = true;
        }
        self.send();
    }

    /// Sends what there is, as far as the socket takes it.
    pub(super) fn send(&mut self) {
        self.behind = false;
        for _ in 0..SENDS_PER_TURN {
            if self.deaf || !self.stage() {
                return;
            }
            match send(&self.stream, &self.staged, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(sent) => drop(self.staged.drain(..sent.min(self.staged.len()))),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => self.deaf = true,
            }
        }
        self.behind = true;
    }

    /// Whether there is something to send.
    fn stage(&mut self) -> bool {
        if self.staged.is_empty() {
            self.reader.take(&mut self.staged);
        }
        !self.staged.is_empty()
    }

    /// Says to the event loop what the client waits for.
    pub(super) fn settle(&mut self, port: &InputPort, ops: &mut EventOps<'_>) {
        let mut wanted = EventSet::empty();
        wanted.set(EventSet::IN, !self.mute && port.room() > 0);
        wanted.set(EventSet::OUT, self.behind && !self.deaf);
        // epoll would report a closed one again and again while the guest does not read.
        let wanted = (!self.deaf || !wanted.is_empty()).then_some(wanted);
        if self.watch.set(wanted, ops) != Watched::Yes {
            (self.deaf, self.mute) = (true, true);
        }
    }

    /// Takes it out of the event loop.
    pub(super) fn leave(&mut self, ops: &mut EventOps<'_>) {
        self.watch.set(None, ops);
    }

    /// Sends the rest, until `deadline` at the latest.
    pub(super) fn finish(&mut self, deadline: Instant) {
        while !self.deaf && self.stage() {
            let left = deadline.saturating_duration_since(Instant::now());
            let ready = !left.is_zero()
                && self.stream.set_nonblocking(false).is_ok()
                && self.stream.set_write_timeout(Some(left)).is_ok();
            if !ready || self.stream.write_all(&self.staged).is_err() {
                return;
            }
            self.staged.clear();
        }
    }
}
