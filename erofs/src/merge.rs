//! The merged tree of several layers.

use std::fs::File;
use std::io;

use thiserror::Error;

use crate::layout::BLOCK;
use crate::metadata::Metadata;
use crate::read::read_layer;
use crate::tree::Tree;

/// The most layers an image may have, as docker and overlayfs have it.
pub const MAX_LAYERS: usize = 127;
/// The most files, directories and links that layers have together before upper ones hide some: what they take in
/// memory is 1.5 GiB then.
const MAX_ENTRIES: usize = 1 << 22;
/// Layers begin at multiples of 2 MiB of the flat disk, the size of a huge page.
const ALIGNMENT: u64 = (2 << 20) / BLOCK;

/// Why layers can't be merged.
#[derive(Debug, Error)]
pub enum MergeError {
    /// Too many layers.
    #[error("it has {0} layers: an image can have up to {MAX_LAYERS}")]
    Layers(usize),
    /// A layer's image can't be read.
    #[error("cannot read the image of layer {layer}")]
    Read {
        /// Its number, counted from 0.
        layer: usize,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// A layer's image is not one that this crate wrote.
    #[error("the image of layer {layer} is damaged: load or pull it again")]
    Damaged {
        /// Its number, counted from 0.
        layer: usize,
    },
    /// The merged image can't be written.
    #[error("cannot write the merged tree")]
    Write(#[source] io::Error),
    /// Too much in all layers together.
    #[error("all layers together have more than {MAX_ENTRIES} entries")]
    Entries,
    /// More than a block's number can say.
    #[error("all layers together are larger than 16 TiB")]
    TooLarge,
}

/// A merged tree that was written, and where the layers are that it points into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merged {
    /// Blocks of the metadata, which are the first of the flat disk.
    pub blocks: u32,
    /// The first block of each layer on the flat disk.
    pub layers_at: Vec<u32>,
}

/// Writes to `out`, an empty file, the tree that `layers`, the lowest first, make together: without what upper layers
/// hide, with links counted anew. `out` and then each layer from its block in [`Merged::layers_at`] on are one disk
/// with an EROFS on it.
///
/// The same layers and `uuid` make the same bytes.
///
/// # Errors
///
/// [`MergeError`].
pub fn merge(layers: &[File], out: &File, uuid: [u8; 16]) -> Result<Merged, MergeError> {
    merge_bounded(layers, out, uuid, MAX_ENTRIES)
}

/// [`merge`], where trees have up to `most` nodes together.
pub(crate) fn merge_bounded(
    layers: &[File],
    out: &File,
    uuid: [u8; 16],
    most: usize,
) -> Result<Merged, MergeError> {
    if layers.len() > MAX_LAYERS {
        return Err(MergeError::Layers(layers.len()));
    }
    let mut tree = Tree::default();
    let mut sizes = Vec::new();
    for (number, layer) in (0_u16..).zip(layers) {
        let (upper, blocks) = read_layer(layer, number)?;
        if tree.len().saturating_add(upper.len()) > most {
            return Err(MergeError::Entries);
        }
        tree.overlay(&upper);
        sizes.push(blocks);
    }
    let metadata = Metadata::lay_out(&tree);
    let narrow = |blocks: u64| u32::try_from(blocks).map_err(|_| MergeError::TooLarge);
    let blocks = narrow(1 + metadata.blocks())?;
    let mut end = u64::from(blocks);
    let mut layers_at = Vec::new();
    for size in sizes {
        let start = end.next_multiple_of(ALIGNMENT);
        layers_at.push(narrow(start)?);
        end = start + u64::from(size);
    }
    metadata.write(out, 1, narrow(end)?, &layers_at, uuid).map_err(MergeError::Write)?;
    out.set_len(u64::from(blocks) * BLOCK).map_err(MergeError::Write)?;
    Ok(Merged { blocks, layers_at })
}
