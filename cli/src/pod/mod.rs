//! `mvm pod`, and what a container needs of its pod.

mod act;
mod create;
mod keep;
mod list;
mod logs;
mod stats;
mod top;

use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use container::{Assets, Member, Plan, PodOptions, PodPlace, PrepareError, Prepared, RunError, RunOptions};
use instance::{Archive, InstanceError, Keep, Kept, Kind, Registry, VmId, VmName, Volumes};

use self::act::{
    ExistsCommand, KillCommand, PauseCommand, PruneCommand, RestartCommand, RmCommand, StartCommand,
    StopCommand, UnpauseCommand,
};
use self::create::{CreateCommand, make};
use self::list::{InspectCommand, PsCommand};
use self::logs::LogsCommand;
use self::stats::StatsCommand;
use self::top::TopCommand;
use crate::chain;
use crate::defaults::{Defaults, TemplateUse};
use crate::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  mvm pod create --name web -p 8080:80
  mvm run -d --pod web --name proxy nginx
  mvm run -d --pod web --name app app
  mvm pod ps
  mvm pod stop web
  mvm pod rm --force web";

/// Arguments of `mvm pod`.
#[derive(Args)]
#[command(after_help = EXAMPLES, disable_help_subcommand = true, arg_required_else_help = true)]
pub struct PodCommand {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a pod, and print its ID
    Create(Box<CreateCommand>),
    /// List pods
    #[command(alias = "ls", alias = "list")]
    Ps(PsCommand),
    /// Print what is known of pods
    Inspect(InspectCommand),
    /// Start pods with their containers
    Start(StartCommand),
    /// Stop pods with their containers
    Stop(StopCommand),
    /// Stop pods, and start them
    Restart(RestartCommand),
    /// Kill the containers of pods, or send them a signal
    Kill(KillCommand),
    /// Pause pods
    Pause(PauseCommand),
    /// Resume paused pods
    #[command(alias = "resume")]
    Unpause(UnpauseCommand),
    /// Remove pods
    Rm(RmCommand),
    /// Remove pods that do not run, with their containers
    Prune(PruneCommand),
    /// Print what containers of a pod have written
    Logs(LogsCommand),
    /// List the processes of a pod
    Top(TopCommand),
    /// Show what containers of pods use
    Stats(StatsCommand),
    /// Exit with 0 if there is such a pod, and with 1 if not
    Exists(ExistsCommand),
}

impl PodCommand {
    /// Runs the command.
    pub fn run(self) -> ExitCode {
        match self.command {
            Command::Create(command) => command.run(),
            Command::Ps(command) => command.run(),
            Command::Inspect(command) => command.run(),
            Command::Start(command) => command.run(),
            Command::Stop(command) => command.run(),
            Command::Restart(command) => command.run(),
            Command::Kill(command) => command.run(),
            Command::Pause(command) => command.run(),
            Command::Unpause(command) => command.run(),
            Command::Rm(command) => command.run(),
            Command::Prune(command) => command.run(),
            Command::Logs(command) => command.run(),
            Command::Top(command) => command.run(),
            Command::Stats(command) => command.run(),
            Command::Exists(command) => command.run(),
        }
    }
}

/// How long a pod may take to be there whose keeper has started, or to be gone whose keeper ends.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often that is looked at: another process makes a directory.
const AGAIN: Duration = Duration::from_millis(10);
/// How often a pod is started for a container that ends at the same moment.
const ATTEMPTS: usize = 3;

/// The pod that `word` means.
fn find(word: &str) -> Result<Kept, InstanceError> {
    match Archive::of_user()?.find(word) {
        Ok(kept) if kept.entry.kind == Kind::Pod => Ok(kept),
        Ok(_) | Err(InstanceError::NotFound(_)) => Err(InstanceError::NoPod(word.into())),
        Err(error) => Err(error),
    }
}

/// The containers of a pod, the oldest first.
fn containers(pod: &VmId) -> Result<Vec<Kept>, InstanceError> {
    let (all, _) = Archive::of_user()?.all()?;
    Ok(all.into_iter().filter(|kept| kept.entry.pod.as_ref() == Some(pod)).collect())
}

/// What a pod was asked to be.
fn options(kept: &Kept) -> Result<PodOptions, InstanceError> {
    kept.order().map_err(|source| InstanceError::Order { id: kept.entry.id.clone(), source })
}

/// The pod that `--pod` means, which is made where that is what `word` says: its VM boots if it is to be `cold`.
/// `check` refuses options before.
pub fn for_container(
    word: &str,
    cold: bool,
    check: impl FnOnce() -> Result<(), String>,
) -> Result<(VmId, PodOptions), String> {
    let Some(name) = word.strip_prefix("new:") else {
        let kept = find(word).map_err(|error| chain(&error))?;
        check()?;
        let options = options(&kept).map_err(|error| chain(&error))?;
        return Ok((kept.entry.id, options));
    };
    check()?;
    let name: VmName = name.parse().map_err(|error: instance::IdentityError| error.to_string())?;
    let network = crate::run::default_network(false);
    let cold = cold || Defaults::read()?.templates == Some(TemplateUse::Off);
    let options = container::RunOptions { network, cold, ..container::RunOptions::default() };
    make(Some(name), PodOptions { options, ..PodOptions::default() }).map_err(|error| chain(&error))
}

/// Where the pod is, whose VM is started if it does not run.
fn place(id: &VmId) -> Result<PodPlace, String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let kept = find(id.as_str()).map_err(|error| chain(&error))?;
        if !kept.is_running {
            keep::start(&kept)?;
            continue;
        }
        let found = Registry::of_user().find(id.as_str());
        if let Ok(vm) = found.as_ref()
            && container::is_pod(&vm.directory)
        {
            let options = options(&kept).map_err(|error| chain(&error))?;
            return Ok(PodPlace { directory: vm.directory.clone(), options });
        }
        if Instant::now() >= deadline {
            return Err(found
                .err()
                .map_or_else(|| "the pod does not start".to_owned(), |error| chain(&error)));
        }
        std::thread::sleep(AGAIN);
    }
}

/// Waits until the keeper of a pod has ended; whether it has.
fn wait_for_end(kept: &Kept) -> bool {
    kept.entry.process.open().map_or(true, |process| process.wait(Some(PATIENCE)))
}

/// What a container of a pod needs of the host for its mounts; volumes that are missing are made.
///
/// # Errors
///
/// A line for the user.
pub fn prepare(
    pod: &VmId,
    assets: &Assets,
    options: &RunOptions,
    volumes: &Volumes,
) -> Result<Prepared, String> {
    let said = |error: PrepareError| chain(&error);
    let kept = find(pod.as_str()).map_err(|error| chain(&error))?;
    let pod = self::options(&kept).map_err(|error| chain(&error))?;
    let prepared = container::prepare_in_pod(options, &pod.folders, volumes).map_err(said)?;
    container::make_volumes(assets, options, volumes).map_err(said)?;
    Ok(prepared)
}

/// Puts the container that `keep` is of into a pod, which is started if it does not run.
///
/// # Errors
///
/// A line for the user.
pub fn enter(pod: &VmId, plan: Plan<'_>, keep: &Keep) -> Result<Member, String> {
    let entry = keep.entry();
    let name = entry.name.as_ref().map(VmName::as_str);
    for _ in 0..ATTEMPTS {
        let place = place(pod)?;
        match Member::enter(plan, &place, entry.id.as_str(), name, keep) {
            Err(RunError::PodEnding) => {
                if let Ok(kept) = find(pod.as_str()) {
                    wait_for_end(&kept);
                }
            }
            entered => return entered.map_err(|error| chain(&error)),
        }
    }
    Err("the pod ends whenever it is started: `mvm pod inspect` and its mvm.log may say why".into())
}
