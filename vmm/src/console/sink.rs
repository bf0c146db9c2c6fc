//! Where the console's output is written to: standard output or a file, either of which may block.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::ConsoleError;
use super::file::{ConsoleFile, ConsoleKeeper};
use crate::ConsoleConfig;

/// An open descriptor to write to.
pub enum Sink {
    /// Standard output. When its reader has gone, the VM ends as a filter does.
    Standard(BorrowedFd<'static>),
    /// A file.
    File(ConsoleFile),
}

impl Sink {
    /// Opens what `config` names; `None` for a console that goes nowhere.
    ///
    /// # Errors
    ///
    /// [`ConsoleError::Open`].
    pub fn open(config: &ConsoleConfig) -> Result<Option<Self>, ConsoleError> {
        match config {
            ConsoleConfig::Stdio | ConsoleConfig::Virtio => Ok(Some(Self::Standard(rustix::stdio::stdout()))),
            ConsoleConfig::Off => Ok(None),
            ConsoleConfig::File(path) => match ConsoleFile::open(path) {
                Ok(file) => Ok(Some(Self::File(file))),
                Err(source) => Err(ConsoleError::Open { path: path.clone(), source }),
            },
        }
    }

    /// The same, whose file's successors are made by `keeper`.
    pub(crate) fn kept_by(self, keeper: Box<dyn ConsoleKeeper>) -> Self {
        match self {
            Self::File(file) => Self::File(file.kept_by(keeper)),
            standard @ Self::Standard(_) => standard,
        }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Standard(fd) => *fd,
            Self::File(file) => file.as_fd(),
        }
    }

    /// Whether `error` says that the reader of standard output has gone, and the VM has to end.
    pub(super) fn has_lost_its_reader(&self, error: &io::Error) -> bool {
        matches!(self, Self::Standard(_)) && error.kind() == io::ErrorKind::BrokenPipe
    }

    /// Writes from the front of `bytes`, and waits as long as that takes. A descriptor that does not block was made
    /// so by others who share it, and is not changed: they may outlive mvm.
    ///
    /// # Errors
    ///
    /// Those of writing.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Self::File(file) = self {
            file.make_room(bytes.len())?;
        }
        loop {
            match rustix::io::write(self.fd(), bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    if let Self::File(file) = self {
                        file.written(written);
                    }
                    return Ok(written);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    poll(&mut [PollFd::new(&self.fd(), PollFlags::OUT)], None)?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}
