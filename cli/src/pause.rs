//! `mvm pause` and `mvm resume`.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::thread::Builder;

use clap::Args;
use instance::api::{State, VmUpdate, WantedState};
use instance::{Registry, Running};
use rustix::event::{PollFd, PollFlags, poll};

use crate::process::ExitCode;
use crate::targets::{self, Failure};
use crate::{complain, events, exit_code, run};

const PAUSE_EXAMPLES: &str = "\
Examples:
  mvm pause web
  mvm pause $(mvm ps --quiet)
  mvm pause --save desk";

const RESUME_EXAMPLES: &str = "\
Examples:
  mvm resume web

`mvm unpause` is the same command.";

/// Arguments of `mvm pause`.
#[derive(Args)]
#[command(after_long_help = PAUSE_EXAMPLES)]
pub struct PauseCommand {
    /// IDs, beginnings of IDs, or names
    #[arg(required = true, value_name = "NAME")]
    vms: Vec<String>,

    /// Save its VM on disk and end it, so that it takes no memory until `mvm resume`
    ///
    /// It resumes with its memory and processes, also after the host has been down; connections to others end. A VM
    /// must have been started with `mvm boot -d`. Containers in a pod, and those with folders or files of the host,
    /// cannot be saved.
    #[arg(long)]
    save: bool,
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
        if self.save
            && let Err(error) = watch_signals()
        {
            complain(&format!("cannot take signals: {error}"));
            return exit_code::HOST.into();
        }
        targets::each(&self.vms, |vm| if self.save { run::save(vm) } else { update(vm, WantedState::Paused) })
    }
}

impl ResumeCommand {
    /// Returns when they run again.
    pub fn run(self) -> ExitCode {
        let is_saved = |word: &&String| targets::kept(word).is_ok_and(|kept| kept.is_saved());
        // One after the other, since each makes a process; this one has no threads yet.
        let saved = self.vms.iter().filter(is_saved).map(|word| (word, Mutex::new(run::resume(word).err())));
        let saved: BTreeMap<_, _> = saved.collect();
        let registry = Registry::of_user();
        targets::each_word(&self.vms, |word| match saved.get(&word.to_owned()) {
            Some(failure) => {
                failure.lock().unwrap_or_else(PoisonError::into_inner).take().map_or(Ok(()), Err)
            }
            None => update(&targets::find(&registry, word)?, WantedState::Resumed),
        })
    }
}

/// Has signals that end this process give up what it saves, on a thread of its own. This process has one thread yet.
fn watch_signals() -> io::Result<()> {
    let signals = instance::take_ending()?;
    let watch = move || {
        loop {
            let _ = poll(&mut [PollFd::new(&signals, PollFlags::IN)], None);
            while let Some(signal) = signals.next() {
                run::give_up_saves(signal);
            }
        }
    };
    Builder::new().name("signals".into()).spawn(watch).map(drop)
}

fn update(vm: &Running, state: WantedState) -> Result<(), Failure> {
    let pauses = state == WantedState::Paused;
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
}
