//! Files that are written in one step.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use rustix::fs::{Mode, OFlags, open};

/// Puts a file with `content` at `path`, by the name `new` in its directory: who reads it sees the file before or this
/// one, and no part, also after a crash of the host. It is its owner's alone.
///
/// # Errors
///
/// Those of writing it; what was there stays.
pub fn replace(path: &Path, new: &str, content: &[u8]) -> io::Result<()> {
    let new = path.with_file_name(new);
    write_whole(&new, content)?;
    fs::rename(&new, path)
}

/// Writes `content` to the file at `path`, which is to be given its name then, and waits until that is on the disk: a
/// name can be there before what is in the file.
///
/// # Errors
///
/// Those of writing it.
pub fn write_whole(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = begin(path)?;
    file.write_all(content)?;
    file.sync_data()
}

/// As [`replace`], for a file that no process needs after a crash of the host: the disk is not waited for.
///
/// # Errors
///
/// Those of writing it; what was there stays.
pub fn replace_for_now(path: &Path, new: &str, content: &[u8]) -> io::Result<()> {
    let new = path.with_file_name(new);
    begin(&new)?.write_all(content)?;
    fs::rename(&new, path)
}

fn begin(path: &Path) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    Ok(open(path, flags, Mode::RUSR | Mode::WUSR)?.into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_file_is_replaced_as_a_whole_or_stays() {
        let directory = tempfile::tempdir().unwrap();
        let [path, new, other] = ["file", "file.new", "other"].map(|name| directory.path().join(name));
        for replace in [replace, replace_for_now] {
            fs::write(&path, "before").unwrap();
            // What a killed process has left.
            begin(&new).unwrap().write_all(b"longer than the content").unwrap();
            replace(&path, "file.new", b"content").unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"content");
            assert!(!new.exists());
            assert_eq!(path.metadata().unwrap().permissions().mode() & 0o077, 0);
            symlink(&other, &new).unwrap();
            replace(&path, "file.new", b"later").unwrap_err();
            assert_eq!(fs::read(&path).unwrap(), b"content");
            assert!(!other.exists());
            fs::remove_file(&new).unwrap();
            fs::remove_file(&path).unwrap();
        }
    }
}
