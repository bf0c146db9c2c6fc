//! The keeper of a pod, a process in the background.

use std::io;

use container::{Assets, ImageConfig, PodFolders, PodKeeper, PodOptions, PodPlan, RunError, Shape};
use devices::log::Writer;
use instance::{
    Archive, End, Identity, Instance, InstanceError, Kept, Phase, Process, Summary, VmId, Volumes, time,
};
use vmm::Split;

use super::options;
use crate::background::{self, Report, Reporter, SharedReporter};
use crate::run::ports;
use crate::{chain, complain, events, exit_code, template};

/// Starts the VM of a pod, kept by a process in the background. It is no error where another process has just done so.
pub fn start(kept: &Kept) -> Result<(), String> {
    let id = kept.entry.id.clone();
    let options = options(kept).map_err(|error| chain(&error))?;
    let assets = Assets::find().map_err(|error| chain(&error))?;
    let report = background::start_alone(|reporter| keep(&id, &options, &assets, reporter));
    match report.map_err(|error| format!("cannot run in the background: {error}"))? {
        Report::Started { .. } => Ok(()),
        Report::Failed { message, .. } => Err(format!("cannot start pod {}: {message}", options.name)),
    }
}

fn keep(id: &VmId, options: &PodOptions, assets: &Assets, reporter: Reporter) -> u8 {
    let reporter = SharedReporter::new(Some(reporter));
    let mut writer = None;
    match try_keep(id, options, assets, &reporter, &mut writer) {
        Ok(()) => exit_code::SUCCESS,
        Err(message) => {
            // After the start, no process waits for it: it is among what mvm says of the pod.
            complain(&message);
            reporter.report(&Report::Failed { code: exit_code::CONTAINER, message });
            exit_code::CONTAINER
        }
    }
}

/// `writer` writes what is said once there is a thread for it.
fn try_keep(
    id: &VmId,
    options: &PodOptions,
    assets: &Assets,
    reporter: &SharedReporter,
    writer: &mut Option<Writer>,
) -> Result<(), String> {
    let host = |what: &'static str| move |error: io::Error| format!("cannot {what}: {error}");
    let said = |error: InstanceError| chain(&error);
    instance::ignore_limits_and_terminal();
    let mut signals = Some(instance::take_ending().map_err(host("take signals"))?);
    let archive = Archive::of_user().map_err(said)?;
    let Some(mut keep) = archive.take(id).map_err(said)? else {
        // Another process has been quicker.
        reporter.report(&Report::Started { id: id.to_string() });
        return Ok(());
    };
    let identity = Identity { id: Some(id.clone()), name: keep.entry().name.clone(), directory: None };
    let instance = Instance::claim(&identity, summary(options, assets)).map_err(said)?;
    let publish =
        container::published(&options.options, &ImageConfig::default()).map_err(|error| chain(&error))?;
    let process = Process::own().map_err(|error| chain(&error))?;
    let begun = keep.begin(|entry| {
        (entry.phase, entry.started, entry.ports) = (Phase::Started, None, ports(&publish));
        entry.process = process;
    });
    begun.map_err(host("write the pod's record"))?;
    let messages = keep.messages();
    let volumes = Volumes::of_user().map_err(said)?;
    let folders = PodFolders::open(&options.folders, &volumes).map_err(|error| chain(&error))?;
    let plan = PodPlan { assets, options, publish: &publish, folders: &folders, volumes: &volumes };
    let leave = || drop((signals.take(), reporter.lock().take()));
    let split = Split { until_open: Box::new(()), leave: Box::new(leave) };
    let mut missing = None;
    let template = match Shape::of_pod(&options.options, &folders) {
        Some(shape) => template::find_of(assets, shape, &mut missing),
        None => None,
    };
    let keeper = PodKeeper::start(plan, instance, keep, split, template).map_err(|error| chain(&error))?;
    *writer = Some(Writer::start().map_err(host("start a thread"))?);
    if let Some(reporter) = &mut *reporter.lock() {
        reporter.keep_messages(messages).map_err(host("write messages to a file"))?;
    }
    let (of_start, started) = (reporter.clone(), Report::Started { id: id.to_string() });
    let entry = archive.find(id.as_str()).map(|kept| kept.entry);
    let starting = entry.as_ref().ok().cloned();
    let on_started = move || {
        starting.iter().for_each(|entry| events::note(entry, "start", &[]));
        missing.into_iter().for_each(template::make_in_the_background);
        of_start.report(&started);
    };
    let left = keeper.run(signals, Box::new(on_started));
    let mut keep = left.keep;
    let (code, message) = match &left.result {
        Ok(()) => (exit_code::SUCCESS, String::new()),
        Err(RunError::VmEnded(end)) if end.signal.is_some() => {
            (exit_code::of_signal(end.signal.unwrap_or(libc::SIGKILL)), String::new())
        }
        Err(error) => (exit_code::CONTAINER, chain(error)),
    };
    let end = End { code, out_of_memory: false, error: message.clone(), finished: time::now() };
    if let Err(error) = keep.ended(&end) {
        tracing::warn!(%error, "cannot note how the pod ended");
    }
    entry.iter().for_each(|entry| events::note(entry, "stop", &[]));
    drop(left.instance);
    if message.is_empty() { Ok(()) } else { Err(message) }
}

fn summary(options: &PodOptions, assets: &Assets) -> Summary {
    let (cpus, memory) = container::size(&options.options);
    Summary { cpus, memory, kernel: assets.kernel.display().to_string(), rootfs: None, stop_timeout_ms: None }
}
