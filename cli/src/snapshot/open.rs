//! Snapshots that are there: opened for a VM, and checked.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
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
struct Reading<'a> {
    directory: &'a Path,
    /// What it is read for, as messages say it.
    doing: &'static str,
}

impl<'a> Reading<'a> {
    /// The snapshot in `directory`, if there is one.
    fn of(directory: &'a Path, doing: &'static str) -> Result<Self, String> {
        let reading = Self { directory, doing };
        let is_missing =
            |path: &Path| fs::metadata(path).is_err_and(|error| error.kind() == ErrorKind::NotFound);
        if is_missing(directory) {
            return Err(reading.failed("there is no such directory"));
        }
        if !directory.is_dir() || is_missing(&directory.join(MANIFEST)) {
            let no_snapshot = format!(
                "it is not a snapshot (it has no {MANIFEST}): name a directory made by `mvm snapshot`"
            );
            return Err(reading.failed(&no_snapshot));
        }
        Ok(reading)
    }

    fn failed(&self, message: &str) -> String {
        format!("cannot {} {}: {message}", self.doing, self.directory.display())
    }

    /// What can't be mended in the snapshot.
    fn damaged(&self, message: &str) -> String {
        self.failed(&format!("{message}: take a new snapshot"))
    }

    fn unreadable(&self, name: &str, error: &io::Error) -> String {
        match error.kind() {
            ErrorKind::NotFound => self.damaged(&format!("{name} is missing")),
            _ => self.failed(&format!("cannot read {name}: {error}")),
        }
    }

    fn open(&self, name: &str) -> Result<File, String> {
        File::open(self.directory.join(name)).map_err(|error| self.unreadable(name, &error))
    }

    fn altered(&self, name: &str) -> String {
        self.damaged(&format!("{name} was altered since it was saved, or is from another snapshot"))
    }

    fn cut_off(&self, name: &str, found: u64, bytes: u64) -> String {
        self.damaged(&format!(
            "{name} has {found} bytes, and not {bytes} (it was cut off, or is from another snapshot)"
        ))
    }

    /// All of a file, if it has no more than `most` bytes.
    fn read(&self, name: &str, most: u64) -> Result<Vec<u8>, String> {
        let mut content = Vec::new();
        let file = self.open(name)?;
        file.take(most + 1).read_to_end(&mut content).map_err(|error| self.unreadable(name, &error))?;
        match content.len() as u64 <= most {
            true => Ok(content),
            false => Err(self.damaged(&format!("{name} has more than {} MiB", most >> 20))),
        }
    }

    fn manifest(&self) -> Result<(Manifest, VmConfig), String> {
        let read = Manifest::read(&self.read(MANIFEST, MAX_MANIFEST)?);
        read.map_err(|message| self.failed(&format!("{MANIFEST} {message}")))
    }

    fn state(&self, manifest: &Manifest) -> Result<SavedVm, String> {
        let bytes = self.read(STATE, MAX_STATE)?;
        if Digest::of(&bytes) != manifest.files.state {
            return Err(self.altered(STATE));
        }
        SavedVm::decode(&bytes).map_err(|error| {
            let message = format!("{STATE}: {}", chain(&error));
            // One of another version says which mvm to use.
            if message.contains(": use ") { self.failed(&message) } else { self.damaged(&message) }
        })
    }

    /// The disks whose content the snapshot has.
    fn disks(&self, manifest: &Manifest) -> Result<Vec<Saved>, String> {
        let mut saved = Vec::new();
        for (index, disk) in manifest.disks.iter().enumerate().filter(|(_, disk)| disk.changed.is_none()) {
            let (name, bytes) = (disk_name(index), disk.bytes);
            let file = self.open(&name)?;
            let found = file.metadata().map_err(|error| self.unreadable(&name, &error))?;
            if !found.is_file() || found.len() != bytes {
                return Err(self.cut_off(&name, found.len(), bytes));
            }
            let (shown, beside) = (self.directory.join(&name), self.directory.to_owned());
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
                Ok(_) => format!("the disk {path} has changed since the snapshot"),
                Err(error) => format!("cannot read the disk {path}: {error}"),
            };
            return Err(self.failed(&format!("{found}: put the old file back, or take a new snapshot")));
        }
        Ok(())
    }
}

/// A snapshot that a VM starts from.
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
    let reading = Reading::of(directory, "restore")?;
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
    let reading = Reading::of(directory, "check")?;
    let (manifest, _) = reading.manifest()?;
    reading.check_disks(&manifest)?;
    reading.disks(&manifest)?;
    let length = reading.state(&manifest)?.memory();
    let unreadable = |error: io::Error| reading.unreadable(MEMORY, &error);
    let mut memory = reading.open(MEMORY)?;
    let found = memory.metadata().map_err(unreadable)?.len();
    if found != length {
        return Err(reading.cut_off(MEMORY, found, length));
    }
    if digest(&mut memory).map_err(unreadable)? != manifest.files.memory {
        return Err(reading.altered(MEMORY));
    }
    Ok(())
}
