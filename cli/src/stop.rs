//! `mvm stop`.

use std::time::Duration;

use clap::Args;
use instance::Running;
use instance::api::{Action, ActionType, VmUpdate, WantedState};

use crate::kill::kill;
use crate::process::ExitCode;
use crate::targets::{self, Failure};

const EXAMPLES: &str = "\
Examples:
  mvm stop web
  mvm stop --time 60 web db
  mvm stop $(mvm ps --quiet)";

/// Arguments of `mvm stop`.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub struct StopCommand {
    /// IDs, beginnings of IDs, or names of VMs
    #[arg(required = true, value_name = "VM")]
    vms: Vec<String>,

    /// Seconds that the guest has to power off before it is killed
    #[arg(long, short, value_name = "SECONDS", default_value_t = 10, value_parser = crate::values::seconds)]
    time: u64,
}

impl StopCommand {
    /// Shuts down one VM after the other.
    pub fn run(self) -> ExitCode {
        targets::each(&self.vms, |vm| stop(vm, Duration::from_secs(self.time)))
    }
}

fn stop(vm: &Running, patience: Duration) -> Result<(), Failure> {
    let process = vm.record.process.open()?;
    if press(vm).is_ok() && process.wait(Some(patience)) {
        return Ok(());
    }
    match kill(vm) {
        // It ended in the meantime.
        Err(Failure::Process(instance::ProcessError::Ended(_))) => Ok(()),
        result => result,
    }
}

fn press(vm: &Running) -> Result<(), Failure> {
    let mut client = targets::client(vm)?;
    // A paused guest does not react to its power button.
    client.send("PATCH", "/vm", &VmUpdate { state: WantedState::Resumed })?;
    Ok(client.send("PUT", "/actions", &Action { action_type: ActionType::SendCtrlAltDel })?)
}
