//! Images, and how users name them.

use oci_spec::image::ImageConfiguration;

use super::{InvalidConfig, LayerInfo, MAX_LAYERS, Store, StoreError};
use crate::digest::{Digest, DigestError};
use crate::platform;
use crate::reference::Reference;

/// An image of the store.
#[derive(Clone, Debug)]
pub struct Image {
    /// The digest of its configuration.
    pub id: Digest,
    /// Its references with tags, in order.
    pub references: Vec<Reference>,
    /// Its references with digests, as registries have it.
    pub digests: Vec<Reference>,
    /// Its configuration.
    pub config: ImageConfiguration,
    /// Its layers, the lowest first.
    pub layers: Vec<LayerInfo>,
    /// When it was built (RFC 3339), as it says.
    pub created: Option<String>,
    /// Bytes of its layers' tar streams.
    pub size: u64,
}

/// A step of an image's making.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryEntry {
    /// When (RFC 3339), as the image says.
    pub created: Option<String>,
    /// By which command.
    pub created_by: Option<String>,
    /// What its author says of it.
    pub comment: Option<String>,
    /// Bytes of its layer's tar stream; 0 if it made none.
    pub size: u64,
}

impl Image {
    /// The steps of the image's making, the first one first. Where the image tells less than it has layers, the others
    /// come last, as steps of which only the size is known.
    pub fn history(&self) -> Vec<HistoryEntry> {
        let mut layers = self.layers.iter();
        let told = self.config.history().iter().flatten().map(|step| HistoryEntry {
            created: step.created().clone(),
            created_by: step.created_by().clone(),
            comment: step.comment().clone(),
            size: if step.empty_layer() == Some(true) {
                0
            } else {
                layers.next().map_or(0, |layer| layer.size)
            },
        });
        let mut steps: Vec<_> = told.collect();
        let untold = |layer: &LayerInfo| HistoryEntry {
            created: None,
            created_by: None,
            comment: None,
            size: layer.size,
        };
        steps.extend(layers.map(untold));
        steps
    }
}

/// Reads a configuration, and its layers' diff IDs. `manifest` is how many layers the manifest has.
pub(crate) fn read_config(
    bytes: &[u8],
    manifest: Option<usize>,
) -> Result<(ImageConfiguration, Vec<Digest>), InvalidConfig> {
    let config: ImageConfiguration =
        serde_json::from_slice(bytes).map_err(|error| InvalidConfig::Json(error.to_string()))?;
    let diff_ids = config.rootfs().diff_ids();
    if diff_ids.len() > MAX_LAYERS {
        return Err(InvalidConfig::Layers(diff_ids.len()));
    }
    if let Some(manifest) = manifest.filter(|manifest| *manifest != diff_ids.len()) {
        return Err(InvalidConfig::Count { config: diff_ids.len(), manifest });
    }
    if let Some(other) = platform::other(&config) {
        return Err(InvalidConfig::Platform(other));
    }
    let diff_ids = diff_ids.iter().map(|diff_id| diff_id.parse()).collect::<Result<_, DigestError>>()?;
    Ok((config, diff_ids))
}

impl Store {
    /// The image that `text` names: a reference, an ID with or without `sha256:`, or the beginning of one, tried in
    /// this order except that 64 digits are always an ID (as docker does).
    ///
    /// # Errors
    ///
    /// [`StoreError::Ambiguous`], [`StoreError::Damaged`], [`StoreError::Io`].
    pub fn resolve(&self, text: &str) -> Result<Option<Image>, StoreError> {
        match self.resolve_id(text)? {
            Some(id) => self.image(id).map(Some),
            None => Ok(None),
        }
    }

    /// The ID of the image that `text` names, as [`Store::resolve`] finds it.
    pub(super) fn resolve_id(&self, text: &str) -> Result<Option<Digest>, StoreError> {
        let hex = text.strip_prefix("sha256:").unwrap_or(text);
        if let Some(id) = Digest::from_hex(hex) {
            return Ok(self.record(id)?.map(|_| id));
        }
        if let Ok(reference) = text.parse::<Reference>() {
            let references = self.references()?;
            if let Some(target) = references.get(&reference) {
                return Ok(Some(target.id));
            }
        }
        let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if hex.is_empty() || !hex.bytes().all(is_hex) {
            return Ok(None);
        }
        let ids = self.ids()?;
        let mut found = ids.iter().filter(|id| id.hex().starts_with(hex));
        match (found.next(), found.next()) {
            (Some(_), Some(_)) => Err(StoreError::Ambiguous(text.to_owned())),
            (id, _) => Ok(id.copied()),
        }
    }

    /// All images whose configuration can be read, those that were built last first.
    ///
    /// # Errors
    ///
    /// [`StoreError::Io`].
    pub fn images(&self) -> Result<Vec<Image>, StoreError> {
        // Without names none could be shown.
        self.references()?;
        let mut images = Vec::new();
        for id in self.ids()? {
            // An image may be removed meanwhile. A damaged one must not hide the others.
            images.extend(self.image(id));
        }
        images.sort_by(|one, other| (&other.created, one.id).cmp(&(&one.created, other.id)));
        Ok(images)
    }

    /// An image's configuration as it came: JSON of up to 4 MiB.
    ///
    /// # Errors
    ///
    /// [`StoreError::Damaged`], [`StoreError::Io`].
    pub fn configuration(&self, id: Digest) -> Result<Vec<u8>, StoreError> {
        self.document(id)
    }

    fn image(&self, id: Digest) -> Result<Image, StoreError> {
        let bytes = self.document(id)?;
        let invalid = |source| StoreError::Config { id, source };
        let (config, diff_ids) = read_config(&bytes, None).map_err(invalid)?;
        let mut layers = Vec::new();
        for diff_id in diff_ids {
            // Who wants to use a layer that is missing or damaged is told so then.
            let layer = self.layer(diff_id).ok().flatten();
            let (size, image_size) = layer.map(|layer| (layer.size, layer.image_size)).unzip();
            layers.push(LayerInfo { diff_id, size: size.unwrap_or_default(), image_size });
        }
        let mut references = Vec::new();
        let mut digests = Vec::new();
        for (key, target) in self.references()?.iter().filter(|(_, target)| target.id == id) {
            let Ok(reference) = key.parse::<Reference>() else { continue };
            digests.extend(target.digest.map(|digest| reference.with_digest(digest)));
            if reference.digest().is_none() {
                references.push(reference);
            }
        }
        digests.sort();
        digests.dedup();
        let created = config.created().clone();
        let size = layers.iter().map(|layer| layer.size).sum();
        Ok(Image { id, references, digests, config, layers, created, size })
    }
}
