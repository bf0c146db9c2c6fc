//! Layers: an EROFS image each, and what else their tar streams have.
//!
//! An EROFS image takes about a tenth more than its tar stream, and its recipe less than a hundredth. The compressed
//! form would add a third. So it is kept where all of it is within an eighth of the tar stream, or where it is small;
//! what mvm writes of other layers is their tar streams, byte for byte. No compressor gives the bytes of another one
//! again.

use std::cell::{Cell, RefCell};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use erofs::{LayerError, Limits, write_layer_observed};
use serde::{Deserialize, Serialize};

use super::{Session, Store, StoreError, files, io_error};
use crate::compression::{Compression, decompressed};
use crate::digest::{Digest, Hashed};
use crate::recipe::{Rebuilt, RecipeWriter, Recorded};

/// The version of what is in a layer's directory.
const FORMAT: u32 = 1;
/// A compressed layer up to this size is kept.
const SMALL: u64 = 64 << 10;

/// A layer's compressed form, as a manifest names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct BlobInfo {
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
}

/// A layer of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerInfo {
    /// The digest of its tar stream.
    pub diff_id: Digest,
    /// Bytes of its tar stream.
    pub size: u64,
    /// Bytes of its EROFS image, where it is there and whole.
    pub(crate) image_size: Option<u64>,
}

/// What a layer's directory says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredLayer {
    format: u32,
    /// Bytes of the tar stream.
    pub(crate) size: u64,
    /// Bytes of the EROFS image.
    pub(crate) image_size: u64,
    /// Bytes on the disk, of the image and the recipe.
    used: u64,
}

impl StoredLayer {
    /// Whether the compressed form, of `size` bytes, is kept as well.
    pub(crate) fn keeps_blob(&self, size: u64) -> bool {
        size <= SMALL || self.used.saturating_add(size) <= self.size.saturating_add(self.size / 8)
    }
}

impl Store {
    fn layer_file(&self, diff_id: Digest, name: &str) -> PathBuf {
        self.path("layers").join(diff_id.hex()).join(name)
    }

    /// The EROFS image of a layer.
    pub(crate) fn layer_image(&self, diff_id: Digest) -> PathBuf {
        self.layer_file(diff_id, "layer.erofs")
    }

    /// What the store has of a layer, if it has it.
    pub(crate) fn layer(&self, diff_id: Digest) -> Result<Option<StoredLayer>, StoreError> {
        let path = self.layer_file(diff_id, "layer.json");
        let layer: StoredLayer = match files::read_json(&path) {
            Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Ok(None);
            }
            read => read?,
        };
        let image = self.layer_image(diff_id);
        let is_whole = fs::metadata(&image).is_ok_and(|data| data.len() == layer.image_size);
        if layer.format == FORMAT && is_whole {
            Ok(Some(layer))
        } else {
            Err(StoreError::Damaged { path: image })
        }
    }

    /// A layer's tar stream, byte for byte.
    pub(crate) fn layer_tar(&self, diff_id: Digest) -> Result<Rebuilt, StoreError> {
        let open = |path: PathBuf| files::open(&path);
        Ok(Rebuilt::new(open(self.layer_file(diff_id, "tar.gz"))?, open(self.layer_image(diff_id))?))
    }
}

impl Session<'_> {
    /// Stores a layer, of which `input` is the tar stream, compressed in whatever way. If the store has it, nothing is
    /// read.
    pub(crate) fn add_layer(&self, diff_id: Digest, input: impl Read) -> Result<StoredLayer, StoreError> {
        let damaged = match self.store.layer(diff_id) {
            Ok(Some(layer)) => return Ok(layer),
            Ok(None) => false,
            // A layer that is not whole makes room for one that is.
            Err(_) => true,
        };
        let directory = self.temporary();
        fs::create_dir(&directory).map_err(io_error("create", &directory))?;
        let layer = self.write(diff_id, input, &directory)?;
        let path = self.store.path("layers").join(diff_id.hex());
        if damaged {
            files::rename(&path, &self.temporary())?;
        }
        match fs::rename(&directory, &path) {
            // Another one was faster.
            Err(_) if path.exists() => Ok(layer),
            result => result.map(|()| layer).map_err(io_error("create", path)),
        }
    }

    /// Keeps a layer's compressed form, whose digest has been verified, if it is worth it.
    pub(crate) fn offer_blob(
        &self,
        file: &Path,
        blob: &BlobInfo,
        layer: &StoredLayer,
    ) -> Result<(), StoreError> {
        let is_there = self.store.blob_path(blob.digest).exists();
        if is_there || !layer.keeps_blob(blob.size) {
            return Ok(());
        }
        File::open(file).and_then(|file| file.sync_data()).map_err(io_error("write", file))?;
        // Others may still need the file by the name that it has.
        match fs::hard_link(file, self.store.blob_path(blob.digest)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(io_error("keep", file)(error)),
            _ => Ok(()),
        }
    }

    /// Writes all files of a layer to `directory`.
    fn write(&self, diff_id: Digest, input: impl Read, directory: &Path) -> Result<StoredLayer, StoreError> {
        let unreadable = |source| StoreError::ReadLayer { diff_id, source };
        let image_path = directory.join("layer.erofs");
        let image = files::create(&image_path)?;
        let recipe_path = directory.join("tar.gz");
        let recipe = RefCell::new(RecipeWriter::new(files::create(&recipe_path)?));
        let (compression, content) = decompressed(input).map_err(unreadable)?;
        let exceeded = Cell::new(false);
        let bounded = Bounded { input: content, session: self, exceeded: &exceeded };
        let mut hashed = Hashed::new(bounded);
        let mut recorded = Recorded { input: &mut hashed, recipe: &recipe };
        let mut observe = |extent| recipe.borrow_mut().extent(extent);
        let default = Limits::default();
        let limits = Limits { bytes: default.bytes.min(self.store.max_unpacked()), ..default };
        let written = write_layer_observed(&mut recorded, &image, diff_id.uuid(), &limits, &mut observe);
        let written = written
            .map_err(|source| StoreError::Layer { diff_id, source })
            .and_then(|_| io::copy(&mut recorded, &mut io::sink()).map_err(unreadable));
        let is_limit = |error: &StoreError| {
            let StoreError::Layer { source: LayerError::Limit { most, .. }, .. } = error else {
                return false;
            };
            *most == self.store.max_unpacked()
        };
        if exceeded.get() || written.as_ref().is_err_and(is_limit) {
            return Err(self.too_much());
        }
        written?;
        let (found, size) = hashed.finish();
        if found != diff_id {
            let what = if compression == Compression::None { "layer" } else { "decompressed layer" };
            return Err(StoreError::Digest { what, expected: diff_id, found });
        }
        let (recipe, _) = recipe.into_inner().finish().map_err(io_error("write", &recipe_path))?;
        let mut used = 0;
        for (file, path) in [(&recipe, &recipe_path), (&image, &image_path)] {
            file.sync_data().map_err(io_error("write", path))?;
            used += file.metadata().map_err(io_error("read", path))?.blocks() * 512;
        }
        let image_size = image.metadata().map_err(io_error("read", &image_path))?.len();
        let layer = StoredLayer { format: FORMAT, size, image_size, used };
        let path = directory.join("layer.json");
        let bytes = serde_json::to_vec(&layer).map_err(io::Error::from).map_err(io_error("write", &path))?;
        files::write_synced(&path, &bytes)?;
        Ok(layer)
    }
}

/// Fails where there is more to read than the session may unpack.
struct Bounded<'a, R> {
    input: R,
    session: &'a Session<'a>,
    exceeded: &'a Cell<bool>,
}

impl<R: Read> Read for Bounded<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        if self.session.take_unpacked(u64::try_from(count).unwrap_or(u64::MAX)) {
            return Ok(count);
        }
        self.exceeded.set(true);
        Err(io::Error::other("it has more bytes than may be unpacked"))
    }
}
