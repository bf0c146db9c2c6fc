//! What is done when somebody asks a VM to end: first the power button, then force.

use std::time::{Duration, Instant};

use crate::exit::ExitReason;
use crate::{TimeLimit, VmConfig};

/// Signals that come closer together than this are one request: timeout(1) signals its child and then its process
/// group, and a terminal signals a whole process group.
pub(crate) const SAME_REQUEST: Duration = Duration::from_secs(1);
/// How often the button is pressed again until the VM ends: what listens to it may not have started yet.
const PRESS_AGAIN: Duration = Duration::from_secs(1);

/// What asks a VM to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// A signal to mvm's process.
    Signal(i32),
    /// The VM has run as long as it may.
    Timeout,
}

impl Request {
    fn reason(self) -> ExitReason {
        match self {
            Self::Signal(signal) => ExitReason::Signal(signal),
            Self::Timeout => ExitReason::TimedOut,
        }
    }
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Resume the VM and press its power button: the first time because of this request.
    Ask(Request),
    /// Press the power button again.
    AskAgain,
    /// End the VM for this reason.
    Force {
        /// Why it ends.
        reason: ExitReason,
        /// It had this long to power off; `None` where a second request ended it.
        waited: Option<Duration>,
    },
}

/// The limits that the user has set.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How long a guest may take to power off when it is asked to (`--stop-timeout`).
    pub stop_timeout: Duration,
    /// How long the VM may run (`--timeout`).
    pub timeout: Option<Duration>,
}

impl From<&VmConfig> for Limits {
    fn from(config: &VmConfig) -> Self {
        Self {
            stop_timeout: config.stop_timeout.duration(),
            timeout: config.timeout.map(TimeLimit::duration),
        }
    }
}

/// A request that was made.
#[derive(Clone, Copy, Debug)]
struct Asked {
    request: Request,
    at: Instant,
    pressed: Instant,
}

/// Which requests there were, and what follows from them as time passes.
#[derive(Debug)]
pub(super) struct Policy {
    limits: Limits,
    /// When `--timeout` is over, until that has been acted upon.
    time_is_up: Option<Instant>,
    asked: Option<Asked>,
    forced: bool,
}

impl Policy {
    /// The policy of a VM that starts at `start`.
    pub(super) fn new(limits: Limits, start: Instant) -> Self {
        let time_is_up = limits.timeout.and_then(|timeout| start.checked_add(timeout));
        Self { limits, time_is_up, asked: None, forced: false }
    }

    /// The limits.
    pub(super) fn limits(&self) -> Limits {
        self.limits
    }

    /// A signal has come at `now`.
    pub(super) fn signal(&mut self, signal: i32, now: Instant) -> Option<Step> {
        let request = Request::Signal(signal);
        match self.asked {
            _ if self.forced => None,
            None => Some(self.ask(request, now)),
            Some(asked) if is_same_request(asked, now) => None,
            Some(_) => Some(self.force(request, None)),
        }
    }

    fn ask(&mut self, request: Request, now: Instant) -> Step {
        self.time_is_up = None;
        if self.limits.stop_timeout.is_zero() {
            return self.force(request, Some(Duration::ZERO));
        }
        self.asked = Some(Asked { request, at: now, pressed: now });
        Step::Ask(request)
    }

    fn force(&mut self, request: Request, waited: Option<Duration>) -> Step {
        self.forced = true;
        Step::Force { reason: request.reason(), waited }
    }

    /// What is due at `now`.
    pub(super) fn step(&mut self, now: Instant) -> Option<Step> {
        if self.forced {
            return None;
        }
        if self.time_is_up.is_some_and(|end| end <= now) {
            return Some(self.ask(Request::Timeout, now));
        }
        let asked = self.asked.as_mut()?;
        if now.saturating_duration_since(asked.at) >= self.limits.stop_timeout {
            let request = asked.request;
            return Some(self.force(request, Some(self.limits.stop_timeout)));
        }
        if now.saturating_duration_since(asked.pressed) >= PRESS_AGAIN {
            asked.pressed = now;
            return Some(Step::AskAgain);
        }
        None
    }

    /// When [`step`](Self::step) is to be called again; `None` where only a signal changes anything.
    pub(super) fn next(&self) -> Option<Instant> {
        if self.forced {
            return None;
        }
        let after = |asked: Asked| {
            let force = asked.at.checked_add(self.limits.stop_timeout);
            let press = asked.pressed.checked_add(PRESS_AGAIN);
            force.into_iter().chain(press).min()
        };
        self.asked.and_then(after).into_iter().chain(self.time_is_up).min()
    }

    /// Whether a request to end has been made, other than the one that came at `now`.
    pub(super) fn is_second(&self, now: Instant) -> bool {
        self.forced || self.asked.is_some_and(|asked| !is_same_request(asked, now))
    }
}

fn is_same_request(asked: Asked, now: Instant) -> bool {
    matches!(asked.request, Request::Signal(_)) && now.saturating_duration_since(asked.at) < SAME_REQUEST
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const MILLISECOND: Duration = Duration::from_millis(1);

    fn policy(stop_timeout: Duration, timeout: Option<Duration>) -> (Policy, Instant) {
        let start = Instant::now();
        (Policy::new(Limits { stop_timeout, timeout }, start), start)
    }

    fn forced(signal: i32) -> Option<Step> {
        Some(Step::Force { reason: ExitReason::Signal(signal), waited: None })
    }

    #[test]
    fn signals_within_a_second_are_one_request() {
        let (mut policy, start) = policy(10 * SECOND, None);
        assert_eq!(policy.signal(15, start), Some(Step::Ask(Request::Signal(15))));
        for (signal, after) in [(15, 1), (2, 10), (1, 999)] {
            assert_eq!(policy.signal(signal, start + after * MILLISECOND), None);
        }
        assert_eq!(policy.signal(2, start + SECOND), forced(2));
        assert_eq!(policy.signal(2, start + 3 * SECOND), None, "it ends already");
        assert_eq!((policy.step(start + 20 * SECOND), policy.next()), (None, None));
    }

    /// Runs the policy as the thread does; gives what happened, and after how many seconds.
    fn run(policy: &mut Policy, start: Instant) -> Vec<(u64, Step)> {
        let (mut now, mut steps) = (start, Vec::new());
        while let Some(next) = policy.next() {
            now = now.max(next);
            let step = policy.step(now).expect("something is due when the policy says so");
            steps.push((now.duration_since(start).as_secs(), step));
        }
        steps
    }

    #[test]
    fn a_guest_that_does_not_react_is_asked_each_second_and_ends_by_force() {
        let (mut policy, start) = policy(3 * SECOND, None);
        assert_eq!(policy.next(), None);
        policy.signal(15, start);
        let end = Step::Force { reason: ExitReason::Signal(15), waited: Some(3 * SECOND) };
        assert_eq!(run(&mut policy, start), [(1, Step::AskAgain), (2, Step::AskAgain), (3, end)]);
    }

    #[test]
    fn a_timeout_asks_and_then_forces() {
        let (mut policy, start) = policy(2 * SECOND, Some(60 * SECOND));
        let end = Step::Force { reason: ExitReason::TimedOut, waited: Some(2 * SECOND) };
        let ask = Step::Ask(Request::Timeout);
        assert_eq!(run(&mut policy, start), [(60, ask), (61, Step::AskAgain), (62, end)]);
    }

    #[test]
    fn a_signal_after_the_timeout_forces_and_one_before_it_takes_its_place() {
        let (mut first, start) = policy(10 * SECOND, Some(SECOND));
        first.step(start + SECOND);
        assert_eq!(first.signal(2, start + SECOND), forced(2));
        let (mut second, start) = policy(10 * SECOND, Some(SECOND));
        second.signal(15, start);
        assert_eq!(second.step(start + SECOND), Some(Step::AskAgain));
    }

    #[test]
    fn without_a_grace_period_the_first_request_forces() {
        let (mut policy, start) = policy(Duration::ZERO, None);
        let reason = ExitReason::Signal(15);
        assert_eq!(policy.signal(15, start), Some(Step::Force { reason, waited: Some(Duration::ZERO) }));
    }

    #[test]
    fn times_beyond_the_clock_are_no_times() {
        let (mut policy, start) = policy(Duration::MAX, Some(Duration::MAX));
        assert_eq!(policy.next(), None);
        policy.signal(15, start);
        assert_eq!(policy.next(), Some(start + SECOND));
    }
}
