//! `mvm rmi` and `mvm tag`.

use clap::Args;
use image::{Reference, Removed, StoreError};

use super::{is_used, known, store};
use crate::complaint::complete;
use crate::process::ExitCode;
use crate::{chain, complain, events, exit_code, print};

const RMI_EXAMPLES: &str = "\
Examples:
  mvm rmi alpine:3.19 e13e74ceb895
  mvm rmi --force $(mvm images --quiet)";

/// Arguments of `mvm rmi`.
#[derive(Args)]
#[command(after_long_help = RMI_EXAMPLES)]
pub struct RmiCommand {
    /// Remove images with all their references; images that do not exist are no error
    ///
    /// An image that a container uses loses its references, and stays until the container is removed and `mvm image
    /// prune` finds it.
    #[arg(long, short)]
    force: bool,

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
            let result = store.remove_unused(&image, self.force, is_used);
            match result {
                Ok(what) => {
                    note(&what);
                    removed.push_str(&said(&what));
                }
                Err(StoreError::NoImage(_)) if self.force => {}
                Err(error) => {
                    // It may be in use for all that is known.
                    let unknown = matches!(error, StoreError::Used(_)).then(known).and_then(Result::err);
                    complain(&unknown.unwrap_or_else(|| chain(&error)));
                    code = exit_code::FAILURE;
                }
            }
        }
        print(removed.as_bytes(), code)
    }
}

/// Notes what was removed.
pub fn note(removed: &Removed) {
    for reference in &removed.references {
        events::note_image("untag", &removed.id.map_or_else(String::new, |id| id.to_string()), reference);
    }
    if let Some(id) = removed.image {
        events::note_image("delete", &id.to_string(), &id.to_string());
    }
}

/// What was removed, in docker's words.
pub fn said(removed: &Removed) -> String {
    let references = removed.references.iter().map(|reference| format!("Untagged: {reference}\n"));
    let image = removed.image.iter().map(|id| format!("Deleted: {id}\n"));
    references.chain(image).collect()
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
                .map(|()| {
                    let id = super::find(&self.reference.to_string()).map(|image| image.id.to_string());
                    events::note_image("tag", &id.unwrap_or_default(), &self.reference.to_string());
                    exit_code::SUCCESS.into()
                }),
        )
    }
}
