//! Further commands in a container that runs, which may be another process's.

use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::Builder;
use std::time::Duration;

use agent_protocol::{Capabilities, Exec, Exit, Failure, FailureKind, Reply, Request, Size, Stream, Usage};
use instance::{ENDING, Signals};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use thiserror::Error;

use crate::attach::{DetachFilter, Input};
use crate::connection::{Connection, ConnectionError};
use crate::machine::VSOCK;
use crate::options::{ExecOptions, OptionsError};
use crate::run::Ended;
use crate::spec::{absolute, all_capabilities};
use crate::stdio;
use crate::streams::Place;

/// As many signals that ask a command to end end the wait for it.
const FORCE: u32 = 3;

/// How long the agent has to connect and how long to say what a container uses: what shows it goes on without.
const USAGE: Duration = Duration::from_secs(1);

/// Why a command did not run to its end.
#[derive(Debug, Error)]
pub enum ExecError {
    /// An option.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// A VM without an agent.
    #[error("it is a VM, and not a container: `mvm console` attaches to its console")]
    NotAContainer,
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
    /// Signals ended the wait; the command may run on.
    #[error("ended by signal {0}, while the command runs on")]
    Signal(i32),
}

impl From<ConnectionError> for ExecError {
    fn from(error: ConnectionError) -> Self {
        Self::Connection(Box::new(error))
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

/// Runs a command in the container `container` of the VM whose directory is `directory`, with this process's standard
/// input and output, until it ends; one that is detached, until it has started. `signals` are passed on to it.
///
/// # Errors
///
/// [`ExecError`].
pub fn exec(
    directory: &Path,
    container: &str,
    options: &ExecOptions,
    signals: Option<&Signals>,
) -> Result<Ended, ExecError> {
    let exec = request(options)?;
    let path = directory.join(VSOCK);
    if !path.exists() {
        return Err(ExecError::NotAContainer);
    }
    let host = |doing| move |source| ExecError::Host { doing, source };
    let id = random_id().map_err(host("draw a random ID"))?;
    let mut control = Connection::open(&path)?;
    let request = Request::Exec { container: container.to_owned(), id: id.clone(), exec: Box::new(exec) };
    control.send(&request)?;
    let streams = if options.detached { Vec::new() } else { connect(&path, options)? };
    control.set_deadline(true)?;
    match control.receive()? {
        Reply::Started => {}
        Reply::Failed(failure) => return Err(failure.into()),
        other => return Err(ConnectionError::Unexpected(format!("{other:?}")).into()),
    }
    control.set_deadline(false)?;
    if options.detached {
        return Ok(Ended { code: 0, out_of_memory: false });
    }
    let told = pass_streams(streams, &path, &id, options)?;
    let session = Session { control, signals, id, has_terminal: options.terminal.is_some(), asked: 0 };
    session.run(&told)
}

/// Sends a signal to the first process of the container `container` of the VM whose directory is `directory`.
///
/// # Errors
///
/// [`ExecError`]: the agent does not answer, or it has no such container yet or any more.
pub fn send_signal(directory: &Path, container: &str, signal: u8) -> Result<(), ExecError> {
    let mut control = Connection::open(&directory.join(VSOCK))?.with_patience()?;
    control.send(&Request::Signal { container: container.to_owned(), signal })?;
    match control.receive()? {
        Reply::Done => Ok(()),
        Reply::Failed(failure) => Err(failure.into()),
        other => Err(ConnectionError::Unexpected(format!("{other:?}")).into()),
    }
}

/// How long the processes of a container may take to stand still: one that waits for a disk does so when that has answered.
const FREEZE: Duration = Duration::from_secs(10);

/// Has the container `container` of a pod whose VM's directory, or its own, is `directory` stand still, or go on.
///
/// # Errors
///
/// [`ExecError`]: the agent does not answer, or has no such container.
pub fn freeze(directory: &Path, container: &str, freezes: bool) -> Result<(), ExecError> {
    let mut control = Connection::open(&directory.join(VSOCK))?.with_patience()?;
    control.send(&Request::Freeze { container: container.to_owned(), freezes })?;
    match control.receive_within(FREEZE)? {
        Reply::Done => Ok(()),
        Reply::Failed(failure) => Err(failure.into()),
        other => Err(ConnectionError::Unexpected(format!("{other:?}")).into()),
    }
}

/// Whether it stands still. It is not waited for longer than a second.
///
/// # Errors
///
/// As [`freeze`].
pub fn is_frozen(directory: &Path, container: &str) -> Result<bool, ExecError> {
    let mut control = Connection::open_within(&directory.join(VSOCK), USAGE)?;
    control.send(&Request::IsFrozen { container: container.to_owned() })?;
    match control.receive_within(USAGE)? {
        Reply::Frozen(is_frozen) => Ok(is_frozen),
        Reply::Failed(failure) => Err(failure.into()),
        other => Err(ConnectionError::Unexpected(format!("{other:?}")).into()),
    }
}

/// What the container `container` of the VM whose directory is `directory` uses.
///
/// # Errors
///
/// [`ExecError`]: the agent does not answer within a second, does not know the question, or has no such container.
pub fn usage(directory: &Path, container: &str) -> Result<Usage, ExecError> {
    let mut control = Connection::open_within(&directory.join(VSOCK), USAGE)?;
    control.send(&Request::Usage { container: container.to_owned() })?;
    match control.receive_within(USAGE)? {
        Reply::Usage(usage) => Ok(usage),
        Reply::Failed(failure) => Err(failure.into()),
        other => Err(ConnectionError::Unexpected(format!("{other:?}")).into()),
    }
}

/// Sets the size of the terminal of the container `container` of the VM whose directory is `directory`.
///
/// # Errors
///
/// [`ExecError`]: the agent does not answer.
pub fn resize(directory: &Path, container: &str, size: Size) -> Result<(), ExecError> {
    let mut control = Connection::open(&directory.join(VSOCK))?.with_patience()?;
    Ok(control.send(&Request::Resize { container: container.to_owned(), size })?)
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
fn connect(path: &Path, options: &ExecOptions) -> Result<Vec<(Stream, Connection)>, ConnectionError> {
    let wanted = [
        (Stream::Stdout, true),
        (Stream::Stderr, options.terminal.is_none()),
        (Stream::Stdin, options.interactive),
    ];
    let wanted = wanted.into_iter().filter(|(_, is_wanted)| *is_wanted);
    wanted.map(|(stream, _)| Ok((stream, Connection::open(path)?))).collect()
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

/// Reads the terminal on a thread of its own: what is typed can be read from what is returned, but for keys that leave the
/// command. Those are told by `left`.
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
    /// How many signals have asked it to end.
    asked: u32,
}

impl Session<'_> {
    /// Waits until the command and its outputs have ended.
    fn run(mut self, told: &Told) -> Result<Ended, ExecError> {
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
                    return Ok(Ended { code: 0, out_of_memory: false });
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
                return Ok(Ended { code, out_of_memory });
            }
        }
    }

    /// Takes what the agent says: the end of the command.
    fn answer(&mut self) -> Result<Option<Exit>, ExecError> {
        let answer = self.control.receive_some().map_err(|error| match error {
            ConnectionError::Closed => ExecError::ContainerEnded,
            ConnectionError::Io(source) if source.kind() == io::ErrorKind::ConnectionReset => {
                ExecError::ContainerEnded
            }
            error => error.into(),
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

    #[test]
    fn a_vm_without_a_socket_for_its_agent_is_no_container() {
        let directory = tempfile::tempdir().unwrap();
        let error = exec(directory.path(), "c", &ExecOptions::default(), None).unwrap_err();
        assert!(matches!(error, ExecError::NotAContainer));
    }
}
