//! Manifests and indexes (OCI image specification, and docker's image manifest version 2, schema 2).

use std::collections::HashMap;

use oci_spec::image::{Descriptor, ImageIndex, ImageManifest, Platform};
use serde::Deserialize;
use thiserror::Error;

use crate::digest::{Digest, DigestError};
use crate::platform;
use crate::store::{BlobInfo, MAX_LAYERS};

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// Why a manifest or an index can't be used.
#[derive(Debug, Error)]
pub enum DocumentError {
    /// Not one.
    #[error("invalid {what} {digest}: {reason}")]
    Invalid {
        /// What it should be.
        what: &'static str,
        /// Its digest.
        digest: Digest,
        /// What is wrong with it.
        reason: String,
    },
    /// A digest in it.
    #[error("invalid digest in a manifest")]
    Digest(#[from] DigestError),
    /// A kind that is not supported.
    #[error(
        "{digest} has the media type {media_type:?}, which is not an image's: use an image of OCI or docker (schema 2)"
    )]
    MediaType {
        /// Its digest.
        digest: Digest,
        /// Its media type, up to 80 characters of it.
        media_type: String,
    },
    /// Nothing for this platform.
    #[error("the image is for {found}, not for linux/amd64: use one that is")]
    Platform {
        /// What it is for.
        found: String,
    },
}

/// What a document is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DocumentKind {
    Manifest,
    Index,
}

/// A manifest.
#[derive(Clone, Debug)]
pub(crate) struct Manifest {
    pub(crate) digest: Digest,
    pub(crate) media_type: String,
    pub(crate) config: BlobInfo,
    pub(crate) layers: Vec<BlobInfo>,
}

/// An entry of an index.
#[derive(Clone, Debug)]
pub(crate) struct IndexEntry {
    pub(crate) digest: Digest,
    pub(crate) media_type: String,
    pub(crate) platform: Option<Platform>,
    pub(crate) annotations: HashMap<String, String>,
}

/// What tells one kind from the other.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    schema_version: Option<u64>,
    media_type: Option<String>,
    #[serde(default)]
    manifests: Option<serde_json::Value>,
    #[serde(default)]
    config: Option<serde_json::Value>,
    #[serde(default)]
    layers: Option<serde_json::Value>,
}

/// What a document is, and its media type. `announced` is what came with it; the document itself has the last word, and
/// one that could be read as either kind is neither.
pub(crate) fn kind(
    digest: Digest,
    bytes: &[u8],
    announced: Option<&str>,
) -> Result<(DocumentKind, String), DocumentError> {
    let invalid = |reason: String| DocumentError::Invalid { what: "manifest", digest, reason };
    let head: Head = serde_json::from_slice(bytes).map_err(|error| invalid(error.to_string()))?;
    let has_layers = head.layers.is_some() || head.config.is_some();
    let announced = announced.filter(|announced| announced.contains("+json"));
    let media_type = head.media_type.as_deref().or(announced);
    let found = match (has_layers, head.manifests.is_some()) {
        (true, true) => return Err(invalid("it has both layers and manifests".to_owned())),
        (true, false) => DocumentKind::Manifest,
        (false, true) => DocumentKind::Index,
        (false, false) => {
            let media_type =
                format!("{} (schema {})", media_type.unwrap_or("none"), head.schema_version.unwrap_or(0));
            return Err(DocumentError::MediaType {
                digest,
                media_type: media_type.chars().take(80).collect(),
            });
        }
    };
    let (expected, media_type) = match media_type {
        Some(OCI_MANIFEST | DOCKER_MANIFEST) => (DocumentKind::Manifest, media_type.unwrap_or_default()),
        Some(OCI_INDEX | DOCKER_INDEX) => (DocumentKind::Index, media_type.unwrap_or_default()),
        None if found == DocumentKind::Manifest => (found, OCI_MANIFEST),
        None => (found, OCI_INDEX),
        Some(other) => {
            return Err(DocumentError::MediaType { digest, media_type: other.chars().take(80).collect() });
        }
    };
    if expected != found || head.schema_version != Some(2) {
        return Err(invalid(format!("it is not of the media type {media_type}")));
    }
    Ok((found, media_type.to_owned()))
}

/// Reads a manifest of up to 127 layers.
pub(crate) fn manifest(digest: Digest, bytes: &[u8], media_type: &str) -> Result<Manifest, DocumentError> {
    let invalid = |reason: String| DocumentError::Invalid { what: "manifest", digest, reason };
    let manifest: ImageManifest =
        serde_json::from_slice(bytes).map_err(|error| invalid(error.to_string()))?;
    let config = blob(manifest.config())?;
    if !matches!(&*config.media_type, OCI_CONFIG | DOCKER_CONFIG) {
        let media_type = config.media_type.chars().take(80).collect();
        return Err(DocumentError::MediaType { digest, media_type });
    }
    let count = manifest.layers().len();
    if count > MAX_LAYERS {
        return Err(invalid(format!("it has {count} layers, of which there may be {MAX_LAYERS}")));
    }
    let layers = manifest.layers().iter().map(blob).collect::<Result<_, _>>()?;
    Ok(Manifest { digest, media_type: media_type.to_owned(), config, layers })
}

/// Reads an index.
pub(crate) fn index(digest: Digest, bytes: &[u8]) -> Result<Vec<IndexEntry>, DocumentError> {
    let invalid = |reason: String| DocumentError::Invalid { what: "index", digest, reason };
    let index: ImageIndex = serde_json::from_slice(bytes).map_err(|error| invalid(error.to_string()))?;
    let entry = |descriptor: &Descriptor| {
        let BlobInfo { media_type, digest, .. } = blob(descriptor)?;
        let annotations = descriptor.annotations().clone().unwrap_or_default();
        Ok(IndexEntry { digest, media_type, platform: descriptor.platform().clone(), annotations })
    };
    index.manifests().iter().map(entry).collect()
}

/// The entry of an index that is for this platform: the first of those that fit best.
pub(crate) fn choose(entries: &[IndexEntry]) -> Result<&IndexEntry, DocumentError> {
    let ours = entries.iter().filter(|entry| platform::is_ours(entry.platform.as_ref()));
    ours.min_by_key(|entry| platform::rank(entry.platform.as_ref())).ok_or_else(|| not_ours(entries))
}

/// Says what an index has instead of what is needed.
pub(crate) fn not_ours(entries: &[IndexEntry]) -> DocumentError {
    let mut found: Vec<String> =
        entries.iter().map(|entry| platform::name(entry.platform.as_ref())).collect();
    found.retain(|name| !name.starts_with("unknown"));
    found.truncate(16);
    if found.is_empty() {
        found.push("nothing".to_owned());
    }
    DocumentError::Platform { found: found.join(", ") }
}

fn blob(descriptor: &Descriptor) -> Result<BlobInfo, DigestError> {
    let digest = descriptor.digest().to_string().parse()?;
    Ok(BlobInfo { media_type: descriptor.media_type().to_string(), digest, size: descriptor.size() })
}
