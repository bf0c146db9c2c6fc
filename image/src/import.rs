//! Importing a tar archive of a root file system as an image of one layer.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use serde_json::{Value, json};
use thiserror::Error;

use crate::compression::decompressed;
use crate::digest::{Digest, Hashed};
use crate::load::Loaded;
use crate::reference::Reference;
use crate::store::{
    ImageRecord, InvalidConfig, MAX_DOCUMENT, Store, StoreError, create_file, io_error, read_config,
};

/// The most bytes of an archive that comes as a stream, as it comes.
const MAX_INPUT: u64 = 96 << 30;

/// Why an archive can't be imported.
#[derive(Debug, Error)]
pub enum ImportError {
    /// The input.
    #[error("cannot read the archive")]
    Read(#[source] io::Error),
    /// Nothing in it.
    #[error("the archive is empty: import a tar archive of a root file system")]
    Empty,
    /// Too much in it.
    #[error("the archive has more than 96 GiB")]
    TooLong,
    /// A configuration that an image can't have.
    #[error("invalid image configuration")]
    Config(#[from] InvalidConfig),
    /// The store, or the layer.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Store {
    /// Makes an image of the archive `file`, uncompressed or compressed with gzip or Zstandard. `config` is the
    /// `config` of its configuration (OCI image specification); `created` is the time (RFC 3339) and `comment` what its
    /// history says. The archive is read twice.
    ///
    /// # Errors
    ///
    /// [`ImportError`].
    pub fn import(
        &self,
        file: &mut File,
        config: &Value,
        (created, comment): (&str, &str),
        reference: Option<&Reference>,
    ) -> Result<Loaded, ImportError> {
        let session = self.session()?;
        let diff_id = digest(&mut *file)?;
        file.seek(SeekFrom::Start(0)).map_err(ImportError::Read)?;
        session.add_layer(diff_id, file)?;
        let document = json!({
            "architecture": "amd64",
            "os": "linux",
            "created": created,
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
            "history": [{"created": created, "comment": comment}],
        });
        let document = document.to_string().into_bytes();
        if u64::try_from(document.len()).is_ok_and(|length| length > MAX_DOCUMENT) {
            return Err(InvalidConfig::Json("it has more than 4 MiB".to_owned()).into());
        }
        let (_, diff_ids) = read_config(&document, Some(1))?;
        let id = session.add_document(&document)?;
        let references: Vec<_> = reference.map(|reference| (reference.clone(), None)).into_iter().collect();
        session.add_image(id, &ImageRecord::of_layers(&diff_ids), &references)?;
        Ok(Loaded { id, references: references.into_iter().map(|(reference, _)| reference).collect() })
    }

    /// As [`Store::import`], of an archive that can be read once only.
    ///
    /// # Errors
    ///
    /// [`ImportError`].
    pub fn import_stream(
        &self,
        input: impl Read,
        config: &Value,
        history: (&str, &str),
        reference: Option<&Reference>,
    ) -> Result<Loaded, ImportError> {
        let session = self.session()?;
        let path = session.temporary();
        put_aside(&path, input)?;
        let mut file = File::open(&path).map_err(io_error("read", &path))?;
        self.import(&mut file, config, history, reference)
    }
}

/// The digest of a tar stream, compressed in whatever way.
pub(crate) fn digest(input: impl Read) -> Result<Digest, ImportError> {
    let (_, content) = decompressed(input).map_err(ImportError::Read)?;
    let mut hashed = Hashed::new(content.take(MAX_INPUT + 1));
    io::copy(&mut hashed, &mut io::sink()).map_err(ImportError::Read)?;
    match hashed.finish() {
        (_, 0) => Err(ImportError::Empty),
        (_, length) if length > MAX_INPUT => Err(ImportError::TooLong),
        (digest, _) => Ok(digest),
    }
}

/// Writes all of the input to the new file at `path`.
pub(crate) fn put_aside(path: &Path, input: impl Read) -> Result<(), ImportError> {
    let mut file = create_file(path)?;
    let mut input = input.take(MAX_INPUT + 1);
    let mut buffer = vec![0; 256 << 10];
    loop {
        let count = input.read(&mut buffer).map_err(ImportError::Read)?;
        if count == 0 {
            break;
        }
        let read = buffer.get(..count).unwrap_or_default();
        io::Write::write_all(&mut file, read).map_err(io_error("write", path))?;
    }
    if input.limit() == 0 { Err(ImportError::TooLong) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::fixtures::{gzip, tar};

    fn store() -> (tempfile::TempDir, Store) {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("images")).unwrap();
        (directory, store)
    }

    const HISTORY: (&str, &str) = ("2024-05-06T07:08:09Z", "Imported from -");

    #[test]
    fn an_archive_becomes_an_image_of_one_layer() {
        let (directory, store) = store();
        let archive = tar(&[("bin/hello", b"hello")]);
        let config = json!({"Cmd": ["/bin/hello"], "Env": ["A=1"]});
        let reference = "tools:1".parse().unwrap();
        let path = directory.path().join("root.tar.gz");
        File::create(&path).unwrap().write_all(&gzip(&archive)).unwrap();
        let mut file = File::open(&path).unwrap();
        let loaded = store.import(&mut file, &config, HISTORY, Some(&reference)).unwrap();
        let image = store.resolve("tools:1").unwrap().unwrap();
        assert_eq!((image.id, loaded.references), (loaded.id, vec![reference]));
        assert_eq!(image.layers.len(), 1);
        assert_eq!(image.layers[0].diff_id, Digest::of(&archive));
        assert_eq!(image.config.config().as_ref().unwrap().cmd(), &Some(vec!["/bin/hello".to_owned()]));
        assert_eq!(image.history()[0].comment.as_deref(), Some("Imported from -"));
        store.disk(&image).unwrap();
        // The same archive and configuration is the same image, however it comes.
        let again = store.import_stream(&archive[..], &config, HISTORY, None).unwrap();
        assert_eq!(again.id, loaded.id);
        assert_eq!(std::fs::read_dir(store.root().join("tmp")).unwrap().count(), 0);
    }

    #[test]
    fn what_is_no_archive_leaves_nothing() {
        let (_directory, store) = store();
        let import = |bytes: &[u8], config: Value| store.import_stream(bytes, &config, HISTORY, None);
        assert!(matches!(import(b"", json!({})), Err(ImportError::Empty)));
        assert!(matches!(import(b"this is not a tar archive", json!({})), Err(ImportError::Store(_))));
        let cut = gzip(&tar(&[("a", b"x")]));
        assert!(matches!(import(&cut[..20], json!({})), Err(ImportError::Read(_))));
        let archive = tar(&[("a", b"x")]);
        assert!(matches!(import(&archive, json!({"Cmd": 5})), Err(ImportError::Config(_))));
        assert!(store.images().unwrap().is_empty());
        for directory in ["tmp", "layers", "blobs", "merged"] {
            assert_eq!(std::fs::read_dir(store.root().join(directory)).unwrap().count(), 0, "{directory}");
        }
    }
}
