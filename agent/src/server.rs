//! The agent's loop: connections of the host, and the processes that they ask for.

mod copying;
mod freezing;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use agent_protocol::{
    Container, Decoder, Exec, Exit, Failure, FailureKind, GUEST, MAX_EXECS, PORT, PodContainer, Reply,
    Request, Stream, VERSION, encode,
};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{WaitOptions, wait};

use crate::cgroup::Cgroup;
use crate::container::{self, Home};
use crate::error::{During, Result, failure};
use crate::flow::Flow;
use crate::guest;
use crate::network;
use crate::pod::{self, Departures, Pod};
use crate::process::{Role, Running};
use crate::processes;
use crate::pty;
use crate::sockets::{self, Sockets};
use crate::streams::{ConnectionId, Lost};
use crate::system;
use crate::volumes;
use crate::vsock;

/// The most connections at once; each process has up to four.
const MAX_CONNECTIONS: usize = 512;
/// The most bytes of answers that the host has not read.
const MAX_UNREAD: usize = 1 << 20;

/// What a descriptor that is waited for belongs to.
#[derive(Clone, Debug)]
enum Source {
    Listener,
    Signals,
    Connection(ConnectionId),
    Setup(String),
    Output(String, Stream),
    Input(String),
    Socket(sockets::Source),
    Freezing,
}

struct Connection {
    fd: OwnedFd,
    decoder: Decoder,
    /// Answers that were not sent yet.
    answers: Vec<u8>,
    /// Which stream it carries.
    stream: Option<(String, Stream)>,
}

/// The agent at work.
pub struct Server {
    listener: OwnedFd,
    signals: OwnedFd,
    connections: BTreeMap<ConnectionId, Connection>,
    next: ConnectionId,
    /// By their IDs: the first processes of containers by those of the containers.
    processes: BTreeMap<String, Running>,
    /// Processes that copy files.
    copies: Vec<copying::Copying>,
    /// The control group of some of them, once there was one.
    apart: Option<Cgroup>,
    /// The network device is set up.
    has_network: bool,
    /// Sockets of the host that containers have.
    sockets: Sockets,
    /// It is a service of the guest, and has no containers.
    is_service: bool,
    /// What containers share, where the VM is for several.
    pod: Option<Pod>,
    /// Containers of the pod that have ended, or are about to.
    departures: Departures,
    /// Containers that are about to stand still, or to go on.
    freezing: Vec<freezing::Freezing>,
    flow: Flow,
}

impl Server {
    /// Listens, and tells the host that it does by a first connection.
    pub fn new() -> Result<Self> {
        let listener = vsock::listen(PORT).during("listen on vsock")?;
        let mut server = Self::listening(listener, false)?;
        let first = vsock::connect(PORT).during("connect to the host")?;
        server.add_connection(first);
        Ok(server)
    }

    /// The same as a service of the guest, which the host connects to when it needs it.
    pub fn of_guest(listener: OwnedFd) -> Result<Self> {
        Self::listening(listener, true)
    }

    fn listening(listener: OwnedFd, is_service: bool) -> Result<Self> {
        Ok(Self {
            listener,
            signals: system::signals()?,
            connections: BTreeMap::new(),
            next: 0,
            processes: BTreeMap::new(),
            copies: Vec::new(),
            apart: None,
            has_network: false,
            sockets: Sockets::new(),
            is_service,
            pod: None,
            departures: Departures::default(),
            freezing: Vec::new(),
            flow: Flow::default(),
        })
    }

    /// Serves until it cannot.
    pub fn serve(mut self) -> Failure {
        loop {
            if let Err(failure) = self.turn() {
                return failure;
            }
        }
    }

    fn turn(&mut self) -> Result<()> {
        let ready = self.wait()?;
        if ready.is_empty() || !ready.iter().all(|(source, _)| self.is_of_stream(source)) {
            self.flow.end();
        }
        for (source, events) in ready {
            match source {
                Source::Listener => self.accept(),
                Source::Signals => self.reap(),
                Source::Connection(id) => self.serve_connection(id, events),
                Source::Setup(name) => self.set_up(&name),
                Source::Output(name, stream) => {
                    if let Some(output) =
                        self.processes.get_mut(&name).and_then(|running| running.output_mut(stream))
                    {
                        let count = output.read();
                        self.flow.add(count);
                    }
                }
                Source::Input(name) => {
                    if let Some(running) = self.processes.get_mut(&name) {
                        running.input.write();
                    }
                }
                Source::Socket(source) => self.sockets.serve(source, events),
                // Of which kind it is, is looked at below.
                Source::Freezing => {}
            }
        }
        self.pass_on();
        self.release();
        self.report_frozen();
        Ok(())
    }

    /// Whether what is ready has to do with bytes of a process's streams alone.
    fn is_of_stream(&self, source: &Source) -> bool {
        match source {
            Source::Output(..) | Source::Input(_) => true,
            Source::Connection(id) => {
                self.connections.get(id).is_some_and(|connection| connection.stream.is_some())
            }
            Source::Listener | Source::Signals | Source::Setup(_) | Source::Socket(_) | Source::Freezing => {
                false
            }
        }
    }

    /// Waits until there is something to do, or output flows no more.
    fn wait(&self) -> Result<Vec<(Source, PollFlags)>> {
        let mut sources = Vec::new();
        let mut fds = Vec::new();
        let mut watch = |source: Source, fd: BorrowedFd<'_>, flags: PollFlags| {
            sources.push(source);
            // SAFETY: the descriptors belong to `self`, which does not change while they are polled.
            fds.push(PollFd::from_borrowed_fd(unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) }, flags));
        };
        watch(Source::Signals, self.signals.as_fd(), PollFlags::IN);
        if self.connections.len() < MAX_CONNECTIONS {
            watch(Source::Listener, self.listener.as_fd(), PollFlags::IN);
        }
        for (&id, connection) in &self.connections {
            watch(Source::Connection(id), connection.fd.as_fd(), self.interest(connection));
        }
        for (name, running) in &self.processes {
            if let Some(setup) = &running.setup {
                watch(Source::Setup(name.clone()), setup.as_fd(), PollFlags::IN);
            }
            for (stream, output) in [(Stream::Stdout, &running.output), (Stream::Stderr, &running.errors)] {
                if let Some(source) = output.source() {
                    watch(Source::Output(name.clone(), stream), source, PollFlags::IN);
                }
            }
            if let Some(target) = running.input.target() {
                watch(Source::Input(name.clone()), target, PollFlags::OUT);
            }
        }
        for freezing in &self.freezing {
            watch(Source::Freezing, freezing.events(), PollFlags::PRI);
        }
        self.sockets.watch(|source, fd, flags| watch(Source::Socket(source), fd, flags));
        let leaving = (!self.departures.is_empty()).then_some(pod::AGAIN);
        let patience = self.flow.patience().into_iter().chain(leaving).min();
        let patience = patience.and_then(|patience| patience.try_into().ok());
        match poll(&mut fds, patience.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).during("wait for events"),
        }
        let events = fds.iter().map(PollFd::revents);
        Ok(sources.into_iter().zip(events).filter(|(_, events)| !events.is_empty()).collect())
    }

    /// What to wait for on a connection.
    fn interest(&self, connection: &Connection) -> PollFlags {
        let mut flags = match &connection.stream {
            None => PollFlags::IN,
            Some((name, stream)) => match (self.processes.get(name), stream) {
                (Some(running), Stream::Stdin) => running.input.interest(),
                (Some(running), Stream::Stdout) => running.output.interest(),
                (Some(running), Stream::Stderr) => running.errors.interest(),
                (None, _) => PollFlags::IN,
            },
        };
        if !connection.answers.is_empty() {
            flags |= PollFlags::OUT;
        }
        flags
    }

    fn accept(&mut self) {
        if let Some(fd) = vsock::accept(&self.listener) {
            self.add_connection(fd);
        }
    }

    fn add_connection(&mut self, fd: OwnedFd) {
        let id = self.next;
        self.next = self.next.wrapping_add(1);
        let connection = Connection { fd, decoder: Decoder::default(), answers: Vec::new(), stream: None };
        self.connections.insert(id, connection);
        self.answer(id, &Reply::Hello { version: VERSION });
    }

    /// Sends an answer, or as much of it as the host takes at once.
    fn answer(&mut self, id: ConnectionId, reply: &Reply) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let Ok(bytes) = encode(reply) else { return };
        connection.answers.extend(bytes);
        if connection.answers.len() > MAX_UNREAD {
            self.close(id);
        } else {
            self.send_answers(id);
        }
    }

    fn send_answers(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if connection.answers.is_empty() {
            return;
        }
        match rustix::io::write(&connection.fd, &connection.answers) {
            Ok(count) => drop(connection.answers.drain(..count.min(connection.answers.len()))),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.close(id),
        }
    }

    fn close(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.remove(&id) else { return };
        let Some((name, stream)) = connection.stream else { return self.leave(id) };
        let Some(running) = self.processes.get_mut(&name) else { return };
        if stream == Stream::Stdin && running.input.connection == Some(id) {
            running.input.connection = None;
        }
        if let Some(output) = running.output_mut(stream).filter(|output| output.connection == Some(id)) {
            output.connection = None;
        }
    }

    /// Has processes run on that connection `control` was for.
    fn leave(&mut self, control: ConnectionId) {
        let of = |(_, running): &(&String, &mut Running)| running.control == control;
        let mut left = Vec::new();
        for (name, running) in self.processes.iter_mut().filter(of) {
            if running.is_in_pod
                && let Role::First(home) = &running.role
            {
                home.cgroup.kill();
            }
            running.leave();
            left.push(name.clone());
        }
        for name in left {
            self.forget(&name);
        }
    }

    fn serve_connection(&mut self, id: ConnectionId, events: PollFlags) {
        if events.contains(PollFlags::OUT) {
            self.send_answers(id);
        }
        let Some(connection) = self.connections.get(&id) else { return };
        match connection.stream.clone() {
            None => self.read_requests(id),
            Some((name, stream)) if events.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) => {
                self.serve_stream(id, &name, stream);
            }
            Some(_) => {}
        }
    }

    /// Takes what the host sends on the connection of a stream: input, or what it has of an output.
    fn serve_stream(&mut self, id: ConnectionId, name: &str, stream: Stream) {
        let (Some(connection), Some(running)) = (self.connections.get_mut(&id), self.processes.get_mut(name))
        else {
            return self.close(id);
        };
        let taken = match running.output_mut(stream) {
            Some(output) => output.acknowledge(&connection.fd).map(|()| false),
            None => running.input.read(&connection.fd).map(|acknowledgement| {
                connection.answers.extend(acknowledgement.into_iter().flatten());
                running.input.write();
                running.input.is_finished()
            }),
        };
        match taken {
            Ok(false) => self.send_answers(id),
            Ok(true) | Err(Lost) => self.close(id),
        }
    }

    fn read_requests(&mut self, id: ConnectionId) {
        // One turn reads one message at most.
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let Ok(wanted) = connection.decoder.wants() else { return self.close(id) };
        let mut bytes = vec![0; wanted.clamp(1, 64 << 10)];
        match rustix::io::read(&connection.fd, &mut *bytes) {
            Ok(0) => return self.close(id),
            Ok(count) => connection.decoder.push(bytes.get(..count).unwrap_or_default()),
            Err(Errno::AGAIN | Errno::INTR) => return,
            Err(_) => return self.close(id),
        }
        match connection.decoder.take::<Request>() {
            Ok(Some(request)) => self.handle(id, request),
            Ok(None) => {}
            Err(error) => {
                self.answer(id, &Reply::Failed(failure(error.to_string())));
                self.close(id);
            }
        }
    }

    fn handle(&mut self, id: ConnectionId, request: Request) {
        if let Some(failure) = guest::refuse(&request).filter(|_| self.is_service) {
            return self.answer(id, &Reply::Failed(failure));
        }
        let reply = match request {
            Request::Start(container) => match self.start(id, &container, false) {
                Ok(()) => return,
                Err(failure) => Reply::Failed(failure),
            },
            Request::Exec { container, id: name, exec } => match self.exec(id, &container, &name, &exec) {
                Ok(()) => return,
                Err(failure) => Reply::Failed(failure),
            },
            Request::Attach { container, stream, position } => {
                return self.attach(id, container, stream, position);
            }
            Request::Wait { container } => match self.wait_for(id, &container) {
                Ok(()) => return,
                Err(failure) => Reply::Failed(failure),
            },
            Request::Signal { container, signal } => match self.signal(&container, signal) {
                Ok(()) => Reply::Done,
                Err(failure) => Reply::Failed(failure),
            },
            Request::Resize { container, size } => {
                if let Some(terminal) =
                    self.processes.get(&container).and_then(|running| running.terminal.as_ref())
                {
                    let _ = pty::set_size(terminal, size);
                }
                return;
            }
            Request::PowerOff => {
                // With them their mounts go, which writes those of disks as they are to be found again.
                self.processes.clear();
                system::power_off()
            }
            Request::Usage { container } => match self.home(&container) {
                Some(home) => Reply::Usage(home.cgroup.usage()),
                None => Reply::Failed(unknown(&container)),
            },
            Request::Update { container, resources } => {
                let updated = self.home(&container).ok_or_else(|| unknown(&container));
                match updated.and_then(|home| home.cgroup.limit(&resources)) {
                    Ok(()) => Reply::Done,
                    Err(failure) => Reply::Failed(failure),
                }
            }
            Request::Processes { container } => match self.home(&container) {
                Some(home) => Reply::Processes(processes::list(&home.cgroup.processes()), system::uptime()),
                None => Reply::Failed(unknown(&container)),
            },
            Request::Hold(container) => match self.start(id, &container, true) {
                Ok(()) => return,
                Err(failure) => Reply::Failed(failure),
            },
            Request::Copy { container, what } => match self.copy(id, &container, &what) {
                Ok(()) => return,
                Err(failure) => Reply::Failed(failure),
            },
            Request::Pod(pod) => match self.make_pod(&pod) {
                Ok(()) => Reply::Done,
                Err(failure) => Reply::Failed(failure),
            },
            Request::StartInPod(container) => match self.start_in_pod(id, &container) {
                Ok(()) => return,
                Err(failure) => Reply::Failed(failure),
            },
            Request::Release { container, disks } => {
                if let Some(Role::First(home)) = self.processes.get(&container).map(|running| &running.role) {
                    home.cgroup.kill();
                }
                self.sockets.remove(&container);
                match self.departures.add(container, disks, id) {
                    Ok(()) => return,
                    Err(failure) => Reply::Failed(failure),
                }
            }
            Request::Freeze { container, freezes } => match self.freeze(id, &container, freezes) {
                Ok(()) => return,
                Err(failure) => Reply::Failed(failure),
            },
            Request::IsFrozen { container } => {
                self.is_frozen(&container).map_or_else(Reply::Failed, Reply::Frozen)
            }
        };
        self.answer(id, &reply);
    }

    /// Starts a container, or has its root alone where that `is_held`.
    fn start(&mut self, control: ConnectionId, container: &Container, is_held: bool) -> Result<()> {
        if !is_plain(&container.id) || self.processes.contains_key(&container.id) {
            return Err(failure(format!("cannot use {:?} as a container's ID", container.id)));
        }
        if let Some(network) = container.network.as_ref().filter(|_| !self.has_network) {
            network::set_up(network)?;
            self.has_network = true;
        }
        self.sockets.add(container)?;
        let (started, home) = container::start(container, is_held)?;
        let running = Running::new(started, Role::First(Box::new(home)), control);
        self.processes.insert(container.id.clone(), running);
        Ok(())
    }

    fn make_pod(&mut self, pod: &agent_protocol::Pod) -> Result<()> {
        if self.pod.is_some() || !self.processes.is_empty() {
            return Err(failure("there is a pod, or a container, in this VM".into()));
        }
        self.pod = Some(Pod::new(pod, self.has_network)?);
        self.has_network = true;
        Ok(())
    }

    fn start_in_pod(&mut self, control: ConnectionId, started: &PodContainer) -> Result<()> {
        let container = &started.container;
        if !is_plain(&container.id) || self.processes.contains_key(&container.id) {
            return Err(failure(format!("cannot use {:?} as a container's ID", container.id)));
        }
        let pod = self.pod.as_mut().ok_or_else(|| failure("there is no pod in this VM".into()))?;
        volumes::mount_for_pod(container)?;
        self.sockets.add(container)?;
        pod.add(&container.id, &started.names)?;
        let (started, home) = container::start_in(pod, started)?;
        let role = Role::First(Box::new(home));
        let running = Running::new(started, role, control).in_pod();
        self.processes.insert(container.id.clone(), running);
        Ok(())
    }

    /// Reports containers of the pod that have ended.
    fn release(&mut self) {
        if self.departures.is_empty() {
            return;
        }
        let processes = &mut self.processes;
        let take = |container: &str| {
            let is_further =
                |running: &Running| matches!(&running.role, Role::Further(name) if name == container);
            let is_alive = |(name, running): (&String, &Running)| {
                running.pid.is_some() && (name == container || is_further(running))
            };
            if processes.iter().any(is_alive) {
                return (false, None);
            }
            processes.retain(|_, running| !is_further(running));
            let role = processes.remove(container).map(|running| running.role);
            (true, if let Some(Role::First(home)) = role { Some(home) } else { None })
        };
        for waiter in self.departures.advance(self.pod.as_mut(), take) {
            self.answer(waiter, &Reply::Done);
        }
    }

    fn exec(&mut self, control: ConnectionId, container: &str, id: &str, exec: &Exec) -> Result<()> {
        if !is_plain(id) || self.processes.contains_key(id) {
            return Err(failure(format!("cannot use {id:?} as a process's ID")));
        }
        let is_of = |running: &&Running| matches!(&running.role, Role::Further(name) if name == container);
        let is_full = self.processes.values().filter(is_of).count() >= MAX_EXECS;
        let started = if self.is_service && container == GUEST {
            if is_full {
                return Err(failure(format!(
                    "the guest runs {MAX_EXECS} commands of the host's, which is the most"
                )));
            }
            guest::exec(exec)?
        } else {
            let first = self.processes.get(container).ok_or_else(|| unknown(container))?;
            let Role::First(home) = &first.role else { return Err(unknown(container)) };
            if !first.is_command() || home.is_held {
                return Err(failure(format!("container {container} is not running")));
            }
            if home.is_paused {
                return Err(failure(format!("container {container} is paused: `mvm unpause` it first")));
            }
            if is_full {
                return Err(failure(format!(
                    "container {container} runs {MAX_EXECS} commands beside its own, which is the most"
                )));
            }
            home.exec(exec)?
        };
        let running = Running::new(started, Role::Further(container.to_owned()), control);
        self.processes.insert(id.to_owned(), running);
        Ok(())
    }

    /// Makes connection `id` that of a stream, which goes on from where the host is.
    fn attach(&mut self, id: ConnectionId, name: String, stream: Stream, position: u64) {
        let attached = self.processes.get_mut(&name).ok_or_else(|| unknown(&name));
        let before = match attached.and_then(|running| running.attach(id, stream, position)) {
            Ok((before, position)) => {
                self.answer(id, &Reply::Attached { position });
                before
            }
            Err(failure) => return self.answer(id, &Reply::Failed(failure)),
        };
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.stream = Some((name, stream));
        }
        if let Some(before) = before {
            self.connections.remove(&before);
        }
    }

    /// Has the end of a process be told on connection `id`.
    fn wait_for(&mut self, id: ConnectionId, name: &str) -> Result<()> {
        let running = self.processes.get_mut(name).ok_or_else(|| unknown(name))?;
        running.control = id;
        if let Some(exit) = running.exit {
            self.answer(id, &Reply::Exited(exit));
        }
        Ok(())
    }

    fn signal(&mut self, name: &str, number: u8) -> Result<()> {
        self.processes.get(name).ok_or_else(|| unknown(name))?.signal(name, number)
    }

    /// Takes what a process says before it is the user's command.
    fn set_up(&mut self, name: &str) {
        let Some(running) = self.processes.get_mut(name) else { return };
        let control = running.control;
        if let Some(reply) = running.set_up() {
            self.answer(control, &reply);
        }
    }

    /// Takes the exit codes of processes that have ended.
    fn reap(&mut self) {
        let mut events = [0; 1024];
        while rustix::io::read(&self.signals, &mut events).is_ok_and(|count| count > 0) {}
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            if self.reap_copy(pid) {
                continue;
            }
            let ended = self.processes.iter().find(|(_, running)| running.pid == Some(pid));
            // Others are processes whose parents ended before them.
            let Some(name) = ended.map(|(name, _)| name.clone()) else { continue };
            let code = match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => code,
                (None, Some(signal)) => 128 + signal,
                (None, None) => continue,
            };
            // What it said before it ended comes first: layers, a terminal, a failure, the end.
            for _ in 0..4 {
                self.set_up(&name);
            }
            let out_of_memory = self.home(&name).is_some_and(|home| home.cgroup.was_out_of_memory());
            let Some(running) = self.processes.get_mut(&name) else { continue };
            running.pid = None;
            // Others end with it also where it was not PID 1 for them.
            if running.is_in_pod
                && let Role::First(home) = &running.role
            {
                home.cgroup.kill();
            }
            let exit = Exit { code: u8::try_from(code).unwrap_or(u8::MAX), out_of_memory };
            let control = running.control;
            running.exit = Some(exit);
            if running.failure.is_none() {
                self.answer(control, &Reply::Exited(exit));
            }
            self.forget(&name);
        }
    }

    /// What the processes of the container have in common to which the process `name` belongs.
    fn home(&self, name: &str) -> Option<&Home> {
        match &self.processes.get(name)?.role {
            Role::First(home) => Some(home),
            Role::Further(container) => match &self.processes.get(container)?.role {
                Role::First(home) => Some(home),
                Role::Further(_) => None,
            },
        }
    }

    /// Forgets a further process that has ended, and that the host asks no more about.
    fn forget(&mut self, name: &str) {
        let is_over = |running: &Running| {
            matches!(running.role, Role::Further(_))
                && running.pid.is_none()
                && !self.connections.contains_key(&running.control)
        };
        if self.processes.get(name).is_some_and(is_over) {
            self.processes.remove(name);
        }
    }

    /// Passes on what processes wrote.
    fn pass_on(&mut self) {
        let mut closed = Vec::new();
        for running in self.processes.values_mut() {
            for output in [&mut running.output, &mut running.errors] {
                let Some(id) = output.connection else { continue };
                let Some(connection) = self.connections.get(&id) else { continue };
                if connection.answers.is_empty() && output.write(&connection.fd).is_err() {
                    closed.push(id);
                }
            }
            if running.input.is_finished() {
                closed.extend(running.input.connection);
            }
        }
        for id in closed {
            self.close(id);
        }
    }
}

/// Whether `id` can be an ID: it becomes part of paths.
fn is_plain(id: &str) -> bool {
    !id.is_empty() && id.len() <= 64 && id.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

fn unknown(name: &str) -> Failure {
    Failure { kind: FailureKind::Other, message: format!("there is no container {name}") }
}
