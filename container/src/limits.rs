//! Limits of processes and shares of processors, as docker's users write them.

use std::collections::BTreeSet;
use std::fmt::{self, Display};
use std::str::FromStr;

use agent_protocol::Limit;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

/// Names that docker has for resources of setrlimit(2).
const NAMES: [(&str, u32); 15] = [
    ("core", libc::RLIMIT_CORE),
    ("cpu", libc::RLIMIT_CPU),
    ("data", libc::RLIMIT_DATA),
    ("fsize", libc::RLIMIT_FSIZE),
    ("locks", libc::RLIMIT_LOCKS),
    ("memlock", libc::RLIMIT_MEMLOCK),
    ("msgqueue", libc::RLIMIT_MSGQUEUE),
    ("nice", libc::RLIMIT_NICE),
    ("nofile", libc::RLIMIT_NOFILE),
    ("nproc", libc::RLIMIT_NPROC),
    ("rss", libc::RLIMIT_RSS),
    ("rtprio", libc::RLIMIT_RTPRIO),
    ("rttime", libc::RLIMIT_RTTIME),
    ("sigpending", libc::RLIMIT_SIGPENDING),
    ("stack", libc::RLIMIT_STACK),
];
/// The most open files that the guest's kernel lets a process have (fs.nr_open).
pub const MAX_FILES: u64 = 1 << 20;

/// A limit of a container's processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ulimit {
    /// Docker's name of the resource.
    pub name: &'static str,
    /// The limit as the agent gets it.
    pub limit: Limit,
}

impl FromStr for Ulimit {
    type Err = LimitError;

    /// Reads `NAME=SOFT` or `NAME=SOFT:HARD`, where -1 is no limit.
    fn from_str(text: &str) -> Result<Self, LimitError> {
        let invalid = || LimitError::Ulimit(text.to_owned());
        let (name, values) = text.split_once('=').ok_or_else(invalid)?;
        let known = NAMES.iter().find(|(known, _)| *known == name);
        let (name, resource) = *known.ok_or_else(|| LimitError::Resource(name.to_owned()))?;
        let number = |value: &str| match value {
            "-1" => Some(u64::MAX),
            _ => value.parse().ok().filter(|number| *number <= i64::MAX.cast_unsigned()),
        };
        let (soft, hard) = values.split_once(':').unwrap_or((values, values));
        let (soft, hard) = number(soft).zip(number(hard)).ok_or_else(invalid)?;
        if soft > hard {
            return Err(LimitError::Soft(text.to_owned()));
        }
        if resource == libc::RLIMIT_NOFILE && hard > MAX_FILES {
            return Err(LimitError::Files);
        }
        Ok(Self { name, limit: Limit { resource, soft, hard } })
    }
}

impl Display for Ulimit {
    /// As it is read.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (soft, hard) = self.values();
        write!(f, "{}={soft}:{hard}", self.name)
    }
}

/// Both are kept as text.
macro_rules! serde_as_text {
    ($($type:ty),*) => {$(
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    )*};
}

serde_as_text!(Ulimit, CpuSet);

impl Ulimit {
    /// The soft and the hard limit as docker writes them: -1 is none.
    pub fn values(&self) -> (i64, i64) {
        let value = |limit: u64| i64::try_from(limit).unwrap_or(-1);
        (value(self.limit.soft), value(self.limit.hard))
    }
}

/// Numbers of processors, of which there is at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuSet(BTreeSet<u32>);

impl CpuSet {
    /// The highest number.
    pub fn last(&self) -> u32 {
        self.0.last().copied().unwrap_or(0)
    }
}

impl FromStr for CpuSet {
    type Err = LimitError;

    /// Reads numbers below [`vmm::MAX_CPUS`] and ranges of them, as in `0-2,5`.
    fn from_str(text: &str) -> Result<Self, LimitError> {
        let invalid = || LimitError::CpuSet(text.to_owned());
        let number = |text: &str| {
            let number: Option<u32> = text.parse().ok();
            number.filter(|number| *number < vmm::MAX_CPUS).ok_or_else(invalid)
        };
        let mut set = BTreeSet::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let range = number(first)?..=number(last)?;
            if range.is_empty() {
                return Err(invalid());
            }
            set.extend(range);
        }
        Ok(Self(set))
    }
}

impl Display for CpuSet {
    /// As the kernel writes it: sorted, and with ranges where there can be some.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut numbers = self.0.iter().copied().peekable();
        let mut separator = "";
        while let Some(first) = numbers.next() {
            let mut last = first;
            while let Some(next) = numbers.next_if(|next| last.checked_add(1) == Some(*next)) {
                last = next;
            }
            write!(f, "{separator}{first}")?;
            if last > first {
                write!(f, "-{last}")?;
            }
            separator = ",";
        }
        Ok(())
    }
}

/// The weight (1 to 10,000) of a control group with these shares of docker's, which are 2 to 262,144; others are taken
/// for the nearest of these. The conversion is runc's.
pub fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

/// What is wrong with a limit.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum LimitError {
    /// Not a limit.
    #[error("invalid limit {0:?}: write NAME=SOFT or NAME=SOFT:HARD, as in nofile=1024:4096; -1 is no limit")]
    Ulimit(String),
    /// Not one of docker's names.
    #[error(
        "unknown limit {0:?}: use core, cpu, data, fsize, locks, memlock, msgqueue, nice, nofile, nproc, rss, rtprio, \
         rttime, sigpending or stack"
    )]
    Resource(String),
    /// The soft limit is above the hard one.
    #[error("invalid limit {0:?}: the soft limit is above the hard one")]
    Soft(String),
    /// More files than a process can have open.
    #[error("a process has at most {MAX_FILES} open files: use up to that for nofile")]
    Files,
    /// Not numbers of processors.
    #[error("invalid CPUs {0:?}: write numbers from 0 to {max} and ranges, as in 0-2,5", max = vmm::MAX_CPUS - 1)]
    CpuSet(String),
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("nofile=1024", "nofile", 7, 1024, 1024)]
    #[case("nofile=1024:1048576", "nofile", 7, 1024, 1 << 20)]
    #[case("core=0", "core", 4, 0, 0)]
    #[case("memlock=-1", "memlock", 8, -1, -1)]
    #[case("stack=8192:-1", "stack", 3, 8192, -1)]
    fn limits_are_those_of_docker(
        #[case] text: &str,
        #[case] name: &str,
        #[case] resource: u32,
        #[case] soft: i64,
        #[case] hard: i64,
    ) {
        let read: Ulimit = text.parse().unwrap();
        assert_eq!((read.name, read.limit.resource, read.values()), (name, resource, (soft, hard)));
        assert_eq!(read.limit.hard == u64::MAX, hard == -1);
    }

    #[rstest]
    #[case("nofile", "invalid limit")]
    #[case("nofile=", "invalid limit")]
    #[case("nofile=x", "invalid limit")]
    #[case("nofile=1:", "invalid limit")]
    #[case("nofile=1:2:3", "invalid limit")]
    #[case("nofile=-2", "invalid limit")]
    #[case("core=9223372036854775808", "invalid limit")]
    #[case("files=1", "unknown limit \"files\"")]
    #[case("NOFILE=1", "unknown limit")]
    #[case("nofile=2:1", "above the hard one")]
    #[case("core=-1:1", "above the hard one")]
    #[case("nofile=1048577", "at most 1048576 open files")]
    #[case("nofile=-1", "at most 1048576 open files")]
    fn other_limits_are_refused(#[case] text: &str, #[case] says: &str) {
        let error = text.parse::<Ulimit>().unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }

    #[rstest]
    #[case("0", Some(("0", 0)))]
    #[case("0-2,5", Some(("0-2,5", 5)))]
    #[case("3,2,1", Some(("1-3", 3)))]
    #[case("0-3,1-2,3", Some(("0-3", 3)))]
    #[case("0,2,4-4", Some(("0,2,4", 4)))]
    #[case("253", Some(("253", 253)))]
    #[case("254", None)]
    #[case("0-4294967295", None)]
    #[case("2-1", None)]
    #[case("", None)]
    #[case("0,", None)]
    #[case("-1", None)]
    #[case("1-", None)]
    #[case("a", None)]
    fn processors_are_written_as_the_kernel_does(#[case] text: &str, #[case] expected: Option<(&str, u32)>) {
        let read = text.parse::<CpuSet>().map(|set| (set.to_string(), set.last()));
        assert_eq!(read.ok(), expected.map(|(text, last)| (text.to_owned(), last)));
    }

    #[rstest]
    #[case(0, 1)]
    #[case(2, 1)]
    #[case(1024, 39)]
    #[case(262_144, 10_000)]
    #[case(u64::MAX, 10_000)]
    fn weights_are_those_of_runc(#[case] shares: u64, #[case] expected: u64) {
        assert_eq!(weight(shares), expected);
    }
}
