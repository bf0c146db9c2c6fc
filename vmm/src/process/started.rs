//! What a VM was started with, as its keeper notes it for other commands: the VM's process may have been taken over by its
//! guest when it is asked.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use devices::virtio::pmem::PmemMode;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::VmConfig;

/// The file in a VM's directory.
const FILE: &str = "started.json";
/// The most bytes of it.
const MOST: u64 = 1 << 20;

/// What a VM was started with.
#[derive(Debug, Serialize, Deserialize)]
pub struct Started {
    /// Its options, with absolute paths.
    pub config: Value,
    /// The files that its guest only reads.
    pub files: Vec<FileFacts>,
}

/// What a file is like that does not change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileFacts {
    /// Where it is.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// When it was last changed, in nanoseconds since 1970.
    pub changed: i128,
}

impl FileFacts {
    /// The file at `path` as it is now.
    ///
    /// # Errors
    ///
    /// Those of stat(2).
    pub fn of(path: &Path) -> io::Result<Self> {
        let metadata = fs::metadata(path)?;
        let changed = i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
        Ok(Self { path: path.to_owned(), bytes: metadata.len(), changed })
    }
}

impl Started {
    /// What the VM whose directory is `directory` was started with.
    ///
    /// # Errors
    ///
    /// On one line.
    pub fn read(directory: &Path) -> Result<Self, String> {
        let mut text = Vec::new();
        let read = File::open(directory.join(FILE)).and_then(|file| file.take(MOST).read_to_end(&mut text));
        match read {
            Ok(_) => {
                serde_json::from_slice(&text).map_err(|error| format!("{FILE} in its directory: {error}"))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err("what it was started with is not known: an older mvm has started it".to_owned())
            }
            Err(error) => Err(format!("cannot read {FILE} in its directory: {error}")),
        }
    }

    /// vCPUs and bytes of memory.
    ///
    /// # Errors
    ///
    /// On one line: the file is damaged.
    pub fn size(&self) -> Result<(u32, u64), String> {
        let number = |name: &str| self.config.get(name);
        let cpus = number("cpus").and_then(Value::as_u64).and_then(|cpus| u32::try_from(cpus).ok());
        let memory =
            number("memory").and_then(Value::as_str).and_then(|size| size.parse::<crate::MemorySize>().ok());
        let size = cpus.zip(memory.map(crate::MemorySize::bytes));
        size.ok_or_else(|| format!("{FILE} in its directory does not say how large it is"))
    }

    /// Refuses a VM one of whose files is another than it has open.
    ///
    /// # Errors
    ///
    /// A line that names the file.
    pub fn check_files(&self) -> Result<(), String> {
        for file in &self.files {
            let now = FileFacts::of(&file.path);
            let now = now.map_err(|error| format!("cannot look at {}: {error}", file.path.display()))?;
            if now != *file {
                return Err(format!(
                    "{} was replaced or changed since it started: stop it and start it again first",
                    file.path.display()
                ));
            }
        }
        Ok(())
    }
}

/// Notes in `directory` what a VM of `config` is started with.
pub(super) fn note(directory: &Path, config: &VmConfig) -> io::Result<()> {
    let config = config.in_directory(&std::env::current_dir()?);
    let disks =
        config.rootfs.iter().chain(&config.disks).filter(|disk| disk.read_only).map(|disk| &disk.path);
    let pmem = config.pmem.iter().filter(|pmem| pmem.mode == PmemMode::ReadOnly).map(|pmem| &pmem.path);
    // One that is not there keeps the VM from starting.
    let files = disks.chain(pmem).filter_map(|path| FileFacts::of(path).ok()).collect();
    let text = serde_json::to_vec(&Started { config: serde_json::to_value(&config)?, files })?;
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600).open(directory.join(FILE))?.write_all(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_vm_was_started_with_is_known_and_its_files_are_compared() {
        let directory = tempfile::tempdir().unwrap();
        assert!(Started::read(directory.path()).unwrap_err().contains("an older mvm"));
        let disk = directory.path().join("disk");
        fs::write(&disk, [0; 4096]).unwrap();
        let config = VmConfig {
            cpus: 3,
            rootfs: Some(format!("{},readonly", disk.display()).parse().unwrap()),
            ..VmConfig::new(PathBuf::from("/kernel"))
        };
        note(directory.path(), &config).unwrap();
        let started = Started::read(directory.path()).unwrap();
        assert_eq!(started.size().unwrap(), (3, config.memory.bytes()));
        assert_eq!(started.files.len(), 1);
        started.check_files().unwrap();
        fs::write(&disk, [0; 8192]).unwrap();
        assert!(started.check_files().unwrap_err().contains("was replaced or changed"));
        fs::write(directory.path().join(FILE), b"{").unwrap();
        assert!(Started::read(directory.path()).unwrap_err().contains("started.json"));
    }
}
