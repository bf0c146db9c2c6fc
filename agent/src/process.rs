//! A process of a container, from its start to the end of what it wrote.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use agent_protocol::{Decoder, Exit, Failure, FailureKind, Reply, Stream};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{Pid, Signal, kill_process};

use crate::child::{LAYERS, MAX_SETUP};
use crate::container::{Home, Started};
use crate::error::{During, Result, failure};
use crate::mounts::Layers;
use crate::streams::{ConnectionId, Input, Output};

/// What a process is to its container.
pub enum Role {
    /// Its first, with which it ends, and what the others need of it.
    First(Box<Home>),
    /// Another of the container with this ID.
    Further(String),
}

/// A process.
pub struct Running {
    pub role: Role,
    /// Until it has ended.
    pub pid: Option<Pid>,
    /// How it ended.
    pub exit: Option<Exit>,
    /// Until the process is the user's command.
    pub setup: Option<OwnedFd>,
    pub failure: Option<Failure>,
    pub terminal: Option<OwnedFd>,
    pub input: Input,
    pub output: Output,
    pub errors: Output,
    /// The connection that gets the answers about its start and its end.
    pub control: ConnectionId,
    /// It ends with that connection, as it is one of several containers in the VM.
    pub is_in_pod: bool,
    /// What it writes is not read any more.
    is_left: bool,
}

impl Running {
    pub fn new(started: Started, role: Role, control: ConnectionId) -> Self {
        let Started { pid, setup, input, output, errors } = started;
        Self {
            role,
            pid: Some(pid),
            exit: None,
            setup: Some(setup),
            failure: None,
            terminal: None,
            input: Input::new(input),
            output: Output::new(output),
            errors: Output::new(errors),
            control,
            is_in_pod: false,
            is_left: false,
        }
    }

    /// The same, as one of several containers in the VM.
    pub fn in_pod(self) -> Self {
        Self { is_in_pod: true, ..self }
    }

    pub fn output_mut(&mut self, stream: Stream) -> Option<&mut Output> {
        match stream {
            Stream::Stdin => None,
            Stream::Stdout => Some(&mut self.output),
            Stream::Stderr => Some(&mut self.errors),
        }
    }

    /// Whether it is the user's command, and has not ended.
    pub fn is_command(&self) -> bool {
        self.pid.is_some() && self.setup.is_none() && self.failure.is_none()
    }

    /// Makes `connection` that of a stream; the one before, and the position from which the stream goes on.
    pub fn attach(
        &mut self,
        connection: ConnectionId,
        stream: Stream,
        position: u64,
    ) -> Result<(Option<ConnectionId>, u64)> {
        if self.setup.is_some() {
            return Err(failure("the process has not started yet".into()));
        }
        let (position, place) = match stream {
            Stream::Stdin => (self.input.resume(), &mut self.input.connection),
            Stream::Stdout => (self.output.resume(position), &mut self.output.connection),
            Stream::Stderr => (self.errors.resume(position), &mut self.errors.connection),
        };
        let position = position.ok_or_else(|| failure(format!("{stream:?} cannot go on from there")))?;
        Ok((place.replace(connection), position))
    }

    /// Has its streams begin anew, for another host.
    pub fn begin_anew(&mut self) {
        self.input.begin_anew();
        self.output.begin_anew();
        self.errors.begin_anew();
    }

    /// Sends it a signal.
    pub fn signal(&self, name: &str, number: u8) -> Result<()> {
        let pid = self.pid.ok_or_else(|| failure(format!("{name} has ended")))?;
        let signal = (1..=64).contains(&number).then_some(i32::from(number));
        let signal = signal.ok_or_else(|| failure(format!("there is no signal {number}")))?;
        // SAFETY: it is the number of a signal.
        let signal = unsafe { Signal::from_raw_unchecked(signal) };
        kill_process(pid, signal).during(format!("send signal {number}"))
    }

    /// The host has gone: a further process runs on without it, unless it has not begun, as no process knows of it
    /// then; a first one runs until the host is there again.
    pub fn leave(&mut self) {
        if matches!(self.role, Role::Further(_)) {
            if let Some(pid) = self.pid.filter(|_| self.setup.is_some()) {
                let _ = kill_process(pid, Signal::KILL);
            }
            self.is_left = true;
            self.input.end();
            self.output.drop_all();
            self.errors.drop_all();
        }
    }

    /// Takes what it says before it is the user's command; the answer for the host, if any.
    pub fn set_up(&mut self) -> Option<Reply> {
        let setup = self.setup.as_ref()?;
        let mut bytes = [0; MAX_SETUP];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC;
        let count = match recvmsg(setup, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, flags) {
            Ok(received) => received.bytes,
            Err(Errno::AGAIN | Errno::INTR) => return None,
            Err(_) => 0,
        };
        if count == 0 {
            self.setup = None;
            return Some(self.failure.clone().map_or(Reply::Started, Reply::Failed));
        }
        let mut sent = ancillary.drain().flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => fds.collect(),
            _ => Vec::new(),
        });
        match (sent.next(), sent.next()) {
            (Some(changes), Some(image)) if bytes.first() == Some(&LAYERS) => {
                if let Role::First(home) = &mut self.role {
                    home.layers = Some(Layers { changes, image });
                }
                return None;
            }
            (Some(terminal), _) => {
                self.take_terminal(terminal);
                return None;
            }
            _ => {}
        }
        let mut decoder = Decoder::default();
        decoder.push(bytes.get(..count).unwrap_or_default());
        let failure = decoder.take::<Failure>().ok().flatten();
        self.failure = failure.or_else(|| {
            let message = "the process that sets it up says what cannot be understood".to_owned();
            Some(Failure { kind: FailureKind::Other, message })
        });
        None
    }

    /// Input and output are those of the terminal.
    fn take_terminal(&mut self, terminal: OwnedFd) {
        let _ = rustix::io::ioctl_fionbio(&terminal, true);
        let copy = || terminal.try_clone().ok();
        let attached = (self.input.connection, self.output.connection);
        self.input = Input::new(copy());
        self.output = Output::new(copy());
        (self.input.connection, self.output.connection) = attached;
        self.terminal = Some(terminal);
        if self.is_left {
            self.leave();
        }
    }
}
