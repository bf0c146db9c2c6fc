//! The store of images, and the commands that manage it.

mod human;
mod list;
mod manage;
mod registry;
mod transfer;

use std::path::PathBuf;

use container::{Image, ImageConfig};
use image::{Hold, Reference, ReferenceError, Store};
use vmm::Piece;

pub use list::{HistoryCommand, ImagesCommand};
pub use manage::{RmiCommand, TagCommand};
pub use registry::{PullCommand, PushCommand, RegistryArguments};
pub use transfer::{LoadCommand, SaveCommand};

use crate::process::ExitCode;
use crate::{chain, complain, exit_code};

/// Opens this user's store: in `$MVM_DATA_DIR`, or in `mvm/images` of `$XDG_DATA_HOME` or `~/.local/share`, and for root
/// in /var/lib/mvm/images.
///
/// # Errors
///
/// A line for the user.
pub fn store() -> Result<Store, String> {
    let of = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let given = of("MVM_DATA_DIR").map(|directory| directory.join("images"));
    let system = || rustix::process::geteuid().is_root().then(|| PathBuf::from("/var/lib/mvm/images"));
    let own = || {
        let data = of("XDG_DATA_HOME").or_else(|| Some(of("HOME")?.join(".local/share")))?;
        Some(data.join("mvm/images"))
    };
    let path = given.or_else(system).or_else(own);
    let path =
        path.ok_or("cannot find a directory for images: set HOME or MVM_DATA_DIR to an absolute path")?;
    Store::open(&path).map_err(|error| chain(&error))
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
/// `policy` says.
///
/// # Errors
///
/// A line for the user.
pub fn open(name: &str, policy: PullPolicy, registry: RegistryArguments) -> Result<(Image, Hold), String> {
    let store = store()?;
    let hold = store.hold().map_err(|error| chain(&error))?;
    let resolve = || store.resolve(name).map_err(|error| chain(&error));
    let mut found = if policy == PullPolicy::Always { None } else { resolve()? };
    if found.is_none() && policy != PullPolicy::Never {
        let reference: Reference = name.parse().map_err(|error: ReferenceError| error.to_string())?;
        complain(&format!("pulling {reference}"));
        registry::pull(&store, registry, &reference, false)?;
        found = resolve()?;
    }
    let image = found.ok_or_else(|| missing(name))?;
    let disk = store.disk(&image).map_err(|error| chain(&error))?;
    let pieces = disk.parts.into_iter().map(|part| Piece { path: part.path, start: part.offset });
    let config = image.config.config().as_ref().map(|config| ImageConfig {
        entrypoint: config.entrypoint().clone().unwrap_or_default(),
        command: config.cmd().clone().unwrap_or_default(),
        env: config.env().clone().unwrap_or_default(),
        working_directory: config.working_dir().clone().unwrap_or_default(),
        user: config.user().clone().unwrap_or_default(),
        stop_signal: config.stop_signal().clone(),
    });
    Ok((Image { config: config.unwrap_or_default(), disk: pieces.collect() }, hold))
}

fn missing(name: &str) -> String {
    format!(
        "there is no image {name:?}: `mvm pull` and `mvm load` put one into the store, `mvm images` lists those that are there"
    )
}

/// The exit code of a command, whose error is said.
fn complete(result: Result<ExitCode, String>) -> ExitCode {
    result.unwrap_or_else(|message| {
        complain(&message);
        exit_code::FAILURE.into()
    })
}
