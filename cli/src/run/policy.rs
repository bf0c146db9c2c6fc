//! When a container is started again by itself.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How long it is waited at first, and at most, before a container is started again.
const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(60);
/// A container that has run for so long has started well.
const WELL: Duration = Duration::from_secs(10);

/// When a container that has ended is started again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum RestartPolicy {
    /// Not.
    #[default]
    No,
    /// When it ended with another code than 0, so many times in a row at most.
    OnFailure(Option<u32>),
    /// Always, until it is stopped.
    Always,
    /// The same; where it was stopped it stays so also when the host has been started again.
    UnlessStopped,
}

impl RestartPolicy {
    /// Its name, without a number of times.
    pub fn name(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::OnFailure(_) => "on-failure",
            Self::Always => "always",
            Self::UnlessStopped => "unless-stopped",
        }
    }

    /// The most times, where there is such a number.
    pub fn most(self) -> u32 {
        if let Self::OnFailure(Some(most)) = self { most } else { 0 }
    }

    /// Whether one that has ended with `code`, after it was started again `restarts` times, is started again.
    pub fn wants(self, code: u8, restarts: u32) -> bool {
        match self {
            Self::No => false,
            Self::OnFailure(most) => code != 0 && most.is_none_or(|most| restarts < most),
            Self::Always | Self::UnlessStopped => true,
        }
    }

    /// Whether one that ran when the host went down is started when it is up again, where `is_stopped` says that a user
    /// has stopped it.
    pub fn restores(self, is_stopped: bool) -> bool {
        match self {
            Self::No | Self::OnFailure(_) => false,
            Self::Always => true,
            Self::UnlessStopped => !is_stopped,
        }
    }
}

/// How long it is waited before one is started again that has run for `life`, after `last` the time before.
pub fn delay(last: Duration, life: Duration) -> Duration {
    if life >= WELL || last.is_zero() { FIRST } else { last.saturating_mul(2).min(LONGEST) }
}

impl FromStr for RestartPolicy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let error =
            || format!("invalid policy {text:?}: use no, on-failure[:TIMES], always or unless-stopped");
        match text.split_once(':') {
            None if matches!(text, "no" | "") => Ok(Self::No),
            None if text == "on-failure" => Ok(Self::OnFailure(None)),
            None if text == "always" => Ok(Self::Always),
            None if text == "unless-stopped" => Ok(Self::UnlessStopped),
            // As docker's, 0 is any number.
            Some(("on-failure", times)) => {
                let times: u32 = times.parse().map_err(|_| error())?;
                Ok(Self::OnFailure(Some(times).filter(|times| *times > 0)))
            }
            _ => Err(error()),
        }
    }
}

impl TryFrom<String> for RestartPolicy {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for RestartPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        if let Self::OnFailure(Some(most)) = self { write!(f, ":{most}") } else { Ok(()) }
    }
}

impl From<RestartPolicy> for String {
    fn from(policy: RestartPolicy) -> Self {
        policy.to_string()
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("no", Some(RestartPolicy::No))]
    #[case("on-failure", Some(RestartPolicy::OnFailure(None)))]
    #[case("on-failure:0", Some(RestartPolicy::OnFailure(None)))]
    #[case("on-failure:3", Some(RestartPolicy::OnFailure(Some(3))))]
    #[case("always", Some(RestartPolicy::Always))]
    #[case("unless-stopped", Some(RestartPolicy::UnlessStopped))]
    #[case("always:3", None)]
    #[case("on-failure:-1", None)]
    #[case("never", None)]
    fn policies_are_dockers(#[case] text: &str, #[case] expected: Option<RestartPolicy>) {
        let read = text.parse::<RestartPolicy>();
        assert_eq!(read.as_ref().ok(), expected.as_ref());
        if let Some(policy) = expected {
            assert_eq!(policy.to_string().parse(), Ok(policy));
        }
    }

    #[test]
    fn the_wait_doubles_until_one_has_run_well() {
        let seconds = Duration::from_secs;
        let mut last = Duration::ZERO;
        let mut waits = Vec::new();
        for _ in 0..12 {
            last = delay(last, seconds(1));
            waits.push(last.as_millis());
        }
        let expected = [100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 51_200, 60_000, 60_000];
        assert_eq!(waits, expected);
        assert_eq!(delay(last, seconds(10)), FIRST);
    }

    #[test]
    fn failures_are_counted_and_stops_are_kept() {
        let three = RestartPolicy::OnFailure(Some(3));
        assert!(three.wants(1, 2) && !three.wants(1, 3) && !three.wants(0, 0));
        assert!(RestartPolicy::OnFailure(None).wants(1, u32::MAX) && !RestartPolicy::No.wants(1, 0));
        assert!(RestartPolicy::Always.restores(true) && !RestartPolicy::UnlessStopped.restores(true));
        assert!(RestartPolicy::UnlessStopped.restores(false) && !three.restores(false));
    }
}
