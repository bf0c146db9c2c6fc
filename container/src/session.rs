//! What this process does with a container while it runs.

use std::io::{self, PipeReader, Read};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, sync_channel};
use std::thread::Builder;
use std::time::Duration;

use agent_protocol::{
    ADOPTS, Adoption, Container, Exit, Failure, Mount, MountKind, OLDEST, PORT, PodContainer, PodDisk, Reply,
    Request, Stream,
};
use instance::{ENDING, Signals};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use thiserror::Error;
use vmm::{Disk, SlotFiles, VmProcess};

use crate::attach::{Attachments, Input};
use crate::connection::{Connection, ConnectionError};
use crate::ender::{Control, Ender};
use crate::machine::{VSOCK, slot_device};
use crate::pod::ends;
use crate::stdio::{self, Outputs};
use crate::streams::Place;
use crate::template;
use crate::timing::{Step, Timing};

/// How long a VM may take to boot until its agent connects.
pub const READY: Duration = Duration::from_secs(120);
/// How long the agent may take to start a container: it mounts file systems and starts a process.
pub const START: Duration = Duration::from_secs(60);
/// The same where it copies what the image has to a volume.
pub const FILL: Duration = Duration::from_secs(15 * 60);
/// The first version of the agent's messages with volumes, and parts and sockets of the host.
const WITH_VOLUMES: u32 = 4;

/// Files of a container that have its name.
const NAMING: [&str; 2] = ["/etc/hosts", "/etc/hostname"];

/// Why a container did not come to its end.
#[derive(Debug, Error)]
pub enum SessionError {
    /// The agent can't be talked to.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// This process can't connect its standard input or output.
    #[error("cannot connect standard input and output")]
    Stdio(#[source] io::Error),
    /// A disk can't be put into the VM.
    #[error("cannot put a disk into the VM: {0}")]
    Disk(String),
    /// The agent could not start it.
    #[error("{}", .0.message)]
    Failed(Failure),
}

/// Where the agent connects to.
pub struct Listener(pub UnixListener);

impl Listener {
    /// Listens in the VM's directory.
    pub fn open(directory: &Path) -> io::Result<Self> {
        UnixListener::bind(directory.join(format!("{VSOCK}_{PORT}"))).map(Self)
    }

    /// Waits for the agent to connect, for `limit` at the most.
    pub fn accept_within(&self, limit: Duration) -> Result<UnixStream, ConnectionError> {
        let limit_left = Timespec::try_from(limit).ok();
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        match poll(&mut fds, limit_left.as_ref()) {
            Ok(0) => Err(ConnectionError::Silent(limit)),
            // What interrupts it is handled elsewhere, and rare.
            _ => Ok(self.0.accept().map_err(ConnectionError::Io)?.0),
        }
    }
}

/// How a container is started.
pub enum Way {
    /// In a VM of its own, whose agent connects.
    Own(Listener),
    /// In a VM of its own that goes on from a template.
    Warm {
        /// The VM.
        vm: Arc<VmProcess>,
        /// What is put into its slots.
        disks: Vec<Disk>,
        /// The first of these slots.
        first: usize,
        /// What it says meanwhile.
        said: Receiver<Said>,
    },
    /// In a VM of its own that is a copy of another one's, where it runs.
    Copy {
        /// What it is a copy of.
        container: String,
        /// What the VM says meanwhile.
        said: Receiver<Said>,
    },
    /// In the VM of a pod.
    Pod {
        /// What the others can call it.
        names: Vec<String>,
        /// The disks that were put into the VM for it.
        disks: Vec<PodDisk>,
        /// What gets the connection that it is started on.
        control: Arc<Control>,
    },
}

impl Way {
    /// A connection to the agent, and what it is asked for on it.
    fn begin(self, path: &Path, container: Container) -> Result<(Connection, Request), SessionError> {
        match self {
            Self::Warm { vm, disks, first, said } => {
                let disks = put(&vm, disks, first, &mut || next(&said))?;
                let connection = template::awake(path, disks, START)?;
                connection.without_deadline()?;
                Ok((connection, Request::Start(Box::new(container))))
            }
            Self::Copy { container: before, said } => {
                while !matches!(next(&said)?, Said::Built) {}
                let connection = adopt(path, before, &container)?;
                connection.without_deadline()?;
                Ok((connection, Request::Wait { container: container.id }))
            }
            Self::Own(listener) => {
                Ok((Connection::greet(listener.accept_within(READY)?)?, Request::Start(Box::new(container))))
            }
            Self::Pod { names, disks, control } => {
                let connection = Connection::open(path)?;
                connection.without_deadline()?;
                if !control.set(connection.try_clone().map_err(ConnectionError::from)?) {
                    return Err(ConnectionError::Closed.into());
                }
                let container = PodContainer { container, names, disks };
                Ok((connection, Request::StartInPod(Box::new(container))))
            }
        }
    }
}

/// What the process of a VM says that goes on from a template.
pub enum Said {
    /// Its guest runs.
    Built,
    /// What became of the request with this number for a slot: why it failed, if it did.
    Slot(u64, Option<String>),
}

/// The next of what the VM says.
fn next(said: &Receiver<Said>) -> Result<Said, SessionError> {
    said.recv_timeout(START).map_err(|_| SessionError::Disk("it does not answer".into()))
}

/// Has the agent at `path` make what it runs as `before` the container `container`.
fn adopt(path: &Path, before: String, container: &Container) -> Result<Connection, SessionError> {
    let mut connection = template::awake(path, Vec::new(), START)?;
    if !connection.has_version(ADOPTS) {
        return Err(ConnectionError::TooOldFor("copies of containers", connection.version(), ADOPTS).into());
    }
    let (id, hostname) = (container.id.clone(), container.hostname.clone());
    let files = container.files.iter().filter(|file| NAMING.contains(&&*file.path)).cloned().collect();
    connection.send(&Request::Adopt(Box::new(Adoption { container: before, id, hostname, files })))?;
    match connection.receive_within(START)? {
        Reply::Done => Ok(connection),
        Reply::Failed(failure) => Err(SessionError::Failed(failure)),
        other => Err(ConnectionError::Unexpected(format!("{other:?}")).into()),
    }
}

/// Puts `disks` into the slots of `vm` from the one with the index `first` on, one after the other, as soon as it runs.
/// `next` waits for what it says.
pub fn put(
    vm: &VmProcess,
    disks: Vec<Disk>,
    first: usize,
    next: &mut dyn FnMut() -> Result<Said, SessionError>,
) -> Result<Vec<PodDisk>, SessionError> {
    while !matches!(next()?, Said::Built) {}
    let mut put = Vec::new();
    for (slot, disk) in (first..).zip(disks) {
        let number = u64::try_from(slot).unwrap_or(u64::MAX);
        let ends = ends(&disk);
        let sectors = ends.last().map_or(0, |end| end / 512);
        let files = disk.parts().into_iter().map(|part| part.file.try_clone_to_owned());
        let files =
            files.collect::<io::Result<_>>().map_err(|error| SessionError::Disk(error.to_string()))?;
        vm.insert(number, slot, slot == 0, &SlotFiles { files, ends })
            .map_err(|error| SessionError::Disk(error.to_string()))?;
        match next()? {
            Said::Slot(answered, None) if answered == number => {}
            Said::Slot(_, Some(failure)) => return Err(SessionError::Disk(failure)),
            Said::Slot(..) | Said::Built => {
                return Err(SessionError::Disk("it answers something else".into()));
            }
        }
        put.push(PodDisk { device: slot_device(slot), sectors });
    }
    Ok(put)
}

/// A container that is to be run in a VM.
pub struct Session {
    pub way: Way,
    pub directory: PathBuf,
    pub container: Container,
    pub ender: Ender,
    /// What it has written outlives it: that is on its disks before the VM ends.
    pub is_kept: bool,
    /// Where its output goes.
    pub outputs: Outputs,
    /// Where its input comes from, if it has some.
    pub input: Option<Input>,
    /// Called when its command runs.
    pub on_started: Box<dyn FnOnce() + Send>,
    /// What is passed on to the container.
    pub signals: Option<Signals>,
    /// Becomes readable when the container is asked to end.
    pub stop: PipeReader,
    /// What asks it to.
    pub stop_signal: u8,
    /// What notes when each step is reached.
    pub timing: Timing,
}

impl Session {
    /// Runs the container on a thread of its own, which sends what came of it and then ends the VM.
    pub fn start(self, ended: Sender<Result<Exit, SessionError>>) -> io::Result<()> {
        Builder::new().name("container".into()).stack_size(256 << 10).spawn(move || {
            let ender = self.ender.clone();
            // The receiver outlives the VM.
            let result = self.run();
            let is_powering_off = matches!(result, Ok((_, true)));
            let _ = ended.send(result.map(|(exit, _)| exit));
            match ender {
                Ender::Vm(vm) if is_powering_off => vm.end_within(POWER_OFF),
                Ender::Vm(vm) => vm.end(None),
                // The pod's VM runs on.
                Ender::Control(_) => {}
            }
        })?;
        Ok(())
    }

    /// Returns how the container ended, and whether the VM ends by itself.
    fn run(self) -> Result<(Exit, bool), SessionError> {
        let Self {
            way,
            directory,
            container,
            ender,
            is_kept,
            outputs,
            input,
            on_started,
            signals,
            stop,
            stop_signal,
            timing,
        } = self;
        let has_started = Arc::new(AtomicBool::new(false));
        let passed = Passed {
            signals,
            stop,
            stop_signal,
            container: container.id.clone(),
            path: directory.join(VSOCK),
            ender,
            attachments: outputs.attachments.clone(),
            has_started: has_started.clone(),
        };
        passed.start().map_err(SessionError::Stdio)?;
        timing.mark(Step::Ready);
        let path = directory.join(VSOCK);
        let needed = if container.mounts.iter().any(is_new) { WITH_VOLUMES } else { OLDEST };
        let limit = if container.mounts.iter().any(fills) { FILL } else { START };
        let id = container.id.clone();
        let (has_input, has_terminal) = (container.process.has_input, container.process.terminal.is_some());
        let runs_already = matches!(way, Way::Copy { .. });
        let (mut control, request) = way.begin(&path, container)?;
        timing.mark(Step::Agent);
        if control.version() < needed {
            return Err(ConnectionError::TooOldFor("-v and --mount", control.version(), needed).into());
        }
        control.send(&request)?;
        // Made while the container is.
        let output = Connection::open(&path)?;
        let errors = if has_terminal { None } else { Some(Connection::open(&path)?) };
        let connection = if has_input { Some(Connection::open(&path)?) } else { None };
        let answer = if runs_already { Reply::Started } else { control.receive_within(limit)? };
        match answer {
            Reply::Started => timing.mark(Step::Started),
            Reply::Failed(failure) => return Err(SessionError::Failed(failure)),
            other => return Err(ConnectionError::Unexpected(format!("{other:?}")).into()),
        }
        let place = |stream| Place { path: path.clone(), id: id.clone(), stream };
        let mut threads = Vec::new();
        for (stream, connection) in [(Stream::Stdout, Some(output)), (Stream::Stderr, errors)] {
            let Some(connection) = connection else { continue };
            threads.push(outputs.pass(connection, place(stream)).map_err(SessionError::Stdio)?);
        }
        if let Some((connection, input)) = connection.zip(input) {
            stdio::pass_input(connection, place(Stream::Stdin), input).map_err(SessionError::Stdio)?;
        }
        has_started.store(true, Ordering::SeqCst);
        outputs.attachments.started();
        on_started();
        let exit = match control.receive()? {
            Reply::Exited(exit) => exit,
            Reply::Failed(failure) => return Err(SessionError::Failed(failure)),
            other => return Err(ConnectionError::Unexpected(format!("{other:?}")).into()),
        };
        timing.mark(Step::Exited);
        outputs.attachments.ending();
        for thread in threads {
            // A reader that has gone does not change how the container ended.
            let _ = thread.join();
        }
        outputs.finish();
        let is_powering_off = is_kept && control.send(&Request::PowerOff).is_ok();
        Ok((exit, is_powering_off))
    }
}

/// Whether older agents do not know this kind of mount.
fn is_new(mount: &Mount) -> bool {
    !matches!(mount.kind, MountKind::FileSystem(_) | MountKind::Share(_) | MountKind::Cgroup)
}

/// Whether the agent may have to copy files to it.
fn fills(mount: &Mount) -> bool {
    matches!(mount.kind, MountKind::Part { fills: true, .. } | MountKind::Disk { fills: true, .. })
}

/// How long the agent has to write everything to the disks and to power the VM off.
pub const POWER_OFF: Duration = Duration::from_secs(10);

/// As many signals that ask the container to end end its VM, whatever it does with them, as with docker.
const FORCE: u32 = 3;
/// How many requests wait for the agent at most.
const WAITING: usize = 64;

/// What is passed on to a container: signals that this process gets, and the first request to end.
struct Passed {
    signals: Option<Signals>,
    stop: PipeReader,
    stop_signal: u8,
    container: String,
    path: PathBuf,
    ender: Ender,
    attachments: Arc<Attachments>,
    /// The container runs. Before that, what asks it to end ends the VM.
    has_started: Arc<AtomicBool>,
}

impl Passed {
    /// Passes on, on a thread that lives as long as the process.
    fn start(self) -> io::Result<()> {
        Builder::new().name("signals".into()).stack_size(256 << 10).spawn(move || self.run())?;
        Ok(())
    }

    /// Takes signals at once, whatever the agent does: the third one is for an agent that does not answer.
    fn run(mut self) {
        let (requests, to_pass) = sync_channel(WAITING);
        let (path, mut connection) = (self.path.clone(), None);
        let pass = move || to_pass.iter().for_each(|request| pass(&path, &mut connection, &request));
        let passes = Builder::new().name("requests".into()).stack_size(256 << 10).spawn(pass);
        if let Err(error) = passes {
            tracing::warn!(%error, "cannot start a thread: signals are not passed on to the container");
        }
        let (mut is_stopped, mut asked) = (false, 0);
        loop {
            let mut fds = Vec::new();
            if !is_stopped {
                fds.push(PollFd::new(&self.stop, PollFlags::IN));
            }
            fds.extend(self.signals.iter().map(|signals| PollFd::new(signals, PollFlags::IN)));
            let _ = poll(&mut fds, None);
            if !is_stopped && fds.first().is_some_and(|fd| !fd.revents().is_empty()) {
                is_stopped = true;
                if is_asked(&mut self.stop) {
                    let container = self.container.clone();
                    let request = Request::Signal { container, signal: self.stop_signal };
                    self.pass(&requests, request, libc::SIGTERM);
                }
            }
            while let Some(signal) = self.signals.as_ref().and_then(Signals::next) {
                asked += u32::from(ENDING.contains(&signal));
                if signal == libc::SIGTERM {
                    self.attachments.end_for_good();
                }
                if asked >= FORCE {
                    self.ender.end(Some(signal));
                }
                // The size of a terminal comes from those who are attached.
                if let Some(signal) = u8::try_from(signal).ok().filter(|_| signal != libc::SIGWINCH) {
                    let request = Request::Signal { container: self.container.clone(), signal };
                    self.pass(&requests, request, signal.into());
                }
            }
        }
    }

    /// Has a request sent. Where there is no container yet, `signal` ends the VM.
    fn pass(&self, requests: &SyncSender<Request>, request: Request, signal: i32) {
        if !self.has_started.load(Ordering::SeqCst) {
            return self.ender.end(Some(signal));
        }
        // An agent that lets so many wait does not answer.
        let _ = requests.try_send(request);
    }
}

/// Whether a byte asks the container to end. The pipe ends without one when the VM has ended, which answers nothing
/// then.
fn is_asked(stop: &mut PipeReader) -> bool {
    stop.read(&mut [0]).is_ok_and(|count| count > 0)
}

/// Sends a request on `connection`, which is made if there is none, to the agent behind the socket at `path`.
fn pass(path: &Path, connection: &mut Option<Connection>, request: &Request) {
    if connection.is_none() {
        *connection = Connection::open(path).and_then(Connection::with_patience).ok();
    }
    let sent = connection.as_mut().map(|connection| {
        connection.send(request)?;
        match request {
            Request::Signal { .. } => connection.answer::<Reply>(),
            _ => Ok(Reply::Done),
        }
    });
    if let Some(Err(error)) = sent {
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            ?request,
            "cannot pass a request on to the container"
        );
        *connection = None;
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn the_end_of_the_vm_asks_an_ended_container_for_nothing() {
        let (mut stop, mut asked) = io::pipe().unwrap();
        asked.write_all(&[1]).unwrap();
        assert!(is_asked(&mut stop));
        drop(asked);
        assert!(!is_asked(&mut stop));
    }
}
