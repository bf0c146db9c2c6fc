//! Running a container: the keeper's part.

use std::io::{self, PipeWriter, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use agent_protocol::{Container, Exit, FailureKind, Mount, MountKind, Size, Writable};
use instance::{Event, Instance, Keep, Signals};
use thiserror::Error;
use vmm::PublishConfig;

use crate::assets::Assets;
use crate::attach::{Attachments, Console, Input};
use crate::changes;
use crate::ender::Ender;
use crate::image::{Image, ImageConfig};
use crate::machine::machine;
use crate::mounts::Prepared;
use crate::options::{OptionsError, RunOptions, Storage};
use crate::output::{LogTarget, OutputLog};
use crate::pod::open_disk;
use crate::ports::PortsError;
use crate::requests;
use crate::session::{Listener, Said, Session, SessionError, Way};
use crate::signal::stop_signal;
use crate::sockets::Forwards;
use crate::spec::{container, filters, storage};
use crate::stdio::Outputs;
use crate::template::{self, SLOTS_OF_ROOT, Template};
use crate::timing::{Step, Timing};
use vmm::{Disk, DiskError, FromVm, Order, Snapshot, Split, VmConfig, VmEnd, VmProcess};

/// How long the VM's process may take to end after it has said how the VM ended.
pub const LAST_WORDS: Duration = Duration::from_secs(5);

/// What the VM says that its session waits for: each thing is said once, and once more for each disk.
const SAID: usize = 32;
/// The exit code of a process that was killed.
const KILLED: u8 = 137;

/// How a container ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its exit code, or 128 and the number of the signal that killed it.
    pub code: u8,
    /// It had no memory left.
    pub out_of_memory: bool,
}

/// Why a container did not run to its end.
#[derive(Debug, Error)]
pub enum RunError {
    /// An option.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// A port that can't be published.
    #[error(transparent)]
    Ports(#[from] PortsError),
    /// The VM can't be built.
    #[error("{0}")]
    Vm(String),
    /// The host can't do it.
    #[error("cannot {doing}")]
    Host {
        /// What was being done.
        doing: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Between this process and the agent.
    #[error(transparent)]
    Session(Box<dyn std::error::Error + Send + Sync>),
    /// The command can't be found.
    #[error("{0}")]
    NotFound(String),
    /// The command can't be executed.
    #[error("{0}")]
    NotExecutable(String),
    /// The container could not be started.
    #[error("cannot start the container: {0}")]
    Failed(String),
    /// The VM ended first.
    #[error("the container's VM ended before the container did: {}", .0.text)]
    VmEnded(VmEnd),
    /// The pod of the container can't do it.
    #[error("{0}")]
    Pod(String),
    /// The pod has ended, or is about to.
    #[error("the pod has ended, or is about to")]
    PodEnding,
    /// By `mvm kill` where the VM did not answer, or by the host for lack of memory.
    #[error("the container's VM was killed: its process ended with {KILLED}")]
    VmKilled,
    /// By the host's kernel, as its processes used more than the guest has and its devices need.
    #[error(
        "the container's VM was killed: it used more memory than its control group has, which no VM needs: the guest may have \
         attacked it, or mvm has a fault (SECURITY.md says how to report it; --jail off runs without this limit)"
    )]
    VmMemory,
}

/// What a container is made of.
#[derive(Clone, Copy)]
pub struct Plan<'a> {
    /// Kernel and agent of its VM.
    pub assets: &'a Assets,
    /// The image.
    pub image: &'a Image,
    /// What the user asks for.
    pub options: &'a RunOptions,
    /// The ports that are published.
    pub publish: &'a [PublishConfig],
    /// What it has below its root.
    pub mounts: &'a Prepared,
    /// Where its output is kept, if it is.
    pub log: Option<&'a LogTarget>,
    /// What notes when each step is reached.
    pub timing: &'a Timing,
}

/// Checks that a container `id` of `image` can be made with `options`.
///
/// # Errors
///
/// [`OptionsError`] names the option that can't be used.
pub fn check(id: &str, image: &ImageConfig, options: &RunOptions) -> Result<(), OptionsError> {
    stop_signal(image, options)?;
    container(id, image, options, &Prepared::default()).map(drop)
}

/// What the VM of a container starts from.
pub enum Origin {
    /// A kernel.
    Boot,
    /// A template.
    Template(Template),
    /// The VM of another container.
    Copy(Copied),
}

/// Makes a disk at a path, where there is nothing yet.
pub type MakeDisk = Box<dyn FnOnce(&Path) -> io::Result<()>>;

/// The VM of a container that ran, as it was.
pub struct Copied {
    /// What is not on its disks.
    pub snapshot: Snapshot,
    /// vCPUs and bytes of memory that its VM was started with.
    pub size: (u32, u64),
    /// The container's ID.
    pub container: String,
    /// What makes the disk with its changes, at the path that it is called with.
    pub changes: Option<MakeDisk>,
}

/// A container whose VM starts, kept by this process.
pub struct Keeper {
    vm: Arc<VmProcess>,
    begin: Begin,
    instance: Instance,
    keep: Keep,
    listener: Listener,
    forwards: Forwards,
    container: Container,
    stop_signal: u8,
    log: Option<LogTarget>,
    timing: Timing,
}

/// How its agent is reached.
enum Begin {
    /// It connects when the VM has booted.
    Boots,
    /// These disks are put into the VM before, from this slot on.
    Warm(Vec<Disk>, usize),
    /// It has this container.
    Copy(String),
}

/// How a container's command is run.
pub struct Attachment {
    /// With this process's standard input and output.
    pub is_attached: bool,
    /// Which of the outputs then: standard output, and standard error.
    pub streams: (bool, bool),
    /// The socket of the user's command, which is attached from the beginning.
    pub front: Option<UnixStream>,
    /// Its input ends with that of the first one who is attached.
    pub input_once: bool,
    /// What is passed on to it.
    pub signals: Option<Signals>,
    /// Called when it runs.
    pub on_started: Box<dyn FnOnce() + Send>,
}

/// What is left of a container.
pub struct Left {
    /// How it ended.
    pub result: Result<Ended, RunError>,
    /// Its VM's directory.
    pub instance: Instance,
    /// What is kept of it.
    pub keep: Arc<Mutex<Keep>>,
    /// Those who are attached, and have to be told how it ended.
    pub attachments: Option<Arc<Attachments>>,
}

impl Keeper {
    /// Starts the VM of a container in a process of its own, which gets what `split` says. `instance` is its directory
    /// and
    /// `keep` what is kept of it. This process has one thread yet.
    ///
    /// # Errors
    ///
    /// [`RunError`]; of the VM nothing is left behind.
    pub fn start(
        plan: Plan<'_>,
        instance: Instance,
        keep: Keep,
        split: Split<'_>,
        mut origin: Origin,
    ) -> Result<Self, RunError> {
        let Plan { assets, image, options, publish, mounts, log, timing } = plan;
        let mut container = container(instance.id().as_str(), &image.config, options, mounts)?;
        if let Writable::Disk(disk) = &mut container.writable
            && keep.entry().removes
        {
            container.writable = Writable::Scratch(std::mem::take(disk));
        }
        let stop_signal = stop_signal(&image.config, options)?;
        let host = |doing| move |source| RunError::Host { doing, source };
        if let Origin::Copy(Copied { changes, .. }) = &mut origin
            && let Some(make) = changes.take()
        {
            make(&changes::path(keep.directory()))
                .map_err(host("make the disk for the container's changes"))?;
        }
        let changes = match storage(options) {
            Storage::Memory => None,
            Storage::Disk(size) => {
                let of_template = match &origin {
                    Origin::Template(template) => template.templates_of_disk(),
                    Origin::Boot | Origin::Copy(_) => None,
                };
                let templates = of_template.as_ref().unwrap_or(&assets.changes);
                let made = changes::open_or_create(templates, keep.directory(), size);
                Some(made.map_err(host("make the disk for the container's changes"))?)
            }
        };
        timing.mark(Step::Disk);
        let (changes, publish) = (changes.as_deref(), publish.to_vec());
        let booted = |publish| machine(assets, image, options, instance.path(), changes, mounts, publish);
        let (config, snapshot, begin) = match origin {
            Origin::Boot => (booted(publish), None, Begin::Boots),
            Origin::Template(Template { shape, snapshot, changes: of_template }) => {
                let config = shape.machine(assets, options, instance.path(), publish, &mounts.parts);
                let first = if of_template.is_some() { SLOTS_OF_ROOT } else { 0 };
                let mut in_slots = booted(Vec::new()).disks;
                in_slots.truncate(first);
                let disks = disks(image, changes, mounts, first);
                let disks = disks.map_err(|error| RunError::Vm(devices::log::chain(&error)))?;
                (VmConfig { in_slots, ..config }, Some(snapshot), Begin::Warm(disks, first))
            }
            Origin::Copy(Copied { snapshot, size, container, .. }) => {
                let config = template::as_saved(booted(publish), &snapshot.state, size);
                (config, Some(snapshot), Begin::Copy(container))
            }
        };
        let listener = Listener::open(instance.path()).map_err(host("make a socket for the agent"))?;
        let forwards = Forwards::open(instance.path(), &mounts.sockets)
            .map_err(host("make sockets for those of the host"))?;
        let (identity, start) = (instance.identity(), timing.start());
        let (log_file, user) = (None, None);
        let order =
            Order { config: &config, identity: &identity, log: log_file, user, snapshot, split, start };
        let own = (keep, listener, forwards, begin);
        let (vm, instance, (keep, listener, forwards, begin)) =
            VmProcess::start_for(order, Some(instance), own)
                .and_then(|(vm, instance, own)| Ok((vm, instance.ok_or(io::ErrorKind::NotFound)?, own)))
                .map_err(host("make a process for the VM"))?;
        timing.mark(Step::Process);
        // While the VM's process builds the VM.
        container.process.seccomp = filters(options).inspect_err(|_| {
            vm.kill();
            vm.wait(LAST_WORDS);
        })?;
        let (timing, log) = (timing.clone(), log.cloned());
        let vm = Arc::new(vm);
        Ok(Self { vm, begin, instance, keep, listener, forwards, container, stop_signal, log, timing })
    }

    /// Runs the container's command to its end.
    pub fn run(self, attachment: Attachment) -> Left {
        let Self { vm, begin, instance, keep, listener, forwards, container, stop_signal, log, timing } =
            self;
        let is_disk =
            |mount: &Mount| matches!(mount.kind, MountKind::Disk { .. } | MountKind::DiskBelow { .. });
        let is_kept = !keep.entry().removes && matches!(container.writable, Writable::Disk(_))
            || container.mounts.iter().any(is_disk);
        let forwarded = forwards
            .start()
            .map_err(|source| RunError::Host { doing: "start a thread for sockets of the host", source });
        let log = forwarded.and_then(|()| log.map(|target| open_log(&keep.output(), &target)).transpose());
        let keep = Arc::new(Mutex::new(keep));
        let Attachment { is_attached, streams, front, input_once, signals, on_started } = attachment;
        let attached_to = if is_attached { streams } else { (false, false) };
        let attached = attachments((&instance, &keep), &container, is_attached, input_once, front);
        let (attachments, source) = attached
            .map_or_else(|error| (Err(error), None), |(attachments, source)| (Ok(attachments), source));
        let left = attachments.as_ref().ok().cloned();
        let result = log.and_then(|log| Ok((log, attachments?))).and_then(|(log, attachments)| {
            let outputs = Outputs {
                attached: attached_to,
                log,
                attachments,
                ender: Ender::Vm(vm.clone()),
                timing: timing.clone(),
            };
            let input = if is_attached { Some(Input::Standard) } else { source.map(Input::Attached) };
            let (to_session, said) = sync_channel(SAID);
            let way = match begin {
                Begin::Boots => Way::Own(listener),
                Begin::Warm(disks, first) => Way::Warm { vm: vm.clone(), disks, first, said },
                Begin::Copy(container) => Way::Copy { container, said },
            };
            let session = |stop| Session {
                way,
                directory: instance.path().to_owned(),
                container,
                ender: Ender::Vm(vm.clone()),
                is_kept,
                outputs,
                input,
                on_started: started(keep.clone(), on_started),
                signals,
                stop,
                stop_signal,
                timing: timing.clone(),
            };
            serve(&vm, session, &timing, &to_session)
        });
        if result.is_err() {
            vm.end(None);
        }
        vm.wait(LAST_WORDS);
        timing.mark(Step::End);
        Left { result, instance, keep, attachments: left }
    }
}

/// What a container has as disks from the one with the index `first` on, in the order in which a VM that boots has them.
fn disks(
    image: &Image,
    changes: Option<&Path>,
    mounts: &Prepared,
    first: usize,
) -> Result<Vec<Disk>, DiskError> {
    let image = (first == 0).then(|| Disk::compose(&image.disk));
    let writable = changes.into_iter().chain(mounts.disks.iter().map(PathBuf::as_path));
    image.into_iter().chain(writable.skip(first.saturating_sub(1)).map(open_disk)).collect()
}

/// Those who are attached, and where the container's input comes from if it is from them.
pub fn attachments(
    (instance, keep): (&Instance, &Arc<Mutex<Keep>>),
    container: &Container,
    is_attached: bool,
    input_once: bool,
    front: Option<UnixStream>,
) -> Result<(Arc<Attachments>, Option<UnixStream>), RunError> {
    let console = Console {
        has_terminal: container.process.terminal.is_some(),
        has_input: container.process.has_input && !is_attached,
        input_once,
    };
    let (directory, id) = (instance.path().to_owned(), container.id.clone());
    let entry = keep.lock().unwrap_or_else(PoisonError::into_inner).entry().clone();
    let resize = move |size: Size| {
        let (rows, columns) = (size.rows.to_string(), size.columns.to_string());
        Event::of_entry(&entry, "resize", &[("height", &rows), ("width", &columns)]).note();
        if let Err(error) = requests::resize(&directory, &id, size) {
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot set the size of the terminal");
        }
    };
    Attachments::open(instance.path(), console, front, Box::new(resize))
        .map_err(|source| RunError::Host { doing: "listen for those who attach to the container", source })
}

/// The log of a container's output.
pub fn open_log(path: &Path, target: &LogTarget) -> Result<Arc<Mutex<OutputLog>>, RunError> {
    let host = |doing| move |source| RunError::Host { doing, source };
    let log = match target {
        LogTarget::Files(limits) => {
            OutputLog::open(path, *limits).map_err(host("write the container's log"))?
        }
        LogTarget::Journal(fields) => OutputLog::journal(fields)
            .map_err(host("write to systemd's journal, for --log-driver journald"))?,
    };
    Ok(Arc::new(Mutex::new(log)))
}

/// What is done when the command runs: it is noted, and `then` is called.
pub fn started(keep: Arc<Mutex<Keep>>, then: Box<dyn FnOnce() + Send>) -> Box<dyn FnOnce() + Send> {
    Box::new(move || {
        let noted = keep.lock().map(|mut keep| keep.started());
        if let Ok(Err(error)) = noted {
            tracing::warn!(%error, "cannot note that the container has started");
        }
        then();
    })
}

/// Starts the session, and listens to the VM until its end. Returns what came of the container; `timing` gets the VM's
/// phases.
fn serve(
    vm: &Arc<VmProcess>,
    session: impl FnOnce(io::PipeReader) -> Session,
    timing: &Timing,
    to_session: &SyncSender<Said>,
) -> Result<Ended, RunError> {
    let host = |doing| move |source| RunError::Host { doing, source };
    let (stop, asked) = io::pipe().map_err(host("make a pipe"))?;
    rustix::io::ioctl_fionbio(&asked, true).map_err(|error| host("make a pipe")(error.into()))?;
    let (sender, receiver) = channel();
    session(stop).start(sender).map_err(host("start a thread"))?;
    listen(vm, (&receiver, to_session), &asked, timing)
}

/// Listens to the VM until its end. A press of its button is noted in `asked`, as long as there is room.
fn listen(
    vm: &Arc<VmProcess>,
    (receiver, to_session): (&Receiver<Result<Exit, SessionError>>, &SyncSender<Said>),
    mut asked: &PipeWriter,
    timing: &Timing,
) -> Result<Ended, RunError> {
    loop {
        match vm.receive() {
            // One that has been asked already is not asked again.
            Some(FromVm::Pressed) => drop(asked.write(&[1])),
            Some(FromVm::Ended(end)) => {
                timing.set_vm(end.timing.clone());
                return outcome(receiver, end);
            }
            Some(FromVm::Failed(failure)) => return Err(RunError::Vm(failure.text)),
            // One that boots has no slots, and its session waits for neither.
            Some(FromVm::Built) => drop(to_session.try_send(Said::Built)),
            Some(FromVm::Slot { number, failure }) => drop(to_session.try_send(Said::Slot(number, failure))),
            // No text is waited for.
            Some(FromVm::Printed) => {}
            None => {
                let code = vm.wait(LAST_WORDS).unwrap_or(0);
                let text = vmm::end_without_a_word(code);
                let end = VmEnd::without_a_word(vm.ended_by(), text);
                return outcome(receiver, end).map_err(|error| match error {
                    RunError::VmEnded(VmEnd { signal: None, .. }) if code == KILLED => {
                        match vm.is_out_of_memory() {
                            true => RunError::VmMemory,
                            false => RunError::VmKilled,
                        }
                    }
                    error => error,
                });
            }
        }
    }
}

fn outcome(receiver: &Receiver<Result<Exit, SessionError>>, end: VmEnd) -> Result<Ended, RunError> {
    match receiver.try_recv() {
        Ok(result @ (Ok(_) | Err(SessionError::Failed(_)))) => outcome_of(result),
        // The VM's end is the reason for what the session has seen.
        Ok(result) if end.is_power_off() => outcome_of(result),
        _ => Err(RunError::VmEnded(end)),
    }
}

/// What came of a container, by what its session says.
pub fn outcome_of(result: Result<Exit, SessionError>) -> Result<Ended, RunError> {
    match result {
        Ok(Exit { code, out_of_memory }) => Ok(Ended { code, out_of_memory }),
        Err(SessionError::Failed(failure)) => Err(match failure.kind {
            FailureKind::NotFound => RunError::NotFound(failure.message),
            FailureKind::NotExecutable => RunError::NotExecutable(failure.message),
            FailureKind::Other => RunError::Failed(failure.message),
        }),
        Err(error) => Err(RunError::Session(Box::new(error))),
    }
}

#[cfg(test)]
#[path = "run_tests.rs"]
mod tests;
