//! More memory for a VM's group, for as long as its memory is written by a copy of its process.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{FILE, OWN_MEMORY, noted, value};
use crate::VmId;
use crate::lock::DirectoryLock;

/// The limit of a group.
const LIMIT: &str = "memory.max";
/// How long another one that saves the VM is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// Twice the memory that a VM's group was made with, for as long as this is kept. Where its holder is killed, or the group
/// uses that much at the end, it stays.
pub struct MoreMemory {
    /// Bytes that the group was made with.
    own: u64,
    group: PathBuf,
    /// Two that save the VM have it one after the other.
    _lock: DirectoryLock,
}

impl MoreMemory {
    /// For the group of the VM `id`, whose directory is `instance`. `None` where it has none, or a limit that can't be
    /// changed, or where another process that saves it takes long; it stays within its limit then.
    pub fn allow(instance: &Path, id: &VmId) -> Option<Self> {
        let lock = File::open(instance.join(FILE)).ok()?;
        let lock = DirectoryLock::wait_for_file(lock.into(), PATIENCE).ok()?;
        let group = noted(instance, id)?;
        // Not twice what is the limit now: a VM that uses all that it gets would have it doubled with each save.
        let own: u64 = fs::read_to_string(instance.join(OWN_MEMORY)).ok()?.parse().ok()?;
        fs::write(group.join(LIMIT), own.saturating_mul(2).to_string()).ok()?;
        Some(Self { own, group, _lock: lock })
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
        if self.used().is_some_and(|used| used < self.own) {
            // The VM has ended, if this fails.
            let _ = fs::write(self.group.join(LIMIT), self.own.to_string());
        }
    }
}
