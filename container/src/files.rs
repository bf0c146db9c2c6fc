//! Files of containers, which the agent reads and writes.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use agent_protocol::{
    COPIES, CopyWhat, Failure, FailureKind, FileInfo, PieceReader, PieceWriter, Reply, Request,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use thiserror::Error;

use crate::agent::{Agent, NoDevice};
use crate::connection::{Connection, ConnectionError};

/// How long the agent may take for the next bytes of a stream, or to take some.
const SILENCE: Duration = Duration::from_secs(60);

/// Why files can't be copied.
#[derive(Debug, Error)]
pub enum FilesError {
    /// A VM, where a container is needed.
    #[error("it is a VM, and not a container: `mvm cp` copies its files")]
    NotAContainer,
    /// A VM without a way to an agent.
    #[error(transparent)]
    NoDevice(#[from] NoDevice),
    /// The agent can't be talked to.
    #[error(transparent)]
    Connection(Box<dyn std::error::Error + Send + Sync>),
    /// An agent of an earlier version.
    #[error("it was started by an older mvm, whose agent can't copy files: start it again")]
    TooOld,
    /// There is no such file.
    #[error("{0}")]
    NotFound(String),
    /// The agent could not do it.
    #[error("{0}")]
    Failed(String),
    /// It ended before it said how it went.
    #[error("the copy ended early: the container or VM has ended, or has no memory left")]
    EndedEarly,
}

impl From<ConnectionError> for FilesError {
    fn from(error: ConnectionError) -> Self {
        match error {
            ConnectionError::Closed => Self::EndedEarly,
            ConnectionError::Io(source) if source.kind() == ErrorKind::ConnectionReset => Self::EndedEarly,
            error => Self::Connection(Box::new(error)),
        }
    }
}

impl From<Failure> for FilesError {
    fn from(Failure { kind, message }: Failure) -> Self {
        match kind {
            FailureKind::NotFound => Self::NotFound(message),
            FailureKind::NotExecutable | FailureKind::Other => Self::Failed(message),
        }
    }
}

/// The files of a container, or of a VM's guest, that runs.
#[derive(Clone, Debug)]
pub struct Files {
    agent: Agent,
}

impl Files {
    /// Those of the container `container` of the VM whose directory is `directory`, or of the guest of a VM of `mvm
    /// boot`.
    ///
    /// # Errors
    ///
    /// [`FilesError::NoDevice`].
    pub fn of(directory: &Path, container: &str) -> Result<Self, FilesError> {
        Ok(Self { agent: Agent::find(directory, container)? })
    }

    /// Asks for something; the connection and the first answer.
    fn ask(&self, what: CopyWhat) -> Result<(Connection, Reply), FilesError> {
        let mut connection = self.agent.open()?;
        if !connection.has_version(COPIES) {
            return Err(FilesError::TooOld);
        }
        connection.send(&Request::Copy { container: self.agent.container.clone(), what })?;
        match connection.receive_within(SILENCE)? {
            Reply::Failed(failure) => Err(failure.into()),
            reply => Ok((connection, reply)),
        }
    }

    /// What is at a path of the container's root; `None` where nothing is.
    ///
    /// # Errors
    ///
    /// [`FilesError`].
    pub fn look(&self, path: &[u8]) -> Result<Option<FileInfo>, FilesError> {
        match self.ask(CopyWhat::Look { path: path.to_vec() }) {
            Ok((_, Reply::Found(info))) => Ok(Some(info)),
            Err(FilesError::NotFound(_)) => Ok(None),
            Ok((_, other)) => Err(unexpected(&other)),
            Err(error) => Err(error),
        }
    }

    /// A tar stream of what is at a path, which is called `name` in it.
    ///
    /// # Errors
    ///
    /// [`FilesError`].
    pub fn read(&self, path: &[u8], name: &[u8], sparse: bool) -> Result<(FileInfo, Incoming), FilesError> {
        let what = CopyWhat::Read { path: path.to_vec(), name: name.to_vec(), sparse };
        match self.ask(what)? {
            (connection, Reply::Found(info)) => Ok((info, Incoming::new(connection)?)),
            (_, other) => Err(unexpected(&other)),
        }
    }

    /// What the container has changed, as [`CopyWhat::Changes`] says.
    ///
    /// # Errors
    ///
    /// [`FilesError`].
    pub fn changes(&self) -> Result<Incoming, FilesError> {
        self.stream(CopyWhat::Changes)
    }

    /// The same as a layer of an image; the container's processes stand still meanwhile if it `pauses`.
    ///
    /// # Errors
    ///
    /// [`FilesError`].
    pub fn layer(&self, pauses: bool) -> Result<Incoming, FilesError> {
        self.stream(CopyWhat::Layer { pauses })
    }

    /// A tar stream of the container's root, without what is mounted in it.
    ///
    /// # Errors
    ///
    /// [`FilesError`].
    pub fn root(&self) -> Result<Incoming, FilesError> {
        self.stream(CopyWhat::Root)
    }

    fn stream(&self, what: CopyWhat) -> Result<Incoming, FilesError> {
        match self.ask(what)? {
            (connection, Reply::Started) => Incoming::new(connection),
            (_, other) => Err(unexpected(&other)),
        }
    }

    /// Takes a tar stream, which is unpacked in the directory `path`; `to_user`, the files belong to the container's
    /// user.
    ///
    /// # Errors
    ///
    /// [`FilesError`].
    pub fn write(&self, path: &[u8], to_user: bool) -> Result<Outgoing, FilesError> {
        match self.ask(CopyWhat::Write { path: path.to_vec(), to_user })? {
            (connection, Reply::Started) => {
                let socket = connection.into_socket();
                socket.set_write_timeout(Some(SILENCE)).map_err(ConnectionError::from)?;
                let taken = Taken { socket, has_answer: false };
                Ok(Outgoing { pieces: PieceWriter::new(taken) })
            }
            (_, other) => Err(unexpected(&other)),
        }
    }
}

fn unexpected(reply: &Reply) -> FilesError {
    ConnectionError::Unexpected(format!("{reply:?}")).into()
}

/// The agent's last answer, which says how a stream went, however slowly it comes.
fn last_answer(socket: UnixStream, limit: Duration) -> Result<(), FilesError> {
    match Connection::behind_stream(socket).receive_within(limit)? {
        Reply::Done => Ok(()),
        Reply::Failed(failure) => Err(failure.into()),
        other => Err(unexpected(&other)),
    }
}

/// A stream that comes from a container.
pub struct Incoming {
    pieces: PieceReader<UnixStream>,
}

impl Incoming {
    fn new(connection: Connection) -> Result<Self, FilesError> {
        let socket = connection.into_socket();
        socket.set_read_timeout(Some(SILENCE)).map_err(ConnectionError::from)?;
        Ok(Self { pieces: PieceReader::new(socket) })
    }

    /// Waits for how it went, after all of the stream was read. An error of its end is seen again.
    ///
    /// # Errors
    ///
    /// [`FilesError`].
    pub fn finish(mut self) -> Result<(), FilesError> {
        match io::copy(&mut (&mut self).take(1), &mut io::sink()) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Err(FilesError::EndedEarly),
            Err(error) => Err(ConnectionError::from(error).into()),
            Ok(0) => last_answer(self.pieces.into_inner(), SILENCE),
            Ok(_) => Err(ConnectionError::Unexpected("more of a stream than was read".into()).into()),
        }
    }
}

impl Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.pieces.read(buffer)
    }
}

/// The socket of a stream that goes to a container, as long as the agent takes it.
struct Taken {
    socket: UnixStream,
    /// The agent has said something before the end of the stream: it takes no more.
    has_answer: bool,
}

impl Write for Taken {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.has_answer = self.has_answer || has_answer(&self.socket)?;
        if self.has_answer {
            return Err(ErrorKind::BrokenPipe.into());
        }
        self.socket.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether the agent has said something.
fn has_answer(socket: &UnixStream) -> io::Result<bool> {
    let mut fds = [PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    Ok(poll(&mut fds, Some(&now))? > 0)
}

/// A tar stream that goes to a container.
pub struct Outgoing {
    pieces: PieceWriter<Taken>,
}

impl Outgoing {
    /// Ends the stream, and waits until it is unpacked. It is asked for after an error of a write too: it says why.
    ///
    /// # Errors
    ///
    /// [`FilesError`].
    pub fn finish(self) -> Result<(), FilesError> {
        let socket = self.pieces.get_ref().socket.try_clone().map_err(ConnectionError::from)?;
        // Where that fails, there is an answer that says why, or the connection's end.
        let _ = self.pieces.finish();
        // What was written is put on the disk's way: that takes its time on a slow one.
        last_answer(socket, SILENCE)
    }

    /// Gives the stream up: what has come of it stays.
    pub fn abort(self) {
        let _ = self.pieces.get_ref().socket.shutdown(std::net::Shutdown::Both);
    }
}

impl Write for Outgoing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.pieces.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.pieces.flush()
    }
}

#[cfg(test)]
#[path = "files_tests.rs"]
mod tests;
