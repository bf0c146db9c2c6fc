//! `mvm rename`.

use clap::Args;
use instance::{Archive, VmName};

use crate::process::ExitCode;
use crate::targets::{self, complain_of};
use crate::{events, exit_code};

const EXAMPLES: &str = "\
Examples:
  mvm rename web old-web";

/// Arguments of `mvm rename`.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub struct RenameCommand {
    /// ID, beginning of an ID, or name
    #[arg(value_name = "NAME")]
    container: String,

    /// The name that it gets
    #[arg(value_name = "NEW_NAME")]
    name: VmName,
}

impl RenameCommand {
    /// Gives a container or VM another name, whether it runs or not.
    pub fn run(self) -> ExitCode {
        let renamed = targets::kept(&self.container).and_then(|kept| {
            Archive::of_user()?.rename(&kept.entry.id, &self.name)?;
            Ok(kept.entry.name)
        });
        match renamed {
            Ok(earlier) => {
                let earlier = earlier.as_ref().map_or("", VmName::as_str);
                events::note_of(self.name.as_str(), "rename", &[("oldName", earlier)]);
                exit_code::SUCCESS.into()
            }
            Err(error) => complain_of(&self.container, &error.into()).into(),
        }
    }
}
