//! `mvm wait`.

use std::time::Duration;

use clap::Args;
use instance::{Kept, OpenProcess, ProcessError};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

use crate::process::ExitCode;
use crate::targets::{self, Failure, complain_of};
use crate::{exit_code, print};

const EXAMPLES: &str = "\
Examples:
  mvm wait web
  exit $(mvm wait job)";

/// Arguments of `mvm wait`.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub struct WaitCommand {
    /// IDs, beginnings of IDs, or names
    #[arg(required = true, value_name = "NAME")]
    containers: Vec<String>,
}

impl WaitCommand {
    /// Waits until they have ended, or are about to be started again, one after the other, and prints their exit codes.
    pub fn run(self) -> ExitCode {
        let mut code = exit_code::SUCCESS;
        for word in &self.containers {
            match wait(word) {
                Ok(ended) => {
                    print(format!("{ended}\n").as_bytes(), code);
                }
                Err(failure) => code = code.max(complain_of(word, &failure)),
            }
        }
        code.into()
    }
}

fn wait(word: &str) -> Result<u8, Failure> {
    let kept = targets::kept(word)?;
    if let Some(end) = kept.end() {
        return Ok(end.code);
    }
    // As docker says it of one that does not run.
    if !kept.is_running {
        return Ok(0);
    }
    match kept.entry.process.open() {
        Ok(process) => Ok(end_of_life(kept, &process)),
        Err(ProcessError::Ended(_)) => Ok(kept.last_end().code),
        Err(error) => Err(error.into()),
    }
}

/// Waits until the container's keeper has ended, or its life is over and it is about to be started again: docker waits
/// no longer than that either. Returns the exit code of that life.
fn end_of_life(mut kept: Kept, keeper: &OpenProcess) -> u8 {
    let before = lives(&kept);
    // The record is replaced by another file of its name. Where the user has too many watches, it is the keeper alone
    // that is waited for.
    let changes = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).and_then(|changes| {
        inotify::add_watch(&changes, &kept.directory, WatchFlags::MOVED_TO | WatchFlags::ONLYDIR)?;
        Ok(changes)
    });
    while !keeper.wait(Some(Duration::ZERO)) {
        let Ok(changes) = &changes else {
            keeper.wait(None);
            break;
        };
        if let Ok(now) = targets::kept(kept.entry.id.as_str()) {
            match lives(&now) > before {
                // The next one may have begun already.
                true if now.is_restarting() => return now.last_end().code,
                true => break,
                false => kept = now,
            }
        }
        let mut polled = [PollFd::new(keeper, PollFlags::IN), PollFd::new(changes, PollFlags::IN)];
        // What interrupts it is no change.
        let _ = poll(&mut polled, None);
        while rustix::io::read(changes, &mut [0; EVENTS]).is_ok() {}
    }
    kept.last_end().code
}

/// Bytes of events that are read at once; what they say is not looked at.
const EVENTS: usize = 4096;

/// How many lives of the container have ended since a user started it.
fn lives(kept: &Kept) -> u32 {
    kept.entry.restarts.saturating_add(u32::from(kept.is_restarting()))
}
