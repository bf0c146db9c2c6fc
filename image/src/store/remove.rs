//! Removing references and images.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;

use rustix::fs::{FallocateFlags, fallocate};

use super::{Store, StoreError, io_error};
use crate::digest::Digest;

/// What was removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// The references, as users write them.
    pub references: Vec<String>,
    /// Whose they were.
    pub id: Option<Digest>,
    /// The image, if it has no reference left.
    pub image: Option<Digest>,
}

/// Bytes of the disk that are kept back, so that images can be removed from one that is full.
const RESERVE: u64 = 64 << 10;

impl Store {
    /// Keeps some of the disk back where that is not so yet.
    pub(crate) fn keep_reserve(&self) {
        let path = self.path("reserve");
        if !path.exists() {
            let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
            // Without it, removing from a full disk may fail; all else works.
            let _ = file.map(|file| fallocate(file, FallocateFlags::empty(), 0, RESERVE));
        }
    }

    /// Writes once more, with what was kept back, if `error` is that the disk is full.
    fn with_reserve(
        &self,
        error: StoreError,
        write: impl FnOnce() -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let is_full =
            matches!(&error, StoreError::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull);
        if is_full && fs::remove_file(self.path("reserve")).is_ok() { write() } else { Err(error) }
    }

    /// Removes the reference, or the image with this ID. An image without references is removed with all content that
    /// no other has; content that is in use goes when it is not in use any longer.
    ///
    /// # Errors
    ///
    /// [`StoreError::NoImage`], [`StoreError::Ambiguous`], [`StoreError::Referenced`], [`StoreError::Io`].
    pub fn remove(&self, image: &str) -> Result<Removed, StoreError> {
        self.remove_unused(image, false, |_| false)
    }

    /// As [`Store::remove`], unless the image is used: `is_used` says whether a container needs one, and is asked while
    /// no other process can remove it. With `is_forced`, an ID stands for the image with all its references, and one
    /// that is used loses its references and stays.
    ///
    /// # Errors
    ///
    /// Those of [`Store::remove`], and [`StoreError::Used`].
    pub fn remove_unused(
        &self,
        image: &str,
        is_forced: bool,
        is_used: impl Fn(Digest) -> bool,
    ) -> Result<Removed, StoreError> {
        let mut removed = Removed::default();
        {
            let _lock = self.lock()?;
            let id = self.resolve_id(image)?.ok_or_else(|| StoreError::NoImage(image.to_owned()))?;
            removed.id = Some(id);
            let mut references = self.references()?;
            let key = references.key_of(image, id);
            if key.is_none() && !is_forced && references.of(id).len() > 1 {
                let references = references.of(id).join(", ");
                return Err(StoreError::Referenced { id: id.to_string(), references });
            }
            let keys = key.map_or_else(|| references.of(id), |key| vec![key]);
            let is_last = keys.len() >= references.of(id).len();
            let is_used = is_last && is_used(id);
            if is_used && (!is_forced || keys.is_empty()) {
                return Err(StoreError::Used(image.to_owned()));
            }
            for key in keys {
                references.remove(&key);
                let shown = key.parse().map_or_else(|_| key.clone(), |key: crate::Reference| key.to_string());
                removed.references.push(shown);
            }
            let write = || self.mark_unswept().and_then(|()| self.write_references(&references));
            write().or_else(|error| self.with_reserve(error, write))?;
            if references.of(id).is_empty() && !is_used {
                let path = self.record_path(id);
                fs::remove_file(&path).map_err(io_error("remove", path))?;
                removed.image = Some(id);
            }
        }
        self.sweep_if_needed()?;
        self.keep_reserve();
        Ok(removed)
    }
}
