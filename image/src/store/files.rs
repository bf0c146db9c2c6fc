//! Files of the store.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;
use serde::de::DeserializeOwned;

use super::{MAX_DOCUMENT, StoreError, io_error};

/// Makes a file that does not exist, to be read and written.
pub(crate) fn create(path: &Path) -> Result<File, StoreError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(0o600);
    options.open(path).map_err(io_error("create", path))
}

/// Writes a whole file, and waits until it is on the disk.
pub(crate) fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(path).map_err(io_error("create", path))?;
    file.write_all(bytes).and_then(|()| file.sync_data()).map_err(io_error("write", path))
}

/// Renames a file or directory.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<(), StoreError> {
    fs::rename(from, to).map_err(io_error("create", to))
}

/// Opens a file to be read. Whatever lies there instead of it, this returns soon.
pub(crate) fn open(path: &Path) -> Result<File, StoreError> {
    let mut options = OpenOptions::new();
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = options.read(true).custom_flags(flags).open(path).map_err(io_error("read", path))?;
    if file.metadata().map_err(io_error("read", path))?.is_file() {
        Ok(file)
    } else {
        Err(StoreError::Damaged { path: path.to_owned() })
    }
}

/// Reads a file of up to [`MAX_DOCUMENT`] bytes.
pub(crate) fn read_bounded(path: &Path) -> Result<Vec<u8>, StoreError> {
    let file = open(path)?;
    // Most records are read by one call.
    let mut bytes = Vec::with_capacity(4 << 10);
    file.take(MAX_DOCUMENT + 1).read_to_end(&mut bytes).map_err(io_error("read", path))?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length <= MAX_DOCUMENT) {
        Ok(bytes)
    } else {
        Err(StoreError::Damaged { path: path.to_owned() })
    }
}

/// Reads a file of JSON that the store wrote.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, StoreError> {
    serde_json::from_slice(&read_bounded(path)?).map_err(|_| StoreError::Damaged { path: path.to_owned() })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::process::Command;

    use super::*;

    #[test]
    fn what_is_no_file_is_damaged_and_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        assert!(Command::new("mkfifo").arg(path("fifo")).status().unwrap().success());
        symlink("/dev/zero", path("zero")).unwrap();
        fs::create_dir(path("directory")).unwrap();
        for name in ["fifo", "zero", "directory"] {
            let error = read_bounded(&path(name)).unwrap_err();
            assert!(matches!(error, StoreError::Damaged { .. }), "{name}: {error}");
        }
    }
}
