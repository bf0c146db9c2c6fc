//! What a VM's directory says of it.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use rustix::fs::{Mode, OFlags, open};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{Process, VmId, VmName, written};

/// The file's name.
const FILE: &str = "vm.json";
/// A record is some hundred bytes and two paths.
const MAX_SIZE: u64 = 64 << 10;

/// The version of a record. One that is newer than this program's is refused when it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32")]
pub struct Format(u32);

impl Format {
    /// That of records which do not name it.
    pub(crate) fn first() -> Self {
        Self(1)
    }
}

impl Default for Format {
    /// This program's.
    fn default() -> Self {
        Self(1)
    }
}

impl TryFrom<u32> for Format {
    type Error = String;

    fn try_from(number: u32) -> Result<Self, String> {
        let own = Self::default();
        if number <= own.0 {
            Ok(Self(number))
        } else {
            Err(format!(
                "its format {number} is newer than {}, the newest that this mvm reads: use a newer mvm",
                own.0
            ))
        }
    }
}

/// Who a VM is. It is written before the VM runs, and again when that has a process of its own; fields that another
/// version of mvm has beyond these are passed over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The version of the record.
    #[serde(default = "Format::first")]
    pub format: Format,
    /// The VM's ID, which is the directory's name too.
    pub id: VmId,
    /// Its name.
    pub name: Option<VmName>,
    /// The process that keeps it: its signals, exit code and files.
    pub process: Process,
    /// The process that runs it; `None` before it is there, and in records of older versions, where that is the same
    /// one.
    #[serde(default)]
    pub vm_process: Option<Process>,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// What it is made of.
    pub config: Summary,
}

/// The part of a configuration that `mvm ps` shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Number of vCPUs.
    pub cpus: u32,
    /// RAM in bytes.
    pub memory: u64,
    /// The kernel's path.
    pub kernel: String,
    /// The path of the root file system's disk.
    pub rootfs: Option<String>,
    /// How long the guest has to power off when it is asked to, in milliseconds; `None` in records of older versions.
    #[serde(default)]
    pub stop_timeout_ms: Option<u64>,
}

/// What is wrong with a record.
#[derive(Debug, Error)]
pub enum RecordError {
    /// It can't be read.
    #[error("cannot read {FILE}")]
    Read(#[source] io::Error),
    /// It is not a file, or is larger than any record.
    #[error("{FILE} is not a file of at most 64 KiB")]
    NotAFile,
    /// It is not JSON, or lacks something.
    #[error("{FILE}")]
    Content(#[source] serde_json::Error),
    /// It is that of another VM.
    #[error("{FILE} belongs to VM {0}")]
    OfAnother(VmId),
}

impl RecordError {
    /// Whether there is no record.
    pub(super) fn is_missing(&self) -> bool {
        matches!(self, Self::Read(error) if error.kind() == io::ErrorKind::NotFound)
    }
}

impl Record {
    /// The process that the guest runs in.
    pub fn running_process(&self) -> &Process {
        self.vm_process.as_ref().unwrap_or(&self.process)
    }

    /// Writes the record to `directory`, in one step, so that no reader sees a part of it.
    pub(super) fn write(&self, directory: &Path) -> io::Result<()> {
        // No VM outlives a crash of the host.
        written::replace_for_now(&directory.join(FILE), "vm.json.new", &serde_json::to_vec(self)?)
    }

    /// Reads the record of the VM `id` in `directory`. Whatever lies there instead of it, this returns soon.
    pub(super) fn read(directory: &Path, id: &VmId) -> Result<Self, RecordError> {
        // A pipe without a writer would make the opener wait.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = open(directory.join(FILE), flags, Mode::empty());
        let file = File::from(file.map_err(|error| RecordError::Read(error.into()))?);
        let metadata = file.metadata().map_err(RecordError::Read)?;
        if !metadata.is_file() || metadata.len() > MAX_SIZE {
            return Err(RecordError::NotAFile);
        }
        let mut content = Vec::new();
        file.take(MAX_SIZE).read_to_end(&mut content).map_err(RecordError::Read)?;
        let record: Self = serde_json::from_slice(&content).map_err(RecordError::Content)?;
        if record.id == *id { Ok(record) } else { Err(RecordError::OfAnother(record.id)) }
    }
}

/// Whether the record of the VM in `directory` has been removed.
pub(super) fn is_missing(directory: &Path) -> bool {
    let metadata = fs::symlink_metadata(directory.join(FILE));
    metadata.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use proptest::prelude::*;
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;

    fn record(name: Option<VmName>, kernel: String) -> Record {
        Record {
            format: Format::default(),
            id: VmId::from_bytes([1, 2, 3, 4, 5, 6]),
            name,
            process: Process { pid: 1, start_time: 2, boot_id: "x".into() },
            vm_process: None,
            created: 3,
            config: Summary { cpus: 4, memory: 5, kernel, rootfs: None, stop_timeout_ms: Some(1500) },
        }
    }

    proptest! {
        #[test]
        fn a_record_reads_back_as_written(name in proptest::option::of("[a-z][a-z0-9_.-]{0,20}"), kernel: String) {
            let directory = tempfile::tempdir().unwrap();
            let record = record(name.map(|name| name.parse().unwrap()), kernel);
            record.write(directory.path()).unwrap();
            prop_assert_eq!(Record::read(directory.path(), &record.id).unwrap(), record);
        }

        #[test]
        fn what_is_no_record_is_refused(content: Vec<u8>) {
            let directory = tempfile::tempdir().unwrap();
            fs::write(directory.path().join(FILE), content).unwrap();
            prop_assert!(Record::read(directory.path(), &VmId::from_bytes([0; 6])).is_err());
        }

        /// Each byte of a good record is damaged in turn: it is refused, or still says nothing that it must not.
        #[test]
        fn a_damaged_record_is_harmless(index: prop::sample::Index, byte: u8) {
            let directory = tempfile::tempdir().unwrap();
            let good = record(Some("web".parse().unwrap()), "vmlinux".into());
            let mut content = serde_json::to_vec(&good).unwrap();
            let index = index.index(content.len());
            content[index] = byte;
            fs::write(directory.path().join(FILE), content).unwrap();
            if let Ok(read) = Record::read(directory.path(), &good.id) {
                prop_assert_eq!(read.id, good.id);
            }
        }
    }

    /// Records as other versions write them.
    #[rstest]
    #[case::of_the_first_version(&["format"], json!({}), None)]
    #[case::without_later_fields(&["format", "config.stop_timeout_ms"], json!({}), None)]
    #[case::with_unknown_fields(&[], json!({"later": {"a": [1]}, "config": {"gpus": 3}, "process": {"x": null}}), None)]
    #[case::of_an_unknown_format(&[], json!({"format": 99}), Some("its format 99 is newer than 1, the newest that this mvm reads: use a newer mvm"))]
    #[case::of_a_format_that_is_no_number(&[], json!({"format": "x"}), Some("invalid type"))]
    #[case::without_its_process(&["process"], json!({}), Some("missing field `process`"))]
    fn records_of_other_versions_are_read_or_named(
        #[case] removed: &[&str],
        #[case] added: Value,
        #[case] says: Option<&str>,
    ) {
        let directory = tempfile::tempdir().unwrap();
        let good = record(Some("web".parse().unwrap()), "vmlinux".into());
        let mut content = serde_json::to_value(&good).unwrap();
        for path in removed {
            let (parent, key) = path.rsplit_once('.').unwrap_or(("", path));
            let parent = if parent.is_empty() { &mut content } else { &mut content[parent] };
            parent.as_object_mut().unwrap().remove(key).unwrap();
        }
        merge(&mut content, added);
        fs::write(directory.path().join(FILE), content.to_string()).unwrap();
        match (Record::read(directory.path(), &good.id), says) {
            (Ok(read), None) => assert_eq!((read.id, read.name), (good.id, good.name)),
            (Err(RecordError::Content(error)), Some(says)) => {
                assert!(error.to_string().contains(says), "{error}")
            }
            (read, _) => panic!("{read:?}"),
        }
    }

    fn merge(into: &mut Value, added: Value) {
        match (into, added) {
            (Value::Object(into), Value::Object(added)) => {
                added
                    .into_iter()
                    .for_each(|(key, value)| merge(into.entry(key).or_insert(Value::Null), value));
            }
            (into, added) => *into = added,
        }
    }

    #[test]
    fn what_is_no_file_is_refused_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE);
        let id = VmId::from_bytes([0; 6]);
        let read = || Record::read(directory.path(), &id);
        assert!(matches!(read(), Err(RecordError::Read(_))));
        symlink("/dev/zero", &path).unwrap();
        assert!(matches!(read(), Err(RecordError::Read(_))), "a link is not followed");
        fs::remove_file(&path).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap();
        assert!(matches!(read(), Err(RecordError::NotAFile)));
        fs::remove_file(&path).unwrap();
        File::create(&path).unwrap().set_len(1 << 40).unwrap();
        assert!(matches!(read(), Err(RecordError::NotAFile)));
    }

    #[test]
    fn the_record_of_another_vm_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        record(None, "x".into()).write(directory.path()).unwrap();
        let read = Record::read(directory.path(), &VmId::from_bytes([9; 6]));
        assert!(matches!(read, Err(RecordError::OfAnother(_))));
    }
}
