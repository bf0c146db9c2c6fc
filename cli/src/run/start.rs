//! `mvm start` and `mvm restart`.

use std::time::{Duration, Instant};

use clap::Args;
use container::{Assets, AttachStreams, Timing};
use instance::{Kept, Kind};

use super::keep::{Means, Side, Which, keep};
use super::order::Order;
use super::{in_front, in_the_background};
use crate::attach::AttachArguments;
use crate::kill::signal;
use crate::process::ExitCode;
use crate::targets::{self, Failure, complain_of};
use crate::{chain, complain, events, exit_code, images, print, stop};

const START_EXAMPLES: &str = "\
Examples:
  mvm start web db
  mvm start --attach job";

/// Arguments of `mvm start`.
#[derive(Args)]
#[command(after_long_help = START_EXAMPLES)]
pub struct StartCommand {
    /// IDs, beginnings of IDs, or names
    #[arg(required = true, value_name = "NAME")]
    containers: Vec<String>,

    /// Show its output, pass signals on, and end with its exit code
    #[arg(long, short)]
    attach: bool,

    /// Pass standard input on too
    #[arg(long, short)]
    interactive: bool,

    #[command(flatten)]
    attach_arguments: AttachArguments,
}

const RESTART_EXAMPLES: &str = "\
Examples:
  mvm restart web
  mvm restart --time 60 web db";

/// Arguments of `mvm restart`.
#[derive(Args)]
#[command(after_long_help = RESTART_EXAMPLES)]
pub struct RestartCommand {
    /// IDs, beginnings of IDs, or names
    #[arg(required = true, value_name = "NAME")]
    containers: Vec<String>,

    /// Seconds that it has to end before it is killed; -1: no limit [default: its own --stop-timeout]
    #[arg(long, short, alias = "timeout", value_name = "SECONDS", value_parser = crate::values::seconds)]
    #[arg(allow_negative_numbers = true)]
    time: Option<u64>,

    /// Send this signal in place of its stop signal: a name as in INT, or a number from 1 to 64
    #[arg(long, short, value_name = "SIGNAL", value_parser = signal)]
    signal: Option<u8>,
}

/// Calls `act` for each of `words`, one after the other since each makes a process, and prints those for which it
/// succeeded.
fn each(words: &[String], act: impl Fn(&str) -> Result<(), Failure>) -> ExitCode {
    let mut code = exit_code::SUCCESS;
    for word in words {
        match act(word) {
            Ok(()) => {
                print(format!("{word}\n").as_bytes(), code);
            }
            Err(failure) => code = code.max(complain_of(word, &failure)),
        }
    }
    code.into()
}

impl StartCommand {
    /// Starts containers that have ended, or were not started yet.
    pub fn run(self) -> ExitCode {
        if !self.attach && !self.interactive {
            return each(&self.containers, start);
        }
        let [word] = self.containers.as_slice() else {
            complain("--attach and --interactive are for one container: name one");
            return exit_code::FAILURE.into();
        };
        match attached(word, self.interactive, &self.attach_arguments) {
            Ok(code) => code.into(),
            Err(failure) => complain_of(word, &failure).into(),
        }
    }
}

/// Starts a container with this process's output, and its input where that `is_read`; returns its exit code.
fn attached(word: &str, is_read: bool, arguments: &AttachArguments) -> Result<u8, Failure> {
    let kept = targets::kept_alone(word)?;
    if kept.is_running {
        return Err(Failure::Running);
    }
    if kept.is_saved() {
        return Err(Failure::Saved);
    }
    let (order, means) = prepare(&kept)?;
    let which = Which::Kept(kept.entry.id);
    let streams = AttachStreams { input: is_read, output: true, errors: true };
    let ended = in_front(&order, means, which, streams, arguments);
    ended.or_else(|failure| {
        complain(&format!("{word}: {}", failure.message));
        Ok(failure.code)
    })
}

impl RestartCommand {
    /// Stops containers that run, and starts them.
    pub fn run(self) -> ExitCode {
        each(&self.containers, |word| {
            end(word, self.time, self.signal)?;
            start(word)?;
            events::note_of(word, "restart", &[]);
            Ok(())
        })
    }
}

/// Stops a container if it runs, and waits until its keeper has ended.
fn end(word: &str, time: Option<u64>, signal: Option<u8>) -> Result<(), Failure> {
    let kept = targets::kept(word)?;
    // What would be lost is said before it is stopped.
    check(&kept)?;
    if !kept.is_running {
        return Ok(());
    }
    if kept.entry.removes {
        return Err(Failure::Removes);
    }
    stop::stop_word(word, time, signal)?;
    if let Ok(process) = kept.entry.process.open() {
        process.wait(Some(DEADLINE));
    }
    Ok(())
}

/// How long a keeper has to end after its container has.
const DEADLINE: Duration = Duration::from_secs(30);

/// Refuses what can't be started.
fn check(kept: &Kept) -> Result<Order, Failure> {
    if kept.entry.kind == Kind::Vm {
        return Err(Failure::IsVm);
    }
    let id = || kept.entry.id.clone();
    kept.order().map_err(|source| instance::InstanceError::Order { id: id(), source }.into())
}

/// Starts a container in the background. One that runs needs nothing.
pub fn start(word: &str) -> Result<(), Failure> {
    let kept = targets::kept_alone(word)?;
    if kept.is_running {
        return if kept.entry.kind == Kind::Vm { Err(Failure::IsVm) } else { Ok(()) };
    }
    if kept.is_saved() {
        return Err(Failure::Saved);
    }
    let (order, means) = prepare(&kept)?;
    let id = kept.entry.id;
    let which = Which::Kept(id);
    in_the_background(|reporter| keep(&order, means, which, Side::Background { reporter, front: None }))
        .map(drop)
        .map_err(|failure| Failure::Start(failure.message))
}

/// What was ordered, and what it is started with.
pub fn prepare(kept: &Kept) -> Result<(Order, Means), Failure> {
    let order = check(kept)?;
    let assets = Assets::find().map_err(|error| Failure::Start(chain(&error)))?;
    let (image, hold) = images::open_kept(&order.image).map_err(Failure::Start)?;
    let timing = Timing::starting_at(Instant::now());
    Ok((
        order,
        Means {
            assets,
            image,
            hold,
            shows_timing: false,
            timing,
            cid_file: None,
            copied: None,
            holds: Vec::new(),
        },
    ))
}
