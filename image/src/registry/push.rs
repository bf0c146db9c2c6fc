//! Pushing images.

use std::fs::File;
use std::io;

use flate2::write::GzEncoder;
use ureq::http::{Method, StatusCode};

use super::endpoint::Endpoint;
use super::http::{Answer, Call, Payload};
use super::url::{Url, encode};
use super::{Client, RegistryError};
use crate::digest::{Digest, Hashed};
use crate::documents::{OCI_LAYER, OCI_MANIFEST};
use crate::reference::Reference;
use crate::save::packed::{self, LayerSource, PackedLayer, oci_type};
use crate::store::{BlobInfo, LayerRecord, Session, Store, StoreError, create_file, io_error};

impl Store {
    /// Pushes the image that `image` names as `reference`. Layers are as they came where the store has kept them or the
    /// registry has them; others are compressed anew, with the same diff IDs. Returns the manifest's digest.
    ///
    /// # Errors
    ///
    /// [`RegistryError`].
    pub fn push(&self, client: &Client, image: &str, reference: &Reference) -> Result<Digest, RegistryError> {
        let session = self.session()?;
        let found = self.resolve(image)?.ok_or_else(|| StoreError::NoImage(image.to_owned()))?;
        let record = self.record(found.id)?.ok_or_else(|| StoreError::NoImage(image.to_owned()))?;
        let hosts = client.sources(reference);
        let host = hosts.last().ok_or(RegistryError::GivenUp)?;
        let endpoint = client.endpoint(reference, host, "pull,push")?;
        // Where the same registry may have the layers.
        let others = found.digests.iter().filter(|other| other.registry() == reference.registry());
        let push =
            Push { client, endpoint, session: &session, others: others.map(Reference::repository).collect() };
        let layers: Vec<BlobInfo> =
            record.layers.iter().map(|layer| push.layer(layer)).collect::<Result<_, _>>()?;
        let config = self.document(found.id)?;
        push.bytes(found.id, &config)?;
        let came: Vec<_> = record.layers.iter().filter_map(|layer| layer.blob.as_ref()).collect();
        let is_original = came.len() == layers.len()
            && came.iter().zip(&layers).all(|(came, layer)| came.digest == layer.digest);
        let (manifest, media_type) = match record.manifest.filter(|_| is_original) {
            Some(original) => (self.document(original.digest)?, original.media_type),
            None => (packed::manifest(&config, &layers), OCI_MANIFEST.to_owned()),
        };
        push.manifest(reference, &manifest, &media_type)
    }
}

struct Push<'a> {
    client: &'a Client,
    endpoint: Endpoint,
    session: &'a Session<'a>,
    /// Repositories of the same registry that have the image.
    others: Vec<&'a str>,
}

impl Push<'_> {
    /// Sees to it that the registry has a layer, and says in which form.
    fn layer(&self, layer: &LayerRecord) -> Result<BlobInfo, RegistryError> {
        let store = self.session.store;
        if let Some(blob) = &layer.blob
            && (self.exists(blob.digest)? || self.mount(blob.digest)?)
        {
            return Ok(BlobInfo { media_type: oci_type(&blob.media_type), ..blob.clone() });
        }
        let packed = PackedLayer::new(store, layer)?;
        let came_so = layer.blob.as_ref().is_some_and(|blob| blob.digest == packed.info.digest);
        let path = self.session.temporary();
        let mut file = create_file(&path)?;
        let failed = |action| io_error(action, path.clone());
        if came_so || packed.source == LayerSource::Blob {
            let mut input = packed.open(store)?;
            io::copy(&mut input, &mut file).map_err(failed("write"))?;
            self.upload(packed.info.digest, Payload::File(&file))?;
            return Ok(packed.info);
        }
        let mut input = packed.open(store)?;
        let mut encoder = GzEncoder::new(io::BufWriter::new(file), flate2::Compression::default());
        io::copy(&mut input, &mut encoder).map_err(failed("write"))?;
        let writer = encoder.finish().map_err(failed("write"))?;
        let file = writer.into_inner().map_err(|error| failed("write")(error.into_error()))?;
        let mut hashed = Hashed::new(File::open(&path).map_err(failed("read"))?);
        io::copy(&mut hashed, &mut io::sink()).map_err(failed("read"))?;
        let (digest, size) = hashed.finish();
        if !self.exists(digest)? {
            self.upload(digest, Payload::File(&file))?;
        }
        Ok(BlobInfo { media_type: format!("{OCI_LAYER}+gzip"), digest, size })
    }

    fn bytes(&self, digest: Digest, bytes: &[u8]) -> Result<(), RegistryError> {
        if self.exists(digest)? { Ok(()) } else { self.upload(digest, Payload::Bytes(bytes)) }
    }

    /// Whether the repository has a blob.
    fn exists(&self, digest: Digest) -> Result<bool, RegistryError> {
        let url = self.endpoint.url(&format!("blobs/{digest}"));
        let answer = self.client.call(&self.endpoint, Call::new(Method::HEAD, url))?;
        match answer.status {
            StatusCode::OK => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            _ => Err(self.endpoint.error(answer, "blob")),
        }
    }

    /// Takes a blob from another repository of the registry, if that is possible.
    fn mount(&self, digest: Digest) -> Result<bool, RegistryError> {
        for other in &self.others {
            let query = format!("mount={}&from={}", encode(&digest.to_string()), encode(other));
            let url = self.endpoint.url("blobs/uploads/").with_query(&query);
            let answer = self.client.call(&self.endpoint, post(url))?;
            if answer.status == StatusCode::CREATED {
                return Ok(true);
            }
            // It may have begun an upload instead.
            if let Some(upload) = answer.header("location").and_then(|location| answer.url.join(location)) {
                let _ = self.client.call(&self.endpoint, Call::new(Method::DELETE, upload));
            }
        }
        Ok(false)
    }

    fn upload(&self, digest: Digest, payload: Payload<'_>) -> Result<(), RegistryError> {
        let answer = self.client.call(&self.endpoint, post(self.endpoint.url("blobs/uploads/")))?;
        if answer.status != StatusCode::ACCEPTED {
            return Err(self.endpoint.error(answer, "repository"));
        }
        let url = self.location(&answer)?.with_query(&format!("digest={}", encode(&digest.to_string())));
        let call =
            Call::new(Method::PUT, url).header("content-type", "application/octet-stream").payload(payload);
        let answer = self.client.call(&self.endpoint, call)?;
        match answer.status {
            StatusCode::CREATED => Ok(()),
            _ => Err(self.endpoint.error(answer, "upload")),
        }
    }

    /// Where an upload goes. It must not go unencrypted where the registry is reached by HTTPS.
    fn location(&self, answer: &Answer) -> Result<Url, RegistryError> {
        let location = answer.header("location").unwrap_or_default();
        let url = answer.url.join(location).filter(|url| url.is_secure() || !answer.url.is_secure());
        url.filter(|_| !location.is_empty()).ok_or_else(|| RegistryError::Redirect {
            url: answer.url.to_string(),
            target: location.chars().take(200).collect(),
        })
    }

    fn manifest(
        &self,
        reference: &Reference,
        manifest: &[u8],
        media_type: &str,
    ) -> Result<Digest, RegistryError> {
        let digest = Digest::of(manifest);
        let name = reference.tag().map_or_else(|| digest.to_string(), str::to_owned);
        let url = self.endpoint.url(&format!("manifests/{name}"));
        let call = Call::new(Method::PUT, url).header("content-type", media_type);
        let answer = self.client.call(&self.endpoint, call.payload(Payload::Bytes(manifest)))?;
        match answer.status {
            StatusCode::CREATED | StatusCode::OK => Ok(digest),
            _ => Err(self.endpoint.error(answer, "repository")),
        }
    }
}

fn post(url: Url) -> Call<'static> {
    Call::new(Method::POST, url).payload(Payload::Bytes(b""))
}
