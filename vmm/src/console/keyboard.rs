//! What is typed on standard input.

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use event_manager::{EventOps, EventSet};
use instance::console::{Command, Escape, HELP};

use super::input::{InputPort, pump};
use super::watch::{Watch, Watched};
use crate::exit::{ExitReason, ExitSlot};

/// How much a terminal's user may type ahead of the guest. It is read even where the guest reads nothing, since a
/// command to mvm may be in it.
const TYPED_AHEAD: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The event loop says when there is something to read.
    Watched,
    /// The source is a file, which epoll does not take and which never blocks.
    AlwaysReady,
    /// The source has ended.
    Ended,
}

/// Standard input, or what stands for it in a test. Where it is no terminal, it is left alone while the port is full,
/// and what is typed meanwhile waits in the kernel.
pub(super) struct Keyboard {
    source: Box<dyn AsFd>,
    watch: Watch,
    state: State,
    /// Only a terminal has an escape character: a file may contain any byte.
    escape: Option<Escape>,
    ahead: VecDeque<u8>,
    exit: Arc<ExitSlot>,
}

impl Keyboard {
    /// A keyboard at `source`, whose events come with `token`. Where it `is_terminal`, it has an escape character, by
    /// which the user can end the VM through `exit`.
    pub(super) fn new(source: Box<dyn AsFd>, token: u32, is_terminal: bool, exit: Arc<ExitSlot>) -> Self {
        let watch = Watch::new(source.as_fd().as_raw_fd(), token);
        let escape = is_terminal.then(Escape::default);
        Self { source, watch, state: State::Watched, escape, ahead: VecDeque::new(), exit }
    }

    /// How much can be read.
    fn room(&self, port: &InputPort) -> usize {
        if self.escape.is_some() { TYPED_AHEAD.saturating_sub(self.ahead.len()) } else { port.room() }
    }

    /// There is something to read.
    pub(super) fn ready(&mut self, port: &InputPort) {
        let room = self.room(port);
        let (escape, ahead, exit) = (&mut self.escape, &mut self.ahead, &self.exit);
        let more = pump(&self.source, room, |typed| match escape {
            Some(escape) => obey(escape, typed, ahead, exit),
            None => port.enqueue(typed),
        });
        if !more {
            self.state = State::Ended;
        }
    }

    /// After anything happened: types what was typed ahead, reads a file on, and watches anything else while there is
    /// room.
    pub(super) fn settle(&mut self, port: &InputPort, ops: &mut EventOps<'_>) {
        let fitting = port.room().min(self.ahead.len());
        if fitting > 0 {
            let typed: Vec<u8> = self.ahead.drain(..fitting).collect();
            port.enqueue(&typed);
        }
        let wanted = (self.state == State::Watched && self.room(port) > 0).then_some(EventSet::IN);
        match self.watch.set(wanted, ops) {
            Watched::Yes => {}
            Watched::AlwaysReady => self.state = State::AlwaysReady,
            Watched::No => self.state = State::Ended,
        }
        while self.state == State::AlwaysReady && self.room(port) > 0 {
            self.ready(port);
        }
    }
}

/// Keeps what is for the guest, and does what is for mvm.
fn obey(escape: &mut Escape, typed: &[u8], ahead: &mut VecDeque<u8>, exit: &ExitSlot) {
    let mut to_guest = Vec::with_capacity(typed.len());
    let commands = escape.filter(typed, &mut to_guest);
    ahead.extend(to_guest);
    for command in commands {
        match command {
            Command::Stop => exit.end(ExitReason::Stopped),
            // Where standard error is closed there is nobody to help.
            Command::Help => devices::log::print(HELP),
            Command::Detach => {}
        }
    }
}
