//! Records of images, and references.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::layers::BlobInfo;
use super::{MAX_DOCUMENT, Store, StoreError, files, io_error};
use crate::digest::Digest;
use crate::reference::Reference;

/// What the store knows of an image besides its configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    /// The manifest as it came, which docker's archives do not have.
    pub(crate) manifest: Option<ManifestInfo>,
    /// The layers, the lowest first.
    pub(crate) layers: Vec<LayerRecord>,
}

/// A manifest, whose bytes are a blob of the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ManifestInfo {
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
}

/// A layer of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    pub(crate) diff_id: Digest,
    /// As the manifest has it.
    pub(crate) blob: Option<BlobInfo>,
}

/// The references of all images.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct References(BTreeMap<String, Target>);

/// What a reference stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Target {
    pub(crate) id: Digest,
    /// The digest of the manifest or index that a registry has under this reference.
    pub(crate) digest: Option<Digest>,
}

impl References {
    pub(crate) fn set(&mut self, reference: &Reference, id: Digest, digest: Option<Digest>) {
        let digest = digest.or(reference.digest());
        // Of a tag and a digest, docker keeps the digest.
        let kept =
            reference.digest().map_or_else(|| reference.clone(), |digest| reference.with_digest(digest));
        self.0.insert(kept.canonical(), Target { id, digest });
    }

    /// What the reference stands for. A digest is found wherever its repository has it.
    pub(crate) fn get(&self, reference: &Reference) -> Option<&Target> {
        let Some(digest) = reference.digest() else { return self.0.get(&reference.canonical()) };
        let is_same = |(key, target): &(&String, &Target)| {
            let key: Option<Reference> = key.parse().ok();
            key.is_some_and(|key| key.name() == reference.name()) && target.digest == Some(digest)
        };
        self.0.iter().find(is_same).map(|(_, target)| target)
    }

    /// The references of the image, in order.
    pub(crate) fn of(&self, id: Digest) -> Vec<String> {
        self.0.iter().filter(|(_, target)| target.id == id).map(|(key, _)| key.clone()).collect()
    }

    /// All of them with what they stand for, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&String, &Target)> {
        self.0.iter()
    }

    /// The reference to the image `id` that `text` is, if it is one rather than the image's ID.
    pub(crate) fn key_of(&self, text: &str, id: Digest) -> Option<String> {
        let reference: Reference = text.parse().ok()?;
        let canonical = match reference.digest() {
            Some(digest) => reference.with_digest(digest),
            None => reference,
        };
        let canonical = canonical.canonical();
        self.0.get(&canonical).filter(|target| target.id == id).map(|_| canonical)
    }

    pub(crate) fn remove(&mut self, key: &str) {
        self.0.remove(key);
    }
}

impl Store {
    pub(crate) fn record_path(&self, id: Digest) -> PathBuf {
        self.path("images").join(id.hex())
    }

    /// The record of an image, if there is one.
    pub(crate) fn record(&self, id: Digest) -> Result<Option<ImageRecord>, StoreError> {
        none_if_missing(files::read_json(&self.record_path(id)))
    }

    /// IDs of all images, in no order.
    pub(crate) fn ids(&self) -> Result<Vec<Digest>, StoreError> {
        let path = self.path("images");
        let entries = fs::read_dir(&path).map_err(io_error("read", &path))?;
        let names = entries.map(|entry| entry.map(|entry| entry.file_name()));
        let names: Vec<_> = names.collect::<io::Result<_>>().map_err(io_error("read", &path))?;
        Ok(names.iter().filter_map(|name| Digest::from_hex(name.to_str()?)).collect())
    }

    pub(crate) fn references(&self) -> Result<References, StoreError> {
        let references = none_if_missing(files::read_json(&self.path("references.json")));
        let references = references.map_err(|error| match error {
            StoreError::Damaged { path } => StoreError::References { path },
            error => error,
        });
        Ok(references?.unwrap_or_default())
    }

    /// Replaces the references. The caller has the lock.
    pub(crate) fn write_references(&self, references: &References) -> Result<(), StoreError> {
        self.replace_json(&self.path("references.json"), references)
    }

    /// Replaces a file of JSON of up to [`MAX_DOCUMENT`] bytes. The caller has the lock, so that no other process
    /// writes the temporary file.
    pub(crate) fn replace_json(
        &self,
        path: &std::path::Path,
        value: &impl Serialize,
    ) -> Result<(), StoreError> {
        let bytes = serde_json::to_vec(value).map_err(io::Error::from).map_err(io_error("write", path))?;
        // One that can't be read again would make the store useless.
        if u64::try_from(bytes.len()).is_ok_and(|length| length > MAX_DOCUMENT) {
            return Err(StoreError::TooLong { path: path.to_owned() });
        }
        let temporary = self.path("tmp").join("locked");
        files::write_synced(&temporary, &bytes)?;
        files::rename(&temporary, path)
    }
}

pub(super) fn none_if_missing<T>(result: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
    match result {
        Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        result => result.map(Some),
    }
}
