//! Adding to the store.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use super::records::{ImageRecord, LayerRecord};
use super::{FileLock, Store, StoreError, files, io_error};
use crate::digest::Digest;
use crate::reference::Reference;

/// While this exists, no content is removed from the store, though images and references may be.
#[derive(Debug)]
pub struct Hold {
    _adding: FileLock,
    store: Store,
}

impl Hold {
    /// Whether the store has the image, when all that remove one at this moment have done so.
    ///
    /// # Errors
    ///
    /// [`StoreError::Io`].
    pub fn has(&self, id: Digest) -> Result<bool, StoreError> {
        let _lock = self.store.lock()?;
        Ok(self.store.record_path(id).exists())
    }
}

/// One who adds content. What it has added stays until it ends, though no image needs it yet; its temporary files are
/// removed when it ends.
pub(crate) struct Session<'a> {
    pub(crate) store: &'a Store,
    hold: Option<Hold>,
    directory: PathBuf,
    next: AtomicU64,
    /// How many more bytes layers may have when they are unpacked.
    unpacked_left: AtomicU64,
}

impl Store {
    /// Keeps all content, as between finding an image and opening its files.
    ///
    /// # Errors
    ///
    /// [`StoreError::Io`].
    pub fn hold(&self) -> Result<Hold, StoreError> {
        let path = self.path("adding");
        let adding = FileLock::shared(&path).map_err(io_error("lock", path))?;
        Ok(Hold { _adding: adding, store: self.clone() })
    }

    pub(crate) fn session(&self) -> Result<Session<'_>, StoreError> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let hold = self.hold()?;
        self.mark_unswept()?;
        self.keep_reserve();
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        // A process of another container may have the same ID.
        let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
        let directory = self.path("tmp").join(format!("{}-{count}-{time}", std::process::id()));
        fs::create_dir(&directory).map_err(io_error("create", &directory))?;
        Ok(Session {
            store: self,
            hold: Some(hold),
            directory,
            next: AtomicU64::new(0),
            unpacked_left: AtomicU64::new(self.max_unpacked),
        })
    }
}

impl Session<'_> {
    /// A path for a new temporary file or directory.
    pub(crate) fn temporary(&self) -> PathBuf {
        self.directory.join(self.next.fetch_add(1, Ordering::Relaxed).to_string())
    }

    /// Takes bytes of what may be unpacked, and says whether that is possible.
    pub(crate) fn take_unpacked(&self, bytes: u64) -> bool {
        let taken = self
            .unpacked_left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes));
        taken.is_ok()
    }

    /// The error of a layer for which too little was left.
    pub(crate) fn too_much(&self) -> StoreError {
        StoreError::Unpacked(self.store.max_unpacked)
    }

    /// Stores a manifest or a configuration.
    pub(crate) fn add_document(&self, bytes: &[u8]) -> Result<Digest, StoreError> {
        let digest = Digest::of(bytes);
        if self.store.document(digest).is_err() {
            let temporary = self.temporary();
            files::write_synced(&temporary, bytes)?;
            self.add_blob(&temporary, digest)?;
        }
        Ok(digest)
    }

    /// Stores a file whose digest has been verified and which is on the disk.
    pub(crate) fn add_blob(&self, file: &Path, digest: Digest) -> Result<(), StoreError> {
        files::rename(file, &self.store.blob_path(digest))
    }

    /// Records the image whose configuration and layers have been added, with references to it, each with the digest
    /// that a registry has for it.
    pub(crate) fn add_image(
        &self,
        id: Digest,
        record: &ImageRecord,
        references: &[(Reference, Option<Digest>)],
    ) -> Result<(), StoreError> {
        let diff_ids: Vec<Digest> = record.layers.iter().map(|layer| layer.diff_id).collect();
        self.store.merged(id, &diff_ids, self)?;
        let _lock = self.store.lock()?;
        self.store.finish_naming()?;
        let is_new = self.store.record(id)?.is_none() && !references.is_empty();
        if is_new {
            files::write_synced(&self.store.path("naming"), id.hex().as_bytes())?;
        }
        let record = self.with_known(id, record)?;
        self.store.replace_json(&self.store.record_path(id), &record)?;
        let mut all = self.store.references()?;
        for (reference, digest) in references {
            all.set(reference, id, *digest);
        }
        self.store.write_references(&all)?;
        if is_new { self.store.finish_naming() } else { Ok(()) }
    }

    /// The record with what an earlier one knows more.
    fn with_known(&self, id: Digest, record: &ImageRecord) -> Result<ImageRecord, StoreError> {
        if record.manifest.is_some() {
            return Ok(record.clone());
        }
        let known = self.store.record(id)?;
        Ok(known.filter(|known| known.manifest.is_some()).unwrap_or_else(|| record.clone()))
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        // What can't be removed now is removed by a later sweep.
        let _ = fs::remove_dir_all(&self.directory);
        self.hold = None;
        let _ = self.store.sweep_if_needed();
    }
}

impl ImageRecord {
    /// Of layers without a manifest.
    pub(crate) fn of_layers(diff_ids: &[Digest]) -> Self {
        let layers = diff_ids.iter().map(|&diff_id| LayerRecord { diff_id, blob: None }).collect();
        Self { manifest: None, layers }
    }
}
