//! Snapshots that are there: opened for a VM, and checked.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use image::Digest;
use vmm::{SavedVm, Snapshot, VmConfig, disk_name};

use super::copies::Saved;
use super::manifest::{MAX_MANIFEST, Manifest, SavedDisk};
use super::place::{MANIFEST, MEMORY, STATE, digest};
use crate::chain;

/// The most bytes of a state.
pub const MAX_STATE: u64 = 64 << 20;

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

    /// The disks whose content the snapshot has.
    fn disks(&self, manifest: &Manifest) -> Result<Vec<Saved>, String> {
        let mut saved = Vec::new();
        for (index, disk) in manifest.disks.iter().enumerate().filter(|(_, disk)| disk.changed.is_none()) {
            let (name, bytes) = (disk_name(index), disk.bytes);
            let file = self.open(&name)?;
            let found = file.metadata().map_err(|error| self.failed(&name, &error))?;
            if !found.is_file() || found.len() != bytes {
                let found = found.len();
                return Err(self.failed(
                    &name,
                    &format!("it has {found} bytes, and not {bytes}: it was cut off or is another one's"),
                ));
            }
            let (shown, beside) = (self.0.join(&name), self.0.to_owned());
            saved.push(Saved { index, file, bytes, shown, beside, is_own: false });
        }
        Ok(saved)
    }

    /// Checks that files which are only read are as they were.
    fn check_disks(&self, manifest: &Manifest) -> Result<(), String> {
        for before in manifest.disks.iter().chain(&manifest.pmem).filter(|file| file.changed.is_some()) {
            let path = before.path.display();
            let found = match SavedDisk::of(&before.path) {
                Ok(now) if now == *before => continue,
                Ok(_) => {
                    format!("{path} has changed since: a guest that knows its old content would damage it")
                }
                Err(error) => format!("{path}: {error}"),
            };
            return Err(self.failed(MANIFEST, &found));
        }
        Ok(())
    }
}

/// A snapshot that a VM goes on from.
pub struct Opened {
    /// Its state and memory.
    pub snapshot: Snapshot,
    /// The disks that it has the content of.
    pub disks: Vec<Saved>,
    /// What leads to the guest's agent is in the VM's directory.
    pub has_agent: bool,
    /// Where the VM's copies of them are to be; `None` for files without names.
    pub place: Option<PathBuf>,
}

impl Opened {
    /// What the VM's root is called, where it is a copy.
    pub fn root(&self, config: &VmConfig) -> Option<String> {
        let root = self.disks.first().filter(|disk| config.rootfs.is_some() && disk.index == 0);
        root.map(|disk| disk.shown.display().to_string())
    }
}

/// The snapshot in `directory`, with the configuration of its VM, whose disks are copied to `place` later. Its memory
/// is not looked at.
///
/// # Errors
///
/// What is wrong with it, on one line.
pub fn open(directory: &Path, place: Option<PathBuf>) -> Result<(VmConfig, Opened), String> {
    let reading = Reading(directory);
    let (manifest, config) = reading.manifest()?;
    reading.check_disks(&manifest)?;
    let disks = reading.disks(&manifest)?;
    let state = reading.state(&manifest)?;
    let memory = reading.open(MEMORY)?;
    Ok((
        config,
        Opened { snapshot: Snapshot::new(state, memory), disks, has_agent: manifest.has_agent(), place },
    ))
}

/// Checks that all of the snapshot in `directory` is as it was saved, which takes as long as its memory takes to be
/// read.
///
/// # Errors
///
/// What is wrong with it, on one line.
pub fn check(directory: &Path) -> Result<(), String> {
    let reading = Reading(directory);
    let (manifest, _) = reading.manifest()?;
    reading.check_disks(&manifest)?;
    reading.disks(&manifest)?;
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
