//! Keeping a container: from its directory to its exit code.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use container::{
    Assets, Attachment, Copied, Ended, Health, HealthCheck, HealthStatus, Image, Keeper, Left, Origin, Plan,
    RunError, Step, Timing,
};
use devices::log::Writer;
use image::{DigestError, Hold};
use instance::{
    Archive, End, Entry, Identity, Instance, InstanceError, Keep, Phase, VmId, VmName, VolumeHold, Volumes,
    time,
};
use vmm::{PublishConfig, Split};

use super::again;
use super::cid::CidFile;
use super::log;
use super::order::Order;
use super::{policy, saved};
use crate::background::{Report, Reporter};
use crate::{chain, complain, events, exit_code, pod, template};

/// What it is started with.
pub struct Means {
    pub assets: Assets,
    pub image: Image,
    /// Keeps the image's files there until the VM's process has opened them.
    pub hold: Hold,
    pub shows_timing: bool,
    pub timing: Timing,
    /// What gets the ID of one that is made.
    pub cid_file: Option<CidFile>,
    /// What its VM goes on from, where it is a copy of another container.
    pub copied: Option<Copied>,
    /// Volumes that are held for it already.
    pub holds: Vec<VolumeHold>,
}

/// Which container is meant.
pub enum Which {
    /// One that is made now, with this name.
    New(Option<VmName>),
    /// One that is there.
    Kept(VmId),
    /// One that is there and that this process keeps already.
    Taken(Box<Keep>),
    /// One that this process keeps already, and has waited so long to start again.
    Again(Box<Keep>, Duration),
}

/// Where a container is kept.
pub enum Side {
    /// By the user's command, with its input and output.
    Foreground,
    /// By a process in the background; the user's command may be attached from the beginning.
    Background { reporter: Reporter, front: Option<UnixStream> },
}

/// What ends mvm with a code of its own.
pub struct Failure {
    pub code: u8,
    pub message: String,
}

impl From<String> for Failure {
    fn from(message: String) -> Self {
        Self { code: exit_code::CONTAINER, message }
    }
}

/// Runs a container to its end, and again as its policy says. Returns its exit code.
pub fn keep(order: &Order, means: Means, which: Which, side: Side) -> u8 {
    let (reporter, front) = match side {
        Side::Foreground => (None, None),
        Side::Background { reporter, front } => (Some(reporter), front),
    };
    let reporter = Arc::new(Mutex::new(reporter));
    let mut writer = None;
    let Failure { code, message } = match try_keep(order, means, which, &reporter, front, &mut writer) {
        Ok(code) => return code,
        Err(failure) => failure,
    };
    match &mut *lock(&reporter) {
        Some(reporter) => reporter.report(&Report::Failed { code, message }),
        None => complain(&message),
    }
    code
}

fn lock(reporter: &Mutex<Option<Reporter>>) -> std::sync::MutexGuard<'_, Option<Reporter>> {
    reporter.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes a container that is not started yet; returns its ID.
pub fn create(
    order: &Order,
    (assets, image): (&Assets, &Image),
    hold: &Hold,
    name: Option<VmName>,
    cid_file: Option<CidFile>,
) -> Result<VmId, String> {
    let said = |error: InstanceError| chain(&error);
    let volumes = Volumes::of_user().map_err(said)?;
    let archive = Archive::of_user().map_err(said)?;
    let id = archive.new_id().map_err(said)?;
    container::check(id.as_str(), &image.config, &order.options).map_err(|error| chain(&error))?;
    let keep = archive.create(order.entry(image, id, name, Phase::Created, &[])?).map_err(said)?;
    set_order(&archive, &keep, order, hold)?;
    let made = match &order.pod {
        // Whether there is room for them is seen when it is started.
        Some(pod) => pod::prepare(pod, assets, &order.options, &volumes).map(drop),
        None => container::check_room(&order.options, &volumes)
            .and_then(|()| container::make_volumes(assets, &order.options, &volumes))
            .map_err(|error| chain(&error)),
    };
    if let Err(problem) = made.and_then(|()| write_id(cid_file, keep.entry().id.as_str()).map(drop)) {
        let _ = archive.remove_own(&keep);
        return Err(problem);
    }
    events::note(keep.entry(), "create", &[]);
    Ok(keep.entry().id.clone())
}

/// Writes the ID of a container that was made to the user's file.
fn write_id(mut cid_file: Option<CidFile>, id: &str) -> Result<Option<CidFile>, String> {
    if let Some(file) = &mut cid_file {
        file.write(id)?;
    }
    Ok(cid_file)
}

/// Keeps what was ordered, unless the image was removed since it was found. Nothing is left behind then.
fn set_order(archive: &Archive, keep: &Keep, order: &Order, hold: &Hold) -> Result<(), String> {
    let id = order.image.parse().map_err(|error: DigestError| error.to_string())?;
    let set = match keep.set_order(order) {
        Ok(()) => hold.has(id).map_err(|error| chain(&error)),
        Err(error) => Err(format!("cannot keep what was ordered: {error}")),
    };
    let problem = match set {
        Ok(true) => return Ok(()),
        Ok(false) => format!("image {} was removed meanwhile", order.image_name),
        Err(problem) => problem,
    };
    let _ = archive.remove_own(keep);
    Err(problem)
}

/// The VM's directory and what is kept of the container, which begins its life or another one.
fn begin(
    order: &Order,
    means: &Means,
    which: Which,
    archive: &Archive,
) -> Result<(Instance, Keep, Vec<PublishConfig>), Failure> {
    let said = |error: InstanceError| chain(&error);
    let publish = || container::published(&order.options, &means.image.config).map_err(|error| chain(&error));
    let summary = order.summary(&means.assets);
    match which {
        Which::New(name) => {
            let instance = Instance::claim(&Identity { name: name.clone(), ..Identity::default() }, summary);
            let instance = instance.map_err(said)?;
            let publish = publish()?;
            let entry = order.entry(&means.image, instance.id().clone(), name, Phase::Started, &publish)?;
            let keep = archive.add(entry).map_err(said)?;
            set_order(archive, &keep, order, &means.hold)?;
            events::note(keep.entry(), "create", &[]);
            Ok((instance, keep, publish))
        }
        Which::Kept(id) => {
            let keep = archive.take(&id).map_err(said)?;
            let keep = keep.ok_or_else(|| format!("{id} is running already"))?;
            begin(order, means, Which::Taken(Box::new(keep)), archive)
        }
        Which::Taken(keep) => {
            archive.set_stopped(&keep.entry().id, false).map_err(said)?;
            begin(order, means, Which::Again(keep, Duration::ZERO), archive)
        }
        Which::Again(mut keep, waited) => {
            let (id, name) = (keep.entry().id.clone(), keep.entry().name.clone());
            let restarts = if waited.is_zero() { 0 } else { keep.entry().restarts.saturating_add(1) };
            let identity = Identity { id: Some(id.clone()), name: name.clone(), directory: None };
            let instance = Instance::claim(&identity, summary).map_err(said)?;
            let publish = publish()?;
            let entry = order.entry(&means.image, id, name, Phase::Started, &publish)?;
            let begun = keep.begin(|kept| *kept = Entry { created: kept.created, restarts, ..entry });
            begun.map_err(|error| format!("cannot write the container's record: {error}"))?;
            Ok((instance, *keep, publish))
        }
    }
}

/// What becomes of a container whose VM could not be started.
fn give_up(archive: &Archive, id: &VmId, is_new: bool, failure: &str) {
    if is_new {
        // Nothing of it has run.
        let _ = archive.remove(id, true);
    } else if let Ok(Some(mut keep)) = archive.take(id) {
        let end = End {
            code: exit_code::CONTAINER,
            out_of_memory: false,
            error: failure.to_owned(),
            finished: time::now(),
        };
        if let Err(error) = keep.begin(|_| ()).and_then(|()| keep.ended(&end)) {
            tracing::warn!(%error, "cannot note why the container did not start");
        }
    }
}

/// What runs a container to its end.
type Runner = Box<dyn FnOnce(Attachment) -> Left>;

/// `writer` writes what is said once there is a thread for it.
fn try_keep(
    order: &Order,
    mut means: Means,
    which: Which,
    reporter: &Arc<Mutex<Option<Reporter>>>,
    mut front: Option<UnixStream>,
    writer: &mut Option<Writer>,
) -> Result<u8, Failure> {
    let host = |what: &'static str| move |error: io::Error| format!("cannot {what}: {error}");
    // The container gets them, so that the VM does not end by one.
    instance::ignore_limits_and_terminal();
    let mut signals = Some(instance::take_for_container().map_err(host("take signals"))?);
    let archive = Archive::of_user().map_err(|error| chain(&error))?;
    let is_new = matches!(which, Which::New(_));
    let waited = if let Which::Again(_, waited) = &which { *waited } else { Duration::ZERO };
    // The volumes stay from here on, and then others find out from the record that they are used.
    let volumes = Volumes::of_user().map_err(|error| chain(&error))?;
    let mounts = match &order.pod {
        None => {
            let held = std::mem::take(&mut means.holds);
            let prepared = container::prepare_holding(&means.assets, &order.options, &volumes, held);
            prepared.map_err(|error| chain(&error))?
        }
        Some(pod) => pod::prepare(pod, &means.assets, &order.options, &volumes)?,
    };
    let (instance, keep, publish) = begin(order, &means, which, &archive)?;
    let Means { assets, image, hold, shows_timing, timing, cid_file, copied, .. } = means;
    let id = instance.id().clone();
    let cid_file = match write_id(cid_file, id.as_str()) {
        Ok(cid_file) => cid_file,
        Err(message) => {
            drop(mounts);
            let _ = archive.remove_own(&keep);
            return Err(message.into());
        }
    };
    events::note_mounts(id.as_str(), &order.options.mounts);
    let messages = keep.messages();
    let (kept, entry) = (keep.directory().to_owned(), keep.entry().clone());
    let check = HealthCheck::new(image.config.health.as_ref(), &order.health);
    let (healthy, stop) = channel();
    let directory = instance.path().to_owned();
    let target = log::target(order, keep.entry());
    let plan = Plan {
        assets: &assets,
        image: &image,
        options: &order.options,
        publish: &publish,
        mounts: &mounts,
        log: target.as_ref(),
        timing: &timing,
    };
    timing.mark(Step::Record);
    // It goes on from what was saved of itself, which stays until it runs.
    let resumes = copied.as_ref().is_some_and(|copied| copied.container == id.as_str());
    let is_copy = copied.is_some() && !resumes;
    let mut missing = None;
    let origin = match (&order.pod, copied) {
        (None, Some(copied)) => Origin::Copy(copied),
        (None, None) => {
            let (options, removes) = (&order.options, keep.entry().removes);
            let is_new = !container::changes_path(keep.directory()).exists();
            let start = template::Start { image: &image, options, mounts: &mounts, is_new, removes };
            template::find(&assets, &start, &mut missing)
        }
        (Some(_), _) => Origin::Boot,
    };
    let leave = || drop((signals.take(), front.take(), lock(reporter).take()));
    let run = match &order.pod {
        None => {
            let split = Split { until_open: Box::new(hold), leave: Box::new(leave) };
            Keeper::start(plan, instance, keep, split, origin)
                .map(|keeper| Box::new(move |attachment| keeper.run(attachment)) as Runner)
                .map_err(|error| chain(&error))
        }
        Some(pod) => pod::enter(pod, plan, &keep).map(|member| {
            drop(hold);
            Box::new(move |attachment| member.run(attachment, instance, keep)) as Runner
        }),
    };
    let run = match run {
        Ok(run) => run,
        Err(message) => {
            drop(mounts);
            events::note_unmounts(id.as_str(), &order.options.mounts);
            if !(resumes && saved::stay_by(&id)) {
                give_up(&archive, &id, is_new, &message);
            }
            cid_file.iter().for_each(CidFile::forget);
            return Err(message.into());
        }
    };
    *writer = Some(Writer::start().map_err(host("start a thread"))?);
    let is_attached = lock(reporter).is_none();
    if is_attached || front.is_some() {
        events::note(&entry, "attach", &[]);
    }
    if let Some(reporter) = &mut *lock(reporter) {
        reporter.keep_messages(messages).map_err(host("write messages to a file"))?;
    }
    let left = {
        let reporter = reporter.clone();
        let started = Report::Started { id: id.to_string() };
        let checked = id.to_string();
        let directory_of_saved = resumes.then(|| kept.clone());
        let on_started = Box::new(move || {
            events::note(&entry, "start", &[]);
            // What it has gone on from.
            directory_of_saved.iter().for_each(|directory| saved::remove(directory));
            missing.into_iter().for_each(template::make_in_the_background);
            if let Some(check) = check {
                let mut last = HealthStatus::Starting;
                let report = move |health: &Health| {
                    note_health(&kept, health);
                    if health.status != std::mem::replace(&mut last, health.status) {
                        events::note(&entry, &format!("health_status: {}", health.status.as_str()), &[]);
                    }
                };
                if let Err(error) = container::watch_health(check, directory, checked, stop, report) {
                    tracing::warn!(%error, "cannot start a thread: the container's health is not checked");
                }
            }
            if let Some(reporter) = &mut *lock(&reporter) {
                reporter.report(&started);
            }
        });
        let input_once = order.input_once;
        let streams = (order.attached.stdout, order.attached.stderr);
        let (front, signals) = (front.take(), signals.take());
        run(Attachment { is_attached, streams, front, input_once, signals, on_started })
    };
    drop(healthy);
    let mut text = String::new();
    if shows_timing {
        text = timing.table();
        devices::log::print(&text);
    }
    let has_run = !(resumes && matches!(left.result, Err(RunError::Vm(_))));
    let (code, mut said) = ending(left.result);
    // A thread that waits for an agent, or for a reader of the output, may still have it.
    let mut keep = left.keep.lock().unwrap_or_else(PoisonError::into_inner);
    drop(mounts);
    let is_saved = has_run && saved::note(&mut keep);
    if is_saved {
        said = Said::Saved;
    }
    if !has_run {
        saved::stay(&mut keep);
    }
    if is_saved || !has_run {
        events::note_unmounts(id.as_str(), &order.options.mounts);
    } else if is_copy && keep.entry().started.is_none() {
        // Nothing of it has run that was not the first one's.
        events::note_unmounts(id.as_str(), &order.options.mounts);
        if let Err(error) = archive.remove_own(&keep) {
            tracing::warn!("{}", chain(&error));
        }
    } else {
        finish(&archive, &mut keep, order, code, &said);
        saved::remove(keep.directory());
    }
    drop(left.instance);
    let is_for_good = is_saved
        || !has_run
        || left.attachments.as_ref().is_some_and(|attachments| attachments.is_for_good());
    let next = if is_for_good { None } else { next(order, &archive, &mut keep, code, waited) };
    if let Some(attachments) = left.attachments {
        text += &said.line().map(|line| format!("mvm: {line}\n")).unwrap_or_default();
        attachments.finish(code, &text);
    }
    if let Some(delay) = next {
        again::start(&keep, delay, is_attached.then_some(code));
    }
    drop(keep);
    match said {
        Said::Error(message) => return Err(Failure { code, message }),
        said => said.line().into_iter().for_each(complain),
    }
    Ok(code)
}

/// Keeps how the container is beside its record.
fn note_health(directory: &Path, health: &Health) {
    let written = serde_json::to_vec(health)
        .map_err(io::Error::from)
        .and_then(|content| instance::write_health(directory, &content));
    if let Err(error) = written {
        tracing::warn!(%error, "cannot note the container's health");
    }
}

/// How long it is waited before the container is started again, if it is: one that never ran, or that a user has
/// stopped, is not. It is noted.
fn next(order: &Order, archive: &Archive, keep: &mut Keep, code: u8, waited: Duration) -> Option<Duration> {
    let entry = keep.entry();
    let started = entry.started?;
    // It may have been changed since.
    let policy = keep.order().map_or(order.restart, |order: Order| order.restart);
    if !policy.wants(code, entry.restarts) || archive.is_stopped(&entry.id) {
        return None;
    }
    let life = Duration::from_millis(time::now().saturating_sub(started));
    let noted = keep.change(|entry| entry.phase = Phase::Restarting);
    if let Err(error) = noted {
        tracing::warn!(%error, "cannot note that the container is started again");
    }
    Some(policy::delay(waited, life))
}

/// What there is to say of an end.
enum Said {
    Nothing,
    OutOfMemory,
    Saved,
    Error(String),
}

impl Said {
    /// It, on one line.
    fn line(&self) -> Option<&str> {
        match self {
            Self::Nothing => None,
            Self::OutOfMemory => Some("the container was killed: it had no memory left; give it more by -m"),
            Self::Saved => Some("the container is saved: `mvm resume` continues it"),
            Self::Error(message) => Some(message),
        }
    }
}

/// The exit code of a container, and what there is to say.
fn ending(result: Result<Ended, RunError>) -> (u8, Said) {
    let killed = exit_code::of_signal(libc::SIGKILL);
    match result {
        Ok(Ended { code, out_of_memory: true }) if code == killed => (code, Said::OutOfMemory),
        Ok(ended) => (ended.code, Said::Nothing),
        // As if the container itself had got it.
        Err(RunError::VmEnded(end)) if end.signal.is_some() => {
            (exit_code::of_signal(end.signal.unwrap_or(libc::SIGKILL)), Said::Nothing)
        }
        Err(error) => {
            let code = match &error {
                RunError::NotFound(_) => exit_code::NOT_FOUND,
                RunError::NotExecutable(_) => exit_code::NOT_EXECUTABLE,
                RunError::VmKilled | RunError::VmMemory => killed,
                _ => exit_code::CONTAINER,
            };
            (code, Said::Error(chain(&error)))
        }
    }
}

/// Notes how it ended, and removes what is kept of it where that is asked for.
fn finish(archive: &Archive, keep: &mut Keep, order: &Order, code: u8, said: &Said) {
    let error = if let Said::Error(message) = said { message.clone() } else { String::new() };
    let out_of_memory = matches!(said, Said::OutOfMemory);
    let end = End { code, out_of_memory, error, finished: time::now() };
    if let Err(error) = keep.ended(&end) {
        tracing::warn!(%error, "cannot note how the container ended");
    }
    if let Some(started) = keep.entry().started {
        if out_of_memory {
            events::note(keep.entry(), "oom", &[]);
        }
        let seconds = (end.finished.saturating_sub(started) / 1000).to_string();
        events::note(keep.entry(), "die", &[("exitCode", &code.to_string()), ("execDuration", &seconds)]);
    }
    events::note_unmounts(keep.entry().id.as_str(), &order.options.mounts);
    if order.removes {
        match archive.remove_own(keep) {
            Ok(()) => events::note(keep.entry(), "destroy", &[]),
            Err(error) => tracing::warn!("{}", chain(&error)),
        }
    }
}
