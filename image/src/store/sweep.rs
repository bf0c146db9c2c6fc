//! Removing what no image needs.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use super::{FileLock, Store, StoreError, disk, files, io_error};
use crate::digest::Digest;

/// For how long a pull that was interrupted can be resumed.
const PARTIAL_AGE: Duration = Duration::from_secs(24 * 60 * 60);

impl Store {
    /// Notes that there may be something to remove. It is noted before that is so.
    pub(crate) fn mark_unswept(&self) -> Result<(), StoreError> {
        let path = self.path("unswept");
        if path.exists() { Ok(()) } else { files::write_synced(&path, b"") }
    }

    /// Removes content that no image needs, if there may be some, and says how many bytes that were. While a process
    /// adds or holds content, nothing is removed: it is done when the last one that adds ends, or when the store is
    /// opened next.
    pub(crate) fn sweep_if_needed(&self) -> Result<u64, StoreError> {
        let marker = self.path("unswept");
        if !marker.exists() {
            return Ok(0);
        }
        if self.path("naming").exists() {
            let _lock = self.lock()?;
            self.finish_naming()?;
        }
        let path = self.path("adding");
        let Some(_adding) = FileLock::try_exclusive(&path).map_err(io_error("lock", path))? else {
            return Ok(0);
        };
        let _lock = self.lock()?;
        let mut freed = 0;
        remove_entries(&self.path("tmp"), &mut freed, |_| true)?;
        let needed = self.needed()?;
        let is_old = |path: &Path| {
            let modified = fs::metadata(path).and_then(|data| data.modified());
            modified.is_ok_and(|time| time.elapsed().is_ok_and(|age| age > PARTIAL_AGE))
        };
        self.discard("layers", &mut freed, |name| !needed.layers.contains(name))?;
        self.discard("merged", &mut freed, |name| !needed.merged.contains(name))?;
        self.discard("blobs", &mut freed, |name| !needed.blobs.contains(name))?;
        let left = remove_entries(&self.path("partial"), &mut freed, is_old)?;
        if left == 0 {
            fs::remove_file(&marker).map_err(io_error("remove", marker))?;
        }
        Ok(freed)
    }

    /// Bytes of what interrupted pulls have left, with which the next one goes on.
    ///
    /// # Errors
    ///
    /// [`StoreError::Io`].
    pub fn interrupted(&self) -> Result<u64, StoreError> {
        let path = self.path("partial");
        let entries = fs::read_dir(&path).map_err(io_error("read", &path))?;
        Ok(entries.flatten().map(|entry| size_of(&entry.path())).sum())
    }

    /// Removes what interrupted pulls have left, but for what another process pulls now; how many bytes that were.
    ///
    /// # Errors
    ///
    /// [`StoreError::Io`].
    pub fn remove_interrupted(&self) -> Result<u64, StoreError> {
        let (path, mut freed) = (self.path("partial"), 0);
        let mut locks = Vec::new();
        let is_free = |path: &Path| match FileLock::try_exclusive(path) {
            Ok(Some(lock)) => {
                // Until it is removed: who waits for the lock finds that the file is not the same.
                locks.push(lock);
                true
            }
            _ => false,
        };
        remove_entries(&path, &mut freed, is_free)?;
        // Nothing may be left to be swept.
        Ok(freed + self.sweep_if_needed()?)
    }

    /// Removes the image that was recorded and then not named, as its process was killed in between. The caller has the
    /// lock.
    pub(super) fn finish_naming(&self) -> Result<(), StoreError> {
        let path = self.path("naming");
        if !path.exists() {
            return Ok(());
        }
        let text = files::read_bounded(&path)?;
        let id = std::str::from_utf8(&text).ok().and_then(Digest::from_hex);
        if let Some(id) = id
            && self.references()?.of(id).is_empty()
        {
            remove(&self.record_path(id), &mut 0)?;
        }
        remove(&path, &mut 0)
    }

    /// Removes entries of a directory. A directory is renamed first, so that it is never there in part.
    fn discard(
        &self,
        directory: &str,
        freed: &mut u64,
        is_garbage: impl Fn(&str) -> bool,
    ) -> Result<(), StoreError> {
        let path = self.path(directory);
        for entry in fs::read_dir(&path).map_err(io_error("read", &path))? {
            let entry = entry.map_err(io_error("read", &path))?;
            let name = entry.file_name();
            if is_garbage(&name.to_string_lossy()) {
                let discarded = self.path("tmp").join(&name);
                files::rename(&entry.path(), &discarded)?;
                remove(&discarded, freed)?;
            }
        }
        Ok(())
    }

    fn needed(&self) -> Result<Needed, StoreError> {
        let mut needed = Needed::default();
        for id in self.ids()? {
            // A record that can't be read keeps nothing but itself.
            let Ok(Some(record)) = self.record(id) else { continue };
            let diff_ids: Vec<Digest> = record.layers.iter().map(|layer| layer.diff_id).collect();
            needed.layers.extend(diff_ids.iter().map(Digest::hex));
            needed.merged.insert(disk::merged_key(&diff_ids).hex());
            needed.blobs.insert(id.hex());
            needed.blobs.extend(record.manifest.iter().map(|manifest| manifest.digest.hex()));
            needed
                .blobs
                .extend(record.layers.iter().filter_map(|layer| Some(layer.blob.as_ref()?.digest.hex())));
        }
        Ok(needed)
    }
}

/// Names of what images need.
#[derive(Default)]
struct Needed {
    layers: HashSet<String>,
    merged: HashSet<String>,
    blobs: HashSet<String>,
}

/// Removes entries of a directory, adds their bytes to `freed`, and says how many are left.
fn remove_entries(
    path: &Path,
    freed: &mut u64,
    mut is_garbage: impl FnMut(&Path) -> bool,
) -> Result<usize, StoreError> {
    let mut left = 0;
    for entry in fs::read_dir(path).map_err(io_error("read", path))? {
        let entry = entry.map_err(io_error("read", path))?;
        if is_garbage(&entry.path()) {
            remove(&entry.path(), freed)?;
        } else {
            left += 1;
        }
    }
    Ok(left)
}

/// Removes what is at `path`, and adds its bytes to `freed`.
fn remove(path: &Path, freed: &mut u64) -> Result<(), StoreError> {
    let size = size_of(path);
    let is_directory = fs::symlink_metadata(path).is_ok_and(|data| data.is_dir());
    let removed = if is_directory { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", path)(error)),
        _ => {
            *freed = freed.saturating_add(size);
            Ok(())
        }
    }
}

/// Bytes of the file at `path`, or of those in the directory.
fn size_of(path: &Path) -> u64 {
    match fs::symlink_metadata(path) {
        Ok(data) if data.is_dir() => {
            fs::read_dir(path).into_iter().flatten().flatten().map(|entry| size_of(&entry.path())).sum()
        }
        Ok(data) => data.len(),
        Err(_) => 0,
    }
}
