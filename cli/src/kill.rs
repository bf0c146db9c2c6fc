//! `mvm kill`.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use instance::Running;
use instance::api::{Action, ActionType};
use rustix::process::Signal;

use crate::targets::{self, Failure};

/// How long a VM may take to end in good order; a microVM takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(5);

/// Arguments of `mvm kill`.
#[derive(Args)]
pub struct KillCommand {
    /// The VMs: IDs, beginnings of IDs, or names
    #[arg(required = true, value_name = "VM")]
    vms: Vec<String>,

    /// The signal: KILL ends the VM at once, TERM presses its power button first
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

/// Ends a VM in good order, so that its terminal is restored and its directory goes; where it does not answer, by
/// its process.
pub fn kill(vm: &Running) -> Result<(), Failure> {
    let process = vm.record.process.open()?;
    let asked = targets::client(vm).and_then(|mut client| {
        Ok(client.send("PUT", "/actions", &Action { action_type: ActionType::Kill })?)
    });
    if asked.is_err() || !process.wait(Some(PATIENCE)) {
        process.signal(Signal::KILL)?;
        process.wait(None);
    }
    Ok(())
}

/// Reads the signals that a VM takes: 9, KILL or SIGKILL.
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
    found.map(|(_, signal)| *signal).ok_or_else(|| format!("there are {}", known()))
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
