//! The store of images, and the commands that manage it.

pub mod change;
mod df;
mod group;
mod history;
pub mod human;
mod import;
pub mod inspect;
pub mod list;
mod login;
mod manage;
mod pattern;
mod prune;
mod registry;
mod transfer;
pub mod worker;

use container::{Image, ImageConfig, ImageHealth};
use image::{Digest, Hold, Reference, ReferenceError, Store, StoreError};
use instance::{Archive, Kind};
use vmm::Piece;

pub use df::SystemCommand;
pub use group::ImageCommand;
pub use history::HistoryCommand;
pub use import::ImportCommand;
pub use list::ImagesCommand;
pub use login::{LoginCommand, LogoutCommand};
pub use manage::{RmiCommand, TagCommand};
pub use prune::{prune, which};
pub use registry::{PullCommand, PushCommand, RegistryArguments};
pub use transfer::{LoadCommand, SaveCommand};
pub use worker::WorkerCommand;

use crate::ps;
use crate::{chain, complain};

/// Opens this user's store, `images` of the directory of data.
///
/// # Errors
///
/// A line for the user.
pub fn store() -> Result<Store, String> {
    let data = instance::data_directory();
    let data =
        data.ok_or("cannot find a directory for images: set HOME or MVM_DATA_DIR to an absolute path")?;
    Store::open(&data.join("images")).map_err(|error| chain(&error))
}

/// When an image is pulled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum PullPolicy {
    /// If the store does not have it.
    #[default]
    Missing,
    /// Each time.
    Always,
    /// Not at all.
    Never,
}

/// The image that `name` means, ready to be used, and what keeps its files there until they are open. It is pulled as
/// `policy` says, and with `quiet` nothing is said of that.
///
/// # Errors
///
/// A line for the user.
pub fn open(
    name: &str,
    policy: PullPolicy,
    registry: RegistryArguments,
    quiet: bool,
) -> Result<(Image, Hold), String> {
    let store = store()?;
    let hold = store.hold().map_err(|error| chain(&error))?;
    let resolve = || store.resolve(name).map_err(|error| chain(&error));
    let mut found = if policy == PullPolicy::Always { None } else { resolve()? };
    if found.is_none() && policy != PullPolicy::Never {
        let reference: Reference = name.parse().map_err(|error: ReferenceError| error.to_string())?;
        // Where no VM can be made, nothing is waited for.
        vmm::open_kvm().map_err(|error| chain(&error))?;
        if !quiet {
            complain(&format!("pulling {reference}"));
        }
        if let Err(line) = registry::pull(&store, registry, &reference, quiet) {
            // With nothing held, what was left of it can be removed.
            drop(hold);
            let _ = Store::open(store.root());
            return Err(line);
        }
        found = resolve()?;
    }
    let image = found.ok_or_else(|| missing(name))?;
    Ok((prepared(&store, &image)?, hold))
}

/// The image with this ID, which a container was made of, ready to be used, and what keeps its files there until they
/// are open.
///
/// # Errors
///
/// A line for the user.
pub fn open_kept(id: &str) -> Result<(Image, Hold), String> {
    open_stored(id, || format!("its image {id} is not in the store any more: `mvm pull` it again"))
}

/// The image that `name` means, as far as it is in the store, ready to be used, and what keeps its files there until
/// they are open. Where it is not there, the error is `missing`.
///
/// # Errors
///
/// A line for the user.
pub fn open_stored(name: &str, missing: impl FnOnce() -> String) -> Result<(Image, Hold), String> {
    let store = store()?;
    let hold = store.hold().map_err(|error| chain(&error))?;
    let image = store.resolve(name).map_err(|error| chain(&error))?.ok_or_else(missing)?;
    Ok((prepared(&store, &image)?, hold))
}

fn prepared(store: &Store, image: &image::Image) -> Result<Image, String> {
    let disk = store.disk(image).map_err(|error| chain(&error))?;
    let pieces = disk.parts.into_iter().map(|part| Piece { path: part.path, start: part.offset });
    let config = image.config.config().as_ref().map(|config| ImageConfig {
        entrypoint: config.entrypoint().clone().unwrap_or_default(),
        command: config.cmd().clone().unwrap_or_default(),
        env: config.env().clone().unwrap_or_default(),
        working_directory: config.working_dir().clone().unwrap_or_default(),
        user: config.user().clone().unwrap_or_default(),
        exposed: config.exposed_ports().clone().unwrap_or_default(),
        volumes: config.volumes().clone().unwrap_or_default(),
        stop_signal: config.stop_signal().clone(),
        health: health(store, image.id),
    });
    Ok(Image { id: image.id.to_string(), config: config.unwrap_or_default(), disk: pieces.collect() })
}

/// What an image says of its containers' health, which the OCI's specification does not know, and the shell for that.
fn health(store: &Store, id: Digest) -> Option<ImageHealth> {
    let config = store.configuration(id).ok()?;
    // Few have one of these.
    let has = |name: &[u8]| config.windows(name.len()).any(|part| part == name);
    (has(b"\"Healthcheck\"") || has(b"\"Shell\"")).then_some(())?;
    let config: serde_json::Value = serde_json::from_slice(&config).ok()?;
    let read = |name: &str| config.pointer(name).cloned();
    let health = read("/config/Healthcheck").and_then(|value| serde_json::from_value(value).ok());
    let shell = read("/config/Shell").and_then(|value| serde_json::from_value(value).ok());
    Some(ImageHealth { shell: shell.unwrap_or_default(), ..health.unwrap_or_default() })
}

/// That the store has no such image.
pub fn missing(name: &str) -> String {
    StoreError::NoImage(name.to_owned()).to_string()
}

/// The image that `name` means.
///
/// # Errors
///
/// A line for the user.
pub fn find(name: &str) -> Result<image::Image, String> {
    let found = store()?.resolve(name).map_err(|error| chain(&error))?;
    found.ok_or_else(|| missing(name))
}

/// A container that uses an image, as `mvm system df` and `mvm image prune` have to know.
pub struct ContainerUse {
    /// Its image's ID, as `sha256:` and 64 digits.
    pub image: String,
    /// Bytes that it has written.
    pub size: u64,
    /// Whether it runs.
    pub is_running: bool,
    /// Its row in the table of `mvm system df --verbose`, with docker's fields: ID, Image, Command, LocalVolumes, Size,
    /// RunningFor, Status, Names.
    pub row: serde_json::Value,
}

/// The containers that use images. A container that runs has its image's files open, and needs no entry in the store
/// for itself; one that can be started again does.
fn containers() -> Vec<ContainerUse> {
    // What can't be read is said by `mvm ps`.
    let items = ps::items(true).map(|(items, _)| items).unwrap_or_default();
    let of = |item: &ps::Item| {
        let entry = item.entry.as_ref().filter(|entry| entry.kind == Kind::Container)?;
        let size = item.disk_usage();
        let mut row = item.fields(false);
        row.as_object_mut()?.insert("Size".into(), human::size(size).into());
        Some(ContainerUse { image: entry.image_id.clone()?, size, is_running: item.is_running(), row })
    };
    items.iter().filter_map(of).collect()
}

/// The bytes of each image's layers, by its ID as `sha256:` and 64 digits.
pub fn sizes() -> std::collections::HashMap<String, u64> {
    let images = store().ok().and_then(|store| store.images().ok()).unwrap_or_default();
    images.into_iter().map(|image| (image.id.to_string(), image.size)).collect()
}

/// Whether a container that is kept needs an image, or may need it, as its record can't be read.
fn is_used(id: Digest) -> bool {
    let id = id.to_string();
    known().map_or(true, |kept| kept.iter().any(|kept| kept.entry.image_id.as_ref() == Some(&id)))
}

/// All containers, as it is known which images they need.
///
/// # Errors
///
/// A line for the user: the record of one can't be read.
fn known() -> Result<Vec<instance::Kept>, String> {
    let kept = Archive::of_user().and_then(|archive| archive.all_readable());
    kept.map_err(|error| format!("cannot see which images are in use: {}", chain(&error)))
}
