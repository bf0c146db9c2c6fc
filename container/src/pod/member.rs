//! A container in a pod: its keeper's part.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use agent_protocol::{Mount, MountKind, PodContainer, PodDisk, Writable};
use instance::keeper::Tie;
use instance::{Instance, Keep};
use vmm::Disk;

use super::disk::{ends, open_disk};
use super::{FromPod, PodOptions, SOCKET, ToPod};
use crate::attach::Input;
use crate::changes;
use crate::ender::{Control, Ender};
use crate::machine::{VSOCK, size};
use crate::options::{OptionsError, Storage};
use crate::output::LogTarget;
use crate::run::{Attachment, Ended, Left, Plan, RunError, attachments, open_log, outcome_of, started};
use crate::session::{Session, SessionError, Way};
use crate::signal::stop_signal;
use crate::sockets::{Bound, Forwards};
use crate::spec::{container, filters, storage};
use crate::stdio::Outputs;
use crate::timing::{Step, Timing};
use vmm::VmEnd;

/// How long the pod's keeper may take to place a disk: another one may be placed before.
const PLACE: Duration = Duration::from_secs(60);
/// How long it may take until nothing is left of a container that has ended: it is written to its disk then.
const LEAVE: Duration = Duration::from_secs(120);

/// A pod whose VM runs.
pub struct PodPlace {
    /// The directory of its VM.
    pub directory: PathBuf,
    /// What it was asked to be.
    pub options: PodOptions,
}

impl PodPlace {
    fn connect(&self) -> Result<Tie, RunError> {
        Tie::connect(&self.directory.join(SOCKET)).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => RunError::PodEnding,
            _ => RunError::Host { doing: "connect to the pod", source: error },
        })
    }

    /// Has the pod end, and its VM with it. Its keeper ends later.
    ///
    /// # Errors
    ///
    /// [`RunError::PodEnding`] where it does so anyway, and others.
    pub fn end(&self) -> Result<(), RunError> {
        match ask(&self.connect()?, &ToPod::End, None)? {
            FromPod::Ending => Ok(()),
            other => Err(unexpected(&other)),
        }
    }
}

/// Asks the pod's keeper, and waits for what it answers.
fn ask(tie: &Tie, message: &ToPod, disk: Option<&Disk>) -> Result<FromPod, RunError> {
    let host = |source| RunError::Host { doing: "talk to the pod", source };
    let parts = disk.map(Disk::parts).unwrap_or_default();
    let files: Vec<_> = parts.iter().map(|part| part.file.as_fd()).collect();
    tie.send_with(message, &files).map_err(host)?;
    let limit = if matches!(message, ToPod::Leave) { LEAVE } else { PLACE };
    match tie.receive_by(Instant::now() + limit).map_err(host)? {
        Some(FromPod::Refused(why)) => Err(RunError::Pod(why)),
        Some(reply) => Ok(reply),
        None => Err(RunError::PodEnding),
    }
}

fn unexpected(reply: &FromPod) -> RunError {
    RunError::Pod(format!("the pod answers something else than it was asked: {reply:?}"))
}

/// A container whose disks are in the VM of a pod, kept by this process.
pub struct Member {
    tie: Tie,
    vsock: PathBuf,
    container: PodContainer,
    forwarded: (Forwards, Bound),
    stop_signal: u8,
    log: Option<LogTarget>,
    timing: Timing,
}

impl Member {
    /// Puts the disks of the container into the VM of a pod. `id` is its ID, which the others can call it too, as by
    /// `name`; `keep` is what is kept of it.
    ///
    /// # Errors
    ///
    /// [`RunError`]: [`RunError::PodEnding`] where the pod has to be started again.
    pub fn enter(
        plan: Plan<'_>,
        place: &PodPlace,
        id: &str,
        name: Option<&str>,
        keep: &Keep,
    ) -> Result<Self, RunError> {
        let Plan { assets, image, options, mounts, log, timing, .. } = plan;
        let options = place.options.of_container(options);
        let cpus = size(&place.options.options).0;
        if let Some(set) = options.cpu_set.as_ref().filter(|set| set.last() >= cpus) {
            return Err(OptionsError::NoCpu(set.last(), cpus).into());
        }
        let mut container = container(id, &image.config, &options, mounts)?;
        let stop_signal = stop_signal(&image.config, &options)?;
        container.process.seccomp = filters(&options)?;
        // They are the pod's.
        container.network = None;
        container.files.retain(|file| file.path != "/etc/hosts");
        let host = |doing| move |source| RunError::Host { doing, source };
        let disk = |error: vmm::DiskError| RunError::Pod(devices::log::chain(&error));
        let changes = match storage(&options) {
            Storage::Memory => None,
            Storage::Disk(size) => {
                let path = changes::open_or_create(&assets.changes, keep.directory(), size)
                    .map_err(host("make the disk for the container's changes"))?;
                Some(open_disk(&path).map_err(disk)?)
            }
        };
        timing.mark(Step::Disk);
        let tie = place.connect()?;
        let pieces = Disk::compose(&image.disk).map_err(disk)?;
        let ask_for = |message: &ToPod, disk: Option<&Disk>| match ask(&tie, message, disk)? {
            FromPod::Device { device, sectors } => Ok(PodDisk { device, sectors }),
            FromPod::Ending => Err(RunError::PodEnding),
            other => Err(unexpected(&other)),
        };
        let message = ToPod::Image { container: id.to_owned(), image: image.id.clone(), ends: ends(&pieces) };
        let image = ask_for(&message, Some(&pieces))?;
        container.image.clone_from(&image.device);
        let mut disks = vec![image];
        if let Some(changes) = changes {
            let placed = ask_for(&ToPod::Changes { ends: ends(&changes) }, Some(&changes))?;
            let device = placed.device.clone();
            container.writable =
                if keep.entry().removes { Writable::Scratch(device) } else { Writable::Disk(device) };
            disks.push(placed);
        }
        for name in &mounts.in_pod {
            let placed = ask_for(&ToPod::Volume { name: name.clone() }, None)?;
            set_device(&mut container.mounts, name.as_str(), &placed.device);
            disks.push(placed);
        }
        let mut sockets = mounts.sockets.clone();
        let forwarded = Forwards::open_free(&place.directory, &mut sockets)
            .map_err(host("make sockets for those of the host"))?;
        let ports = mounts.sockets.iter().zip(&sockets).map(|(asked, got)| (asked.port, got.port));
        set_ports(&mut container.mounts, &ports.collect());
        timing.mark(Step::Process);
        let names = name.into_iter().chain([id]).map(str::to_owned).collect();
        let container = PodContainer { container, names, disks };
        let vsock = place.directory.join(VSOCK);
        Ok(Self { tie, vsock, container, forwarded, stop_signal, log: log.cloned(), timing: timing.clone() })
    }

    /// Runs the container's command to its end. `instance` is the container's directory, and `keep` what is kept of it.
    pub fn run(self, attachment: Attachment, instance: Instance, keep: Keep) -> Left {
        let Self { tie, vsock, container, forwarded: (forwards, _bound), stop_signal, log, timing } = self;
        let forwarded = forwards
            .start()
            .map_err(|source| RunError::Host { doing: "start a thread for sockets of the host", source });
        let log = forwarded.and_then(|()| log.map(|target| open_log(&keep.output(), &target)).transpose());
        let keep = Arc::new(Mutex::new(keep));
        let control = Arc::new(Control::default());
        // By which others find the agent.
        let linked = symlink(&vsock, instance.path().join(VSOCK))
            .map_err(|source| RunError::Host { doing: "make a link to the pod's socket", source });
        let Attachment { is_attached, streams, front, input_once, signals, on_started } = attachment;
        let attached_to = if is_attached { streams } else { (false, false) };
        let attached = attachments((&instance, &keep), &container.container, is_attached, input_once, front);
        let (attachments, source) = attached
            .map_or_else(|error| (Err(error), None), |(attachments, source)| (Ok(attachments), source));
        let left = attachments.as_ref().ok().cloned();
        let prepared = linked.and(log).and_then(|log| Ok((log, attachments?)));
        let result = prepared.and_then(|(log, attachments)| {
            let ender = Ender::Control(control.clone());
            let outputs = Outputs {
                attached: attached_to,
                log,
                attachments,
                ender: ender.clone(),
                timing: timing.clone(),
            };
            let input = if is_attached { Some(Input::Standard) } else { source.map(Input::Attached) };
            let host = |source| RunError::Host { doing: "make a pipe", source };
            // Nothing presses a button: `mvm stop` sends the container its signal itself.
            let (stop, _asked) = io::pipe().map_err(host)?;
            let PodContainer { container, names, disks } = container;
            let session = Session {
                way: Way::Pod { names, disks, control: control.clone() },
                directory: instance.path().to_owned(),
                container,
                ender,
                is_kept: false,
                outputs,
                input,
                on_started: started(keep.clone(), on_started),
                signals,
                stop,
                stop_signal,
                timing: timing.clone(),
            };
            let (sender, receiver) = channel();
            session.start(sender).map_err(|source| RunError::Host { doing: "start a thread", source })?;
            let result = receiver
                .recv()
                .unwrap_or(Err(SessionError::Connection(crate::connection::ConnectionError::Closed)));
            drop(_asked);
            ended(result, &control)
        });
        // What it has written is on its disk then. A pod that ends writes it too.
        if let Err(error) = ask(&tie, &ToPod::Leave, None)
            && !matches!(error, RunError::PodEnding)
        {
            tracing::warn!(error = &error as &dyn std::error::Error, "the container's disks stay in the pod");
        }
        timing.mark(Step::End);
        Left { result, instance, keep, attachments: left }
    }
}

/// The mounts of the volume that is called `name` are of this device.
fn set_device(mounts: &mut [Mount], name: &str, to: &str) {
    for mount in mounts {
        if let MountKind::Disk { device, .. } = &mut mount.kind
            && device == name
        {
            to.clone_into(device);
        }
    }
}

/// Sockets of the host are at these ports, by those that were asked for.
fn set_ports(mounts: &mut [Mount], ports: &BTreeMap<u32, u32>) {
    for mount in mounts {
        if let MountKind::Socket { port, .. } = &mut mount.kind
            && let Some(got) = ports.get(port)
        {
            *port = *got;
        }
    }
}

/// What came of a container, whose connection to the agent is `control`.
fn ended(result: Result<agent_protocol::Exit, SessionError>, control: &Control) -> Result<Ended, RunError> {
    let of_signal = |signal| {
        let text = "the pod's VM has ended".to_owned();
        RunError::VmEnded(VmEnd::without_a_word(Some(signal), text))
    };
    match (result, control.ended_by()) {
        // What it ended by is what counts, also where the agent was quicker.
        (Err(SessionError::Connection(_)), Some(signal)) => Err(of_signal(signal)),
        // With the pod's VM, as any process of a machine that is switched off.
        (Err(SessionError::Connection(error)), None) if error.is_closed() => Err(of_signal(libc::SIGKILL)),
        (result, _) => outcome_of(result),
    }
}
