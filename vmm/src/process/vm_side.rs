//! The VM's side: what its process does.

use std::any::Any;
use std::fs::File;
use std::io::{self, PipeWriter};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use instance::Identity;
use instance::keeper::{Inherited, Tie, leave_the_terminal};
use rustix::process::Signal;

use super::keeper_side::User;
use super::messages::{Failure, FromVm, Message, ToVm, VmEnd};
use super::slots::{SlotRequest, Slots, serve_slots};
use crate::confinement::Outside;
use crate::console::{ConsoleKeeper, FileIdentity};
use crate::{
    AwaitedText, BlockHandle, ExitReason, Frontend, Limits, LogKeeper, Requests, Resources, Snapshot,
    Supervisor, Timeline, VmConfig,
};

/// What the process has from the one that keeps it.
pub(super) struct Means<'a> {
    pub tie: Tie,
    /// Where it says which system call ended it.
    pub reports: PipeWriter,
    /// Leads to what connects the guest with sockets of the host, where it has a device for that.
    pub dialer: Option<OwnedFd>,
    /// Where the console's latest output is kept, if not in the VM's directory.
    pub log: Option<PathBuf>,
    /// Who is in front of it.
    pub user: Option<User>,
    /// It stays in the group of the process that keeps it.
    pub is_in_our_group: bool,
    /// When the start began.
    pub start: Instant,
    /// Its user and its control group.
    pub outside: &'a Outside,
}

/// What the VM's process does.
pub(super) fn run(
    (config, identity, snapshot): (&VmConfig, &Identity, Option<Snapshot>),
    means: Means<'_>,
    until_open: Box<dyn Any>,
) -> u8 {
    let timeline = Arc::new(Timeline::starting_at(means.start));
    let Means { tie, reports, dialer, log, user, is_in_our_group, start, outside } = means;
    let tie = Arc::new(tie);
    // Before anything that counts: the guest's memory, and the processes that serve its devices.
    let entered = outside.enter();
    let opened =
        open((config, identity, snapshot), log, user.is_some().then_some(is_in_our_group), until_open);
    let ran = opened.and_then(|(frontend, mut resources)| {
        let has_helpers = confine(config, &mut resources, &tie, (reports, dialer, entered))?;
        serve((config, has_helpers), (frontend, resources), &tie, (user, start), &timeline)
    });
    let (message, code) = match ran {
        Ok(reason) => (FromVm::Ended(VmEnd::of(reason, timeline.nanoseconds())), 0),
        Err(failure) => (FromVm::Failed(failure), 1),
    };
    // The keeper has gone, if this fails.
    let _ = tie.send(&message);
    devices::log::finish_quickly();
    code
}

/// Opens all that the VM needs, and closes what is not its own. Where it has a user, `of_user` says whether it stays in
/// the group of the process that keeps it.
fn open<'a>(
    (config, identity, snapshot): (&'a VmConfig, &'a Identity, Option<Snapshot>),
    log: Option<PathBuf>,
    of_user: Option<bool>,
    until_open: Box<dyn Any>,
) -> Result<(Frontend, Resources<'a>), Failure> {
    let inherited = if let Some(is_in_our_group) = of_user {
        if !is_in_our_group {
            // Its copies are in it too, and end with it.
            rustix::process::setpgid(None, None)
                .map_err(|error| Failure::host("make a process group")(error.into()))?;
        }
        Some(Inherited::find())
    } else {
        // A terminal's signals and the command's input and output are the keeper's.
        leave_the_terminal().map_err(Failure::host("leave the terminal"))?;
        None
    };
    let frontend = Frontend::of_process(&config.console)?;
    let resources = match snapshot {
        None => crate::open(config, identity, log)?,
        Some(snapshot) => crate::open_snapshot(config, identity, log, snapshot)?,
    };
    drop(until_open);
    // One of them may have been named as a file, by /dev/fd.
    inherited.into_iter().for_each(Inherited::close);
    Ok((frontend, resources))
}

/// Gives up what running the VM does not need, and tells the keeper. Returns whether processes serve its devices.
fn confine(
    config: &VmConfig,
    resources: &mut Resources<'_>,
    tie: &Tie,
    (reports, dialer, entered): (PipeWriter, Option<OwnedFd>, (jail::Ids, jail::State)),
) -> Result<bool, Failure> {
    let helpers = resources.helpers();
    if config.jail != jail::Mode::Off
        && let Some(dialer) = dialer
    {
        resources.dial_by(dialer);
    }
    let report = resources.confine(config.jail, entered, reports.into())?;
    // One that was stopped goes on when its keeper ends, and so sees that. Changes of rights forget it.
    let _ = rustix::process::set_parent_process_death_signal(Some(Signal::CONT));
    for (layer, why) in report.missing() {
        tracing::info!("the VM is confined without {layer}: {why}");
    }
    // The keeper has gone, if this fails.
    let has_helpers = !helpers.is_empty();
    let _ = tie.send(&Message::Confined { report, helpers });
    Ok(has_helpers)
}

/// The keeper, as the console's files know it.
struct Logs {
    tie: Arc<Tie>,
    next: NextFile,
}

/// A file that has come from the keeper.
type NextFile = Arc<Mutex<Option<File>>>;

/// Files that have come from the keeper: for the log, and for `--console FILE`.
#[derive(Clone, Default)]
struct NextFiles {
    log: NextFile,
    console: NextFile,
}

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

impl ConsoleKeeper for Logs {
    fn ask(&self, file: FileIdentity) {
        let _ = self.tie.send(&Message::NewConsole(file));
    }

    fn take(&self) -> Option<File> {
        LogKeeper::take(self)
    }
}

/// Starts the threads beside the VM, builds it and runs it.
fn serve(
    (config, has_helpers): (&VmConfig, bool),
    (frontend, resources): (Frontend, Resources<'_>),
    tie: &Arc<Tie>,
    (user, start): (Option<User>, Instant),
    timeline: &Arc<Timeline>,
) -> Result<ExitReason, Failure> {
    let thread = Failure::host("start a thread");
    let writer = devices::log::Writer::start().map_err(&thread)?;
    let (mut limits, awaited) = match user {
        Some(User { limits, awaited }) => (limits, awaited),
        None => (Limits { stop_timeout: Duration::ZERO, timeout: None }, None),
    };
    // What has passed of it is over.
    limits.timeout = limits.timeout.map(|timeout| timeout.saturating_sub(start.elapsed()));
    let (of_last_resort, of_timeline) = (tie.clone(), timeline.clone());
    let last_resort = move |reason: &ExitReason| {
        let end = VmEnd::of(reason.clone(), of_timeline.nanoseconds());
        let _ = of_last_resort.send(&FromVm::Ended(end));
        devices::log::finish_quickly();
        instance::exit_now(1)
    };
    let supervisor = Supervisor::start(None, limits, Box::new(last_resort)).map_err(&thread)?;
    let requests = supervisor.requests();
    let (slots, next) = (Slots::default(), NextFiles::default());
    let (may_run, run) = sync_channel(1);
    let to_slots = (config.slots > 0).then(|| serve_slots(slots.clone(), tie.clone())).transpose();
    let to_slots = to_slots.map_err(&thread)?;
    hear_keeper(tie.clone(), (to_slots, may_run), next.clone(), requests.clone()).map_err(&thread)?;
    let (of_button, of_text) = (tie.clone(), tie.clone());
    let printed = move || drop(of_text.send(&FromVm::Printed));
    let kept = |next: &NextFile| Box::new(Logs { tie: tie.clone(), next: next.clone() });
    let frontend = frontend
        .supervised_by(requests)
        .log_kept_by(kept(&next.log))
        .console_kept_by(kept(&next.console))
        .awaiting(awaited.and_then(|text| AwaitedText::new(text, Arc::new(printed))))
        .on_power_button(Box::new(move || drop(of_button.send(&FromVm::Pressed))));
    let built = crate::build(resources, frontend, timeline.clone()).and_then(|vm| {
        let _ = slots.set(vm.slots().iter().map(BlockHandle::downgrade).collect());
        if has_helpers {
            // The keeper has gone, or has ended the VM, if there is no answer.
            let _ = tie.send(&Message::Ready);
            let _ = run.recv();
        }
        crate::seal(vm)
    });
    let of_vm = tie.clone();
    let running = move || drop(of_vm.send(&FromVm::Built));
    let reason = built.and_then(|vm| vm.on_running(Box::new(running)).run());
    // Until the process ends: another thread may still keep it from ending.
    std::mem::forget(supervisor);
    drop(writer);
    Ok(reason?)
}

/// Does what the keeper says, on a thread that lives as long as the process.
fn hear_keeper(
    tie: Arc<Tie>,
    (to_slots, may_run): (Option<SyncSender<SlotRequest>>, SyncSender<()>),
    next: NextFiles,
    to_end: Requests,
) -> io::Result<()> {
    let hear = move || {
        let put = |place: &NextFile, mut files: Vec<OwnedFd>| {
            *place.lock().unwrap_or_else(PoisonError::into_inner) = files.pop().map(File::from);
        };
        let reason = loop {
            match tie.receive_with() {
                Ok(Some((ToVm::End(reason), _))) => break reason,
                Ok(Some((ToVm::Signal(signal), _))) => to_end.signal(signal),
                Ok(Some((ToVm::Log, files))) => put(&next.log, files),
                Ok(Some((ToVm::Console, files))) => put(&next.console, files),
                // Said once.
                Ok(Some((ToVm::Run, _))) => drop(may_run.try_send(())),
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
