//! `mvm stop`.

use std::time::{Duration, Instant};

use clap::Args;
use instance::api::{Action, ActionType, VmUpdate, WantedState};
use instance::{Archive, Kind, Process, ProcessError, Registry, Running};
use rustix::process::Signal;

use crate::kill::{kill, resume_in_pod, signal, stop_signal};
use crate::process::ExitCode;
use crate::targets::{self, Failure};
use crate::{complain, events};

const EXAMPLES: &str = "\
Examples:
  mvm stop web
  mvm stop --time 60 web db
  mvm stop $(mvm ps --quiet)";

/// Arguments of `mvm stop`.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub struct StopCommand {
    /// IDs, beginnings of IDs, or names
    #[arg(required = true, value_name = "NAME")]
    vms: Vec<String>,

    /// Seconds that it has to end before it is killed; -1: no limit [default: its own --stop-timeout]
    #[arg(long, short, alias = "timeout", value_name = "SECONDS", value_parser = crate::values::seconds)]
    #[arg(allow_negative_numbers = true)]
    time: Option<u64>,

    /// Send this signal in place of its stop signal: a name as in INT, or a number from 1 to 64
    #[arg(long, short, value_name = "SIGNAL", value_parser = signal)]
    signal: Option<u8>,
}

impl StopCommand {
    /// Stops the containers and VMs.
    pub fn run(self) -> ExitCode {
        targets::each_word(&self.vms, |word| stop_word(word, self.time, self.signal))
    }
}

/// Stops the container or VM that `word` means, for good: one whose policy is to be started again is not. One that has
/// ended is no error.
pub fn stop_word(word: &str, seconds: Option<u64>, signal: Option<u8>) -> Result<(), Failure> {
    let kept = targets::kept(word).ok().filter(|kept| kept.is_running);
    if signal.is_some() && kept.as_ref().is_some_and(|kept| kept.entry.kind == Kind::Vm) {
        return Err(Failure::StopSignal);
    }
    if let Ok(vm) = targets::find(&Registry::of_user(), word) {
        targets::check_pod(&vm)?;
    }
    if let Some(kept) = &kept {
        Archive::of_user()?.set_stopped(&kept.entry.id, true)?;
    }
    match targets::find(&Registry::of_user(), word) {
        Err(Failure::NotRunning(_) | Failure::Created) => Ok(()),
        // Its keeper waits, or is about to start it.
        Err(failure) => match kept {
            Some(kept) => end_keeper(&kept.entry.process),
            None => Err(failure),
        },
        Ok(vm) => {
            // A VM in the foreground.
            if signal.is_some() && kept.is_none() {
                return Err(Failure::StopSignal);
            }
            if let Some(kept) = &kept {
                let signal = signal.unwrap_or_else(|| stop_signal(&kept.entry)).to_string();
                events::note(&kept.entry, "kill", &[("signal", &signal)]);
            }
            stop(&vm, time_of(&vm, seconds), signal)?;
            kept.iter().for_each(|kept| events::note(&kept.entry, "stop", &[]));
            Ok(())
        }
    }
}

/// Ends a keeper whose container has no VM now.
pub fn end_keeper(process: &Process) -> Result<(), Failure> {
    let process = match process.open() {
        Ok(process) => process,
        Err(ProcessError::Ended(_)) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    for signal in [Signal::TERM, Signal::KILL] {
        match process.signal(signal) {
            Err(ProcessError::Ended(_)) => return Ok(()),
            sent => sent?,
        }
        if process.wait(Some(DEADLINE)) {
            return Ok(());
        }
    }
    Err(Failure::Unkillable)
}

/// How long a keeper has to end that has no VM.
const DEADLINE: Duration = Duration::from_secs(10);
/// How long a guest has whose record does not say it: as long as one that was booted without --stop-timeout.
const DEFAULT: Duration = Duration::from_secs(10);
/// How often the power button is pressed: what listens to it in the guest may not have started yet.
const PRESS_AGAIN: Duration = Duration::from_secs(1);

/// How long a VM has to end, where it was asked for so many `seconds`.
pub fn time_of(vm: &Running, seconds: Option<u64>) -> Duration {
    let own = vm.record.config.stop_timeout_ms.map_or(DEFAULT, Duration::from_millis);
    seconds.map_or(own, Duration::from_secs)
}

/// Asks a VM or container to end, the latter by `signal` if there is one, and kills it where it has not after so long.
pub fn stop(vm: &Running, time: Duration, signal: Option<u8>) -> Result<(), Failure> {
    let process = vm.record.process.open()?;
    let is_in_pod = container::pod_directory(&vm.directory).is_some();
    if signal.is_some() && !is_in_pod && targets::is_paused(vm) {
        // As the power button does.
        targets::client(vm)?.send("PATCH", "/vm", &VmUpdate { state: WantedState::Resumed })?;
    }
    // They are sent once.
    let is_sent = is_in_pod || signal.is_some();
    let start = Instant::now();
    let mut answered = false;
    while start.elapsed() < time {
        // A press is passed on once, however often it comes.
        answered |= if is_sent { answered || ask(vm, signal).is_ok() } else { press(vm).is_ok() };
        if process.wait(Some(time.saturating_sub(start.elapsed()).min(PRESS_AGAIN))) {
            return Ok(());
        }
    }
    events::note_of(vm.record.id.as_str(), "kill", &[("signal", "9")]);
    match kill(vm) {
        // It ended in the meantime.
        Err(Failure::Process(ProcessError::Ended(_))) => return Ok(()),
        result => result?,
    }
    let record = &vm.record;
    let name = record.name.as_ref().map_or_else(|| record.id.to_string(), ToString::to_string);
    let why = if answered || time.is_zero() { "" } else { "no answer, " };
    complain(&format!("{name}: {why}killed after {} s", start.elapsed().as_secs()));
    Ok(())
}

/// Sends a container `signal`, or its stop signal.
fn ask(vm: &Running, signal: Option<u8>) -> Result<(), Failure> {
    let id = vm.record.id.as_str();
    let signal = match signal {
        Some(signal) => signal,
        None => stop_signal(&targets::kept(id)?.entry),
    };
    container::send_signal(&vm.directory, id, signal)?;
    resume_in_pod(vm);
    Ok(())
}

/// Presses the power button; a VM that is paused is resumed by that.
fn press(vm: &Running) -> Result<(), Failure> {
    let mut client = targets::quick_client(vm)?;
    Ok(client.send("PUT", "/actions", &Action { action_type: ActionType::SendCtrlAltDel })?)
}
