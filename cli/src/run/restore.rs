//! `mvm system restore`.

use clap::Args;
use instance::{Archive, Kind, Registry};

use super::order::Order;
use super::start::start;
use crate::process::ExitCode;
use crate::targets::complain_of;
use crate::{chain, complain, exit_code, print};

const EXAMPLES: &str = "\
Examples:
  mvm system restore
  systemctl enable mvm-restore      calls it when the host starts";

/// Arguments of `mvm system restore`.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub struct RestoreCommand {}

impl RestoreCommand {
    /// Starts containers whose policy says so and that no process keeps any more, and prints their names.
    pub fn run(self) -> ExitCode {
        Registry::of_user().sweep();
        let all = Archive::of_user().and_then(|archive| archive.all());
        let (all, damaged) = match all {
            Ok(all) => all,
            Err(error) => {
                complain(&chain(&error));
                return exit_code::FAILURE.into();
            }
        };
        let mut code = exit_code::SUCCESS;
        for error in damaged {
            complain(&chain(&error));
            code = exit_code::FAILURE;
        }
        let ended = all.iter().filter(|kept| kept.entry.kind == Kind::Container && kept.end().is_some());
        for kept in ended {
            // One of an older version has none, and no policy.
            let Ok(order) = kept.order::<Order>() else { continue };
            if !order.restart.restores(kept.is_stopped()) {
                continue;
            }
            let id = kept.entry.id.as_str();
            let name = kept.entry.name.as_ref().map_or(id, |name| name.as_str());
            match start(id) {
                Ok(()) => drop(print(format!("{name}\n").as_bytes(), code)),
                Err(failure) => code = code.max(complain_of(name, &failure)),
            }
        }
        code.into()
    }
}
