//! Disks that are put into a pod's VM.

use std::path::Path;
use std::time::{Duration, Instant};

use vmm::{Disk, DiskError, ImageFormat, Part};

/// How long the disk of an earlier life may be in use: its keeper was killed, and that of the pod is about to take it
/// out.
pub const EARLIER: Duration = Duration::from_secs(20);
/// How often that is looked at.
const AGAIN: Duration = Duration::from_millis(20);

/// Opens a disk that a guest may write. What it wrote says nothing of its format.
pub fn open_disk(path: &Path) -> Result<Disk, DiskError> {
    let deadline = Instant::now() + EARLIER;
    loop {
        match Disk::open(path, false, ImageFormat::Raw) {
            // A lock of flock(2) is not waited for with a deadline but so.
            Err(DiskError::InUse { .. }) if Instant::now() < deadline => std::thread::sleep(AGAIN),
            opened => return opened,
        }
    }
}

/// Where each part of `disk` ends on it.
pub fn ends(disk: &Disk) -> Vec<u64> {
    disk.parts().iter().map(|part: &Part<_>| part.end).collect()
}
