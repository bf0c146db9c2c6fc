//! `mvm pause` and `mvm resume`.

use clap::Args;
use instance::api::{VmUpdate, WantedState};

use crate::process::ExitCode;
use crate::targets;

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
    /// IDs, beginnings of IDs, or names of VMs
    #[arg(required = true, value_name = "VM")]
    vms: Vec<String>,
}

/// Arguments of `mvm resume`.
#[derive(Args)]
#[command(after_long_help = RESUME_EXAMPLES)]
pub struct ResumeCommand {
    /// IDs, beginnings of IDs, or names of VMs
    #[arg(required = true, value_name = "VM")]
    vms: Vec<String>,
}

impl PauseCommand {
    /// Returns when all vCPUs are stopped.
    pub fn run(self) -> ExitCode {
        update(&self.vms, WantedState::Paused)
    }
}

impl ResumeCommand {
    /// Returns when all vCPUs run again.
    pub fn run(self) -> ExitCode {
        update(&self.vms, WantedState::Resumed)
    }
}

fn update(vms: &[String], state: WantedState) -> ExitCode {
    targets::each(vms, |vm| Ok(targets::client(vm)?.send("PATCH", "/vm", &VmUpdate { state })?))
}
