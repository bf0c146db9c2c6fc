//! `mvm rmi` and `mvm tag`.

use clap::Args;
use image::Reference;

use super::{complete, store};
use crate::process::ExitCode;
use crate::{chain, complain, exit_code, print};

const RMI_EXAMPLES: &str = "\
Examples:
  mvm rmi alpine:3.19 e13e74ceb895
  mvm rmi $(mvm images --quiet)";

/// Arguments of `mvm rmi`.
#[derive(Args)]
#[command(after_long_help = RMI_EXAMPLES)]
pub struct RmiCommand {
    /// The images: references or IDs
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

impl RmiCommand {
    /// Removes references, and images that have none left.
    pub fn run(self) -> ExitCode {
        let store = match store() {
            Ok(store) => store,
            Err(message) => return complete(Err(message)),
        };
        let mut code = exit_code::SUCCESS;
        let mut removed = String::new();
        for image in self.images {
            match store.remove(&image) {
                Ok(()) => removed.push_str(&format!("Removed: {image}\n")),
                Err(error) => {
                    complain(&chain(&error));
                    code = exit_code::FAILURE;
                }
            }
        }
        print(removed.as_bytes(), code)
    }
}

const TAG_EXAMPLES: &str = "\
Examples:
  mvm tag e13e74ceb895 tools:1.2";

/// Arguments of `mvm tag`.
#[derive(Args)]
#[command(after_long_help = TAG_EXAMPLES)]
pub struct TagCommand {
    /// The image: a reference or an ID
    image: String,

    /// The reference that it gets
    #[arg(value_name = "REFERENCE")]
    reference: Reference,
}

impl TagCommand {
    /// Gives an image another reference.
    pub fn run(self) -> ExitCode {
        complete(
            store()
                .and_then(|store| store.tag(&self.image, &self.reference).map_err(|error| chain(&error)))
                .map(|()| exit_code::SUCCESS.into()),
        )
    }
}
