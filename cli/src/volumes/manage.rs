//! `mvm volume create` and `mvm volume rm`.

use clap::Args;
use container::{Assets, create_volume, volume_record, volume_size};
use instance::{VolumeDriver, VolumeName, VolumeRecord};

use super::{ANONYMOUS, VolumeRemoval, missing, remove, volumes};
use crate::complaint::{Complaint, complete};
use crate::process::ExitCode;
use crate::{chain, complain, exit_code, print};

const CREATE_EXAMPLES: &str = "\
Examples:
  mvm volume create data
  mvm volume create --opt size=100G --label team=web data
  mvm volume create --driver shared pool";

const RM_EXAMPLES: &str = "\
Examples:
  mvm volume rm data
  mvm volume rm --force data other";

/// Arguments of `mvm volume create`.
#[derive(Args)]
#[command(after_long_help = CREATE_EXAMPLES)]
pub struct CreateCommand {
    /// Set what it is made of: local, or shared
    ///
    /// local is a disk, which one container has at a time. shared is a directory of the host, which several containers
    /// may use at once; it is slower.
    #[arg(long, short, value_name = "DRIVER", default_value = "local", value_parser = driver, hide_default_value = true)]
    driver: VolumeDriver,

    /// Set a label: NAME=VALUE, or NAME
    #[arg(long, value_name = "LABEL", value_parser = crate::run::label)]
    label: Vec<(String, String)>,

    /// Set an option: size=SIZE
    ///
    /// The size of a disk, which takes as much space of the host as is written: 256M to 1T, 20G without it.
    #[arg(long = "opt", short, value_name = "OPTION", value_parser = crate::run::pair)]
    option: Vec<(String, String)>,

    /// Its name; without one it is anonymous: it gets a random one, and `mvm volume prune` removes it
    name: Option<VolumeName>,
}

/// Reads the name of a driver.
fn driver(text: &str) -> Result<VolumeDriver, String> {
    match text {
        "local" => Ok(VolumeDriver::Local),
        "shared" => Ok(VolumeDriver::Shared),
        _ => Err(format!("unknown driver {text:?}: use local or shared")),
    }
}

impl CreateCommand {
    /// Makes a volume, unless it is there, and prints its name.
    pub fn run(self) -> ExitCode {
        complete(self.create())
    }

    fn create(self) -> Result<ExitCode, Complaint> {
        volume_size(self.driver, self.option.iter().map(|(name, value)| (name, value)))
            .map_err(|error| Complaint::usage(&error))?;
        let anonymous = self.name.is_none().then(|| (ANONYMOUS.to_owned(), String::new()));
        let name = match self.name {
            Some(name) => name,
            None => VolumeName::random().map_err(|error| format!("cannot get a random name: {error}"))?,
        };
        let record = VolumeRecord {
            labels: self.label.into_iter().chain(anonymous).collect(),
            options: self.option.into_iter().collect(),
            ..volume_record(&name, self.driver)
        };
        let assets = match self.driver {
            VolumeDriver::Local => Assets::find().map_err(|error| error.to_string())?,
            VolumeDriver::Shared => Assets::default(),
        };
        let volumes = volumes()?;
        let is_new = create_volume(&assets, &volumes, &record).map_err(|error| chain(&error))?;
        if !is_new {
            let existing = volumes.find(&name).map_err(|error| chain(&error))?.record.options;
            let differs = |(option, value): (&String, &String)| existing.get(option) != Some(value);
            if record.options.iter().any(differs) {
                let own = existing.iter().map(|(name, value)| format!("--opt {name}={value}"));
                let own = own.reduce(|all, one| all + " " + &one).unwrap_or_else(|| "without --opt".into());
                return Err(
                    format!("volume {name} exists, made {own}: remove it first, or leave out --opt").into()
                );
            }
        }
        Ok(print(format!("{name}\n").as_bytes(), exit_code::SUCCESS))
    }
}

/// Arguments of `mvm volume rm`.
#[derive(Args)]
#[command(after_long_help = RM_EXAMPLES)]
pub struct RmCommand {
    /// Volumes that do not exist are no error
    #[arg(long, short)]
    force: bool,

    /// Their names
    #[arg(required = true, value_name = "NAME")]
    names: Vec<VolumeName>,
}

impl RmCommand {
    /// Removes volumes that no container uses, and prints their names.
    pub fn run(self) -> ExitCode {
        let (mut code, mut removed) = (exit_code::SUCCESS, String::new());
        for name in &self.names {
            match remove(name) {
                Ok(()) => removed += &format!("{name}\n"),
                Err(VolumeRemoval::NotFound(_)) if self.force => removed += &format!("{name}\n"),
                Err(VolumeRemoval::NotFound(name)) => {
                    complain(&missing(&name));
                    code = exit_code::FAILURE;
                }
                Err(VolumeRemoval::Other(line)) => {
                    complain(&line);
                    code = exit_code::FAILURE;
                }
            }
        }
        print(removed.as_bytes(), code)
    }
}
