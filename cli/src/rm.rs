//! `mvm rm`.

use std::time::{Duration, Instant};

use clap::Args;
use instance::{Archive, InstanceError, Kept, Kind, ProcessError, Registry};

use crate::kill::kill;
use crate::process::ExitCode;
use crate::targets::{self, Failure};
use crate::{events, stop};

const EXAMPLES: &str = "\
Examples:
  mvm rm web
  mvm rm --force web db
  mvm rm $(mvm ps --all --quiet --filter status=exited)";

/// Arguments of `mvm rm`.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub struct RmCommand {
    /// IDs, beginnings of IDs, or names
    #[arg(required = true, value_name = "NAME")]
    containers: Vec<String>,

    /// Kill those that run; names that do not exist are no error, and records that can't be read go too
    #[arg(long, short)]
    force: bool,

    /// Remove their anonymous volumes too
    #[arg(long, short)]
    volumes: bool,
}

/// How long one that neither runs nor has ended may take to do either.
const DEADLINE: Duration = Duration::from_secs(10);
/// How often that is looked at.
const AGAIN: Duration = Duration::from_millis(50);

/// Kills one that runs, if it still does.
fn end(kept: &Kept) -> Result<(), Failure> {
    let id = &kept.entry.id;
    if let Ok(vm) = Registry::of_user().find(id.as_str()) {
        targets::check_pod(&vm)?;
    }
    // It is not started again.
    Archive::of_user()?.set_stopped(id, true)?;
    match Registry::of_user().find(id.as_str()) {
        Ok(vm) => match kill(&vm) {
            Err(Failure::Process(ProcessError::Ended(_))) => Ok(()),
            result => result,
        },
        Err(InstanceError::NotFound(_)) if kept.entry.kind == Kind::Container => {
            stop::end_keeper(&kept.entry.process)
        }
        Err(InstanceError::NotFound(_)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

impl RmCommand {
    /// Removes what is kept of containers and VMs.
    pub fn run(self) -> ExitCode {
        let is_there = |word: &&String| {
            let found = Archive::of_user().and_then(|archive| archive.find(word));
            !matches!(found, Err(InstanceError::NotFound(_)))
        };
        // With --force, what is not there is not said to have been removed.
        let words: Vec<_> =
            self.containers.iter().filter(|word| !self.force || is_there(word)).cloned().collect();
        targets::each_word(&words, |word| self.remove(word))
    }

    fn remove(&self, word: &str) -> Result<(), Failure> {
        let archive = Archive::of_user()?;
        let kept = match archive.find(word) {
            Err(InstanceError::NotFound(_)) if self.force => return Ok(()),
            // One that can't be read, after a crash of the host or as a newer mvm's, is not to stay forever.
            Err(InstanceError::Kept { id, .. }) if self.force => {
                return if archive.remove(&id, self.volumes)? { Ok(()) } else { Err(Failure::Running) };
            }
            kept => kept?,
        };
        if kept.entry.kind == Kind::Pod {
            return Err(InstanceError::IsPod(word.into()).into());
        }
        let id = kept.entry.id.clone();
        if kept.is_running && !self.force {
            return Err(Failure::Running);
        }
        if kept.is_saved() && !self.force {
            return Err(Failure::Saved);
        }
        let start = Instant::now();
        loop {
            if kept.is_running {
                end(&kept)?;
            }
            // With --rm it has gone by itself.
            if archive.remove(&id, self.volumes)? {
                events::note(&kept.entry, "destroy", &[]);
                return Ok(());
            }
            // It starts, or has not quite ended.
            if !self.force {
                return Err(Failure::Running);
            }
            if start.elapsed() > DEADLINE {
                return Err(Failure::NotEnded);
            }
            if let Ok(process) = kept.entry.process.open() {
                process.wait(Some(AGAIN));
            }
        }
    }
}
