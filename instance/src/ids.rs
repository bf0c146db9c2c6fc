//! User and group IDs of VMs, of which each is one VM's as long as a process of it has the lock of the ID's file.

use std::fmt;
use std::fs::File;
use std::io;
use std::path::Path;
use std::str::FromStr;

use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

use super::{InstanceError, place};

/// The directory of locks. It is one for all of root's VMs, wherever their own directories are.
const LOCKS: &str = "/run/mvm/ids";
/// The ID of the user `nobody`, which other programs use too.
const NOBODY: u32 = 65_534;
/// The last number that is an ID: the next one means none (chown(2)).
const LAST: u32 = u32::MAX - 1;

/// A range of IDs for VMs. The first one is shared by those for which no other is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRange {
    first: u32,
    last: u32,
}

/// Why text is not a range of IDs.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum IdRangeError {
    /// Not two numbers.
    #[error("invalid range of IDs {0:?}: write the first and the last, as in {default}", default = IdRange::default())]
    Form(String),
    /// It has one that is taken.
    #[error("invalid range of IDs {0}: {1} is the ID of {2}: use a range that no user has, as {default}", default = IdRange::default())]
    Taken(IdRange, u32, &'static str),
    /// It has fewer than two.
    #[error("invalid range of IDs {0}: use two or more, of which VMs share the first when no other is left")]
    Small(IdRange),
}

impl Default for IdRange {
    /// IDs that neither users, nor subordinate IDs (subuid(5)), nor systemd's services and containers have.
    fn default() -> Self {
        Self { first: 2_000_000_000, last: 2_000_065_535 }
    }
}

impl FromStr for IdRange {
    type Err = IdRangeError;

    /// Reads `FIRST-LAST`.
    fn from_str(text: &str) -> Result<Self, IdRangeError> {
        let number = |text: &str| {
            text.trim().bytes().all(|byte| byte.is_ascii_digit()).then(|| text.trim().parse().ok())
        };
        let numbers = text.split_once('-').and_then(|(first, last)| number(first)?.zip(number(last)?));
        let (first, last) = numbers.ok_or_else(|| IdRangeError::Form(text.to_owned()))?;
        let range = Self { first, last };
        let taken = |id, who| Err(IdRangeError::Taken(range, id, who));
        match range {
            Self { first: 0, .. } => taken(0, "root"),
            _ if last < first => Err(IdRangeError::Form(text.to_owned())),
            _ if (first..=last).contains(&NOBODY) => taken(NOBODY, "nobody"),
            _ if last > LAST => taken(last, "no user at all"),
            _ if last == first => Err(IdRangeError::Small(range)),
            _ => Ok(range),
        }
    }
}

impl fmt::Display for IdRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl<'de> Deserialize<'de> for IdRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Serialize for IdRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The ID of a VM, which is the VM's as long as a process has it open: that of the keeper, and that of the VM.
#[derive(Debug)]
pub struct IdClaim {
    id: u32,
    /// The lock; none on one that is shared.
    lock: Option<File>,
}

impl IdRange {
    /// The ID that VMs share when no other is left.
    pub fn shared(self) -> u32 {
        self.first
    }

    /// Takes an ID that no VM has, or the shared one.
    ///
    /// # Errors
    ///
    /// [`InstanceError::Directory`]: the directory of locks cannot be made or used.
    pub fn claim(self) -> Result<IdClaim, InstanceError> {
        let locks = Path::new(LOCKS);
        match self.claim_in(locks) {
            Err(InstanceError::Directory { .. }) if !locks.exists() => {
                if let Some(parent) = locks.parent() {
                    place::make(parent)?;
                }
                self.claim_in(locks)
            }
            claimed => claimed,
        }
    }

    fn claim_in(self, locks: &Path) -> Result<IdClaim, InstanceError> {
        place::make(locks)?;
        // The lowest that is free, so that there are no more files than there were VMs at once.
        for id in self.first.saturating_add(1)..=self.last {
            let path = locks.join(id.to_string());
            let lock = || {
                // The VM's process has it open too: for reading, so that it cannot make it longer.
                let flags = OFlags::RDONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = File::from(rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR)?);
                match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                    Ok(()) => Ok(Some(file)),
                    Err(Errno::WOULDBLOCK) => Ok(None),
                    Err(error) => Err(io::Error::from(error)),
                }
            };
            if let Some(file) = lock().map_err(InstanceError::directory("lock", &path))? {
                return Ok(IdClaim { id, lock: Some(file) });
            }
        }
        Ok(IdClaim { id: self.first, lock: None })
    }
}

impl IdClaim {
    /// The ID of a user and of a group.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Whether no other VM has it.
    pub fn is_own(&self) -> bool {
        self.lock.is_some()
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("100000-165535", None)]
    #[case(" 1 - 2 ", None)]
    #[case("4294967290-4294967294", None)]
    #[case("0-10", Some("0 is the ID of root"))]
    #[case("60000-70000", Some("65534 is the ID of nobody"))]
    #[case("4294967290-4294967295", Some("4294967295 is the ID of no user at all"))]
    #[case("7-7", Some("use two or more"))]
    #[case("9-7", Some("write the first and the last, as in 2000000000-2000065535"))]
    #[case("100000", Some("write the first and the last"))]
    #[case("1-4294967296", Some("write the first and the last"))]
    #[case("+1-5", Some("write the first and the last"))]
    #[case("-1-5", Some("write the first and the last"))]
    #[case("", Some("write the first and the last"))]
    fn ranges_are_checked(#[case] text: &str, #[case] problem: Option<&str>) {
        match (text.parse::<IdRange>(), problem) {
            (Ok(range), None) => assert_eq!(range.to_string().parse(), Ok(range)),
            (Err(error), Some(problem)) => {
                let line = error.to_string();
                assert!(line.contains(problem) && line.lines().count() == 1, "{line}");
            }
            (parsed, _) => panic!("{parsed:?}"),
        }
    }

    #[test]
    fn the_default_is_a_range() {
        let range = IdRange::default();
        assert_eq!(range.to_string().parse(), Ok(range));
        let text = serde_json::to_string(&range).unwrap();
        assert_eq!(serde_json::from_str::<IdRange>(&text).unwrap(), range);
    }

    #[test]
    fn no_two_vms_have_an_id_until_all_are_taken() {
        let directory = tempfile::tempdir().unwrap();
        let locks = directory.path().join("ids");
        let range: IdRange = "10-12".parse().unwrap();
        let claim = || range.claim_in(&locks).unwrap();
        let (first, second, third) = (claim(), claim(), claim());
        assert_eq!([first.id(), second.id(), third.id()], [11, 12, 10]);
        assert_eq!([first.is_own(), second.is_own(), third.is_own()], [true, true, false]);
        drop(first);
        let again = claim();
        assert!(again.id() == 11 && again.is_own() && !claim().is_own());
    }

    #[test]
    fn an_id_is_taken_until_the_last_process_of_its_vm_has_ended() {
        let directory = tempfile::tempdir().unwrap();
        let range: IdRange = "10-11".parse().unwrap();
        let claim = range.claim_in(directory.path()).unwrap();
        let (mut said, saying) = io::pipe().unwrap();
        // It has the lock's file as its standard input, as the VM's process has it open.
        let input = claim.lock.as_ref().unwrap().try_clone().unwrap();
        let mut command = std::process::Command::new("sh");
        let mut process =
            command.args(["-c", "echo; exec sleep 1000"]).stdin(input).stdout(saying).spawn().unwrap();
        drop(command);
        io::Read::read(&mut said, &mut [0; 1]).unwrap();
        drop(claim);
        assert!(!range.claim_in(directory.path()).unwrap().is_own());
        process.kill().unwrap();
        process.wait().unwrap();
        assert!(range.claim_in(directory.path()).unwrap().is_own());
    }

    #[test]
    fn a_link_in_the_place_of_a_lock_is_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc/passwd", directory.path().join("11")).unwrap();
        let range: IdRange = "10-11".parse().unwrap();
        assert!(matches!(range.claim_in(directory.path()), Err(InstanceError::Directory { .. })));
    }
}
