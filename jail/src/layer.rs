//! The layers of confinement, and which of them hold.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// How much confinement is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// None: for debuggers and profilers.
    Off,
    /// All layers that the host offers.
    #[default]
    BestEffort,
    /// All layers, or the process does not start.
    Strict,
}

impl Mode {
    /// The names, as a user writes them.
    pub const NAMES: [&str; 3] = ["off", "best-effort", "strict"];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::BestEffort => "best-effort",
            Self::Strict => "strict",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            "best-effort" => Ok(Self::BestEffort),
            "strict" => Ok(Self::Strict),
            _ => Err(format!("invalid jail mode {text:?}: use {}", Self::NAMES.join(", "))),
        }
    }
}

/// One of the layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layer {
    /// Memory, threads and processors are bounded, of the process together with those that serve its devices (cgroups(7)).
    Cgroup,
    /// No program that is executed gets rights that this process lacks (`PR_SET_NO_NEW_PRIVS`).
    NoNewPrivs,
    /// No core dump, and no other process of the user looks into its memory (`PR_SET_DUMPABLE`, `RLIMIT_CORE`).
    Dumps,
    /// Open files and data are limited (`RLIMIT_NOFILE`, `RLIMIT_DATA`).
    Limits,
    /// A user and a group of its own (credentials(7)), where root runs it.
    Ids,
    /// Namespaces of its own of users, mounts, network, IPC, host name and cgroups (namespaces(7)), and no capability.
    Namespaces,
    /// An empty file system as its root.
    Root,
    /// No file can be opened by its path (landlock(7)).
    Landlock,
    /// Each thread makes the system calls that it needs and no other (seccomp(2)).
    Seccomp,
    /// The processes that serve its devices have filters of system calls of their own.
    Helpers,
}

impl Layer {
    /// All of them, in the order in which they are entered.
    pub const ALL: [Self; 10] = [
        Self::Cgroup,
        Self::NoNewPrivs,
        Self::Dumps,
        Self::Limits,
        Self::Ids,
        Self::Namespaces,
        Self::Root,
        Self::Landlock,
        Self::Seccomp,
        Self::Helpers,
    ];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cgroup => "cgroup",
            Self::NoNewPrivs => "no-new-privs",
            Self::Dumps => "dumps",
            Self::Limits => "limits",
            Self::Ids => "ids",
            Self::Namespaces => "namespaces",
            Self::Root => "root",
            Self::Landlock => "landlock",
            Self::Seccomp => "seccomp",
            Self::Helpers => "helpers",
        }
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whether a layer holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It holds. What it consists of may differ between hosts, which the text says.
    On(String),
    /// The host lacks it: why.
    Missing(String),
}

/// Which layers a process is in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// What was asked for.
    pub mode: Mode,
    /// The layers in their order; none where confinement is off.
    pub layers: Vec<(Layer, State)>,
}

impl Report {
    /// The layers that the host lacks, and why.
    pub fn missing(&self) -> impl Iterator<Item = (Layer, &str)> {
        self.layers.iter().filter_map(|(layer, state)| match state {
            State::Missing(why) => Some((*layer, why.as_str())),
            State::On(_) => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_read_as_they_are_written() {
        for (name, mode) in Mode::NAMES.into_iter().zip([Mode::Off, Mode::BestEffort, Mode::Strict]) {
            assert_eq!(name.parse(), Ok(mode));
            assert_eq!(mode.to_string(), name);
            assert_eq!(serde_json::to_string(&mode).unwrap(), format!("{name:?}"));
        }
        let error = "on".parse::<Mode>().unwrap_err();
        assert_eq!(error, "invalid jail mode \"on\": use off, best-effort, strict");
    }

    #[test]
    fn layers_have_the_same_name_everywhere() {
        for layer in Layer::ALL {
            assert_eq!(serde_json::to_string(&layer).unwrap(), format!("\"{layer}\""));
        }
    }

    #[test]
    fn a_report_says_what_is_missing() {
        let layers = vec![
            (Layer::Dumps, State::On(String::new())),
            (Layer::Landlock, State::Missing("the kernel is without it".into())),
        ];
        let report = Report { mode: Mode::BestEffort, layers };
        let missing: Vec<_> = report.missing().collect();
        assert_eq!(missing, [(Layer::Landlock, "the kernel is without it")]);
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
    }
}
