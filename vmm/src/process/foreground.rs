//! Keeping a VM whose user is in front of it: signals, the terminal, and an end in time, whatever the VM's process
//! does.

use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::time::{Duration, Instant};

use instance::console::{RawTerminal, take_terminal};
use instance::{RemovalWatch, Signals};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::keeper_side::{Taken, VmProcess};
use super::messages::{Failure, FromVm};
use super::ready::Ready;
use crate::supervisor::{ORDERLY_END, SAME_REQUEST};
use crate::{ExitReason, FORCED_END, Limits};

/// How much longer than its own supervisor may take a VM's process has to end.
const SPARE: Duration = Duration::from_secs(2);
/// How long it may take to end after it has said how the VM ended.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// How often a process in the background looks whether it has been given the terminal: fg(1) tells one that was not
/// stopped nothing.
const LOOK_AGAIN: Duration = Duration::from_millis(300);

/// How far a VM has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It is built, and runs.
    Built,
    /// Its console has printed the text that is waited for.
    Printed,
}

/// What came of a VM's process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The VM has ended, and its start took so long, as `Timeline::nanoseconds`.
    Ended(ExitReason, Vec<u64>),
    /// It could not be built, or was ended by force.
    Failed(Failure),
    /// The process ended with this code, and said nothing.
    Died(u8),
}

/// What the keeper of a VM has for its user.
pub struct Keeping {
    /// The VM's process.
    pub vm: Arc<VmProcess>,
    /// Those that end it.
    pub signals: Signals,
    /// How long it may run, and how long its guest has to power off.
    pub limits: Limits,
    /// When the start began.
    pub start: Instant,
    /// The VM's directory, which may be removed.
    pub removal: Option<RemovalWatch>,
    /// Standard input is the console's keyboard.
    pub reads_stdin: bool,
}

impl Keeping {
    /// Keeps the VM until its process has ended, which it does in time once it is asked to. `on_progress` is told how
    /// far the VM has come.
    pub fn run(self, mut on_progress: impl FnMut(Progress)) -> Outcome {
        let Self { vm, signals, limits, start, removal, reads_stdin } = self;
        let mut request = Request::new(limits, start);
        let (mut removal, mut terminal) = (removal, None);
        let outcome = loop {
            let ready = wait(&vm, &signals, removal.as_ref(), terminal.as_ref(), request.next());
            let now = Instant::now();
            while let Some(signal) = signals.next() {
                vm.signal(signal);
                request.signal(signal, now, vm.is_open());
            }
            if request.is_over(now, vm.is_open()) {
                vm.kill();
            }
            look_for_directory(&mut removal);
            terminal.iter_mut().for_each(Terminal::look);
            let Some(ready) = ready else { continue };
            match vm.take(ready) {
                Taken::Said(FromVm::Built) => {
                    terminal = reads_stdin.then(Terminal::enter).flatten();
                    on_progress(Progress::Built);
                }
                Taken::Said(FromVm::Printed) => on_progress(Progress::Printed),
                Taken::Said(FromVm::Ended(end)) => {
                    let timing = end.timing;
                    break end.reason.map(|reason| Outcome::Ended(reason, timing));
                }
                Taken::Said(FromVm::Failed(failure)) => break Some(Outcome::Failed(failure)),
                Taken::Handled | Taken::Said(FromVm::Pressed | FromVm::Slot { .. }) => {}
                Taken::Ended => break None,
            }
        };
        // The last close of a watch waits 1 to 2 ms, in which the process ends.
        drop(removal);
        let code = vm.wait(LAST_WORDS).unwrap_or(0);
        drop(terminal);
        outcome.unwrap_or_else(|| match request.reason() {
            Some(reason) => Outcome::Ended(reason, Vec::new()),
            None => Outcome::Died(code),
        })
    }
}

/// Waits until there is something to do; returns whether it is of the VM's process.
fn wait(
    vm: &VmProcess,
    signals: &Signals,
    removal: Option<&RemovalWatch>,
    terminal: Option<&Terminal>,
    next: Option<Instant>,
) -> Option<Ready> {
    let left = next.map(|next| next.saturating_duration_since(Instant::now()));
    let look = terminal.filter(|terminal| !terminal.is_ours).map(|_| LOOK_AGAIN);
    let timeout = left.into_iter().chain(look).min();
    let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
    let mut fds = Vec::from(vm.polled());
    fds.push(PollFd::new(signals, PollFlags::IN));
    fds.extend(removal.map(|removal| PollFd::new(removal, PollFlags::IN)));
    fds.extend(terminal.map(|terminal| PollFd::new(&terminal.resumed, PollFlags::IN)));
    // Interrupted or failed, what else there is to do is looked for all the same.
    poll(&mut fds, timeout.as_ref()).ok().and_then(|_| Ready::of(&fds))
}

fn look_for_directory(removal: &mut Option<RemovalWatch>) {
    if let Some(watch) = removal.take_if(|watch| watch.is_removed()) {
        tracing::warn!(
            "{} was removed: the VM runs on, but other commands do not find it any more; end it from its console or by \
             `kill {}`, and keep the next one where nothing is removed, by --runtime-dir DIR",
            watch.directory().display(),
            std::process::id()
        );
    }
}

/// What was asked of a VM, and until when its process is to have ended: its own supervisor does that in less.
struct Request {
    limits: Limits,
    /// When `--timeout` is over, until it is.
    time_is_up: Option<Instant>,
    /// Why it is to end, and since when.
    asked: Option<(ExitReason, Instant)>,
    /// When its process is killed.
    deadline: Option<Instant>,
}

impl Request {
    fn new(limits: Limits, start: Instant) -> Self {
        let time_is_up = limits.timeout.and_then(|timeout| start.checked_add(timeout));
        Self { limits, time_is_up, asked: None, deadline: None }
    }

    /// When there is something to do next.
    fn next(&self) -> Option<Instant> {
        self.time_is_up.into_iter().chain(self.deadline).min()
    }

    /// Why the VM is to end, once that was asked.
    fn reason(&self) -> Option<ExitReason> {
        self.asked.as_ref().map(|(reason, _)| reason.clone())
    }

    /// A signal has come. A process that `is_open` hears of it; one that still opens files may never do.
    fn signal(&mut self, signal: i32, now: Instant, is_open: bool) {
        match &self.asked {
            None => self.ask(ExitReason::Signal(signal), now, is_open),
            Some((_, first)) if now.saturating_duration_since(*first) < SAME_REQUEST => {}
            Some((reason, first)) => {
                // The latest one counts, as for the supervisor.
                let reason = if is_open { ExitReason::Signal(signal) } else { reason.clone() };
                self.asked = Some((reason, *first));
                let end = if is_open { now.checked_add(FORCED_END + SPARE) } else { Some(now) };
                self.deadline = self.deadline.into_iter().chain(end).min();
            }
        }
    }

    fn ask(&mut self, reason: ExitReason, now: Instant, is_open: bool) {
        self.time_is_up = None;
        self.asked = Some((reason, now));
        let patience =
            if is_open { self.limits.stop_timeout.saturating_add(ORDERLY_END + SPARE) } else { FORCED_END };
        self.deadline = now.checked_add(patience);
    }

    /// Whether the process is to be killed. It is said once.
    fn is_over(&mut self, now: Instant, is_open: bool) -> bool {
        if self.time_is_up.is_some_and(|end| end <= now) {
            self.ask(ExitReason::TimedOut, now, is_open);
        }
        self.deadline.take_if(|deadline| *deadline <= now).is_some()
    }
}

/// The user's terminal, in raw mode while it is this process's: the console's keyboard. Dropping it restores it.
struct Terminal {
    _raw: RawTerminal,
    /// SIGCONT: a shell may have had the terminal meanwhile.
    resumed: Signals,
    is_ours: bool,
}

impl Terminal {
    /// `None` where standard input is no terminal, or it can't be set up.
    fn enter() -> Option<Self> {
        if !io::stdin().is_terminal() {
            return None;
        }
        let entered =
            Signals::block(&[libc::SIGCONT]).and_then(|resumed| Ok((resumed, RawTerminal::enter()?)));
        match entered {
            Ok((resumed, raw)) => {
                let mut terminal = Self { _raw: raw?, resumed, is_ours: false };
                terminal.look();
                Some(terminal)
            }
            Err(error) => {
                tracing::warn!(%error, "cannot set up the terminal");
                None
            }
        }
    }

    /// Takes the terminal where it is this process's.
    fn look(&mut self) {
        let mut is_resumed = false;
        while self.resumed.next().is_some() {
            is_resumed = true;
        }
        if is_resumed || !self.is_ours {
            self.is_ours = take_terminal().unwrap_or_else(|error| {
                tracing::warn!(%error, "cannot set up the terminal");
                false
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits =
        Limits { stop_timeout: Duration::from_secs(10), timeout: Some(Duration::from_secs(100)) };

    #[test]
    fn a_process_is_killed_where_its_supervisor_should_have_ended_it() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut request = Request::new(LIMITS, start);
        assert_eq!(request.next(), Some(at(100)));
        request.signal(15, at(1), true);
        request.signal(2, at(1), true);
        assert_eq!((request.reason(), request.next()), (Some(ExitReason::Signal(15)), Some(at(1 + 10 + 17))));
        request.signal(2, at(3), true);
        assert_eq!((request.reason(), request.next()), (Some(ExitReason::Signal(2)), Some(at(3 + 5))));
        assert!(
            !request.is_over(at(7), true) && request.is_over(at(8), true) && !request.is_over(at(9), true)
        );
    }

    #[test]
    fn one_that_still_opens_files_has_less_time() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut request = Request::new(LIMITS, start);
        assert!(!request.is_over(at(100), false));
        assert_eq!((request.reason(), request.next()), (Some(ExitReason::TimedOut), Some(at(103))));
        request.signal(15, at(102), false);
        assert!(request.is_over(at(102), false));
        assert_eq!(request.reason(), Some(ExitReason::TimedOut));
    }
}
