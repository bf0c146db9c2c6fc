//! Flat disks: the merged tree of an image's layers, and the layers behind it.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Image, Session, Store, StoreError, files, io_error};
use crate::digest::Digest;

/// The version of merged trees, and of the layers' images that they point into.
const FORMAT: u32 = 1;

/// A read-only disk with an EROFS file system, made of parts of files. Between parts it reads as zeros.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlatDisk {
    /// The parts, by their offsets.
    pub parts: Vec<Part>,
}

/// A whole file on a flat disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The file.
    pub path: PathBuf,
    /// The byte of the disk at which it begins, a multiple of 4,096.
    pub offset: u64,
    /// Bytes of it, a multiple of 4,096.
    pub length: u64,
}

/// What a merged tree's directory says of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MergedInfo {
    blocks: u32,
    layers_at: Vec<u32>,
}

/// What a merged tree is known by: the layers in their order, and the version.
pub(crate) fn merged_key(diff_ids: &[Digest]) -> Digest {
    let head = format!("mvm merged tree {FORMAT}\n");
    Digest::of(diff_ids.iter().fold(head, |text, digest| text + &digest.to_string() + "\n").as_bytes())
}

impl Store {
    /// The image's disk: its merged tree, which is made if it is missing, and its layers. [`Store::hold`] keeps the
    /// files there until they are open.
    ///
    /// # Errors
    ///
    /// [`StoreError::Damaged`] where files are missing or not as long as they were, [`StoreError::Io`],
    /// [`StoreError::Merge`].
    pub fn disk(&self, image: &Image) -> Result<FlatDisk, StoreError> {
        let diff_ids: Vec<Digest> = image.layers.iter().map(|layer| layer.diff_id).collect();
        let merged = match self.known_merged(&diff_ids) {
            Some(merged) => merged,
            None => self.merged(image.id, &diff_ids, &self.session()?)?,
        };
        let length_of = |blocks: u32| u64::from(blocks) * erofs::BLOCK;
        let path = self.merged_file(&diff_ids, "merged.erofs");
        let mut parts = vec![Part { path, offset: 0, length: length_of(merged.blocks) }];
        for (layer, at) in image.layers.iter().zip(merged.layers_at) {
            let path = self.layer_image(layer.diff_id);
            let size = match layer.image_size {
                Some(size) => Some(size),
                None => self.layer(layer.diff_id)?.map(|layer| layer.image_size),
            };
            let Some(length) = size else { return Err(StoreError::Damaged { path }) };
            parts.push(Part { path, offset: length_of(at), length });
        }
        Ok(FlatDisk { parts })
    }

    fn merged_file(&self, diff_ids: &[Digest], name: &str) -> PathBuf {
        self.path("merged").join(merged_key(diff_ids).hex()).join(name)
    }

    /// The merged tree of the layers, if it is there and whole.
    fn known_merged(&self, diff_ids: &[Digest]) -> Option<MergedInfo> {
        let merged: MergedInfo = files::read_json(&self.merged_file(diff_ids, "merged.json")).ok()?;
        let image = fs::metadata(self.merged_file(diff_ids, "merged.erofs")).ok()?;
        let is_whole = image.len() == u64::from(merged.blocks) * erofs::BLOCK;
        (is_whole && merged.layers_at.len() == diff_ids.len()).then_some(merged)
    }

    /// The merged tree of the layers of image `id`, which is made if it is missing.
    pub(crate) fn merged(
        &self,
        id: Digest,
        diff_ids: &[Digest],
        session: &Session<'_>,
    ) -> Result<MergedInfo, StoreError> {
        if let Some(merged) = self.known_merged(diff_ids) {
            return Ok(merged);
        }
        let open = |diff_id: &Digest| {
            let path = self.layer_image(*diff_id);
            files::open(&path)
        };
        let layers: Vec<File> = diff_ids.iter().map(open).collect::<Result<_, _>>()?;
        let directory = session.temporary();
        fs::create_dir(&directory).map_err(io_error("create", &directory))?;
        let image_path = directory.join("merged.erofs");
        let image = files::create(&image_path)?;
        let key = merged_key(diff_ids);
        let merged = erofs::merge(&layers, &image, key.uuid());
        let merged = merged.map_err(|source| StoreError::Merge { id, source })?;
        image.sync_data().map_err(io_error("write", image_path))?;
        let merged = MergedInfo { blocks: merged.blocks, layers_at: merged.layers_at };
        let path = directory.join("merged.json");
        let bytes = serde_json::to_vec(&merged).map_err(io::Error::from).map_err(io_error("write", &path))?;
        files::write_synced(&path, &bytes)?;
        let place = self.path("merged").join(key.hex());
        if fs::rename(&directory, &place).is_err() {
            // Another one was faster, or there is one that is not whole.
            if self.known_merged(diff_ids).is_none() {
                files::rename(&place, &session.temporary())?;
                files::rename(&directory, &place)?;
            }
        }
        Ok(merged)
    }
}
