//! What is done to pods with all their containers.

use std::time::Duration;

use clap::Args;
use container::{PodPlace, RunError};
use instance::api::{VmUpdate, WantedState};
use instance::{Archive, CONTROL_SOCKET, Client, InstanceError, Kept, ProcessError, Registry};

use super::{containers, find, keep, list, options, wait_for_end};
use crate::process::ExitCode;
use crate::prune::is_confirmed;
use crate::targets::{self, Failure, at_once, complain_of};
use crate::{chain, complain, events, exit_code, kill, print, run, stop};

/// Which pods are meant.
#[derive(Args)]
struct PodArguments {
    /// IDs, beginnings of IDs, or names
    #[arg(required_unless_present = "all", value_name = "POD")]
    pods: Vec<String>,

    /// All pods
    #[arg(long, short, conflicts_with = "pods")]
    all: bool,
}

impl PodArguments {
    /// Calls `act` for each of them, one after the other, and prints the IDs of those for which it succeeded, as podman
    /// does.
    fn each(&self, act: impl Fn(&Kept) -> Result<(), Failure>) -> ExitCode {
        let words = match self.all {
            false => self.pods.clone(),
            true => match list::all() {
                Ok((pods, _)) => pods.iter().map(|pod| pod.kept.entry.id.to_string()).collect(),
                Err(error) => {
                    complain(&chain(&error));
                    return exit_code::HOST.into();
                }
            },
        };
        let mut code = exit_code::SUCCESS;
        for word in &words {
            let done = find(word).map_err(Failure::from).and_then(|kept| {
                act(&kept)?;
                Ok(kept.entry.id)
            });
            match done {
                Ok(id) => {
                    print(format!("{id}\n").as_bytes(), code);
                }
                Err(failure) => code = code.max(complain_of(word, &failure)),
            }
        }
        Registry::of_user().sweep();
        code.into()
    }
}

/// Arguments of `mvm pod start`.
#[derive(Args)]
#[command(after_long_help = "Examples:\n  mvm pod start web")]
pub struct StartCommand {
    #[command(flatten)]
    pods: PodArguments,
}

/// Arguments of `mvm pod stop`.
#[derive(Args)]
#[command(after_long_help = "Examples:\n  mvm pod stop web\n  mvm pod stop --time 60 web db")]
pub struct StopCommand {
    #[command(flatten)]
    pods: PodArguments,

    /// Seconds that containers have to end before they are killed; -1: no limit [default: their own --stop-timeout]
    #[arg(long, short, alias = "timeout", value_name = "SECONDS", value_parser = crate::values::seconds)]
    #[arg(allow_negative_numbers = true)]
    time: Option<u64>,
}

/// Arguments of `mvm pod restart`.
#[derive(Args)]
#[command(after_long_help = "Examples:\n  mvm pod restart web")]
pub struct RestartCommand {
    #[command(flatten)]
    pods: PodArguments,
}

/// Arguments of `mvm pod kill`.
#[derive(Args)]
#[command(after_long_help = "Examples:\n  mvm pod kill web\n  mvm pod kill --signal USR1 web")]
pub struct KillCommand {
    #[command(flatten)]
    pods: PodArguments,

    /// Signal to send: a name as in USR1, or a number from 1 to 64
    #[arg(long, short, value_name = "SIGNAL", default_value = "KILL", value_parser = kill::signal)]
    signal: u8,
}

/// Arguments of `mvm pod pause`.
#[derive(Args)]
#[command(after_long_help = "Examples:\n  mvm pod pause web")]
pub struct PauseCommand {
    #[command(flatten)]
    pods: PodArguments,
}

/// Arguments of `mvm pod unpause`.
#[derive(Args)]
#[command(after_long_help = "Examples:\n  mvm pod unpause web")]
pub struct UnpauseCommand {
    #[command(flatten)]
    pods: PodArguments,
}

/// Arguments of `mvm pod rm`.
#[derive(Args)]
#[command(after_long_help = "Examples:\n  mvm pod rm web\n  mvm pod rm --force web db")]
pub struct RmCommand {
    #[command(flatten)]
    pods: PodArguments,

    /// Kill and remove their containers; pods that do not exist are no error
    #[arg(long, short)]
    force: bool,
}

/// What is said before.
const PRUNE_WARNING: &str = "WARNING! This will remove all pods that do not run, with their containers.\n";

/// Arguments of `mvm pod prune`.
#[derive(Args)]
#[command(after_long_help = "Examples:\n  mvm pod prune --force")]
pub struct PruneCommand {
    /// Do not ask
    #[arg(long, short)]
    force: bool,
}

/// Arguments of `mvm pod exists`.
#[derive(Args)]
#[command(after_long_help = "Examples:\n  mvm pod exists web && echo yes")]
pub struct ExistsCommand {
    /// Its ID, the beginning of that, or its name
    #[arg(value_name = "POD")]
    pod: String,
}

fn start(kept: &Kept) -> Result<(), Failure> {
    if !kept.is_running {
        keep::start(kept).map_err(Failure::Pod)?;
    }
    for container in containers(&kept.entry.id)?.iter().filter(|container| !container.is_running) {
        run::start_kept(container.entry.id.as_str())?;
    }
    Ok(())
}

/// Calls `act` for each container of the pod that runs, for many at the same time; the first failure.
fn each_running(kept: &Kept, act: impl Fn(&str) -> Result<(), Failure> + Sync) -> Result<(), Failure> {
    let running: Vec<Kept> =
        containers(&kept.entry.id)?.into_iter().filter(|container| container.is_running).collect();
    let done = at_once(&running, |container| {
        match act(container.entry.id.as_str()) {
            // It has ended meanwhile.
            Err(
                Failure::NotRunning(_)
                | Failure::Process(ProcessError::Ended(_))
                | Failure::Instance(InstanceError::NotFound(_)),
            ) => Ok(()),
            result => result,
        }
    });
    done.into_iter().collect()
}

/// Kills a container for good.
fn kill_one(id: &str) -> Result<(), Failure> {
    Archive::of_user()?.set_stopped(&targets::kept(id)?.entry.id, true)?;
    match targets::find(&Registry::of_user(), id) {
        Ok(vm) => kill::kill(&vm),
        // Its keeper waits, or is about to start it.
        Err(_) => stop::end_keeper(&targets::kept(id)?.entry.process),
    }
}

/// Ends the VM of a pod, and waits for that.
fn end(kept: &Kept) -> Result<(), Failure> {
    if !kept.is_running {
        return Ok(());
    }
    if let Ok(vm) = Registry::of_user().find(kept.entry.id.as_str()) {
        let place = PodPlace { directory: vm.directory, options: options(kept)? };
        match place.end() {
            Ok(()) | Err(RunError::PodEnding) => {}
            // Its keeper may be stopped.
            Err(error) => tracing::warn!("{}", chain(&error)),
        }
    }
    if wait_for_end(kept) {
        return Ok(());
    }
    kept.entry.process.open()?.signal(rustix::process::Signal::KILL)?;
    if wait_for_end(kept) { Ok(()) } else { Err(Failure::Unkillable) }
}

/// Has a pod that is paused go on, so that its containers can end, and their files be written.
fn resume(kept: &Kept) -> Result<(), Failure> {
    match Registry::of_user().find(kept.entry.id.as_str()) {
        Ok(vm) if targets::is_vm_paused(&vm.directory) => update(kept, WantedState::Resumed),
        _ => Ok(()),
    }
}

fn stop_pod(kept: &Kept, time: Option<u64>) -> Result<(), Failure> {
    resume(kept)?;
    each_running(kept, |id| stop::stop_word(id, time, None))?;
    end(kept)
}

/// Removes a pod that does not run, with its containers.
fn remove(kept: &Kept) -> Result<(), Failure> {
    let archive = Archive::of_user()?;
    for container in containers(&kept.entry.id)? {
        if !archive.remove(&container.entry.id, true)? {
            return Err(Failure::Running);
        }
        events::note(&container.entry, "destroy", &[]);
    }
    if !archive.remove(&kept.entry.id, true)? {
        return Err(Failure::Running);
    }
    events::note(&kept.entry, "remove", &[]);
    Ok(())
}

impl StartCommand {
    /// Starts pods with the containers that do not run.
    pub fn run(self) -> ExitCode {
        self.pods.each(start)
    }
}

impl StopCommand {
    /// Stops pods.
    pub fn run(self) -> ExitCode {
        self.pods.each(|kept| stop_pod(kept, self.time))
    }
}

impl RestartCommand {
    /// Stops pods, and starts them.
    pub fn run(self) -> ExitCode {
        self.pods.each(|kept| {
            stop_pod(kept, None)?;
            start(&find(kept.entry.id.as_str())?)
        })
    }
}

impl KillCommand {
    /// Kills the containers of pods, and their VMs with them; or signals them.
    pub fn run(self) -> ExitCode {
        self.pods.each(|kept| {
            resume(kept)?;
            if i32::from(self.signal) != libc::SIGKILL {
                let send = |id: &str| kill::send(&targets::find(&Registry::of_user(), id)?, self.signal);
                return each_running(kept, send);
            }
            events::note(&kept.entry, "kill", &[]);
            each_running(kept, kill_one)?;
            end(kept)
        })
    }
}

fn update(kept: &Kept, state: WantedState) -> Result<(), Failure> {
    let vm = Registry::of_user().find(kept.entry.id.as_str());
    let vm = vm.map_err(|_| Failure::Pod("it does not run".into()))?;
    let mut client = Client::connect(&vm.directory.join(CONTROL_SOCKET))?;
    client.send("PATCH", "/vm", &VmUpdate { state })?;
    let action = if state == WantedState::Paused { "pause" } else { "unpause" };
    events::note(&kept.entry, action, &[]);
    Ok(())
}

impl PauseCommand {
    /// Returns when all vCPUs are stopped.
    pub fn run(self) -> ExitCode {
        self.pods.each(|kept| update(kept, WantedState::Paused))
    }
}

impl UnpauseCommand {
    /// Returns when all vCPUs run again.
    pub fn run(self) -> ExitCode {
        self.pods.each(|kept| update(kept, WantedState::Resumed))
    }
}

impl RmCommand {
    /// Removes pods.
    pub fn run(self) -> ExitCode {
        let Self { pods: PodArguments { pods, all }, force } = self;
        let there = |word: &String| !force || !matches!(find(word), Err(InstanceError::NoPod(_)));
        let pods: Vec<String> = pods.into_iter().filter(there).collect();
        PodArguments { pods, all }.each(|kept| {
            let containers = containers(&kept.entry.id)?;
            if !force && !containers.is_empty() {
                return Err(Failure::Pod(format!(
                    "it has {}: `mvm rm` them first, or use --force",
                    match containers.len() {
                        1 => "a container".to_owned(),
                        count => format!("{count} containers"),
                    }
                )));
            }
            resume(kept)?;
            each_running(kept, kill_one)?;
            for container in containers.iter().filter(|container| container.is_running) {
                if let Ok(process) = container.entry.process.open() {
                    process.wait(Some(Duration::from_secs(10)));
                }
            }
            end(kept)?;
            remove(kept)
        })
    }
}

impl PruneCommand {
    /// Removes pods that do not run.
    pub fn run(self) -> ExitCode {
        if !self.force && !is_confirmed(PRUNE_WARNING).unwrap_or_default() {
            return exit_code::SUCCESS.into();
        }
        let pods = match list::all() {
            Ok((pods, _)) => pods,
            Err(error) => {
                complain(&chain(&error));
                return exit_code::HOST.into();
            }
        };
        let idle = pods.into_iter().filter(|pod| {
            !pod.kept.is_running && !pod.containers.iter().any(|container| container.is_running)
        });
        let pods = idle.map(|pod| pod.kept.entry.id.to_string()).collect();
        PodArguments { pods, all: false }.each(remove)
    }
}

impl ExistsCommand {
    /// Says whether there is such a pod.
    pub fn run(self) -> ExitCode {
        match find(&self.pod) {
            Ok(_) => exit_code::SUCCESS.into(),
            Err(InstanceError::NoPod(_)) => exit_code::FAILURE.into(),
            Err(error) => {
                complain(&chain(&error));
                exit_code::FAILURE.into()
            }
        }
    }
}
