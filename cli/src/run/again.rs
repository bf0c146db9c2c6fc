//! Starting a container again: its keeper executes mvm anew, since a process that makes another one has one thread. The
//! lock on what is kept of the container goes with it, so that no process takes the container for one that has ended.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use clap::Args;
use instance::keeper::fork;
use instance::{Archive, End, Keep, Kept, Phase, Process, Signals, VmId, time};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::keep::{Side, Which, keep};
use super::start::prepare;
use crate::process::ExitCode;
use crate::{background, chain, exit_code};

/// This program, also where its file was replaced.
const PROGRAM: &str = "/proc/self/exe";

/// Arguments of `mvm keeper`.
#[derive(Args)]
pub struct KeeperCommand {
    /// The container
    id: VmId,

    /// Milliseconds before it is started
    #[arg(long, value_name = "MS")]
    wait: u64,

    /// Go on in the background, and end the user's command with this exit code
    #[arg(long, value_name = "CODE")]
    leave: Option<u8>,
}

/// Starts the container of `keep` again after `delay`. Where this process is the user's command, it ends with the exit
/// code that it is to `leave`, as docker's does: the container's next life has no terminal. It returns where that can't
/// be done.
pub fn start(keep: &Keep, delay: Duration, leave: Option<u8>) {
    let error = match keep.lock_descriptor() {
        Ok(lock) => {
            let mut command = Command::new(PROGRAM);
            command.arg("keeper").arg("--wait").arg(delay.as_millis().to_string());
            command.args(leave.map(|code| format!("--leave={code}")));
            command.arg(keep.entry().id.as_str());
            if let Some(directory) = instance::runtime_directory() {
                command.env("MVM_RUNTIME_DIR", directory);
            }
            command.stdin(lock).stdout(Stdio::null()).stderr(Stdio::null());
            command.exec()
        }
        Err(error) => error,
    };
    tracing::warn!(%error, "cannot start the container again");
}

impl KeeperCommand {
    /// Waits, and keeps the container from then on.
    pub fn run(self) -> ExitCode {
        match self.leave {
            None => self.go_on().into(),
            // The copy has the lock on what is kept.
            Some(code) => match fork(|| self.go_on()) {
                Ok(_) => code.into(),
                Err(error) => {
                    crate::complain(&format!("cannot start the container again: {error}"));
                    exit_code::CONTAINER.into()
                }
            },
        }
    }

    fn go_on(&self) -> u8 {
        let error = match self.keep(Duration::from_millis(self.wait)) {
            Ok(code) => return code,
            Err(error) => error,
        };
        // By now that goes to the file of messages, if to anything.
        crate::complain(&error);
        exit_code::CONTAINER
    }

    fn keep(&self, delay: Duration) -> Result<u8, String> {
        let deadline = Instant::now() + delay;
        let host = |error: io::Error| format!("cannot start the container again: {error}");
        instance::ignore_limits_and_terminal();
        let signals = instance::take_for_container().map_err(host)?;
        let lock = io::stdin().as_fd().try_clone_to_owned().map_err(host)?;
        let archive = Archive::of_user().map_err(|error| chain(&error))?;
        let mut kept = archive.adopt(&self.id, lock).map_err(|error| chain(&error))?;
        if self.leave.is_some() {
            let process = Process::own().map_err(|error| chain(&error))?;
            kept.change(|entry| entry.process = process).map_err(host)?;
        }
        let reporter = background::again().map_err(host)?;
        let is_over = is_over(&signals, deadline) || archive.is_stopped(&self.id);
        drop(signals);
        let prepared = if is_over { None } else { Some(prepare_again(&archive, &self.id)) };
        let (order, means) = match prepared {
            Some(Ok(prepared)) => prepared,
            None => {
                // It ended as it did before the wait.
                kept.change(|entry| entry.phase = Phase::Started).map_err(host)?;
                return Ok(exit_code::SUCCESS);
            }
            Some(Err(error)) => {
                let code = exit_code::CONTAINER;
                let end = End { code, out_of_memory: false, error, finished: time::now() };
                let noted = kept.begin(|entry| entry.phase = Phase::Started).and_then(|()| kept.ended(&end));
                noted.map_err(host)?;
                return Ok(code);
            }
        };
        let which = Which::Again(Box::new(kept), delay);
        Ok(keep(&order, means, which, Side::Background { reporter, front: None }))
    }
}

fn prepare_again(archive: &Archive, id: &VmId) -> Result<(super::order::Order, super::keep::Means), String> {
    let kept: Kept = archive.find(id.as_str()).map_err(|error| chain(&error))?;
    prepare(&kept).map_err(|failure| chain(&failure))
}

/// Waits until `deadline`; whether a signal has come before.
fn is_over(signals: &Signals, deadline: Instant) -> bool {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        let left = Timespec::try_from(left).ok();
        let _ = poll(&mut [PollFd::new(signals, PollFlags::IN)], left.as_ref());
        while let Some(signal) = signals.next() {
            if signal != libc::SIGWINCH {
                return true;
            }
        }
    }
}
