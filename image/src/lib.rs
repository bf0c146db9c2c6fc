//! OCI images: references, registries, and the store of images and layers.

mod compression;
mod digest;
mod recipe;
mod reference;

pub use digest::{Digest, DigestError};
pub use reference::{Reference, ReferenceError};
