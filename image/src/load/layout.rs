//! OCI image layouts.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::{Blob, Blobs, LoadError, Loaded};
use crate::digest::{Digest, Hashed};
use crate::documents::{self, DocumentKind, IndexEntry};
use crate::platform;
use crate::reference::Reference;
use crate::store::{ImageRecord, LayerRecord, ManifestInfo, Session, read_config};

/// Annotations by which an entry of an index says its name, the best first.
const NAMES: [&str; 2] = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];
/// The most images of a layout.
const MAX_IMAGES: usize = 1024;

/// Loads all images of an index that are for this platform.
pub(super) fn load(
    session: &Session<'_>,
    blobs: &dyn Blobs,
    digest: Digest,
    index: &[u8],
) -> Result<Vec<Loaded>, LoadError> {
    let entries = documents::index(digest, index)?;
    let mut loaded = Vec::new();
    if entries.len() > MAX_IMAGES {
        return Err(LoadError::Limit { what: "images", most: 1024 });
    }
    for entry in entries.iter().filter(|entry| platform::is_ours(entry.platform.as_ref())) {
        let image = load_image(session, blobs, entry)?;
        // The same image of two names.
        loaded.push(image);
    }
    if loaded.is_empty() { Err(documents::not_ours(&entries).into()) } else { Ok(loaded) }
}

/// The layout in a directory.
pub(super) fn load_directory(session: &Session<'_>, directory: &Path) -> Result<Vec<Loaded>, LoadError> {
    let blobs = Directory(directory.to_owned());
    let open = |name: &str| {
        let size = fs::metadata(directory.join(name)).map(|data| data.len());
        size.map(|size| Blob { path: directory.join(name), size, is_ours: false })
    };
    let (Ok(_), Ok(index)) = (open("oci-layout"), open("index.json")) else {
        return Err(LoadError::NotAnImage);
    };
    let bytes = index.document(|| "index.json".to_owned())?;
    load(session, &blobs, Digest::of(&bytes), &bytes)
}

fn load_image(session: &Session<'_>, blobs: &dyn Blobs, entry: &IndexEntry) -> Result<Loaded, LoadError> {
    let find = |digest: Digest| {
        blobs.find(digest)?.ok_or_else(|| LoadError::Missing(format!("blobs/sha256/{}", digest.hex())))
    };
    let read = |digest: Digest| find(digest)?.document(|| digest.to_string());
    let mut digest = entry.digest;
    let mut bytes = read(digest)?;
    let (mut kind, mut media_type) = documents::kind(digest, &bytes, Some(&entry.media_type))?;
    if kind == DocumentKind::Index {
        let entries = documents::index(digest, &bytes)?;
        let chosen = documents::choose(&entries)?;
        digest = chosen.digest;
        bytes = read(digest)?;
        (kind, media_type) = documents::kind(digest, &bytes, Some(&chosen.media_type))?;
    }
    if kind == DocumentKind::Index {
        let reason = "it is an index in an index in an index".to_owned();
        return Err(LoadError::Invalid { name: digest.to_string(), reason });
    }
    let manifest = documents::manifest(digest, &bytes, &media_type)?;
    let id = manifest.config.digest;
    let config = read(id)?;
    let parsed = read_config(&config, Some(manifest.layers.len()));
    let (_, diff_ids) = parsed.map_err(|source| LoadError::Config { id, source })?;
    let mut layers = Vec::new();
    for (diff_id, blob) in diff_ids.into_iter().zip(manifest.layers) {
        let file = find(blob.digest)?;
        let layer = session.add_layer(diff_id, file.open()?)?;
        if layer.keeps_blob(blob.size) {
            let path = if file.is_ours { file.path } else { copy(session, &file, blob.digest)? };
            session.offer_blob(&path, &blob, &layer)?;
        }
        layers.push(LayerRecord { diff_id, blob: Some(blob) });
    }
    session.add_document(&config)?;
    session.add_document(&bytes)?;
    let manifest = Some(ManifestInfo { media_type, digest });
    let references: Vec<Reference> = name(entry).into_iter().collect();
    // No registry has said that it has this image.
    let named: Vec<_> = references.iter().map(|reference| (reference.clone(), None)).collect();
    session.add_image(id, &ImageRecord { manifest, layers }, &named)?;
    Ok(Loaded { id, references })
}

/// The name that an entry has. A tag alone (`latest`) is not one: it does not say of what.
fn name(entry: &IndexEntry) -> Option<Reference> {
    let names = NAMES.iter().filter_map(|name| entry.annotations.get(*name));
    names.filter(|name| name.contains([':', '/'])).find_map(|name| name.parse().ok())
}

/// Copies a file of a layout, for the store to keep.
fn copy(session: &Session<'_>, blob: &Blob, digest: Digest) -> Result<PathBuf, LoadError> {
    let path = session.temporary();
    let mut file = crate::store::create_file(&path)?;
    let mut input = Hashed::new(blob.open()?);
    io::copy(&mut input, &mut file).map_err(LoadError::Read)?;
    let (found, _) = input.finish();
    verify(digest, found)?;
    Ok(path)
}

fn verify(expected: Digest, found: Digest) -> Result<(), LoadError> {
    if found == expected {
        return Ok(());
    }
    let what = "blob";
    Err(crate::store::StoreError::Digest { what, expected, found }.into())
}

/// A layout's directory.
struct Directory(PathBuf);

impl Blobs for Directory {
    fn find(&self, digest: Digest) -> Result<Option<Blob>, LoadError> {
        let path = self.0.join("blobs/sha256").join(digest.hex());
        let mut options = OpenOptions::new();
        // Opening a named pipe would wait.
        options.read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed());
        let file = match options.open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(LoadError::Read)?,
        };
        if !file.metadata().is_ok_and(|data| data.is_file()) {
            return Ok(None);
        }
        let mut input = Hashed::new(file);
        io::copy(&mut input, &mut io::sink()).map_err(LoadError::Read)?;
        let (found, size) = input.finish();
        verify(digest, found)?;
        Ok(Some(Blob { path, size, is_ours: false }))
    }
}
