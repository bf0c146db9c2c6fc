//! Loading images: docker's archives, and OCI layouts in archives or directories.

mod archive;
mod docker;
mod layout;
mod spool;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::digest::Digest;
use crate::documents::DocumentError;
use crate::reference::Reference;
use crate::store::{InvalidConfig, Store, StoreError};

/// Why an archive or a layout can't be loaded.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The input.
    #[error("cannot read the archive")]
    Read(#[source] io::Error),
    /// Not a tar archive, or a damaged one.
    #[error("cannot read the archive")]
    Archive(#[from] erofs::StreamError),
    /// A tar archive of something else.
    #[error(
        "this is not an image: use an archive of `docker save`, `podman save` or skopeo, or an OCI layout"
    )]
    NotAnImage,
    /// A docker archive from before version 1.10.
    #[error("the archive has no manifest.json: save it anew with docker 1.10 or later")]
    TooOld,
    /// Too much in it.
    #[error("the archive has more than {most} {what}")]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// How much there may be.
        most: u64,
    },
    /// A document that can't be understood.
    #[error("invalid {name}: {reason}")]
    Invalid {
        /// Which one.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file that should be there.
    #[error("the image is not complete: it has no {0}")]
    Missing(String),
    /// A configuration.
    #[error("invalid image configuration {id}")]
    Config {
        /// Its digest.
        id: Digest,
        /// What is wrong with it.
        #[source]
        source: InvalidConfig,
    },
    /// A manifest or an index.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// The store, or a layer.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// An image that was loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// Its ID.
    pub id: Digest,
    /// The references that it got; none if the archive has none.
    pub references: Vec<Reference>,
}

/// Where the blobs of a layout come from.
trait Blobs {
    /// The blob with this digest, which has been verified.
    fn find(&self, digest: Digest) -> Result<Option<Blob>, LoadError>;
}

/// A file that is a blob.
#[derive(Clone, Debug)]
struct Blob {
    path: PathBuf,
    size: u64,
    /// Whether the store may take the file itself.
    is_ours: bool,
}

impl Blob {
    fn open(&self) -> Result<File, LoadError> {
        File::open(&self.path).map_err(LoadError::Read)
    }

    /// The bytes of a document, up to 4 MiB.
    fn document(&self, name: impl FnOnce() -> String) -> Result<Vec<u8>, LoadError> {
        let most = crate::store::MAX_DOCUMENT;
        if self.size > most {
            return Err(LoadError::Invalid { name: name(), reason: "it has more than 4 MiB".to_owned() });
        }
        let mut bytes = Vec::new();
        self.open()?.take(most).read_to_end(&mut bytes).map_err(LoadError::Read)?;
        Ok(bytes)
    }
}

impl Store {
    /// Loads all images of an archive: one of docker's, or an OCI layout, uncompressed or compressed with gzip or
    /// Zstandard. It is read once, from the beginning to its end.
    ///
    /// # Errors
    ///
    /// [`LoadError`]. Images before the one with the error stay loaded.
    pub fn load(&self, input: impl Read) -> Result<Vec<Loaded>, LoadError> {
        let session = self.session()?;
        archive::load(&session, input)
    }

    /// Loads all images of an OCI layout in a directory.
    ///
    /// # Errors
    ///
    /// As [`Store::load`].
    pub fn load_directory(&self, directory: &Path) -> Result<Vec<Loaded>, LoadError> {
        let session = self.session()?;
        layout::load_directory(&session, directory)
    }
}
