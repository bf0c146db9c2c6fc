//! Images in the form in which others take them: a manifest and its blobs.

use std::fs::File;
use std::io::{self, Read};

use serde_json::json;

use crate::digest::{Digest, Hashed};
use crate::documents::{OCI_CONFIG, OCI_LAYER, OCI_MANIFEST};
use crate::store::{BlobInfo, LayerRecord, Store, StoreError, io_error};

/// A layer's blob, and where its bytes come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PackedLayer {
    pub(crate) info: BlobInfo,
    pub(crate) source: LayerSource,
}

/// Where a layer's bytes come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LayerSource {
    /// A blob of the store, as it came.
    Blob,
    /// The tar stream of this layer.
    Tar(Digest),
}

impl PackedLayer {
    /// The layer as it came, or its tar stream where the store has not kept that.
    pub(crate) fn new(store: &Store, layer: &LayerRecord) -> Result<Self, StoreError> {
        if let Some(blob) = &layer.blob {
            let info = BlobInfo { media_type: oci_type(&blob.media_type), ..blob.clone() };
            if blob.digest == layer.diff_id {
                return Ok(Self { info, source: LayerSource::Tar(layer.diff_id) });
            }
            if store.blob_path(blob.digest).exists() {
                return Ok(Self { info, source: LayerSource::Blob });
            }
        }
        Self::tar(store, layer.diff_id)
    }

    /// The layer's tar stream.
    pub(crate) fn tar(store: &Store, diff_id: Digest) -> Result<Self, StoreError> {
        let stored = store.layer(diff_id)?;
        let stored = stored.ok_or_else(|| StoreError::Damaged { path: store.layer_image(diff_id) })?;
        let info = BlobInfo { media_type: OCI_LAYER.to_owned(), digest: diff_id, size: stored.size };
        Ok(Self { info, source: LayerSource::Tar(diff_id) })
    }

    /// Its bytes, which are verified when they have been read to the end.
    pub(crate) fn open(&self, store: &Store) -> Result<Verified, StoreError> {
        let input: Box<dyn Read> = match self.source {
            LayerSource::Tar(diff_id) => Box::new(store.layer_tar(diff_id)?),
            LayerSource::Blob => {
                let path = store.blob_path(self.info.digest);
                Box::new(File::open(&path).map_err(io_error("read", path))?)
            }
        };
        Ok(Verified::new(input, self.info.digest, self.info.size))
    }
}

/// The OCI media type of a layer's.
pub(crate) fn oci_type(media_type: &str) -> String {
    match media_type {
        "application/vnd.docker.image.rootfs.diff.tar.gzip" => format!("{OCI_LAYER}+gzip"),
        "application/vnd.docker.image.rootfs.diff.tar" => OCI_LAYER.to_owned(),
        other => other.to_owned(),
    }
}

/// An OCI manifest of these.
pub(crate) fn manifest(config: &[u8], layers: &[BlobInfo]) -> Vec<u8> {
    let config = json!({ "mediaType": OCI_CONFIG, "digest": Digest::of(config), "size": config.len() });
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": config,
        "layers": layers,
    });
    manifest.to_string().into_bytes()
}

/// Reads content whose size and digest are known; the end is an error if it is not that.
pub(crate) struct Verified {
    input: Option<Hashed<Box<dyn Read>>>,
    digest: Digest,
    left: u64,
}

impl Verified {
    fn new(input: Box<dyn Read>, digest: Digest, size: u64) -> Self {
        Self { input: Some(Hashed::new(input)), digest, left: size }
    }
}

impl Read for Verified {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let damaged = || io::Error::new(io::ErrorKind::InvalidData, "the layer in the store is damaged");
        let Some(input) = &mut self.input else { return Ok(0) };
        if buffer.is_empty() {
            return Ok(0);
        }
        let count = input.read(buffer)?;
        self.left = self.left.checked_sub(u64::try_from(count).unwrap_or(u64::MAX)).ok_or_else(damaged)?;
        // Who reads as many bytes as there should be must not miss the error.
        if self.left == 0 || count == 0 {
            let rest = if count == 0 { 0 } else { input.read(&mut [0])? };
            let found = self.input.take().map(|input| input.finish().0);
            if rest > 0 || self.left > 0 || found != Some(self.digest) {
                return Err(damaged());
            }
        }
        Ok(count)
    }
}
