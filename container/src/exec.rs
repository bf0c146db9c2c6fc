//! Further commands in a container that runs, which may be another process's, or in a VM's guest.

use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::Builder;
use std::time::Duration;

use agent_protocol::{Capabilities, Exec, Exit, Failure, FailureKind, Reply, Request, Size, Stream};
use instance::{ENDING, Signals};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use thiserror::Error;

use crate::agent::{Agent, NoDevice};
use crate::attach::{DetachFilter, Input};
use crate::connection::{Connection, ConnectionError, PATIENCE};
use crate::options::{ExecOptions, OptionsError};
use crate::run::Ended;
use crate::spec::{absolute, all_capabilities};
use crate::stdio;
use crate::streams::Place;

/// As many signals that ask a command to end end the wait for it.
const FORCE: u32 = 3;

/// Why a command did not run to its end.
#[derive(Debug, Error)]
pub enum ExecError {
    /// An option.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// A VM without a way to an agent.
    #[error(transparent)]
    NoDevice(#[from] NoDevice),
    /// The agent can't be talked to.
    #[error(transparent)]
    Connection(Box<dyn std::error::Error + Send + Sync>),
    /// The host can't do it.
    #[error("cannot {doing}")]
    Host {
        /// What was being done.
        doing: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The command can't be found.
    #[error("{0}")]
    NotFound(String),
    /// The command can't be started.
    #[error("{0}")]
    Failed(String),
    /// The container's VM has ended while the command ran.
    #[error("the container has ended, and the command with it")]
    ContainerEnded,
    /// A signal came before the command had begun, which it does not any more.
    #[error("ended by signal {0} before the command had started")]
    Cancelled(i32),
    /// A VM has ended while the command ran, or the agent in it.
    #[error("the VM has ended, or the agent in it, and with that the connection to the command")]
    GuestEnded,
    /// Signals ended the wait; the command may run on.
    #[error("ended by signal {0}, while the command runs on")]
    Signal(i32),
}

impl From<ConnectionError> for ExecError {
    fn from(error: ConnectionError) -> Self {
        match error {
            ConnectionError::Cancelled(signal) => Self::Cancelled(signal),
            error => Self::Connection(Box::new(error)),
        }
    }
}

impl From<Failure> for ExecError {
    fn from(Failure { kind, message }: Failure) -> Self {
        match kind {
            FailureKind::NotFound => Self::NotFound(message),
            FailureKind::NotExecutable | FailureKind::Other => Self::Failed(message),
        }
    }
}

/// Why a command is waited for no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Executed {
    /// It has ended.
    Ended(Ended),
    /// The user has left it by the keys for that; it runs on.
    Left,
}

/// Runs a command in the container `container` of the VM whose directory is `directory`, or in the guest of a VM of
/// `mvm boot`, with this process's standard input and output, until it ends. `signals` are passed on to it.
///
/// # Errors
///
/// [`ExecError`].
pub fn exec(
    directory: &Path,
    container: &str,
    options: &ExecOptions,
    signals: Option<&Signals>,
) -> Result<Executed, ExecError> {
    let agent = Agent::find(directory, container)?;
    let (control, id, streams) = begin(&agent, options, signals, || connect(&agent, options, signals))?;
    let told = pass_streams(streams, &agent.path, &id, options)?;
    let (has_terminal, in_guest) = (options.terminal.is_some(), agent.is_of_guest());
    let session = Session { control, signals, id, has_terminal, in_guest, asked: 0 };
    session.run(&told)
}

/// A command that runs without standard input and output. It runs on when this is dropped.
pub struct Detached(Connection);

impl Detached {
    /// Waits until it has ended. There is none where its container has ended before.
    pub fn wait(mut self) -> Option<Ended> {
        match self.0.receive().ok()? {
            Reply::Exited(Exit { code, out_of_memory }) => Some(Ended { code, out_of_memory }),
            _ => None,
        }
    }
}

/// Starts a command as [`exec`] does, one that is detached.
///
/// # Errors
///
/// [`ExecError`].
pub fn exec_detached(
    directory: &Path,
    container: &str,
    options: &ExecOptions,
) -> Result<Detached, ExecError> {
    let agent = Agent::find(directory, container)?;
    begin(&agent, options, None, || Ok(())).map(|(control, ..)| Detached(control))
}

/// Has the agent start the command. Returns the connection on which it tells the end, what the command is called, and
/// what `connect` has connected meanwhile.
fn begin<T>(
    agent: &Agent,
    options: &ExecOptions,
    signals: Option<&Signals>,
    connect: impl FnOnce() -> Result<T, ConnectionError>,
) -> Result<(Connection, String, T), ExecError> {
    let exec = Box::new(request(options)?);
    let id = random_id().map_err(|source| ExecError::Host { doing: "draw a random ID", source })?;
    let mut control = agent.open_unless(signals)?;
    control.send(&Request::Exec { container: agent.container.clone(), id: id.clone(), exec })?;
    let streams = connect()?;
    match started(&mut control, signals, || agent.open_unless(signals).map(drop))? {
        Reply::Started => Ok((control, id, streams)),
        Reply::Failed(failure) => Err(failure.into()),
        other => Err(ConnectionError::Unexpected(format!("{other:?}")).into()),
    }
}

/// Waits for the answer to a request for a process, which takes as long as the process needs to begin. Where many begin
/// at once that may be long, and then `greets` says whether the agent still takes connections: one that does has read
/// the request. A signal that asks the command to end ends the wait; with the connection, the agent gives it up.
fn started(
    control: &mut Connection,
    signals: Option<&Signals>,
    greets: impl FnMut() -> Result<(), ConnectionError>,
) -> Result<Reply, ExecError> {
    started_within(control, signals, PATIENCE, greets)
}

/// The same, which asks each time when so long has passed.
fn started_within(
    control: &mut Connection,
    signals: Option<&Signals>,
    patience: Duration,
    mut greets: impl FnMut() -> Result<(), ConnectionError>,
) -> Result<Reply, ExecError> {
    loop {
        match control.receive_unless(patience, signals) {
            Err(ConnectionError::Silent(_)) => greets()?,
            result => return Ok(result?),
        }
    }
}

/// What the agent is asked for.
fn request(options: &ExecOptions) -> Result<Exec, OptionsError> {
    if let Some(path) = &options.working_directory {
        absolute("--workdir", path)?;
    }
    let all = Capabilities { bounding: all_capabilities(), ambient: 0 };
    Ok(Exec {
        args: options.command.clone(),
        env: options.env.clone(),
        cwd: options.working_directory.clone(),
        user: options.user.clone(),
        terminal: options.terminal,
        has_input: options.interactive && !options.detached,
        is_detached: options.detached,
        capabilities: options.privileged.then_some(all),
    })
}

/// What a further process is called.
pub fn random_id() -> io::Result<String> {
    let mut bytes = [0; 8];
    // So few bytes are never cut short (getrandom(2)).
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(format!("{:016x}", u64::from_ne_bytes(bytes)))
}

/// A connection for each stream, made while the command starts.
fn connect(
    agent: &Agent,
    options: &ExecOptions,
    signals: Option<&Signals>,
) -> Result<Vec<(Stream, Connection)>, ConnectionError> {
    let wanted = [
        (Stream::Stdout, true),
        (Stream::Stderr, options.terminal.is_none()),
        (Stream::Stdin, options.interactive),
    ];
    let wanted = wanted.into_iter().filter(|(_, is_wanted)| *is_wanted);
    wanted.map(|(stream, _)| Ok((stream, agent.open_unless(signals)?))).collect()
}

/// Pipes that report what becomes of a command's streams.
struct Told {
    /// It ends when the outputs have, and has a byte in it when the reader of one has gone.
    outputs: PipeReader,
    /// It has a byte in it when the user has left. Who types may do so for longer than the command runs.
    left: PipeReader,
}

/// Connects the streams with those of this process.
fn pass_streams(
    streams: Vec<(Stream, Connection)>,
    path: &Path,
    id: &str,
    options: &ExecOptions,
) -> Result<Told, ExecError> {
    let host = |source| ExecError::Host { doing: "connect standard input and output", source };
    let (outputs, alive) = io::pipe().map_err(host)?;
    let (left, leaves) = io::pipe().map_err(host)?;
    for (stream, connection) in streams {
        let place = Place { path: path.to_owned(), id: id.to_owned(), stream };
        if stream == Stream::Stdin {
            let input = if options.terminal.is_some() {
                let keys = DetachFilter::new(options.detach_keys.clone());
                Input::Attached(type_ahead(keys, leaves.try_clone().map_err(host)?).map_err(host)?)
            } else {
                Input::Standard
            };
            stdio::pass_input(connection, place, input).map_err(host)?;
            continue;
        }
        let (output, mut alive) =
            (stdio::pass_output(connection, place).map_err(host)?, alive.try_clone().map_err(host)?);
        let wait = move || {
            let result = output.join().unwrap_or(Ok(()));
            if result.is_err_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
                // The other end is read for as long as the command is waited for.
                let _ = alive.write(&[1]);
            }
        };
        Builder::new().name("output".into()).stack_size(64 << 10).spawn(wait).map_err(host)?;
    }
    Ok(Told { outputs, left })
}

/// Reads the terminal on a thread of its own: what is typed can be read from what is returned, but for keys that leave
/// the command. Those are told by `left`.
fn type_ahead(mut keys: DetachFilter, mut left: PipeWriter) -> io::Result<UnixStream> {
    let (mut typed, source) = UnixStream::pair()?;
    let read = move || {
        let mut bytes = [0; 4096];
        loop {
            // Another process may have it not block.
            let _ = poll(&mut [PollFd::new(&io::stdin(), PollFlags::IN)], None);
            let count = match rustix::io::read(io::stdin(), &mut bytes) {
                Ok(count @ 1..) => count,
                Err(Errno::INTR | Errno::AGAIN) => continue,
                Ok(_) | Err(_) => return,
            };
            let mut passed = Vec::new();
            if keys.filter(bytes.get(..count).unwrap_or_default(), &mut passed) {
                // The other end is read for as long as the command is waited for.
                let _ = left.write(&[1]);
                return;
            }
            if typed.write_all(&passed).is_err() {
                return;
            }
        }
    };
    Builder::new().name("terminal".into()).stack_size(64 << 10).spawn(read)?;
    Ok(source)
}

/// A command that runs.
struct Session<'a> {
    control: Connection,
    signals: Option<&'a Signals>,
    id: String,
    has_terminal: bool,
    in_guest: bool,
    /// How many signals have asked it to end.
    asked: u32,
}

impl Session<'_> {
    /// Waits until the command and its outputs have ended, or the user leaves it.
    fn run(mut self, told: &Told) -> Result<Executed, ExecError> {
        let Told { outputs, left } = told;
        let (mut exit, mut is_silent, mut can_leave) = (None, false, true);
        loop {
            let mut fds = Vec::new();
            if exit.is_none() {
                fds.push(PollFd::new(&self.control, PollFlags::IN));
            }
            if !is_silent {
                fds.push(PollFd::new(outputs, PollFlags::IN));
            }
            if can_leave {
                fds.push(PollFd::new(left, PollFlags::IN));
            }
            fds.extend(self.signals.map(|signals| PollFd::new(signals, PollFlags::IN)));
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => {
                    return Err(ExecError::Host { doing: "wait for the command", source: error.into() });
                }
            }
            let mut ready = fds.iter().map(|fd| !fd.revents().is_empty());
            let has_answer = exit.is_none() && ready.next().unwrap_or_default();
            let has_output_ended = !is_silent && ready.next().unwrap_or_default();
            let has_left = can_leave && ready.next().unwrap_or_default();
            drop(fds);
            if has_left {
                if (&*left).read(&mut [0]).is_ok_and(|count| count > 0) {
                    return Ok(Executed::Left);
                }
                can_leave = false;
            }
            if has_output_ended {
                // As any filter whose reader has gone.
                if (&*outputs).read(&mut [0]).is_ok_and(|count| count > 0) {
                    return Err(ExecError::Signal(libc::SIGPIPE));
                }
                is_silent = true;
            }
            self.pass_signals()?;
            if has_answer {
                exit = self.answer()?;
            }
            if let Some(Exit { code, out_of_memory }) = exit
                && is_silent
            {
                return Ok(Executed::Ended(Ended { code, out_of_memory }));
            }
        }
    }

    /// Takes what the agent says: the end of the command.
    fn answer(&mut self) -> Result<Option<Exit>, ExecError> {
        let answer = self.control.receive_some().map_err(|error| match error {
            error if !error.is_closed() => error.into(),
            _ if self.in_guest => ExecError::GuestEnded,
            _ => ExecError::ContainerEnded,
        });
        match answer? {
            Some(Reply::Exited(exit)) => Ok(Some(exit)),
            // Those are about signals; one that comes after the command's end is late.
            None | Some(Reply::Done | Reply::Failed(_)) => Ok(None),
            Some(other) => Err(ConnectionError::Unexpected(format!("{other:?}")).into()),
        }
    }

    fn pass_signals(&mut self) -> Result<(), ExecError> {
        while let Some(signal) = self.signals.and_then(Signals::next) {
            self.asked += u32::from(ENDING.contains(&signal));
            if self.asked >= FORCE {
                return Err(ExecError::Signal(signal));
            }
            let container = self.id.clone();
            let request = if signal == libc::SIGWINCH {
                terminal_size().filter(|_| self.has_terminal).map(|size| Request::Resize { container, size })
            } else {
                u8::try_from(signal).ok().map(|signal| Request::Signal { container, signal })
            };
            if let Some(request) = request {
                self.control.send(&request)?;
            }
        }
        Ok(())
    }
}

/// The size of this process's terminal.
fn terminal_size() -> Option<Size> {
    let size = rustix::termios::tcgetwinsize(io::stdout().as_fd()).ok()?;
    Some(Size { rows: size.ws_row, columns: size.ws_col })
}

#[cfg(test)]
mod tests {
    use agent_protocol::encode;

    use super::*;

    #[test]
    fn what_is_asked_for_is_what_differs_from_the_container() {
        let options = ExecOptions {
            command: vec!["id".into()],
            user: Some("web".into()),
            interactive: true,
            privileged: true,
            ..ExecOptions::default()
        };
        let exec = request(&options).unwrap();
        assert_eq!((exec.user.as_deref(), exec.cwd, exec.has_input), (Some("web"), None, true));
        assert_eq!(exec.capabilities.unwrap().bounding, all_capabilities());
        let detached = request(&ExecOptions { detached: true, ..options.clone() }).unwrap();
        assert!(detached.is_detached && !detached.has_input);
        let error = request(&ExecOptions { working_directory: Some("x".into()), ..options }).unwrap_err();
        assert!(error.to_string().contains("--workdir \"x\" is not an absolute"));
    }

    /// A connection to an agent that has greeted, and its end of it.
    fn greeted() -> (Connection, UnixStream) {
        let (near, mut far) = UnixStream::pair().unwrap();
        far.write_all(&encode(&Reply::Hello { version: agent_protocol::VERSION }).unwrap()).unwrap();
        (Connection::greet(near).unwrap(), far)
    }

    #[test]
    fn an_agent_that_is_busy_is_waited_for_as_long_as_it_greets() {
        let short = Duration::from_millis(20);
        let (mut control, mut far) = greeted();
        let mut greetings = 0;
        let reply = started_within(&mut control, None, short, || {
            greetings += 1;
            if greetings == 3 {
                far.write_all(&encode(&Reply::Started).unwrap()).unwrap();
            }
            Ok(())
        });
        assert!(matches!(reply, Ok(Reply::Started)), "{reply:?}");
        assert!(greetings >= 3);
        let error = started_within(&mut control, None, short, || Err(ConnectionError::NoAnswer)).unwrap_err();
        assert_eq!(error.to_string(), "the agent does not answer");
        drop(far);
        let error = started_within(&mut control, None, short, || Ok(())).unwrap_err();
        assert_eq!(error.to_string(), "the agent closed the connection");
    }

    #[test]
    fn a_vm_without_a_device_for_its_agent_gets_a_line() {
        let directory = tempfile::tempdir().unwrap();
        let error = exec(directory.path(), "c", &ExecOptions::default(), None).unwrap_err();
        assert!(matches!(error, ExecError::NoDevice(_)), "{error}");
    }
}
