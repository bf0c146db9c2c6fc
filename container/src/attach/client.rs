//! The side of one who is attached.

use std::io::{self, IsTerminal, PipeWriter, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::Builder;
use std::time::Duration;

use agent_protocol::{Decoder, FrameError, Size, encode};
use instance::console::{RawTerminal, in_foreground, take_terminal};
use instance::{ENDING, Signals};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use thiserror::Error;

use super::keys::{DetachFilter, DetachKeys};
use super::server::socket;
use super::{CHUNK, FromKeeper, ToKeeper, VERSION};

/// How long the keeper has to answer.
const ANSWER: Duration = Duration::from_secs(10);
/// What is read of standard input and not sent yet, at most.
const TYPED_AHEAD: usize = 64 << 10;
/// How often a process in the background looks whether it has been given the terminal.
const LOOK_AGAIN: Timespec = Timespec { tv_sec: 0, tv_nsec: 300_000_000 };
/// As many signals that ask the container to end end the wait for it.
const FORCE: u32 = 3;

/// Why one can't be attached.
#[derive(Debug, Error)]
pub enum AttachError {
    /// Its keeper does not listen.
    #[error("cannot connect to the process that keeps it")]
    Connect(#[source] io::Error),
    /// The keeper is another version.
    #[error(
        "its keeper's messages have version {0}, and this mvm knows {VERSION} only: use the mvm that has started it"
    )]
    Version(u32),
    /// There are as many as there can be.
    #[error("{0} others are attached to it, which is the most: detach one of them first")]
    Full(usize),
    /// What the keeper says can't be understood.
    #[error("its keeper sent an invalid message: {0}")]
    Message(String),
    /// Standard input is no terminal, and the container has one.
    #[error(
        "the input device is not a TTY, and the container has a terminal: run mvm on one, or use --no-stdin"
    )]
    NotATerminal,
    /// The host can't do it.
    #[error("cannot {doing}")]
    Host {
        /// What was being done.
        doing: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl From<FrameError> for AttachError {
    fn from(error: FrameError) -> Self {
        Self::Message(error.to_string())
    }
}

/// Which streams are connected. With the input alone, the wait ends with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttachStreams {
    /// Standard input is passed on.
    pub input: bool,
    /// The container's output is written.
    pub output: bool,
    /// What it writes to standard error is.
    pub errors: bool,
}

impl AttachStreams {
    fn has_output(self) -> bool {
        self.output || self.errors
    }
}

/// How one is attached.
#[derive(Clone, Debug)]
pub struct AttachOptions {
    /// What is connected.
    pub streams: AttachStreams,
    /// Typed at a terminal, they detach.
    pub detach_keys: DetachKeys,
}

/// Why one is attached no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attached {
    /// The container has ended.
    Ended {
        /// With this exit code.
        code: u8,
        /// What there is to say of it.
        text: String,
    },
    /// The user has left it; it runs on.
    ByUser,
    /// There is no more input, and no output is asked for; it runs on.
    InputEnd,
    /// Signals have ended the wait; it runs on.
    Signal(i32),
    /// Its keeper was killed.
    Lost,
}

/// Connects to the keeper of the container whose VM's directory is `directory`.
///
/// # Errors
///
/// [`AttachError::Connect`].
pub fn connect(directory: &Path) -> Result<UnixStream, AttachError> {
    UnixStream::connect(socket(directory)).map_err(AttachError::Connect)
}

/// Connects this process's standard input and output with those of the container behind `socket`, until it ends or the
/// user leaves it. `signals` are taken already; `pass` passes one on and says whether that can be done.
///
/// # Errors
///
/// [`AttachError`]; the terminal is as it was.
pub fn attach(
    socket: UnixStream,
    options: AttachOptions,
    signals: &Signals,
    pass: impl Fn(i32) -> bool,
) -> Result<Attached, AttachError> {
    let host = |doing| move |source| AttachError::Host { doing, source };
    instance::ignore_limits_and_terminal();
    let mut reader =
        Reader { socket: socket.try_clone().map_err(host("use a socket"))?, decoder: Decoder::default() };
    let (has_terminal, has_input) = reader.greet()?;
    let streams = options.streams;
    let reads_input = streams.input && has_input;
    if !reads_input && !streams.has_output() {
        return Ok(Attached::InputEnd);
    }
    if has_terminal && reads_input && !io::stdin().is_terminal() {
        return Err(AttachError::NotATerminal);
    }
    // Without input, Ctrl-C is a signal to this process, which passes it on.
    let raw = if has_terminal && reads_input { RawTerminal::enter_for_output() } else { Ok(None) };
    let raw = raw.map_err(host("set up the terminal"))?;
    let is_terminal = io::stdin().is_terminal();
    let (ended, end) = io::pipe().map_err(host("make a pipe"))?;
    let (results, result) = channel();
    let copy = move || copy(reader, streams, &results, end);
    Builder::new().name("output".into()).stack_size(256 << 10).spawn(copy).map_err(host("start a thread"))?;
    let mut session = Session {
        socket,
        has_terminal,
        reads: reads_input,
        waits: streams.has_output(),
        is_terminal,
        foreground: !is_terminal || in_foreground(),
        filter: (has_terminal && is_terminal).then(|| DetachFilter::new(options.detach_keys)),
        to_send: Vec::new(),
        asked: 0,
    };
    session.resize();
    let left = session.run(signals, &ended, &result, pass);
    drop(raw);
    left.map_err(host("wait for the container"))
}

/// Reads what the keeper says.
struct Reader {
    socket: UnixStream,
    decoder: Decoder,
}

impl Reader {
    /// Whether the container has a terminal, and gets input.
    fn greet(&mut self) -> Result<(bool, bool), AttachError> {
        self.socket.set_read_timeout(Some(ANSWER)).map_err(AttachError::Connect)?;
        let greeting = self.next()?;
        self.socket.set_read_timeout(None).map_err(AttachError::Connect)?;
        match greeting {
            Some(FromKeeper::Hello { version: VERSION, has_terminal, has_input }) => {
                Ok((has_terminal, has_input))
            }
            Some(FromKeeper::Hello { version, .. }) => Err(AttachError::Version(version)),
            Some(FromKeeper::Full { clients }) => Err(AttachError::Full(clients)),
            Some(other) => Err(AttachError::Message(format!("{other:?}").chars().take(100).collect())),
            None => Err(AttachError::Connect(io::ErrorKind::UnexpectedEof.into())),
        }
    }

    /// The next message; `None` at the end.
    fn next(&mut self) -> Result<Option<FromKeeper>, AttachError> {
        let mut bytes = vec![0; CHUNK];
        loop {
            if let Some(message) = self.decoder.take()? {
                return Ok(Some(message));
            }
            match self.socket.read(&mut bytes) {
                Ok(0) => return Ok(None),
                Ok(count) => self.decoder.push(bytes.get(..count).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(AttachError::Connect(error)),
            }
        }
    }
}

/// Writes output until there is no more, and sends why. Dropping `_end` tells that it has.
fn copy(mut reader: Reader, streams: AttachStreams, results: &Sender<Attached>, _end: PipeWriter) {
    let result = loop {
        let written = match reader.next() {
            Ok(Some(FromKeeper::Output(_))) if !streams.output => Ok(()),
            Ok(Some(FromKeeper::Errors(_))) if !streams.errors => Ok(()),
            Ok(Some(FromKeeper::Output(bytes))) => write(io::stdout(), &bytes),
            Ok(Some(FromKeeper::Errors(bytes))) => write(io::stderr(), &bytes),
            Ok(Some(FromKeeper::Ended { code, text })) => break Attached::Ended { code, text },
            Ok(Some(FromKeeper::Hello { .. } | FromKeeper::Full { .. })) => Ok(()),
            Ok(None) | Err(_) => break Attached::Lost,
        };
        // As any filter whose reader has gone.
        if written.is_err() {
            break Attached::Signal(libc::SIGPIPE);
        }
    };
    let _ = results.send(result);
}

fn write(mut target: impl Write, bytes: &[u8]) -> io::Result<()> {
    target.write_all(bytes).and_then(|()| target.flush())
}

struct Session {
    socket: UnixStream,
    has_terminal: bool,
    /// Standard input is read, and has not ended.
    reads: bool,
    /// It is waited until the container ends, and not for the end of the input.
    waits: bool,
    /// Standard input is a terminal.
    is_terminal: bool,
    /// The terminal is this process's to read.
    foreground: bool,
    filter: Option<DetachFilter>,
    /// Messages that were not sent yet.
    to_send: Vec<u8>,
    /// How many signals have asked it to end.
    asked: u32,
}

impl Session {
    fn run(
        &mut self,
        signals: &Signals,
        ended: &impl AsFd,
        result: &Receiver<Attached>,
        pass: impl Fn(i32) -> bool,
    ) -> io::Result<Attached> {
        loop {
            let mut fds = vec![PollFd::new(signals, PollFlags::IN), PollFd::new(ended, PollFlags::IN)];
            let stdin = io::stdin();
            let reads = self.reads && self.foreground && self.to_send.len() < TYPED_AHEAD;
            if reads {
                fds.push(PollFd::new(&stdin, PollFlags::IN));
            }
            // Otherwise its hang-up would be reported again and again: the thread of the output sees it.
            if !self.to_send.is_empty() {
                fds.push(PollFd::new(&self.socket, PollFlags::OUT));
            }
            let look = (!self.foreground).then_some(LOOK_AGAIN);
            match poll(&mut fds, look.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let has_ended = fds.get(1).is_some_and(|fd| !fd.revents().is_empty());
            let is_typed = reads && fds.get(2).is_some_and(|fd| !fd.revents().is_empty());
            drop(fds);
            if has_ended {
                return Ok(result.recv().unwrap_or(Attached::Lost));
            }
            while let Some(signal) = signals.next() {
                if let Some(left) = self.take_signal(signal, &pass) {
                    return Ok(left);
                }
            }
            if self.is_terminal && !self.foreground {
                self.foreground = take_terminal()?;
            }
            if is_typed && self.read() {
                return Ok(Attached::ByUser);
            }
            self.flush();
            if !self.waits && !self.reads && self.to_send.is_empty() {
                return Ok(Attached::InputEnd);
            }
        }
    }

    fn take_signal(&mut self, signal: i32, pass: impl Fn(i32) -> bool) -> Option<Attached> {
        if signal == libc::SIGWINCH {
            self.resize();
            return None;
        }
        self.asked += u32::from(ENDING.contains(&signal));
        (!pass(signal) || self.asked > FORCE).then_some(Attached::Signal(signal))
    }

    fn push(&mut self, message: &ToKeeper) {
        self.to_send.extend(encode(message).unwrap_or_default());
    }

    /// Tells the size of this process's terminal.
    fn resize(&mut self) {
        let size = rustix::termios::tcgetwinsize(io::stdout()).ok().filter(|_| self.has_terminal);
        if let Some(size) = size {
            self.push(&ToKeeper::Resize(Size { rows: size.ws_row, columns: size.ws_col }));
        }
    }

    /// Takes what was typed; whether the user wants to leave.
    fn read(&mut self) -> bool {
        if self.is_terminal && !in_foreground() {
            self.foreground = false;
            return false;
        }
        let mut bytes = [0; 4096];
        let typed = match rustix::io::read(io::stdin(), &mut bytes) {
            Ok(count @ 1..) => bytes.get(..count).unwrap_or_default(),
            Err(Errno::AGAIN | Errno::INTR) => return false,
            Ok(_) | Err(_) => {
                self.reads = false;
                self.push(&ToKeeper::InputEnd);
                return false;
            }
        };
        let mut passed = Vec::new();
        let leaves = match &mut self.filter {
            Some(filter) => filter.filter(typed, &mut passed),
            None => {
                passed.extend_from_slice(typed);
                false
            }
        };
        if !passed.is_empty() {
            self.push(&ToKeeper::Input(passed));
        }
        leaves
    }

    /// Sends what the socket takes. Where the keeper has gone, that shows as the output's end.
    fn flush(&mut self) {
        if self.to_send.is_empty() {
            return;
        }
        match send(&self.socket, &self.to_send, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(count) => drop(self.to_send.drain(..count.min(self.to_send.len()))),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => {
                self.to_send.clear();
                self.reads = false;
            }
        }
    }
}
