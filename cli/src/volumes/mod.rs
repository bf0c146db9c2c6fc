//! `mvm volume`.

mod inspect;
mod list;
mod manage;
mod prune;

use clap::{Args, Subcommand};
use instance::{Archive, InstanceError, Volume, VolumeError, VolumeName, VolumeRecord, Volumes};
use serde_json::{Value, json};

use self::inspect::InspectCommand;
use self::list::ListCommand;
use self::manage::{CreateCommand, RmCommand};
use self::prune::PruneCommand;
use crate::process::ExitCode;
use crate::{chain, complain, images};

const EXAMPLES: &str = "\
Examples:
  mvm volume create data
  mvm run -v data:/data alpine touch /data/x
  mvm volume ls
  mvm volume rm data";

/// Arguments of `mvm volume`.
#[derive(Args)]
#[command(after_help = EXAMPLES, disable_help_subcommand = true, arg_required_else_help = true)]
pub struct VolumeCommand {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a volume
    Create(CreateCommand),
    /// List volumes
    #[command(alias = "list")]
    Ls(ListCommand),
    /// Show all that is known of volumes
    Inspect(InspectCommand),
    /// Remove volumes
    #[command(alias = "remove")]
    Rm(RmCommand),
    /// Remove anonymous volumes that no container uses
    Prune(PruneCommand),
}

impl VolumeCommand {
    /// Runs the command.
    pub fn run(self) -> ExitCode {
        match self.command {
            Command::Create(command) => command.run(),
            Command::Ls(command) => command.run(),
            Command::Inspect(command) => command.run(),
            Command::Rm(command) => command.run(),
            Command::Prune(command) => command.run(),
        }
    }
}

/// Docker's label of a volume that was made without a name. Unlike one that was made for a container, it does not go
/// with that.
const ANONYMOUS: &str = "com.docker.volume.anonymous";

/// Whether the user has given it no name.
fn is_anonymous(record: &VolumeRecord) -> bool {
    record.is_anonymous || record.labels.contains_key(ANONYMOUS)
}

/// This user's volumes.
fn volumes() -> Result<Volumes, String> {
    Volumes::of_user().map_err(|error| chain(&error))
}

/// A volume, and how many containers use it.
pub struct VolumeUse {
    /// The volume.
    pub volume: Volume,
    /// How many containers, whether they run or not.
    pub links: usize,
    /// Bytes on the host's disk.
    pub size: u64,
}

/// All volumes. What is wrong with those that can't be read is said.
///
/// # Errors
///
/// A line for the user.
pub fn all() -> Result<Vec<VolumeUse>, String> {
    let (all, damaged) = volumes()?.all().map_err(|error| chain(&error))?;
    for error in damaged {
        complain(&chain(&error));
    }
    let kept = Archive::of_user().and_then(|archive| archive.all()).map(|(kept, _)| kept).unwrap_or_default();
    let of = |volume: Volume| {
        let uses = |kept: &&instance::Kept| kept.entry.volumes.contains(&volume.record.name);
        let links = kept.iter().filter(uses).count();
        VolumeUse { links, size: volume.disk_usage(), volume }
    };
    Ok(all.into_iter().map(of).collect())
}

impl VolumeUse {
    /// The fields for `--format`, by docker's names.
    pub fn fields(&self) -> Value {
        let record = &self.volume.record;
        let labels: Vec<String> =
            record.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
        json!({
            "Driver": record.driver.as_str(),
            "Name": record.name,
            "Mountpoint": self.volume.content(),
            "Scope": "local",
            "Labels": labels.join(","),
            "Links": self.links.to_string(),
            "Size": images::human::size(self.size),
            "Availability": "N/A",
            "Group": "N/A",
            "Status": "N/A",
        })
    }
}

/// The users of a volume, in words.
fn users(archive: &Archive, name: &VolumeName) -> Result<String, InstanceError> {
    let users = archive.users_of(name)?;
    let word = |kept: &instance::Kept| {
        kept.entry.name.as_ref().map_or_else(|| kept.entry.id.to_string(), ToString::to_string)
    };
    Ok(users.iter().map(word).collect::<Vec<_>>().join(", "))
}

/// That it is not known what is in use.
fn unknown(error: &InstanceError) -> String {
    format!("cannot see which volumes are in use: {}", chain(error))
}

/// Checks that it is known which volumes are in use.
///
/// # Errors
///
/// A line for the user: a container's record can't be read.
fn check_known() -> Result<(), String> {
    Archive::of_user().and_then(|archive| archive.all_readable()).map(drop).map_err(|error| unknown(&error))
}

/// Removes the volume `name`.
///
/// # Errors
///
/// A line for the user where it is used, or can't be removed.
fn remove(name: &VolumeName) -> Result<(), VolumeRemoval> {
    let archive = Archive::of_user().map_err(|error| VolumeRemoval::Other(chain(&error)))?;
    let is_used = || !archive.users_of(name).is_ok_and(|users| users.is_empty());
    match volumes().map_err(VolumeRemoval::Other)?.remove(name, is_used) {
        Ok(true) => Ok(()),
        Ok(false) => {
            let users = users(&archive, name).map_err(|error| VolumeRemoval::Other(unknown(&error)))?;
            let users = if users.is_empty() { "a container that starts or ends".to_owned() } else { users };
            Err(VolumeRemoval::Other(format!("volume {name} is in use by {users}: `mvm rm` that first")))
        }
        Err(VolumeError::NotFound(name)) => Err(VolumeRemoval::NotFound(name)),
        Err(error) => Err(VolumeRemoval::Other(chain(&error))),
    }
}

/// Why a volume was not removed.
enum VolumeRemoval {
    NotFound(VolumeName),
    Other(String),
}

/// Prints the line of what `word` can't be, and returns the exit code for it.
fn missing(name: &VolumeName) -> String {
    VolumeError::NotFound(name.clone()).to_string()
}
