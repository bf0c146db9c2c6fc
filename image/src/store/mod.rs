//! The store of images and layers, which several processes use at once.
//!
//! ```text
//! ROOT/                   0700
//! ├── version             the layout's version
//! ├── lock                held (flock) while records, references or what they need are changed
//! ├── adding              held shared by those who add or use content, exclusively while content is removed
//! ├── naming              the ID of a new image that is recorded and not named yet
//! ├── unswept             is there where something may be left to remove
//! ├── reserve             some of the disk, so that images can be removed from a full one
//! ├── references.json     which reference stands for which image
//! ├── images/HEX          an image's record, by its ID
//! ├── blobs/HEX           configurations, manifests and small compressed layers, as they came
//! ├── layers/HEX/         a layer, by its diff ID: layer.json, layer.erofs, tar.gz (the recipe of its tar stream)
//! ├── merged/HEX/         the merged tree of several layers: merged.json, merged.erofs
//! ├── partial/HEX         what was pulled so far of a blob; held (flock) by who pulls it
//! └── tmp/                what is being written; a directory for each who adds
//! ```
//!
//! All content is written below `tmp/` and renamed when it is complete and its digest has been verified, so what has
//! its final name is whole. A record is written last. What a killed process leaves is in `tmp/`, or is content that no
//! record needs; either is removed by the next one that finds no other adding.
//!
//! A layer's compressed form is kept only where it is small (see [`layers`]): beside its EROFS image it would take a
//! third more space. Its tar stream is made again byte for byte from image and recipe.

mod disk;
mod files;
mod layers;
mod lock;
#[cfg(test)]
mod mounted;
mod records;
mod remove;
mod resolve;
mod session;
mod sweep;
#[cfg(test)]
pub(crate) mod tests;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

pub use disk::{FlatDisk, Part};
pub use layers::LayerInfo;
pub use remove::Removed;
pub use resolve::{HistoryEntry, Image};
pub use session::Hold;

pub(crate) use files::create as create_file;
pub(crate) use layers::BlobInfo;
pub(crate) use lock::FileLock;
pub(crate) use records::{ImageRecord, LayerRecord, ManifestInfo};
pub(crate) use resolve::read_config;
pub(crate) use session::Session;

use crate::digest::{Digest, DigestError};
use crate::reference::{Reference, ReferenceError};

/// The layout's version. Another one is another store.
const VERSION: &str = "1\n";
/// The most bytes of a manifest, an index or a configuration.
pub(crate) const MAX_DOCUMENT: u64 = 4 << 20;
/// The most bytes that the layers of one pull or load have together when they are unpacked, unless another number is
/// set: 64 GiB.
pub const MAX_UNPACKED: u64 = 64 << 30;
/// The most layers of an image.
pub(crate) const MAX_LAYERS: usize = erofs::MAX_LAYERS;

/// Why the store can't do what was asked.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The system.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// A store that another version of mvm made.
    #[error(
        "{} has layout {found:?}, which this mvm does not know: use the mvm that made it, or another directory",
        path.display()
    )]
    Version {
        /// The store.
        path: PathBuf,
        /// What its file `version` says.
        found: String,
    },
    /// Another user could put images into it.
    #[error("{} is not this user's alone: {}", path.display(), advice)]
    NotOurs {
        /// The store.
        path: PathBuf,
        /// What to do.
        advice: &'static str,
    },
    /// The file with the names of images is not as it was written.
    #[error("{} is damaged: remove it, then images have no names until `mvm tag` gives them some", path.display())]
    References {
        /// The file.
        path: PathBuf,
    },
    /// A file of the store that is not as it was written.
    #[error("{} is damaged: remove the image and pull or load it again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// Content that is not what its name says.
    #[error("the {what} has the digest {found}, not {expected}: it was damaged or changed on its way")]
    Digest {
        /// What it is.
        what: &'static str,
        /// What was announced.
        expected: Digest,
        /// What came.
        found: Digest,
    },
    /// More than [`Store::set_max_unpacked`] allows.
    #[error("the layers have more than {0} bytes when they are unpacked: allow more by --max-unpacked SIZE")]
    Unpacked(u64),
    /// A layer's compressed stream, or the end of its tar stream.
    #[error("cannot read layer {diff_id}")]
    ReadLayer {
        /// The layer.
        diff_id: Digest,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// A layer that can't be stored.
    #[error("cannot store layer {diff_id}")]
    Layer {
        /// The layer.
        diff_id: Digest,
        /// What is wrong with it.
        #[source]
        source: erofs::LayerError,
    },
    /// Layers that can't be merged.
    #[error("cannot merge the layers of image {id}")]
    Merge {
        /// The image.
        id: Digest,
        /// Why.
        #[source]
        source: erofs::MergeError,
    },
    /// A configuration that can't be understood.
    #[error("invalid image configuration {id}")]
    Config {
        /// Its digest.
        id: Digest,
        /// What is wrong with it.
        #[source]
        source: InvalidConfig,
    },
    /// A file of the store that would be too long to be read again.
    #[error("{} would have more than 4 MiB: remove images, or use fewer and shorter names", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// A text that names several images.
    #[error("{0:?} is the beginning of several images' IDs: give more of it")]
    Ambiguous(String),
    /// No such image.
    #[error(
        "there is no image {0:?}: `mvm pull` and `mvm load` put one into the store, `mvm images` lists those that are there"
    )]
    NoImage(String),
    /// An image that has several references.
    #[error("image {id} has several references ({references}): remove each of them, or use --force")]
    Referenced {
        /// The image.
        id: String,
        /// Its references.
        references: String,
    },
    /// An image that a container needs.
    #[error("conflict: a container uses image {0}: `mvm rm` the container first (`mvm ps -a` lists it)")]
    Used(String),
    /// Not a reference.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// Not a digest.
    #[error(transparent)]
    InvalidDigest(#[from] DigestError),
}

/// What may be wrong with an image's configuration.
#[derive(Debug, Error)]
pub enum InvalidConfig {
    /// Not JSON, or not of the form of the OCI image specification.
    #[error("{0}")]
    Json(String),
    /// A layer that is not named by a digest.
    #[error(transparent)]
    DiffId(#[from] DigestError),
    /// Too many layers.
    #[error("it has {0} layers: use up to {MAX_LAYERS}")]
    Layers(usize),
    /// Another number than the manifest has.
    #[error("it has {config} layers, its manifest {manifest}")]
    Count {
        /// Of the configuration.
        config: usize,
        /// Of the manifest.
        manifest: usize,
    },
    /// Another system.
    #[error("it is for {0}: use an image for linux/amd64")]
    Platform(String),
}

/// A store of images. Any number of them, in any number of processes, may be open for one directory.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
    /// [`Store::set_max_unpacked`].
    max_unpacked: u64,
    /// [`Store::remains`].
    remains: u64,
}

impl Store {
    /// Opens the store in `root`, and makes it where it does not exist. Removes what killed processes have left, unless
    /// that would have to wait.
    ///
    /// # Errors
    ///
    /// [`StoreError::Io`], [`StoreError::Version`], [`StoreError::NotOurs`].
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        let mut store = Self { root: root.to_owned(), max_unpacked: MAX_UNPACKED, remains: 0 };
        store.check_owner()?;
        match records::none_if_missing(files::read_bounded(&store.path("version")))? {
            Some(version) if version == VERSION.as_bytes() => {}
            Some(found) => {
                let found = String::from_utf8_lossy(&found).trim().chars().take(20).collect();
                return Err(StoreError::Version { path: store.root, found });
            }
            None => store.create()?,
        }
        store.remains = store.sweep_if_needed()?;
        Ok(store)
    }

    /// Bytes of files that killed processes had left, or that were in use when their image was removed, and that were
    /// removed when this store was opened.
    pub fn remains(&self) -> u64 {
        self.remains
    }

    /// Only this user and root may change what is in it; it may be missing yet.
    fn check_owner(&self) -> Result<(), StoreError> {
        use std::os::unix::fs::MetadataExt;
        let Ok(metadata) = fs::metadata(&self.root) else { return Ok(()) };
        let not_ours = |advice| StoreError::NotOurs { path: self.root.clone(), advice };
        let user = rustix::process::geteuid();
        if metadata.uid() != user.as_raw() && metadata.uid() != 0 {
            return Err(not_ours("it belongs to another: use a directory of your own"));
        }
        if metadata.is_dir() && metadata.mode() & 0o022 != 0 {
            return Err(not_ours("chmod 700 it"));
        }
        Ok(())
    }

    /// Bounds the bytes that the layers of one pull or load may have together when they are unpacked, against archives
    /// that are small until then. It is [`MAX_UNPACKED`] at first.
    pub fn set_max_unpacked(&mut self, bytes: u64) {
        self.max_unpacked = bytes;
    }

    pub(crate) fn max_unpacked(&self) -> u64 {
        self.max_unpacked
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn create(&self) -> Result<(), StoreError> {
        use std::os::unix::fs::DirBuilderExt;
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        for directory in ["", "images", "blobs", "layers", "merged", "partial", "tmp"] {
            let path = self.path(directory);
            builder.create(&path).map_err(io_error("create", path))?;
        }
        let _lock = self.lock()?;
        self.mark_unswept()?;
        // Others may create it as well: all write the same.
        let temporary = self.path("tmp").join(format!("version-{}", std::process::id()));
        files::write_synced(&temporary, VERSION.as_bytes())?;
        files::rename(&temporary, &self.path("version"))
    }

    /// A path in the store. `name` is never from outside.
    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The file of a blob.
    pub(crate) fn blob_path(&self, digest: Digest) -> PathBuf {
        self.root.join("blobs").join(digest.hex())
    }

    /// Waits for the lock on records and references, which is held for moments only.
    fn lock(&self) -> Result<FileLock, StoreError> {
        let path = self.path("lock");
        FileLock::soon(&path).map_err(io_error("lock", path))
    }

    /// The bytes of a manifest or configuration, whose digest is verified.
    pub(crate) fn document(&self, digest: Digest) -> Result<Vec<u8>, StoreError> {
        let path = self.blob_path(digest);
        let bytes = files::read_bounded(&path)?;
        if Digest::of(&bytes) == digest { Ok(bytes) } else { Err(StoreError::Damaged { path }) }
    }

    /// Gives `reference` to the image that `image` names, and takes it from the one that had it.
    ///
    /// # Errors
    ///
    /// [`StoreError::NoImage`], [`StoreError::Ambiguous`], [`StoreError::Io`].
    pub fn tag(&self, image: &str, reference: &Reference) -> Result<(), StoreError> {
        {
            let _lock = self.lock()?;
            let id = self.resolve_id(image)?.ok_or_else(|| StoreError::NoImage(image.to_owned()))?;
            let mut references = self.references()?;
            references.set(reference, id, None);
            self.mark_unswept()?;
            self.write_references(&references)?;
        }
        self.sweep_if_needed().map(drop)
    }
}

/// Makes a [`StoreError::Io`] of the system's error.
pub(crate) fn io_error(
    action: &'static str,
    path: impl Into<PathBuf>,
) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.into();
    move |source| StoreError::Io { action, path, source }
}
