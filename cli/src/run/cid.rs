//! `--cidfile`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The file that gets a container's ID. One that is empty when this is dropped is removed: the container was not made.
/// Both the process that has made it and the one that keeps the container may have it.
#[derive(Debug)]
pub struct CidFile {
    /// Closed once it has the ID, so that it is not open for as long as the container runs.
    file: Option<File>,
    path: PathBuf,
    id: String,
}

impl CidFile {
    /// Makes the file at `path`.
    ///
    /// # Errors
    ///
    /// A line for the user: it exists, or can't be made.
    pub fn create(path: &Path) -> Result<Self, String> {
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::AlreadyExists => {
                format!("--cidfile {} exists: remove it if its container is not needed", path.display())
            }
            _ => format!("cannot make --cidfile {}: {error}", path.display()),
        };
        // A process in the background has another working directory.
        let absolute = std::path::absolute(path).map_err(failed)?;
        let file = OpenOptions::new().write(true).create_new(true).open(path).map_err(failed)?;
        Ok(Self { file: Some(file), path: absolute, id: String::new() })
    }

    /// Writes the ID of the container, which was made.
    ///
    /// # Errors
    ///
    /// A line for the user; the file goes.
    pub fn write(&mut self, id: &str) -> Result<(), String> {
        let Some(file) = &mut self.file else { return Ok(()) };
        if let Err(error) = file.write_all(id.as_bytes()) {
            let _ = file.set_len(0);
            return Err(format!("cannot write --cidfile {}: {error}", self.path.display()));
        }
        (self.file, self.id) = (None, id.to_owned());
        Ok(())
    }

    /// The container was removed again, since it could not be started: the file goes, unless it has another ID by now.
    pub fn forget(&self) {
        if !self.id.is_empty() && fs::read_to_string(&self.path).is_ok_and(|text| text == self.id) {
            let _ = fs::remove_file(&self.path);
        }
    }

    /// Whether it has no ID, and is still at its place.
    fn is_left(&self) -> io::Result<bool> {
        let Some(file) = &self.file else { return Ok(false) };
        let (own, there) = (file.metadata()?, fs::symlink_metadata(&self.path)?);
        Ok(own.len() == 0 && (own.dev(), own.ino()) == (there.dev(), there.ino()))
    }
}

impl Drop for CidFile {
    fn drop(&mut self) {
        if self.is_left().unwrap_or(false) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_has_the_id_or_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("id");
        drop(CidFile::create(&path).unwrap());
        assert!(!path.exists());
        let mut file = CidFile::create(&path).unwrap();
        let error = CidFile::create(&path).unwrap_err();
        assert!(error.contains("/id exists: remove it"), "{error}");
        file.write("0123456789ab").unwrap();
        drop(file);
        assert_eq!(fs::read_to_string(&path).unwrap(), "0123456789ab");
        assert!(CidFile::create(&path).is_err());
        fs::remove_file(&path).unwrap();
        let mut file = CidFile::create(&path).unwrap();
        file.write("0123456789ab").unwrap();
        file.forget();
        assert!(!path.exists());
        fs::write(&path, "of another").unwrap();
        file.forget();
        drop(file);
        assert!(path.exists());
    }

    #[test]
    fn that_of_another_stays_and_a_bad_path_is_said() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("id");
        let file = CidFile::create(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "").unwrap();
        drop(file);
        assert!(path.exists());
        for bad in ["", "/no/such/directory/id"] {
            let error = CidFile::create(Path::new(bad)).unwrap_err();
            assert!(error.starts_with("cannot make --cidfile"), "{error}");
        }
    }
}
