//! Saving images: docker's archives and OCI layouts.

pub(crate) mod packed;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};

use serde_json::json;
use tar::{Builder, EntryType, Header};
use thiserror::Error;

use crate::digest::Digest;
use crate::documents::{OCI_INDEX, OCI_MANIFEST};
use crate::reference::Reference;
use crate::store::{Image, Store, StoreError};
use packed::PackedLayer;

/// Why images can't be saved.
#[derive(Debug, Error)]
pub enum SaveError {
    /// The output.
    #[error("cannot write the archive")]
    Write(#[source] io::Error),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What kind of archive is saved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SaveFormat {
    /// What `docker load` and all others take: `manifest.json`, configurations, and layers as tar streams.
    #[default]
    Docker,
    /// An OCI layout. Layers and manifests are as they came, where the store has kept them; others are tar streams.
    Oci,
}

impl Store {
    /// Writes an archive of the images that `names` name. A name that is a reference is in the archive as well. Layers
    /// are byte for byte as they came, or what they were compressed from (so that all have the same diff IDs).
    ///
    /// # Errors
    ///
    /// [`SaveError`]; what has been written then is of no use.
    pub fn save(&self, names: &[&str], format: SaveFormat, out: impl Write) -> Result<(), SaveError> {
        let _hold = self.hold()?;
        let mut images = Vec::new();
        for name in names {
            let image = self.resolve(name)?.ok_or_else(|| StoreError::NoImage((*name).to_owned()))?;
            let reference = name.parse::<Reference>().ok();
            let reference = reference.filter(|reference| image.references.contains(reference));
            images.push((image, reference));
        }
        let mut archive = Archive { store: self, out: Builder::new(out), written: BTreeSet::new() };
        match format {
            SaveFormat::Docker => archive.docker(&images)?,
            SaveFormat::Oci => archive.oci(&images)?,
        }
        archive.out.into_inner().and_then(|mut out| out.flush()).map_err(SaveError::Write)
    }
}

struct Archive<'a, W: Write> {
    store: &'a Store,
    out: Builder<W>,
    /// Names that have been written: images share layers.
    written: BTreeSet<String>,
}

impl<W: Write> Archive<'_, W> {
    fn docker(&mut self, images: &[(Image, Option<Reference>)]) -> Result<(), SaveError> {
        let mut by_id: BTreeMap<Digest, (&Image, BTreeSet<String>)> = BTreeMap::new();
        for (image, reference) in images {
            let (_, tags) = by_id.entry(image.id).or_insert_with(|| (image, BTreeSet::new()));
            // Of Docker Hub's references docker writes the short form.
            tags.extend(reference.iter().map(Reference::to_string));
        }
        let mut manifest = Vec::new();
        for (id, (image, tags)) in by_id {
            let mut layers = Vec::new();
            for layer in &image.layers {
                let name = format!("{}.tar", layer.diff_id.hex());
                let layer = PackedLayer::tar(self.store, layer.diff_id)?;
                self.layer(&name, &layer)?;
                layers.push(name);
            }
            let config = format!("{}.json", id.hex());
            self.file(&config, &self.store.document(id)?)?;
            manifest.push(json!({"Config": config, "RepoTags": tags, "Layers": layers}));
        }
        self.file("manifest.json", serde_json::Value::from(manifest).to_string().as_bytes())
    }

    fn oci(&mut self, images: &[(Image, Option<Reference>)]) -> Result<(), SaveError> {
        self.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        self.directory("blobs/")?;
        self.directory("blobs/sha256/")?;
        let mut entries = Vec::new();
        for (image, reference) in images {
            let manifest = self.oci_image(image)?;
            let platform = json!({"os": image.config.os().to_string(), "architecture": image.config.architecture().to_string()});
            let mut entry = json!({
                "mediaType": OCI_MANIFEST, "digest": Digest::of(&manifest), "size": manifest.len(),
                "platform": platform,
            });
            if let (Some(reference), Some(entry)) = (reference, entry.as_object_mut()) {
                let name = json!({
                    "org.opencontainers.image.ref.name": reference.canonical(),
                    "io.containerd.image.name": reference.canonical(),
                });
                entry.insert("annotations".to_owned(), name);
            }
            entries.push(entry);
        }
        let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries});
        self.file("index.json", index.to_string().as_bytes())
    }

    /// Writes an image's blobs, and returns its manifest.
    fn oci_image(&mut self, image: &Image) -> Result<Vec<u8>, SaveError> {
        let missing = || StoreError::NoImage(image.id.to_string());
        let record = self.store.record(image.id)?.ok_or_else(missing)?;
        let mut layers = Vec::new();
        for layer in &record.layers {
            let packed = PackedLayer::new(self.store, layer)?;
            self.layer(&blob_name(packed.info.digest), &packed)?;
            layers.push(packed.info);
        }
        let config = self.store.document(image.id)?;
        self.file(&blob_name(image.id), &config)?;
        let came: Vec<_> = record.layers.iter().filter_map(|layer| layer.blob.clone()).collect();
        let original =
            record.manifest.filter(|manifest| manifest.media_type == OCI_MANIFEST && came == layers);
        let manifest = match original {
            Some(original) => self.store.document(original.digest)?,
            None => packed::manifest(&config, &layers),
        };
        self.file(&blob_name(Digest::of(&manifest)), &manifest)?;
        Ok(manifest)
    }

    fn layer(&mut self, name: &str, layer: &PackedLayer) -> Result<(), SaveError> {
        if self.written.contains(name) {
            return Ok(());
        }
        let input = layer.open(self.store)?;
        self.append(name, layer.info.size, input)
    }

    fn file(&mut self, name: &str, bytes: &[u8]) -> Result<(), SaveError> {
        self.append(name, u64::try_from(bytes.len()).unwrap_or(u64::MAX), bytes)
    }

    fn append(&mut self, name: &str, size: u64, input: impl Read) -> Result<(), SaveError> {
        if !self.written.insert(name.to_owned()) {
            return Ok(());
        }
        let mut header = header(0o644, EntryType::Regular);
        header.set_size(size);
        self.out.append_data(&mut header, name, input).map_err(SaveError::Write)
    }

    fn directory(&mut self, name: &str) -> Result<(), SaveError> {
        let mut header = header(0o755, EntryType::Directory);
        self.out.append_data(&mut header, name, io::empty()).map_err(SaveError::Write)
    }
}

fn blob_name(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// A header without an owner and a time, so that the same images make the same archive.
fn header(mode: u32, kind: EntryType) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(0);
    header
}
