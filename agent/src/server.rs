//! The agent's loop: connections of the host, and the processes that they ask for.

mod connections;
mod copying;
mod freezing;
mod requests;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use agent_protocol::{Exit, Failure, PORT, Preparation, Reply, Stream};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{WaitOptions, wait};

use self::connections::Connection;
use self::requests::unknown;
use crate::cgroup::Cgroup;
use crate::container::Home;
use crate::error::{During, Result};
use crate::flow::Flow;
use crate::pod::{self, Departures, Pod};
use crate::process::{Role, Running};
use crate::sockets::{self, Sockets};
use crate::streams::ConnectionId;
use crate::system;
use crate::vsock;

/// The most connections at once; each process has up to four.
const MAX_CONNECTIONS: usize = 512;

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
    /// The devices that have no driver while the VM is saved.
    resting: Vec<String>,
    /// The root that is mounted for the first container.
    prepared: Option<Preparation>,
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
            resting: Vec::new(),
            prepared: None,
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
