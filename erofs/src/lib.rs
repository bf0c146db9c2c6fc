//! Writes EROFS images: a layer from a tar stream, and the merged tree of several layers.
//!
//! Each layer is an image of its own, which is written once and shared by all images that have it. A merged image holds
//! metadata alone: its files point at blocks behind it, where the layers follow, so that all of them together are one
//! flat disk with one file system (see [`merge()`]). Nothing here knows of OCI, compression or digests.
//!
//! Tar streams are hostile: [`Limits`] bound what a layer may contain, and no name in a stream is ever a path of the
//! host. The format is described in the Linux kernel's `fs/erofs/erofs_fs.h`; what is written here can be mounted by
//! Linux 5.10 and later.

mod data;
mod layer;
mod layout;
mod merge;
mod metadata;
mod names;
mod pax;
mod read;
mod stream;
#[cfg(test)]
mod tests;
mod tree;

pub use layer::{Extent, Layer, LayerError, Limits, write_layer, write_layer_observed};
pub use layout::BLOCK;
pub use merge::{MAX_LAYERS, MergeError, Merged, merge};
pub use pax::Segment;
pub use stream::{Entry, EntryKind, Stream, StreamError};
