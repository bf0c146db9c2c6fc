//! The store of images, and the commands that manage it.

mod human;
mod list;
mod manage;
mod transfer;

use std::path::PathBuf;

use container::{Image, ImageConfig};
use image::{Hold, Store};
use vmm::Piece;

pub use list::{HistoryCommand, ImagesCommand};
pub use manage::{RmiCommand, TagCommand};
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
    let path = path.ok_or("there is no place for images: set HOME or MVM_DATA_DIR to an absolute path")?;
    Store::open(&path).map_err(|error| chain(&error))
}

/// The image that `name` means, ready to be used, and what keeps its files there until they are open.
///
/// # Errors
///
/// A line for the user.
pub fn open(name: &str) -> Result<(Image, Hold), String> {
    let store = store()?;
    let hold = store.hold().map_err(|error| chain(&error))?;
    let found = store.resolve(name).map_err(|error| chain(&error))?;
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
        "there is no image {name:?}: `mvm load` puts one into the store, `mvm images` lists those that are there"
    )
}

/// The exit code of a command, whose error is said.
fn complete(result: Result<ExitCode, String>) -> ExitCode {
    result.unwrap_or_else(|message| {
        complain(&message);
        exit_code::FAILURE.into()
    })
}
