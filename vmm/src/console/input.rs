//! From standard input to the serial port, as fast as the guest reads and no faster.

use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;

use devices::legacy::SerialInput;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use super::escape::{Command, Escape, HELP};
use crate::exit::{ExitReason, ExitSlot};

/// Reads the user's input while the serial port has room for it; what is typed meanwhile waits in the kernel.
pub struct ConsoleInput<Source: AsFd> {
    source: Source,
    serial: SerialInput,
    /// Only a terminal has an escape character: a file may contain any byte.
    escape: Option<Escape>,
    exit: Arc<ExitSlot>,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The event loop waits for the source.
    Waiting,
    /// The serial port is full; the source is left alone.
    Full,
    /// The source is a file, which epoll does not take and which never blocks.
    AlwaysReady,
    /// The source has ended.
    Ended,
}

impl<Source: AsFd> ConsoleInput<Source> {
    /// Input from `source` to `serial`. Where `is_terminal`, it has an escape character, by which the user can
    /// end the VM through `exit`.
    pub fn new(source: Source, serial: SerialInput, is_terminal: bool, exit: Arc<ExitSlot>) -> Self {
        let escape = is_terminal.then(Escape::default);
        Self { source, serial, escape, exit, state: State::Waiting }
    }

    fn source_fd(&self) -> RawFd {
        self.source.as_fd().as_raw_fd()
    }

    fn wait_for_source(&mut self, ops: &mut EventOps<'_>) {
        self.state = match ops.add(Events::new_raw(self.source_fd(), EventSet::IN)) {
            Ok(()) => State::Waiting,
            Err(event_manager::Error::Epoll(error)) if error.errno() == libc::EPERM => State::AlwaysReady,
            Err(error) => {
                tracing::warn!(%error, "the console takes no input");
                State::Ended
            }
        };
    }

    /// Moves what there is room for; returns whether the source may have more.
    fn pump(&mut self) -> bool {
        let mut buffer = [0; 64];
        let room = self.serial.capacity().min(buffer.len());
        if room == 0 {
            return true;
        }
        let read = buffer.get_mut(..room).map(|buffer| rustix::io::read(&self.source, buffer));
        match read {
            Some(Ok(0)) | None => false,
            Some(Ok(read)) => {
                self.take(buffer.get(..read).unwrap_or_default());
                true
            }
            Some(Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR)) => true,
            Some(Err(error)) => {
                tracing::warn!(%error, "the console's input ends");
                false
            }
        }
    }

    fn take(&mut self, typed: &[u8]) {
        let mut to_guest = Vec::with_capacity(typed.len());
        let commands = match &mut self.escape {
            Some(escape) => escape.filter(typed, &mut to_guest),
            None => {
                to_guest.extend_from_slice(typed);
                Vec::new()
            }
        };
        // All of it fits: no more was read than there is room for.
        if let Err(error) = self.serial.enqueue(&to_guest) {
            tracing::warn!(%error, "cannot raise the console's interrupt");
        }
        for command in commands {
            match command {
                Command::Stop => self.exit.end(ExitReason::Stopped),
                // Where standard error is closed there is nobody to help.
                Command::Help => drop(io::stderr().write_all(HELP.as_bytes())),
            }
        }
    }

    /// After anything happened: reads on, or stops to wait for the source while the port is full.
    fn advance(&mut self, ops: &mut EventOps<'_>) {
        match self.state {
            State::Ended => {}
            State::AlwaysReady => {
                while self.serial.capacity() > 0 {
                    if !self.pump() {
                        self.state = State::Ended;
                        break;
                    }
                }
            }
            State::Full if self.serial.capacity() > 0 => self.wait_for_source(ops),
            State::Waiting if self.serial.capacity() == 0 => self.leave_source(ops, State::Full),
            State::Full | State::Waiting => {}
        }
    }

    fn leave_source(&mut self, ops: &mut EventOps<'_>, state: State) {
        // The descriptor was added, so it can be removed.
        let _ = ops.remove(Events::empty_raw(self.source_fd()));
        self.state = state;
    }
}

impl<Source: AsFd> MutEventSubscriber for ConsoleInput<Source> {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(Events::new(self.serial.drained(), EventSet::IN)) {
            tracing::warn!(%error, "the console takes no input");
            return;
        }
        self.wait_for_source(ops);
        self.advance(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        if events.fd() == self.serial.drained().as_raw_fd() {
            // Another event may have emptied it.
            let _ = self.serial.drained().read();
        } else if !self.pump() {
            return self.leave_source(ops, State::Ended);
        }
        self.advance(ops);
    }
}
