//! What this process does with a container while it runs.

use std::io::{self, PipeReader, Read};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::thread::Builder;

use agent_protocol::{Container, Exit, Failure, PORT, Reply, Request, Size, Stream};
use instance::{ENDING, Signals};
use rustix::event::{PollFd, PollFlags, poll};
use thiserror::Error;
use vmm::{ExitReason, Requests};

use crate::connection::{Connection, ConnectionError};
use crate::machine::VSOCK;
use crate::stdio;

/// Why a container did not come to its end.
#[derive(Debug, Error)]
pub enum SessionError {
    /// The agent can't be talked to.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// This process can't connect its standard input or output.
    #[error("cannot connect standard input and output")]
    Stdio(#[source] io::Error),
    /// The agent could not start it.
    #[error("{}", .0.message)]
    Failed(Failure),
}

/// Where the agent connects to.
pub struct Listener(UnixListener);

impl Listener {
    /// Listens in the VM's directory.
    pub fn open(directory: &Path) -> io::Result<Self> {
        UnixListener::bind(directory.join(format!("{VSOCK}_{PORT}"))).map(Self)
    }
}

/// A container that is to be run in a VM.
pub struct Session {
    pub listener: Listener,
    pub directory: PathBuf,
    pub container: Container,
    pub requests: Requests,
    /// What is passed on to the container.
    pub signals: Option<Signals>,
    /// Becomes readable when the container is asked to end.
    pub stop: PipeReader,
    /// What asks it to.
    pub stop_signal: u8,
}

impl Session {
    /// Runs the container on a thread of its own, which sends what came of it and then ends the VM.
    pub fn start(self, ended: Sender<Result<Exit, SessionError>>) -> io::Result<()> {
        Builder::new().name("container".into()).stack_size(256 << 10).spawn(move || {
            let requests = self.requests.clone();
            // The receiver outlives the VM.
            let _ = ended.send(self.run());
            requests.end(ExitReason::PowerOff);
        })?;
        Ok(())
    }

    fn run(self) -> Result<Exit, SessionError> {
        let Self { listener, directory, container, requests, signals, stop, stop_signal } = self;
        let has_started = Arc::new(AtomicBool::new(false));
        let passed = Passed {
            signals,
            stop,
            stop_signal,
            has_terminal: container.process.terminal.is_some(),
            container: container.id.clone(),
            path: directory.join(VSOCK),
            requests,
            has_started: has_started.clone(),
        };
        passed.start().map_err(SessionError::Stdio)?;
        let (socket, _) = listener.0.accept().map_err(ConnectionError::Io)?;
        let mut control = Connection::greet(socket)?;
        let id = container.id.clone();
        let (has_input, has_terminal) = (container.process.has_input, container.process.terminal.is_some());
        control.send(&Request::Start(Box::new(container)))?;
        let path = directory.join(VSOCK);
        // Made while the container is.
        let output = Connection::open(&path)?;
        let errors = if has_terminal { None } else { Some(Connection::open(&path)?) };
        let input = if has_input { Some(Connection::open(&path)?) } else { None };
        match control.receive()? {
            Reply::Started => {}
            Reply::Failed(failure) => return Err(SessionError::Failed(failure)),
            other => return Err(ConnectionError::Unexpected(format!("{other:?}")).into()),
        }
        let output = output.attach(&id, Stream::Stdout)?;
        let output = stdio::pass_output(output, libc::STDOUT_FILENO).map_err(SessionError::Stdio)?;
        let mut outputs = vec![output];
        if let Some(errors) = errors {
            let errors = errors.attach(&id, Stream::Stderr)?;
            outputs.push(stdio::pass_output(errors, libc::STDERR_FILENO).map_err(SessionError::Stdio)?);
        }
        if let Some(input) = input {
            stdio::pass_input(input.attach(&id, Stream::Stdin)?).map_err(SessionError::Stdio)?;
        }
        has_started.store(true, Ordering::SeqCst);
        let exit = match control.receive()? {
            Reply::Exited(exit) => exit,
            Reply::Failed(failure) => return Err(SessionError::Failed(failure)),
            other => return Err(ConnectionError::Unexpected(format!("{other:?}")).into()),
        };
        for output in outputs {
            // A reader that has gone does not change how the container ended.
            let _ = output.join();
        }
        Ok(exit)
    }
}

/// As many signals that ask the container to end end its VM, whatever it does with them, as with docker.
const FORCE: u32 = 3;

/// What is passed on to a container: signals that this process gets, the size of its terminal, and the first request to
/// end.
struct Passed {
    signals: Option<Signals>,
    stop: PipeReader,
    stop_signal: u8,
    has_terminal: bool,
    container: String,
    path: PathBuf,
    requests: Requests,
    /// The container runs. Before that, what asks it to end ends the VM.
    has_started: Arc<AtomicBool>,
}

impl Passed {
    /// Passes on, on a thread that lives as long as the process.
    fn start(self) -> io::Result<()> {
        Builder::new().name("signals".into()).stack_size(256 << 10).spawn(move || self.run())?;
        Ok(())
    }

    fn run(mut self) {
        let mut connection = None;
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
                let _ = self.stop.read(&mut [0]);
                let request = Request::Signal { container: self.container.clone(), signal: self.stop_signal };
                self.pass(&mut connection, &request, libc::SIGTERM);
            }
            while let Some(signal) = self.signals.as_ref().and_then(Signals::next) {
                asked += u32::from(ENDING.contains(&signal));
                if asked >= FORCE {
                    self.requests.end(ExitReason::Signal(signal));
                }
                if let Some(request) = request(signal, &self.container, self.has_terminal) {
                    self.pass(&mut connection, &request, signal);
                }
            }
        }
    }

    /// Sends a request on `connection`, which is made if there is none. Where there is no container yet, `signal` ends
    /// the VM.
    fn pass(&self, connection: &mut Option<Connection>, request: &Request, signal: i32) {
        if !self.has_started.load(Ordering::SeqCst) {
            if signal != libc::SIGWINCH {
                self.requests.end(ExitReason::Signal(signal));
            }
            return;
        }
        if connection.is_none() {
            *connection = Connection::open(&self.path).and_then(Connection::with_patience).ok();
        }
        let sent = connection.as_mut().map(|connection| {
            connection.send(request)?;
            match request {
                Request::Signal { .. } => connection.receive::<Reply>(),
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
}

/// What the agent is asked for at a signal of this process.
fn request(signal: i32, container: &str, has_terminal: bool) -> Option<Request> {
    let container = container.to_owned();
    if signal != libc::SIGWINCH {
        return Some(Request::Signal { container, signal: u8::try_from(signal).ok()? });
    }
    let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok().filter(|_| has_terminal)?;
    Some(Request::Resize { container, size: Size { rows: size.ws_row, columns: size.ws_col } })
}
