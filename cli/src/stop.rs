//! `mvm stop`.

use std::time::{Duration, Instant};

use clap::Args;
use instance::Running;
use instance::api::{Action, ActionType};

use crate::complain;
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

    /// Seconds that the guest has to power off before it is killed [default: the VM's own --stop-timeout]
    #[arg(long, short, value_name = "SECONDS", value_parser = crate::values::seconds)]
    time: Option<u64>,
}

impl StopCommand {
    /// Shuts down the VMs.
    pub fn run(self) -> ExitCode {
        targets::each(&self.vms, |vm| {
            let own = vm.record.config.stop_timeout_ms.map_or(DEFAULT, Duration::from_millis);
            stop(vm, self.time.map_or(own, Duration::from_secs))
        })
    }
}

/// How long a guest has whose record does not say it: as long as one that was booted without --stop-timeout.
const DEFAULT: Duration = Duration::from_secs(10);
/// How often the power button is pressed: what listens to it in the guest may not have started yet.
const PRESS_AGAIN: Duration = Duration::from_secs(1);

fn stop(vm: &Running, time: Duration) -> Result<(), Failure> {
    let process = vm.record.process.open()?;
    let start = Instant::now();
    let mut answered = false;
    while start.elapsed() < time {
        answered |= press(vm).is_ok();
        if process.wait(Some(time.saturating_sub(start.elapsed()).min(PRESS_AGAIN))) {
            return Ok(());
        }
    }
    match kill(vm) {
        // It ended in the meantime.
        Err(Failure::Process(instance::ProcessError::Ended(_))) => return Ok(()),
        result => result?,
    }
    let record = &vm.record;
    let name = record.name.as_ref().map_or_else(|| record.id.to_string(), ToString::to_string);
    let why = if answered { "" } else { "no answer, " };
    complain(&format!("VM {name}: {why}killed after {} s", start.elapsed().as_secs()));
    Ok(())
}

/// Presses the power button; a VM that is paused is resumed by that.
fn press(vm: &Running) -> Result<(), Failure> {
    let mut client = targets::quick_client(vm)?;
    Ok(client.send("PUT", "/actions", &Action { action_type: ActionType::SendCtrlAltDel })?)
}
