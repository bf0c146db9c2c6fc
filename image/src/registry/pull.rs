//! Pulling images.

use std::collections::HashSet;
use std::fs::File;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};
use ureq::http::{Method, StatusCode};

use super::download::{Download, Partial};
use super::endpoint::Endpoint;
use super::http::Call;
use super::{Client, RegistryError};
use crate::digest::Digest;
use crate::documents::{
    self, DOCKER_INDEX, DOCKER_MANIFEST, DocumentKind, Manifest, OCI_INDEX, OCI_MANIFEST,
};
use crate::reference::Reference;
use crate::store::{
    BlobInfo, ImageRecord, LayerRecord, MAX_DOCUMENT, ManifestInfo, Session, Store, StoreError, io_error,
    read_config,
};

/// How many layers are pulled at once.
const AT_ONCE: usize = 3;

/// An image that was pulled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pulled {
    /// Its ID.
    pub id: Digest,
    /// The digest that the registry has for the reference: of a manifest, or an index.
    pub digest: Digest,
    /// Whether anything was downloaded besides manifests.
    pub is_new: bool,
}

/// What happens while an image is pulled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PullEvent {
    /// The store has the layer already.
    Exists {
        /// The layer's blob.
        digest: Digest,
    },
    /// Some of a layer is there.
    Downloading {
        /// The layer's blob.
        digest: Digest,
        /// Bytes that are there.
        done: u64,
        /// Bytes of the blob.
        total: u64,
    },
    /// The layer is there, and is being unpacked.
    Unpacking {
        /// The layer's blob.
        digest: Digest,
    },
    /// The layer is in the store.
    Complete {
        /// The layer's blob.
        digest: Digest,
    },
}

/// Who is told what happens. Calls come from several threads.
pub trait Progress: Sync {
    /// Something has happened.
    fn event(&self, event: PullEvent);
}

impl Progress for () {
    fn event(&self, _: PullEvent) {}
}

/// A manifest with its bytes.
struct Fetched {
    manifest: Manifest,
    bytes: Vec<u8>,
    /// What the registry has under the reference.
    digest: Digest,
}

impl Store {
    /// Pulls an image, and gives it the reference. What the store has is not downloaded; what was downloaded when a
    /// pull is interrupted is there for the next one, for a day.
    ///
    /// # Errors
    ///
    /// [`RegistryError`], of the registry itself where mirrors fail too.
    pub fn pull(
        &self,
        client: &Client,
        reference: &Reference,
        progress: &dyn Progress,
    ) -> Result<Pulled, RegistryError> {
        let session = self.session()?;
        let mut result = Err(RegistryError::GivenUp);
        for source in client.sources(reference) {
            result = client
                .endpoint(reference, &source, "pull")
                .and_then(|endpoint| Pull { client, endpoint, session: &session, progress }.run(reference));
            if result.is_ok() {
                break;
            }
        }
        result
    }
}

struct Pull<'a> {
    client: &'a Client,
    endpoint: Endpoint,
    session: &'a Session<'a>,
    progress: &'a dyn Progress,
}

impl Pull<'_> {
    fn run(&self, reference: &Reference) -> Result<Pulled, RegistryError> {
        let Fetched { manifest, bytes, digest } = self.manifest(reference)?;
        let id = manifest.config.digest;
        let (config, is_new) = match self.session.store.document(id) {
            Ok(config) => (config, false),
            Err(_) => (self.config(&manifest.config)?, true),
        };
        let parsed = read_config(&config, Some(manifest.layers.len()));
        let (_, diff_ids) = parsed.map_err(|source| RegistryError::Config { id, source })?;
        let layers: Vec<LayerRecord> = diff_ids
            .into_iter()
            .zip(manifest.layers)
            .map(|(diff_id, blob)| LayerRecord { diff_id, blob: Some(blob) })
            .collect();
        let has_pulled = self.layers(&layers)?;
        self.session.add_document(&config)?;
        self.session.add_document(&bytes)?;
        let info = ManifestInfo { media_type: manifest.media_type, digest: manifest.digest };
        let record = ImageRecord { manifest: Some(info), layers };
        self.session.add_image(id, &record, &[(reference.clone(), Some(digest))])?;
        Ok(Pulled { id, digest, is_new: is_new || has_pulled })
    }

    /// The manifest for this platform.
    fn manifest(&self, reference: &Reference) -> Result<Fetched, RegistryError> {
        let name = match (reference.digest(), reference.tag()) {
            (Some(digest), _) => digest.to_string(),
            (None, tag) => tag.unwrap_or("latest").to_owned(),
        };
        let (bytes, media_type) = self.document(&name, reference.digest(), &reference.to_string())?;
        let digest = Digest::of(&bytes);
        let (kind, media_type) = documents::kind(digest, &bytes, media_type.as_deref())?;
        if kind == DocumentKind::Manifest {
            let manifest = documents::manifest(digest, &bytes, &media_type)?;
            return Ok(Fetched { manifest, bytes, digest });
        }
        let entries = documents::index(digest, &bytes)?;
        let chosen = documents::choose(&entries)?.digest;
        let what = format!("manifest {chosen} of {reference}");
        let (bytes, media_type) = self.document(&chosen.to_string(), Some(chosen), &what)?;
        let (kind, media_type) = documents::kind(chosen, &bytes, media_type.as_deref())?;
        if kind == DocumentKind::Index {
            let url = self.endpoint.url(&format!("manifests/{chosen}")).to_string();
            return Err(RegistryError::Invalid { url, reason: "it is an index in an index".to_owned() });
        }
        let manifest = documents::manifest(chosen, &bytes, &media_type)?;
        Ok(Fetched { manifest, bytes, digest })
    }

    /// A manifest or an index, and the media type that came with it.
    fn document(
        &self,
        name: &str,
        expected: Option<Digest>,
        what: &str,
    ) -> Result<(Vec<u8>, Option<String>), RegistryError> {
        let accept = [OCI_INDEX, OCI_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST].join(", ");
        let call = Call::new(Method::GET, self.endpoint.url(&format!("manifests/{name}")));
        let answer = self.client.call(&self.endpoint, call.header("accept", accept))?;
        if answer.status != StatusCode::OK {
            return Err(self.endpoint.error(answer, what));
        }
        let media_type = answer.header("content-type").and_then(|text| text.split(';').next());
        let media_type = media_type.map(|text| text.trim().to_owned());
        let announced = answer.header("docker-content-digest").and_then(|text| text.parse().ok());
        let bytes = answer.bounded(MAX_DOCUMENT)?;
        let found = Digest::of(&bytes);
        match expected.or(announced).filter(|expected| *expected != found) {
            Some(expected) => Err(StoreError::Digest { what: "manifest", expected, found }.into()),
            None => Ok((bytes, media_type)),
        }
    }

    fn config(&self, config: &BlobInfo) -> Result<Vec<u8>, RegistryError> {
        let url = self.endpoint.url(&format!("blobs/{}", config.digest));
        if config.size > MAX_DOCUMENT {
            return Err(RegistryError::TooLarge { url: url.to_string(), most: MAX_DOCUMENT });
        }
        let answer = self.client.call(&self.endpoint, Call::new(Method::GET, url))?;
        if answer.status != StatusCode::OK {
            return Err(self.endpoint.error(answer, &format!("configuration {}", config.digest)));
        }
        let bytes = answer.bounded(MAX_DOCUMENT)?;
        let found = Digest::of(&bytes);
        if found == config.digest {
            return Ok(bytes);
        }
        Err(StoreError::Digest { what: "configuration", expected: config.digest, found }.into())
    }

    /// Pulls the layers that the store does not have, and says whether there were some.
    fn layers(&self, layers: &[LayerRecord]) -> Result<bool, RegistryError> {
        let mut seen = HashSet::new();
        let wanted: Vec<&LayerRecord> = layers.iter().filter(|layer| seen.insert(layer.diff_id)).collect();
        let queue = Mutex::new(wanted.into_iter());
        let is_given_up = AtomicBool::new(false);
        let has_pulled = AtomicBool::new(false);
        let error = Mutex::new(None);
        let work = || {
            while let Some(layer) = queue.lock().ok().and_then(|mut queue| queue.next()) {
                match self.layer(layer, &is_given_up) {
                    Ok(is_new) => drop(has_pulled.fetch_or(is_new, Ordering::Relaxed)),
                    Err(new) => {
                        is_given_up.store(true, Ordering::Relaxed);
                        if let Ok(mut error) = error.lock() {
                            // The first one is the cause of the others.
                            error.get_or_insert(new);
                        }
                    }
                }
                if is_given_up.load(Ordering::Relaxed) {
                    break;
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..AT_ONCE.min(layers.len()) {
                scope.spawn(work);
            }
            work();
        });
        match error.into_inner() {
            Ok(None) => Ok(has_pulled.into_inner()),
            Ok(Some(error)) => Err(error),
            Err(_) => Err(RegistryError::GivenUp),
        }
    }

    /// Pulls a layer if the store does not have it.
    fn layer(&self, layer: &LayerRecord, is_given_up: &AtomicBool) -> Result<bool, RegistryError> {
        let LayerRecord { diff_id, blob: Some(blob) } = layer else { return Ok(false) };
        let digest = blob.digest;
        let exists = || matches!(self.session.store.layer(*diff_id), Ok(Some(_)));
        if exists() {
            self.progress.event(PullEvent::Exists { digest });
            return Ok(false);
        }
        let mut partial = Partial::lock(self.session, digest)?;
        // Another process may have pulled it meanwhile.
        if exists() {
            partial.remove()?;
            self.progress.event(PullEvent::Exists { digest });
            return Ok(false);
        }
        let total = blob.size;
        let download = Download {
            client: self.client,
            endpoint: &self.endpoint,
            is_given_up,
            progress: &|done| self.progress.event(PullEvent::Downloading { digest, done, total }),
        };
        download.run(&mut partial, blob)?;
        self.progress.event(PullEvent::Unpacking { digest });
        let input = File::open(partial.path()).map_err(io_error("read", partial.path()))?;
        let stored = self.session.add_layer(*diff_id, input);
        let stored = match stored {
            Ok(stored) => stored,
            Err(error) => {
                // The blob is what it should be, so another attempt with it would end in the same way.
                partial.remove()?;
                return Err(error.into());
            }
        };
        self.session.offer_blob(partial.path(), blob, &stored)?;
        partial.remove()?;
        self.progress.event(PullEvent::Complete { digest });
        Ok(true)
    }
}
