//! The VM's side: what its process does.

use std::any::Any;
use std::fs::File;
use std::io::{self, PipeWriter};
use std::os::fd::OwnedFd;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use instance::Instance;
use instance::keeper::{Tie, leave_the_terminal};
use rustix::process::Signal;

use super::messages::{FromVm, Message, ToVm, VmEnd};
use super::slots::{SlotRequest, Slots, serve_slots};
use crate::{
    BlockHandle, ExitReason, Frontend, Limits, LogKeeper, Requests, Supervisor, Timeline, VmConfig, VmError,
};

/// How the VM ended, and what that usually means.
fn in_words(reason: &ExitReason) -> String {
    reason.hint().map_or_else(|| reason.to_string(), |hint| format!("{reason}; {hint}"))
}

/// What the VM's process does.
pub(super) fn run(
    config: &VmConfig,
    instance: Instance,
    means: Means,
    until_open: Box<dyn Any>,
    start: Instant,
) -> u8 {
    // A terminal's signals and the command's input and output are the keeper's.
    let left = leave_the_terminal();
    let Means { tie, reports, dialer } = means;
    let tie = Arc::new(tie);
    let timeline = Arc::new(Timeline::starting_at(start));
    let ran = left
        .map_err(|error| format!("cannot leave the terminal: {error}"))
        .and_then(|()| try_run(config, instance, &tie, (reports, dialer, until_open), &timeline));
    let (message, code) = match ran {
        Ok(reason) => {
            let signal = if let ExitReason::Signal(signal) = &reason { Some(*signal) } else { None };
            let is_power_off = reason == ExitReason::PowerOff;
            let end = VmEnd { is_power_off, signal, text: in_words(&reason), timing: timeline.nanoseconds() };
            (FromVm::Ended(end), 0)
        }
        Err(message) => (FromVm::Failed(message), 1),
    };
    // The keeper has gone, if this fails.
    let _ = tie.send(&message);
    devices::log::finish_quickly();
    code
}

/// What the process has from the one that keeps it.
pub(super) struct Means {
    pub tie: Tie,
    /// Where it says which system call ended it.
    pub reports: PipeWriter,
    /// Leads to what connects the guest with sockets of the host.
    pub dialer: OwnedFd,
}

/// The keeper, as the console's log knows it.
struct Logs {
    tie: Arc<Tie>,
    next: NextLog,
}

/// A file that has come from the keeper for the log.
type NextLog = Arc<Mutex<Option<File>>>;

impl LogKeeper for Logs {
    fn ask(&self) {
        // The keeper has gone, if this fails.
        let _ = self.tie.send(&Message::NewLog);
    }

    fn take(&self) -> Option<File> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn replace(&self) {
        let _ = self.tie.send(&Message::LogFilled);
    }
}

/// What opens the VM, and gives up the rest; then starts the threads beside it, builds it and runs it.
fn try_run(
    config: &VmConfig,
    instance: Instance,
    tie: &Arc<Tie>,
    (reports, dialer, until_open): (PipeWriter, OwnedFd, Box<dyn Any>),
    timeline: &Arc<Timeline>,
) -> Result<ExitReason, String> {
    let thread = |error: io::Error| format!("cannot start a thread: {error}");
    let chain = |error: VmError| devices::log::chain(&error);
    let identity = instance.identity();
    // Who is confined sees no path, and cannot tell whether the directory is there.
    let is_confined = config.jail != jail::Mode::Off;
    let removal = if is_confined { None } else { instance.watch_removal().ok() };
    instance.leave();
    let frontend = Frontend::of_process(&config.console).map_err(chain)?;
    let mut resources = crate::open(config, &identity, None).map_err(chain)?;
    drop(until_open);
    let helpers = resources.helpers();
    if is_confined {
        resources.dial_by(dialer);
    }
    let report = resources.confine(config.jail, reports.into()).map_err(chain)?;
    // One that was stopped goes on when its keeper ends, and so sees that. Changes of rights forget it.
    let _ = rustix::process::set_parent_process_death_signal(Some(Signal::CONT));
    for (layer, why) in report.missing() {
        tracing::info!("the VM is confined without {layer}: {why}");
    }
    let _ = tie.send(&Message::Confined { report, helpers });

    let writer = devices::log::Writer::start().map_err(thread)?;
    let limits = Limits { stop_timeout: Duration::ZERO, timeout: None };
    let (of_last_resort, of_timeline) = (tie.clone(), timeline.clone());
    let last_resort = move |reason: &ExitReason| {
        let signal = if let ExitReason::Signal(signal) = reason { Some(*signal) } else { None };
        let text = in_words(reason);
        let end = VmEnd { is_power_off: false, signal, text, timing: of_timeline.nanoseconds() };
        let _ = of_last_resort.send(&FromVm::Ended(end));
        devices::socket::remove_files();
        devices::log::finish_quickly();
        instance::exit_now(1)
    };
    let supervisor = Supervisor::start(None, limits, Box::new(last_resort)).map_err(thread)?;
    let requests = supervisor.requests();
    let (slots, next_log) = (Slots::default(), NextLog::default());
    let to_slots = (config.slots > 0).then(|| serve_slots(slots.clone(), tie.clone())).transpose();
    hear_keeper(tie.clone(), to_slots.map_err(thread)?, next_log.clone(), requests.clone())
        .map_err(thread)?;
    let of_button = tie.clone();
    let frontend = frontend
        .supervised_by(requests)
        .watching(removal)
        .log_kept_by(Box::new(Logs { tie: tie.clone(), next: next_log }))
        .on_power_button(Box::new(move || drop(of_button.send(&FromVm::Pressed))));
    let built = crate::build(resources, frontend, timeline.clone()).and_then(|vm| {
        let _ = slots.set(vm.slots().iter().map(BlockHandle::downgrade).collect());
        crate::seal(vm)
    });
    let reason = built.and_then(crate::Vm::run).map_err(chain);
    // Until the process ends: another thread may still keep it from ending.
    std::mem::forget(supervisor);
    drop(writer);
    reason
}

/// Does what the keeper says, on a thread that lives as long as the process.
fn hear_keeper(
    tie: Arc<Tie>,
    to_slots: Option<SyncSender<SlotRequest>>,
    next_log: NextLog,
    to_end: Requests,
) -> io::Result<()> {
    let hear = move || {
        let reason = loop {
            match tie.receive_with() {
                Ok(Some((ToVm::End { signal: None }, _))) => break ExitReason::PowerOff,
                Ok(Some((ToVm::End { signal: Some(signal) }, _))) => break ExitReason::Signal(signal),
                Ok(Some((ToVm::Log, mut files))) => {
                    let file = files.pop().map(File::from);
                    *next_log.lock().unwrap_or_else(PoisonError::into_inner) = file;
                }
                Ok(Some(request)) => {
                    // One that is dropped is not answered, which its deadline is for.
                    let _ = to_slots.as_ref().map(|slots| slots.try_send(request));
                }
                // The keeper has gone.
                Ok(None) | Err(_) => break ExitReason::Signal(libc::SIGKILL),
            }
        };
        to_end.end(reason);
    };
    devices::spawn("keeper", hear).map(drop)
}
