//! OCI images: references, registries, and the store of images and layers.

mod compression;
mod digest;
mod documents;
#[cfg(test)]
mod fixtures;
mod load;
mod platform;
mod recipe;
mod reference;
mod registry;
mod save;
mod store;

pub use digest::{Digest, DigestError};
pub use documents::DocumentError;
pub use load::{LoadError, Loaded};
pub use reference::{Reference, ReferenceError};
pub use registry::{
    Client, Credentials, Mirror, Progress, PullEvent, Pulled, RegistryError, RegistryOptions, Timeouts,
};
pub use save::{SaveError, SaveFormat};
pub use store::{FlatDisk, HistoryEntry, Hold, Image, InvalidConfig, LayerInfo, Part, Store, StoreError};
