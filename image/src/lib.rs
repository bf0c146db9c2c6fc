//! OCI images: references, registries, and the store of images and layers.

mod commit;
mod compression;
mod digest;
mod documents;
#[cfg(test)]
mod fixtures;
mod import;
mod load;
mod platform;
mod recipe;
mod reference;
mod registry;
mod save;
mod store;

pub use commit::Commit;
pub use digest::{Digest, DigestError};
pub use documents::DocumentError;
pub use import::ImportError;
pub use load::{LoadError, Loaded};
pub use reference::{Reference, ReferenceError};
pub use registry::{
    Client, ClientFiles, CredentialFiles, CredentialSource, Credentials, Mirror, Progress, PullEvent, Pulled,
    RegistryError, RegistryOptions, StoredIn, Timeouts, registry_of,
};
pub use save::{SaveError, SaveFormat};
pub use store::{
    FlatDisk, HistoryEntry, Hold, Image, InvalidConfig, LayerInfo, MAX_UNPACKED, Part, Removed, Store,
    StoreError,
};
