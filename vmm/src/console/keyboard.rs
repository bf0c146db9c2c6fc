//! What is typed on standard input.
//!
//! A terminal is read only while it is this process's: `mvm boot … &` runs without a keyboard until fg(1).

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::Duration;

use devices::Timer;
use event_manager::{EventOps, EventSet, Events};
use instance::Signals;
use instance::console::{Command, Escape, HELP, in_foreground};

use super::input::{InputPort, pump};
use super::watch::{Watch, Watched};
use crate::exit::{ExitReason, ExitSlot};

/// How much a terminal's user may type ahead of the guest. It is read even where the guest reads nothing, since a
/// command to mvm may be in it.
const TYPED_AHEAD: usize = 4096;

/// How often a process in the background looks whether it has been given the terminal: fg(1) tells one that was not
/// stopped nothing.
const LOOK_AGAIN: Duration = Duration::from_millis(300);

/// Who has the terminal, and what says that this may have changed.
struct JobControl {
    /// SIGCONT: a shell may have had the terminal meanwhile.
    signals: Signals,
    /// Set while this process is in the background.
    timer: Timer,
    foreground: bool,
}

impl JobControl {
    fn new() -> io::Result<Self> {
        Ok(Self {
            signals: Signals::block(&[libc::SIGCONT])?,
            timer: Timer::new()?,
            foreground: in_foreground(),
        })
    }

    /// Looks whether the terminal is this process's, and looks again later where it is not.
    fn look(&mut self) {
        while self.signals.next().is_some() {}
        self.timer.acknowledge();
        self.foreground = in_foreground();
        if !self.foreground
            && let Err(error) = self.timer.set_once(LOOK_AGAIN)
        {
            tracing::warn!(%error, "the terminal will not be read again");
        }
    }
}

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
    /// A terminal has it.
    job: Option<JobControl>,
    exit: Arc<ExitSlot>,
}

impl Keyboard {
    /// A keyboard at `source`, whose events come with `token`. Where it `is_terminal`, it has an escape character, by
    /// which the user can end the VM through `exit`.
    ///
    /// # Errors
    ///
    /// Those of the system calls that watch who has the terminal.
    pub(super) fn new(
        source: Box<dyn AsFd>,
        token: u32,
        is_terminal: bool,
        exit: Arc<ExitSlot>,
    ) -> io::Result<Self> {
        let watch = Watch::new(source.as_fd().as_raw_fd(), token);
        let escape = is_terminal.then(Escape::default);
        let job = is_terminal.then(JobControl::new).transpose()?;
        Ok(Self { source, watch, state: State::Watched, escape, ahead: VecDeque::new(), job, exit })
    }

    /// Has the event loop say with `token` when another process may have the terminal, or this one has it again.
    pub(super) fn init(&mut self, token: u32, ops: &mut EventOps<'_>) {
        let Some(job) = &mut self.job else { return };
        for fd in [job.signals.as_fd().as_raw_fd(), job.timer.as_raw_fd()] {
            if let Err(error) = ops.add(Events::with_data_raw(fd, token, EventSet::IN)) {
                tracing::warn!(%error, "cannot watch who has the terminal");
            }
        }
        job.look();
    }

    /// The terminal may have changed hands.
    pub(super) fn look(&mut self) {
        self.job.iter_mut().for_each(JobControl::look);
    }

    /// How much can be read.
    fn room(&self, port: &InputPort) -> usize {
        if self.escape.is_some() { TYPED_AHEAD.saturating_sub(self.ahead.len()) } else { port.room() }
    }

    /// There is something to read.
    pub(super) fn ready(&mut self, port: &InputPort) {
        if self.job.is_some() && !in_foreground() {
            return self.look();
        }
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
        let readable = self.job.as_ref().is_none_or(|job| job.foreground) && self.room(port) > 0;
        let wanted = (self.state == State::Watched && readable).then_some(EventSet::IN);
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
            Command::Help => devices::log::print(HELP),
            Command::Detach => {}
        }
    }
}
