//! `mvm pause` and `mvm resume`.

use std::process::ExitCode;

use clap::Args;
use instance::api::{VmUpdate, WantedState};

use crate::targets;

/// Arguments of `mvm pause`.
#[derive(Args)]
pub struct PauseCommand {
    /// The VMs: IDs, beginnings of IDs, or names
    #[arg(required = true, value_name = "VM")]
    vms: Vec<String>,
}

/// Arguments of `mvm resume`.
#[derive(Args)]
pub struct ResumeCommand {
    /// The VMs: IDs, beginnings of IDs, or names
    #[arg(required = true, value_name = "VM")]
    vms: Vec<String>,
}

impl PauseCommand {
    /// Returns when no guest's instruction is carried out any more.
    pub fn run(self) -> ExitCode {
        update(&self.vms, WantedState::Paused)
    }
}

impl ResumeCommand {
    /// Lets them go on.
    pub fn run(self) -> ExitCode {
        update(&self.vms, WantedState::Resumed)
    }
}

fn update(vms: &[String], state: WantedState) -> ExitCode {
    targets::each(vms, |vm| Ok(targets::client(vm)?.send("PATCH", "/vm", &VmUpdate { state })?))
}
