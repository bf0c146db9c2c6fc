//! More memory for a VM's group, for as long as its memory is written by a copy of its process.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::{FILE, noted, value};
use crate::VmId;

/// The limit of a group.
const LIMIT: &str = "memory.max";

/// Twice the memory for a VM's group, for as long as this is kept. Where its holder is killed, that stays.
#[derive(Debug)]
pub struct MoreMemory {
    /// What was the limit.
    before: String,
    group: PathBuf,
    /// Locked, so that no other process takes the limit of this one for the VM's own.
    _lock: File,
}

impl MoreMemory {
    /// For the group of the VM `id`, whose directory is `instance`. `None` where it has none, or no limit, or one that
    /// can't be changed, with which it has to do then.
    pub fn allow(instance: &Path, id: &VmId) -> Option<Self> {
        let lock = File::open(instance.join(FILE)).ok()?;
        flock(&lock, FlockOperation::LockExclusive).ok()?;
        let group = noted(instance, id)?;
        let before = fs::read_to_string(group.join(LIMIT)).ok()?.trim().to_owned();
        let more = before.parse::<u64>().ok()?.saturating_mul(2);
        fs::write(group.join(LIMIT), more.to_string()).ok()?;
        Some(Self { before, group, _lock: lock })
    }
}

impl MoreMemory {
    /// Bytes of memory that the group uses, without the cache of files that are elsewhere.
    fn used(&self) -> Option<u64> {
        let read = |name: &str| fs::read_to_string(self.group.join(name)).ok();
        let (all, parts) = (read("memory.current")?.trim().parse::<u64>().ok()?, read("memory.stat")?);
        let cache = ["active_file", "inactive_file"].map(|key| value(&parts, key).unwrap_or(0));
        Some(all.saturating_sub(cache.iter().sum()))
    }
}

impl Drop for MoreMemory {
    fn drop(&mut self) {
        // What was written may be in memory, if its file is. The kernel would end the VM for that.
        if self.used().zip(self.before.parse().ok()).is_some_and(|(used, before): (u64, u64)| used < before) {
            // The VM has ended, if this fails.
            let _ = fs::write(self.group.join(LIMIT), &self.before);
        }
    }
}
