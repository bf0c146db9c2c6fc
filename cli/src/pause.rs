//! `mvm pause` and `mvm resume`.

use clap::Args;
use instance::api::{State, VmUpdate, WantedState};

use crate::events;
use crate::process::ExitCode;
use crate::targets::{self, Failure};

const PAUSE_EXAMPLES: &str = "\
Examples:
  mvm pause web
  mvm pause $(mvm ps --quiet)";

const RESUME_EXAMPLES: &str = "\
Examples:
  mvm resume web";

/// Arguments of `mvm pause`.
#[derive(Args)]
#[command(after_long_help = PAUSE_EXAMPLES)]
pub struct PauseCommand {
    /// IDs, beginnings of IDs, or names
    #[arg(required = true, value_name = "NAME")]
    vms: Vec<String>,
}

/// Arguments of `mvm resume`.
#[derive(Args)]
#[command(after_long_help = RESUME_EXAMPLES)]
pub struct ResumeCommand {
    /// IDs, beginnings of IDs, or names
    #[arg(required = true, value_name = "NAME")]
    vms: Vec<String>,
}

impl PauseCommand {
    /// Returns when all vCPUs are stopped; of a container in a pod, when all its processes are.
    pub fn run(self) -> ExitCode {
        update(&self.vms, WantedState::Paused)
    }
}

impl ResumeCommand {
    /// Returns when they run again.
    pub fn run(self) -> ExitCode {
        update(&self.vms, WantedState::Resumed)
    }
}

fn update(vms: &[String], state: WantedState) -> ExitCode {
    let pauses = state == WantedState::Paused;
    targets::each(vms, |vm| {
        let id = vm.record.id.as_str();
        let pod = container::pod_directory(&vm.directory);
        let is_paused = match &pod {
            None => targets::state(&vm.directory).map(|state| state == State::Paused),
            // The others of its pod go on.
            Some(pod) if targets::is_vm_paused(pod) => return Err(Failure::PodPaused),
            Some(_) => container::is_frozen(&vm.directory, id).ok(),
        };
        match (pauses, is_paused) {
            (true, Some(true)) => return Err(Failure::Paused),
            (false, Some(false)) => return Err(Failure::NotPaused),
            _ if pod.is_none() => targets::client(vm)?.send("PATCH", "/vm", &VmUpdate { state })?,
            _ => container::freeze(&vm.directory, id, pauses)?,
        }
        events::note_of(id, if pauses { "pause" } else { "unpause" }, &[]);
        Ok(())
    })
}
