//! What a snapshot says of itself: `manifest.json` in its directory.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use image::Digest;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use vmm::{DiskConfig, VmConfig, disk_name};

use crate::options::BootOptions;

/// The most bytes of a manifest.
pub const MAX_MANIFEST: u64 = 1 << 20;
/// The version of the directory's format.
const FORMAT: u32 = 1;
/// The most characters that are shown of an error which quotes the manifest.
const MOST_SHOWN: usize = 1000;

/// What a snapshot is of. A snapshot is used by who has made it: its paths are those of this host.
#[derive(Debug, Serialize, Deserialize)]
pub struct Manifest {
    format: u32,
    /// The mvm that has written it.
    mvm_version: String,
    created: String,
    /// The VM's options, as in a configuration file.
    config: Value,
    /// Its disks, in the order of the guest.
    pub disks: Vec<SavedDisk>,
    /// The files that it has as persistent memory, which it only reads.
    pub pmem: Vec<SavedDisk>,
    /// What the files beside the manifest have to be.
    pub files: Digests,
}

/// The digests of a snapshot's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digests {
    /// That of `state`, which is checked whenever it is read.
    pub state: Digest,
    /// That of `memory`, which is checked on request.
    pub memory: Digest,
}

/// A disk of the VM.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedDisk {
    /// Where it is, or was.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// When it was last changed, in nanoseconds since 1970, where the guest only reads it, and it has to be as it was.
    /// Of one that the guest writes to, the content is in the snapshot, under the name that the guest has for the disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed: Option<i128>,
}

impl SavedDisk {
    /// A disk that the guest only reads, as it is now.
    ///
    /// # Errors
    ///
    /// Those of stat(2).
    pub fn of(path: &Path) -> io::Result<Self> {
        let metadata = fs::metadata(path)?;
        let changed = i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
        Ok(Self { path: path.to_owned(), bytes: metadata.len(), changed: Some(changed) })
    }
}

impl Manifest {
    /// That of a VM with these options and disks.
    pub fn new(
        config: Value,
        (disks, pmem): (Vec<SavedDisk>, Vec<SavedDisk>),
        created: String,
        files: Digests,
    ) -> Self {
        let mvm_version = env!("CARGO_PKG_VERSION").into();
        Self { format: FORMAT, mvm_version, created, config, disks, pmem, files }
    }

    /// Reads one, which anybody may have written.
    ///
    /// # Errors
    ///
    /// What is wrong with it and what to do, on one line, as a phrase behind the file's name.
    pub fn read(bytes: &[u8]) -> Result<(Self, VmConfig), String> {
        #[derive(Deserialize)]
        struct Version {
            format: u32,
            mvm_version: String,
        }
        let invalid = |error: serde_json::Error| {
            is_damaged(&format!("line {}, column {}", error.line(), error.column()))
        };
        let Version { format, mvm_version } = serde_json::from_slice(bytes).map_err(invalid)?;
        if format != FORMAT {
            let version = shown(&mvm_version);
            return Err(format!(
                "has version {format} of its format, and this mvm knows {FORMAT}: use mvm {version}"
            ));
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(invalid)?;
        let config = options(&manifest.config).map_err(|message| is_damaged(&message))?;
        let (own, named) = (manifest.disks.len(), disks(&config).count());
        if own != named {
            return Err(is_damaged(&format!("it describes {own} disks, and the VM has {named}")));
        }
        if manifest.pmem.len() != config.pmem.len() || manifest.pmem.iter().any(|file| file.changed.is_none())
        {
            return Err(is_damaged("it does not describe all files of persistent memory"));
        }
        for (index, (disk, own)) in disks(&config).zip(&manifest.disks).enumerate() {
            if disk.read_only != own.changed.is_some() {
                let name = disk_name(index);
                return Err(is_damaged(&format!("what it says of {name} is contradictory")));
            }
        }
        Ok((manifest, config))
    }

    /// Whether what leads to the guest's agent is in the VM's directory.
    pub fn has_agent(&self) -> bool {
        has_agent(&self.config)
    }

    /// As bytes.
    ///
    /// # Errors
    ///
    /// Those of serde_json.
    pub fn to_bytes(&self) -> io::Result<Vec<u8>> {
        Ok(serde_json::to_vec_pretty(self)?)
    }
}

/// What is said of a manifest that can't be used: `what` is wrong with it.
fn is_damaged(what: &str) -> String {
    format!("is damaged ({what}): take a new snapshot")
}

/// Whether what leads to the agent of a VM with these options is in its directory.
pub fn has_agent(config: &Value) -> bool {
    config.get("agent") == Some(&true.into())
}

/// A message that quotes a manifest, on one line that is not too long.
fn shown(message: &str) -> String {
    let shown = message.chars().take(MOST_SHOWN);
    shown.map(|shown| if shown.is_control() { '\u{fffd}' } else { shown }).collect()
}

/// The disks of a VM, in the order of the guest.
pub fn disks(config: &VmConfig) -> impl Iterator<Item = &DiskConfig> {
    config.rootfs.iter().chain(&config.disks)
}

/// The same, to be changed.
pub fn disks_mut(config: &mut VmConfig) -> impl Iterator<Item = &mut DiskConfig> {
    config.rootfs.iter_mut().chain(&mut config.disks)
}

/// The configuration of a VM with these options.
///
/// # Errors
///
/// What is wrong with it, on one line.
pub fn options(config: &Value) -> Result<VmConfig, String> {
    let options =
        BootOptions::deserialize(config).map_err(|error| shown(&format!("invalid options: {error}")))?;
    options.into_config().map_err(|message| shown(&message))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the first mvm with this format has written it.
    const FIRST: &str = r#"{
        "format": 1, "mvm_version": "0.1.0", "created": "1795827991310",
        "config": {
            "kernel": "/k", "memory": "32M", "cpus": 1, "console": "stdio", "agent": true, "stop-timeout": "10s",
            "rootfs": "/root.img,readonly", "disk": ["/proc/21214/fd/8,format=raw,id=data"],
            "pmem": ["/pmem,readonly"]
        },
        "disks": [
            {"path": "/root.img", "bytes": 8192, "changed": 1795827991310123456},
            {"path": "/proc/21214/fd/8", "bytes": 4096}
        ],
        "pmem": [{"path": "/pmem", "bytes": 2097152, "changed": 1}],
        "files": {
            "state": "sha256:a775bc8e679ad41f95311a6f2923af3fca94384a1d9b6b678769db9b38778cc8",
            "memory": "sha256:85ea796549780d9bd086898b57152bb057dbeff640e57bfac92228b6c53c15a4"
        }
    }"#;

    #[test]
    fn that_of_the_first_mvm_with_this_format_is_read() {
        let (manifest, config) = Manifest::read(FIRST.as_bytes()).unwrap();
        let changed: Vec<_> = manifest.disks.iter().map(|disk| disk.changed).collect();
        assert_eq!(changed, [Some(1_795_827_991_310_123_456), None]);
        assert!(manifest.has_agent() && config.vsock.is_none());
        assert_eq!(disks(&config).map(|disk| disk.read_only).collect::<Vec<_>>(), [true, false]);
        let again = manifest.to_bytes().unwrap();
        assert_eq!(Manifest::read(&again).unwrap().0.disks, manifest.disks);
    }

    #[test]
    fn what_is_wrong_with_one_is_said_on_one_short_line() {
        let long = "\\n\\u001b[2J".repeat(4000);
        for (from, to, expected) in [
            ("\"format\": 1", "\"format\": 7", "use mvm 0.1.0"),
            ("0.1.0", &*format!("{long}\", \"format\": 1, \"x\": \""), "is damaged (line 2, column "),
            ("/root.img,readonly", &*format!("/root.img,{long}"), "invalid options"),
            (", \"changed\": 1795827991310123456", "", "says of vda is contradictory"),
            ("\"bytes\": 4096", "\"bytes\": 4096, \"changed\": 0", "says of vdb is contradictory"),
            (", \"changed\": 1}", "}", "persistent memory"),
            ("sha256:a", "sha256:x", "is damaged (line "),
            ("\"bytes\": 8192", "\"bytes\": -1", "is damaged (line "),
        ] {
            assert!(FIRST.contains(from), "{from}");
            let error = Manifest::read(FIRST.replacen(from, to, 1).as_bytes()).unwrap_err();
            assert!(error.contains(expected), "{expected}: {error}");
            assert!(!error.contains(char::is_control) && error.chars().count() < 1200, "{error}");
        }
    }
}
