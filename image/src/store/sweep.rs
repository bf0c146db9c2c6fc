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

    /// Removes content that no image needs, if there may be some. While a process adds or holds content, nothing is
    /// removed: it is done when the last one that adds ends, or when the store is opened next.
    pub(crate) fn sweep_if_needed(&self) -> Result<(), StoreError> {
        let marker = self.path("unswept");
        if !marker.exists() {
            return Ok(());
        }
        if self.path("naming").exists() {
            let _lock = self.lock()?;
            self.finish_naming()?;
        }
        let path = self.path("adding");
        let Some(_adding) = FileLock::try_exclusive(&path).map_err(io_error("lock", path))? else {
            return Ok(());
        };
        let _lock = self.lock()?;
        remove_entries(&self.path("tmp"), |_, _| true)?;
        let needed = self.needed()?;
        let is_old = |path: &Path| {
            let modified = fs::metadata(path).and_then(|data| data.modified());
            modified.is_ok_and(|time| time.elapsed().is_ok_and(|age| age > PARTIAL_AGE))
        };
        let is_needed = |name: &str, of: &HashSet<String>| of.contains(name);
        self.discard("layers", |name, _| !is_needed(name, &needed.layers))?;
        self.discard("merged", |name, _| !is_needed(name, &needed.merged))?;
        self.discard("blobs", |name, _| !is_needed(name, &needed.blobs))?;
        let left = remove_entries(&self.path("partial"), |_, path| is_old(path))?;
        if left == 0 {
            fs::remove_file(&marker).map_err(io_error("remove", marker))?;
        }
        Ok(())
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
            remove(&self.record_path(id))?;
        }
        remove(&path)
    }

    /// Removes entries of a directory. A directory is renamed first, so that it is never there in part.
    fn discard(&self, directory: &str, is_garbage: impl Fn(&str, &Path) -> bool) -> Result<(), StoreError> {
        let path = self.path(directory);
        for entry in fs::read_dir(&path).map_err(io_error("read", &path))? {
            let entry = entry.map_err(io_error("read", &path))?;
            let name = entry.file_name();
            if is_garbage(&name.to_string_lossy(), &entry.path()) {
                let discarded = self.path("tmp").join(&name);
                files::rename(&entry.path(), &discarded)?;
                remove(&discarded)?;
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

/// Removes entries of a directory, and says how many are left.
fn remove_entries(path: &Path, is_garbage: impl Fn(&str, &Path) -> bool) -> Result<usize, StoreError> {
    let mut left = 0;
    for entry in fs::read_dir(path).map_err(io_error("read", path))? {
        let entry = entry.map_err(io_error("read", path))?;
        if is_garbage(&entry.file_name().to_string_lossy(), &entry.path()) {
            remove(&entry.path())?;
        } else {
            left += 1;
        }
    }
    Ok(left)
}

fn remove(path: &Path) -> Result<(), StoreError> {
    let is_directory = fs::symlink_metadata(path).is_ok_and(|data| data.is_dir());
    let removed = if is_directory { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", path)(error)),
        _ => Ok(()),
    }
}
