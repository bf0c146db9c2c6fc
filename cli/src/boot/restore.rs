//! `mvm restore`.

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use instance::{Entry, Identity, Keep, VmName};
use vmm::{Snapshot, VmConfig};

use super::{Order, Refusal, boot, confined, run_order};
use crate::background::Reporter;
use crate::process::ExitCode;
use crate::snapshot::{self, PrivateDisks};
use crate::{complain, exit_code};

const EXAMPLES: &str = "\
Examples:
  mvm restore ./web.snap
  mvm restore --detach --name web2 ./web.snap
  mvm restore --check ./web.snap

Exit codes:
  2      wrong usage, or the snapshot is damaged or does not fit its disks
  3      the host cannot run the VM, or copy its disks
  other  those of `mvm boot`; with --check, 0 where the snapshot is whole";

/// Arguments of `mvm restore`.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub struct RestoreCommand {
    /// The directory that `mvm snapshot` has made, of a VM of `mvm boot`
    #[arg(value_name = "DIR")]
    directory: PathBuf,

    /// Name of the VM
    #[arg(long, value_name = "NAME")]
    name: Option<VmName>,

    /// Run in the background, and print the VM's ID
    #[arg(long, short)]
    detach: bool,

    /// Remove the VM's record when it ends (with --detach; in the foreground none is kept)
    #[arg(long)]
    rm: bool,

    /// Where the VM's copies of writable disks go: files such as vda.img, which stay [default: deleted when the VM ends]
    ///
    /// The directory is made if it does not exist. By default the copies have no names, are stored beside the snapshot,
    /// and are deleted when the VM ends.
    #[arg(long, value_name = "DIR")]
    disks: Option<PathBuf>,

    /// Check that the snapshot is as it was saved, all of its memory too, and run nothing
    #[arg(long, conflicts_with_all = ["name", "detach", "rm", "disks", "timing"])]
    check: bool,

    /// Print how long each phase of the start took
    #[arg(long, hide_short_help = true)]
    timing: bool,
}

/// Starts a VM from where it was saved, as [`run`](super::run) boots one.
pub fn restore(command: RestoreCommand, has_directory: bool, start: Instant) -> ExitCode {
    if command.check {
        return match snapshot::check(&command.directory) {
            Ok(()) => exit_code::SUCCESS.into(),
            Err(message) => {
                complain(&message);
                exit_code::USAGE.into()
            }
        };
    }
    let opened = snapshot::open(&command.directory, command.disks)
        .and_then(|(config, snapshot)| Ok((confined(config, None)?, snapshot)));
    let (config, snapshot) = match opened {
        Ok(opened) => opened,
        Err(message) => {
            complain(&message);
            return exit_code::USAGE.into();
        }
    };
    let asked = Identity { name: command.name, ..Identity::default() };
    let (removes, timing) = (command.rm, command.timing);
    let (has_agent, image, ready, snapshot) = (snapshot.has_agent, None, None, Some(snapshot));
    let again = None;
    let order = Order { config, asked, has_agent, image, snapshot, removes, again, ready, timing, start };
    run_order(order, command.detach, has_directory)
}

/// Starts a VM of `config` in the background from where another one was; returns the exit code.
pub fn go_on(
    config: VmConfig,
    name: Option<VmName>,
    opened: snapshot::Opened,
    removes: bool,
    reporter: Reporter,
) -> u8 {
    in_the_background(config, Identity { name, ..Identity::default() }, opened, (removes, None), reporter)
}

/// Resumes the VM of `keep`, which was saved, in the background; returns the exit code.
pub fn resume(config: VmConfig, keep: Keep, opened: snapshot::Opened, reporter: Reporter) -> u8 {
    let Entry { id, name, removes, .. } = keep.entry().clone();
    let identity = Identity { id: Some(id), name, directory: None };
    in_the_background(config, identity, opened, (removes, Some(keep)), reporter)
}

fn in_the_background(
    config: VmConfig,
    asked: Identity,
    opened: snapshot::Opened,
    (removes, again): (bool, Option<Keep>),
    reporter: Reporter,
) -> u8 {
    let (has_agent, start) = (opened.has_agent, Instant::now());
    let (image, ready, timing, snapshot) = (None, None, false, Some(opened));
    let order = Order { config, asked, has_agent, image, snapshot, removes, again, ready, timing, start };
    boot(order, true, Some(reporter))
}

/// Makes the VM's own copies of the disks that a snapshot has the content of.
pub fn take_disks(
    opened: Option<snapshot::Opened>,
    config: &mut VmConfig,
) -> Result<(Option<Snapshot>, PrivateDisks), Refusal> {
    let Some(snapshot::Opened { snapshot, disks, place, .. }) = opened else {
        return Ok((None, PrivateDisks::default()));
    };
    let own = PrivateDisks::of(&disks, place.as_deref(), config);
    let own = own.map_err(|message| Refusal { code: exit_code::HOST, message })?;
    Ok((Some(snapshot), own))
}
