//! Files that commands write.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};

/// Has `write` write the file at `path`. One that was there stays until the new one is whole; a device or a pipe is
/// written to, and not replaced.
///
/// # Errors
///
/// A line for the user.
pub fn to_file(path: &Path, write: impl FnOnce(&mut File) -> Result<(), String>) -> Result<(), String> {
    let cannot = |error: std::io::Error| format!("cannot write {}: {error}", path.display());
    if path.metadata().is_ok_and(|data| !data.is_file()) {
        let mut file = OpenOptions::new().write(true).open(path).map_err(cannot)?;
        return write(&mut file);
    }
    let mut name = path.to_owned().into_os_string();
    name.push(".new");
    let new = PathBuf::from(name);
    let mut file = File::create(&new).map_err(cannot)?;
    // After a crash of the host, a name can be there without what is in the file.
    let name = |file: &File| file.sync_data().and_then(|()| std::fs::rename(&new, path)).map_err(cannot);
    let written = write(&mut file).and_then(|()| name(&file));
    if written.is_err() {
        let _ = std::fs::remove_file(&new);
    }
    written
}
