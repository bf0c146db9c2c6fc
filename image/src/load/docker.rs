//! Docker's archives: `manifest.json`, and configurations and layers as files that it names.

use serde::Deserialize;

use super::spool::Spool;
use super::{LoadError, Loaded};
use crate::store::{ImageRecord, Session, read_config};

/// The most images of an archive.
const MAX_IMAGES: usize = 1024;
/// The most names of an image.
const MAX_TAGS: usize = 1024;

/// An image of `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

pub(super) fn load(session: &Session<'_>, spool: &Spool, manifest: &[u8]) -> Result<Vec<Loaded>, LoadError> {
    let invalid = |reason: String| LoadError::Invalid { name: "manifest.json".to_owned(), reason };
    let entries: Vec<Entry> = serde_json::from_slice(manifest).map_err(|error| invalid(error.to_string()))?;
    if entries.is_empty() || entries.len() > MAX_IMAGES {
        return Err(invalid(format!("it has {} images: there may be 1 to {MAX_IMAGES}", entries.len())));
    }
    entries.into_iter().map(|entry| load_image(session, spool, entry)).collect()
}

fn load_image(session: &Session<'_>, spool: &Spool, entry: Entry) -> Result<Loaded, LoadError> {
    let missing = |name: &str| LoadError::Missing(name.chars().take(120).collect());
    let (id, config) = spool.named(&entry.config).ok_or_else(|| missing(&entry.config))?;
    let config = config.document(|| id.to_string())?;
    let names = entry.layers.unwrap_or_default();
    let read = read_config(&config, Some(names.len()));
    let (_, diff_ids) = read.map_err(|source| LoadError::Config { id, source })?;
    if entry.repo_tags.as_ref().is_some_and(|tags| tags.len() > MAX_TAGS) {
        return Err(LoadError::Limit { what: "names of an image", most: 1024 });
    }
    let mut references = Vec::new();
    for tag in entry.repo_tags.iter().flatten() {
        let invalid =
            |error| LoadError::Invalid { name: "manifest.json".to_owned(), reason: format!("{error}") };
        references.push((tag.parse().map_err(invalid)?, None));
    }
    for (diff_id, name) in diff_ids.iter().zip(&names) {
        // What the archive has is not read: the store's own layer is the right one, or none would be.
        if spool.is_known(name, *diff_id) {
            continue;
        }
        let (_, layer) = spool.named(name).ok_or_else(|| missing(name))?;
        session.add_layer(*diff_id, layer.open()?)?;
    }
    session.add_document(&config)?;
    session.add_image(id, &ImageRecord::of_layers(&diff_ids), &references)?;
    Ok(Loaded { id, references: references.into_iter().map(|(reference, _)| reference).collect() })
}
