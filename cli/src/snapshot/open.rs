//! Snapshots that are there: opened for a VM, and checked.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use image::Digest;
use vmm::{SavedVm, Snapshot, VmConfig};

use super::manifest::{MAX_MANIFEST, Manifest, SavedDisk};
use super::place::{MANIFEST, MEMORY, STATE, digest};
use crate::chain;

/// The most bytes of a state.
const MAX_STATE: u64 = 64 << 20;

/// A snapshot's directory that is being read.
struct Reading<'a>(&'a Path);

impl Reading<'_> {
    fn failed(&self, name: &str, error: &dyn std::fmt::Display) -> String {
        format!("cannot restore {}: {name}: {error}", self.0.display())
    }

    fn open(&self, name: &str) -> Result<File, String> {
        File::open(self.0.join(name)).map_err(|error| self.failed(name, &error))
    }

    /// All of a file, if it has no more than `most` bytes.
    fn read(&self, name: &str, most: u64) -> Result<Vec<u8>, String> {
        let mut content = Vec::new();
        let file = self.open(name)?;
        file.take(most + 1).read_to_end(&mut content).map_err(|error| self.failed(name, &error))?;
        match content.len() as u64 <= most {
            true => Ok(content),
            false => Err(self.failed(name, &format!("it has more than {} MiB", most >> 20))),
        }
    }

    fn manifest(&self) -> Result<(Manifest, VmConfig), String> {
        Manifest::read(&self.read(MANIFEST, MAX_MANIFEST)?).map_err(|error| self.failed(MANIFEST, &error))
    }

    fn state(&self, manifest: &Manifest) -> Result<SavedVm, String> {
        let bytes = self.read(STATE, MAX_STATE)?;
        if Digest::of(&bytes) != manifest.files.state {
            return Err(self.failed(STATE, &"it was altered since it was saved, or is another one's"));
        }
        SavedVm::decode(&bytes).map_err(|error| self.failed(STATE, &chain(&error)))
    }

    /// Checks that the disks are as they were.
    fn check_disks(&self, manifest: &Manifest) -> Result<(), String> {
        for before in &manifest.disks {
            let path = before.path.display();
            let found = match SavedDisk::of(&before.path) {
                Ok(now) if now == *before => continue,
                Ok(_) => format!(
                    "the disk {path} has changed since: a guest that knows its old content would damage it"
                ),
                Err(error) => format!("the disk {path}: {error}"),
            };
            return Err(self.failed(MANIFEST, &found));
        }
        Ok(())
    }
}

/// The snapshot in `directory`, with the configuration of its VM. Its memory is not looked at.
///
/// # Errors
///
/// What is wrong with it, on one line.
pub fn open(directory: &Path) -> Result<(VmConfig, Snapshot), String> {
    let reading = Reading(directory);
    let (manifest, config) = reading.manifest()?;
    reading.check_disks(&manifest)?;
    let state = reading.state(&manifest)?;
    let memory = reading.open(MEMORY)?;
    Ok((config, Snapshot { state, memory }))
}

/// Checks that all of the snapshot in `directory` is as it was saved, which takes as long as its memory takes to be read.
///
/// # Errors
///
/// What is wrong with it, on one line.
pub fn check(directory: &Path) -> Result<(), String> {
    let reading = Reading(directory);
    let (manifest, _) = reading.manifest()?;
    reading.check_disks(&manifest)?;
    let length = reading.state(&manifest)?.memory();
    let failed = |error: &dyn std::fmt::Display| reading.failed(MEMORY, error);
    let mut memory = reading.open(MEMORY)?;
    let found = memory.metadata().map_err(|error| failed(&error))?.len();
    if found != length {
        return Err(failed(&format!(
            "it has {found} bytes, and not {length}: it was cut off or is another one's"
        )));
    }
    if digest(&mut memory).map_err(|error| failed(&error))? != manifest.files.memory {
        return Err(failed(&"it was altered since it was saved, or is another one's"));
    }
    Ok(())
}
