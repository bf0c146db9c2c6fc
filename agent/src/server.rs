//! The agent's loop: connections of the host, and the containers that they ask for.

use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use agent_protocol::{
    Container, Decoder, Exit, Failure, FailureKind, PORT, Reply, Request, Stream, VERSION, encode,
};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, wait};

use crate::cgroup::Cgroup;
use crate::container::{self, Started};
use crate::error::{During, Result, failure};
use crate::network;
use crate::pty;
use crate::streams::{ConnectionId, Input, Output};
use crate::system;
use crate::vsock;

/// The most connections at once; each container has four.
const MAX_CONNECTIONS: usize = 256;
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
}

struct Connection {
    fd: OwnedFd,
    decoder: Decoder,
    /// Answers that were not sent yet.
    answers: Vec<u8>,
    /// Which stream it carries.
    stream: Option<(String, Stream)>,
}

/// A container.
struct Running {
    /// Until it has ended.
    pid: Option<Pid>,
    cgroup: Cgroup,
    /// Until the first process is the user's command.
    setup: Option<OwnedFd>,
    failure: Option<Failure>,
    terminal: Option<OwnedFd>,
    input: Input,
    output: Output,
    errors: Output,
    /// The connection that gets the answers about its start and its end.
    control: ConnectionId,
}

impl Running {
    fn output_mut(&mut self, stream: Stream) -> Option<&mut Output> {
        match stream {
            Stream::Stdin => None,
            Stream::Stdout => Some(&mut self.output),
            Stream::Stderr => Some(&mut self.errors),
        }
    }
}

/// The agent at work.
pub struct Server {
    listener: OwnedFd,
    signals: OwnedFd,
    connections: BTreeMap<ConnectionId, Connection>,
    next: ConnectionId,
    containers: BTreeMap<String, Running>,
    /// The network device is set up.
    has_network: bool,
}

impl Server {
    /// Listens, and tells the host that it does by a first connection.
    pub fn new() -> Result<Self> {
        let signals = signals()?;
        let listener = vsock::listen(PORT).during("listen on vsock")?;
        let mut server = Self {
            listener,
            signals,
            connections: BTreeMap::new(),
            next: 0,
            containers: BTreeMap::new(),
            has_network: false,
        };
        let first = vsock::connect(PORT).during("connect to the host")?;
        server.add_connection(first);
        Ok(server)
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
        for (source, events) in ready {
            match source {
                Source::Listener => self.accept(),
                Source::Signals => self.reap(),
                Source::Connection(id) => self.serve_connection(id, events),
                Source::Setup(name) => self.set_up(&name),
                Source::Output(name, stream) => {
                    if let Some(output) =
                        self.containers.get_mut(&name).and_then(|running| running.output_mut(stream))
                    {
                        output.read();
                    }
                }
                Source::Input(name) => {
                    if let Some(running) = self.containers.get_mut(&name) {
                        running.input.write();
                    }
                }
            }
        }
        self.pass_on();
        Ok(())
    }

    /// Waits until there is something to do.
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
        for (name, running) in &self.containers {
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
        match poll(&mut fds, None) {
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
            Some((name, stream)) => match (self.containers.get(name), stream) {
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
        match rustix::io::write(&connection.fd, &connection.answers) {
            Ok(count) => drop(connection.answers.drain(..count.min(connection.answers.len()))),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.close(id),
        }
    }

    fn close(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.remove(&id) else { return };
        let Some((name, stream)) = connection.stream else { return };
        let Some(running) = self.containers.get_mut(&name) else { return };
        if stream == Stream::Stdin && running.input.connection == Some(id) {
            running.input.connection = None;
            running.input.end();
        }
        if let Some(output) = running.output_mut(stream).filter(|output| output.connection == Some(id)) {
            output.connection = None;
        }
    }

    fn serve_connection(&mut self, id: ConnectionId, events: PollFlags) {
        if events.contains(PollFlags::OUT) {
            self.send_answers(id);
        }
        let Some(connection) = self.connections.get(&id) else { return };
        match connection.stream.clone() {
            None => self.read_requests(id),
            Some((name, Stream::Stdin)) => {
                let Some(running) = self.containers.get_mut(&name) else { return self.close(id) };
                if events.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
                    running.input.read(&connection.fd);
                    running.input.write();
                }
                if running.input.is_finished() {
                    self.close(id);
                }
            }
            // The host sends nothing here: what can be read is its end.
            Some(_) if events.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) => self.close(id),
            Some(_) => {}
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
        let reply = match request {
            Request::Start(container) => match self.start(id, &container) {
                Ok(()) => return,
                Err(failure) => Reply::Failed(failure),
            },
            Request::Attach { container, stream } => return self.attach(id, container, stream),
            Request::Signal { container, signal } => match self.signal(&container, signal) {
                Ok(()) => Reply::Done,
                Err(failure) => Reply::Failed(failure),
            },
            Request::Resize { container, size } => {
                if let Some(terminal) =
                    self.containers.get(&container).and_then(|running| running.terminal.as_ref())
                {
                    let _ = pty::set_size(terminal, size);
                }
                return;
            }
            Request::PowerOff => system::power_off(),
        };
        self.answer(id, &reply);
    }

    fn start(&mut self, control: ConnectionId, container: &Container) -> Result<()> {
        let is_plain = |id: &str| !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if !is_plain(&container.id) || self.containers.contains_key(&container.id) {
            return Err(failure(format!("cannot use {:?} as a container's ID", container.id)));
        }
        if let Some(network) = container.network.as_ref().filter(|_| !self.has_network) {
            network::set_up(network)?;
            self.has_network = true;
        }
        let Started { pid, cgroup, setup, input, output, errors } = container::start(container)?;
        let running = Running {
            pid: Some(pid),
            cgroup,
            setup: Some(setup),
            failure: None,
            terminal: None,
            input: Input::new(input),
            output: Output::new(output),
            errors: Output::new(errors),
            control,
        };
        self.containers.insert(container.id.clone(), running);
        Ok(())
    }

    fn attach(&mut self, id: ConnectionId, name: String, stream: Stream) {
        let Some(running) = self.containers.get_mut(&name) else {
            self.answer(id, &Reply::Failed(unknown(&name)));
            return;
        };
        let place = match stream {
            Stream::Stdin => &mut running.input.connection,
            Stream::Stdout => &mut running.output.connection,
            Stream::Stderr => &mut running.errors.connection,
        };
        let before = place.replace(id);
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.stream = Some((name, stream));
        }
        if let Some(before) = before {
            self.connections.remove(&before);
        }
    }

    fn signal(&mut self, name: &str, number: u8) -> Result<()> {
        let running = self.containers.get(name).ok_or_else(|| unknown(name))?;
        let pid = running.pid.ok_or_else(|| failure(format!("container {name} has ended")))?;
        let signal = (1..=64).contains(&number).then_some(i32::from(number));
        let signal = signal.ok_or_else(|| failure(format!("there is no signal {number}")))?;
        // SAFETY: it is the number of a signal.
        let signal = unsafe { Signal::from_raw_unchecked(signal) };
        kill_process(pid, signal).during(format!("send signal {number}"))
    }

    /// Takes what a first process says before it is the user's command.
    fn set_up(&mut self, name: &str) {
        let Some(running) = self.containers.get_mut(name) else { return };
        let Some(setup) = &running.setup else { return };
        let mut bytes = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(
            setup,
            &mut [std::io::IoSliceMut::new(&mut bytes)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        );
        let count = match received {
            Ok(received) => received.bytes,
            Err(Errno::AGAIN | Errno::INTR) => return,
            Err(_) => 0,
        };
        if count == 0 {
            running.setup = None;
            let control = running.control;
            let reply = match running.failure.clone() {
                Some(failure) => Reply::Failed(failure),
                None => Reply::Started,
            };
            return self.answer(control, &reply);
        }
        let sent = ancillary.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        if let Some(terminal) = sent {
            running.take_terminal(terminal);
            return;
        }
        let mut decoder = Decoder::default();
        decoder.push(bytes.get(..count).unwrap_or_default());
        if let Ok(Some(failure)) = decoder.take::<Failure>() {
            running.failure = Some(failure);
        }
    }

    /// Takes the exit codes of processes that have ended.
    fn reap(&mut self) {
        let mut events = [0; 1024];
        while rustix::io::read(&self.signals, &mut events).is_ok_and(|count| count > 0) {}
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let ended = self.containers.iter().find(|(_, running)| running.pid == Some(pid));
            // Others are processes whose parents ended before them.
            let Some(name) = ended.map(|(name, _)| name.clone()) else { continue };
            // What it said before it ended comes first: a terminal, a failure, the end.
            for _ in 0..3 {
                self.set_up(&name);
            }
            let Some(running) = self.containers.get_mut(&name) else { continue };
            running.pid = None;
            let code = match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => code,
                (None, Some(signal)) => 128 + signal,
                (None, None) => continue,
            };
            let code = u8::try_from(code).unwrap_or(u8::MAX);
            let exit = Exit { code, out_of_memory: running.cgroup.was_out_of_memory() };
            let control = running.control;
            if running.failure.is_none() {
                self.answer(control, &Reply::Exited(exit));
            }
        }
    }

    /// Passes on what processes wrote, and closes the connections of those that write no more.
    fn pass_on(&mut self) {
        let mut closed = Vec::new();
        for running in self.containers.values_mut() {
            for output in [&mut running.output, &mut running.errors] {
                let Some(id) = output.connection else { continue };
                let Some(connection) = self.connections.get(&id) else { continue };
                if !output.write(&connection.fd) || output.is_finished() && connection.answers.is_empty() {
                    closed.push(id);
                }
            }
        }
        for id in closed {
            self.close(id);
        }
    }
}

impl Running {
    /// Input and output are those of the terminal.
    fn take_terminal(&mut self, terminal: OwnedFd) {
        let _ = rustix::io::ioctl_fionbio(&terminal, true);
        let copy = || terminal.try_clone().ok();
        let attached = (self.input.connection, self.output.connection);
        self.input = Input::new(copy());
        self.output = Output::new(copy());
        (self.input.connection, self.output.connection) = attached;
        self.terminal = Some(terminal);
    }
}

fn unknown(name: &str) -> Failure {
    Failure { kind: FailureKind::Other, message: format!("there is no container {name}") }
}

/// Blocks the signal of ended children, and has it read from a descriptor.
fn signals() -> Result<OwnedFd> {
    // SAFETY: all zeros is a valid set; the calls change this thread's mask, which is the only one, and make a
    // descriptor, which has no other owner.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        match libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) {
            fd if fd < 0 => Err(std::io::Error::last_os_error()).during("take signals"),
            fd => Ok(OwnedFd::from_raw_fd(fd)),
        }
    }
}
