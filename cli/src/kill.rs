//! `mvm kill`.

use std::time::Duration;

use clap::Args;
use instance::Running;
use instance::api::{Action, ActionType};
use rustix::process::Signal;

use crate::process::ExitCode;
use crate::targets::{self, Failure};

/// How long a VM has to end and clean up, which takes milliseconds, before its process is killed.
const DEADLINE: Duration = Duration::from_secs(5);

const EXAMPLES: &str = "\
Examples:
  mvm kill web
  mvm kill --signal TERM web";

/// Arguments of `mvm kill`.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub struct KillCommand {
    /// IDs, beginnings of IDs, or names of VMs
    #[arg(required = true, value_name = "VM")]
    vms: Vec<String>,

    /// Signal to send: HUP, INT, QUIT, KILL, TERM, CONT or STOP
    ///
    /// KILL ends the VM at once. TERM presses its power button, and ends it when sent again.
    #[arg(long, short, value_name = "SIGNAL", default_value = "KILL", value_parser = signal)]
    signal: Signal,
}

impl KillCommand {
    /// Ends the VMs, or signals their processes.
    pub fn run(self) -> ExitCode {
        targets::each(&self.vms, |vm| {
            if self.signal == Signal::KILL {
                kill(vm)
            } else {
                Ok(vm.record.process.open()?.signal(self.signal)?)
            }
        })
    }
}

/// Ends a VM through its control socket, so that it restores the terminal and removes its directory; kills its process
/// where it does not answer.
pub fn kill(vm: &Running) -> Result<(), Failure> {
    let process = vm.record.process.open()?;
    let asked = targets::quick_client(vm).and_then(|mut client| {
        Ok(client.send("PUT", "/actions", &Action { action_type: ActionType::Kill })?)
    });
    if asked.is_err() || !process.wait(Some(DEADLINE)) {
        process.signal(Signal::KILL)?;
        process.wait(None);
    }
    Ok(())
}

/// Reads a signal that a VM handles: 9, KILL or SIGKILL.
fn signal(text: &str) -> Result<Signal, String> {
    const SIGNALS: [(&str, Signal); 7] = [
        ("HUP", Signal::HUP),
        ("INT", Signal::INT),
        ("QUIT", Signal::QUIT),
        ("KILL", Signal::KILL),
        ("TERM", Signal::TERM),
        ("CONT", Signal::CONT),
        ("STOP", Signal::STOP),
    ];
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let found = SIGNALS.iter().find(|(known, signal)| *known == name || signal.as_raw().to_string() == name);
    let known = || SIGNALS.map(|(known, _)| known).join(", ");
    found.map(|(_, signal)| *signal).ok_or_else(|| format!("unknown signal {text:?}: use {}", known()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for text in ["15", "TERM", "sigterm"] {
            assert_eq!(signal(text), Ok(Signal::TERM), "{text}");
        }
        for text in ["", "SIG", "0", "99", "SEGV"] {
            assert!(signal(text).unwrap_err().contains("TERM"), "{text}");
        }
    }
}
