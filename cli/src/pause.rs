//! `mvm pause` and `mvm resume`.

use clap::Args;
use instance::api::{VmUpdate, WantedState};

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
    let action = if state == WantedState::Paused { "pause" } else { "unpause" };
    targets::each(vms, |vm| {
        let id = vm.record.id.as_str();
        match container::pod_directory(&vm.directory) {
            None => targets::client(vm)?.send("PATCH", "/vm", &VmUpdate { state })?,
            // The others of its pod go on.
            Some(pod) if targets::is_vm_paused(&pod) => return Err(Failure::PodPaused),
            Some(_) => container::freeze(&vm.directory, id, state == WantedState::Paused)?,
        }
        events::note_of(id, action, &[]);
        Ok(())
    })
}
