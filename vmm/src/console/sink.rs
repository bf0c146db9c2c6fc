//! Where the console's output is written to: standard output or a file, either of which may block.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::ConsoleError;
use crate::ConsoleConfig;

/// An open descriptor to write to.
#[derive(Debug)]
pub enum Sink {
    /// Standard output.
    Standard,
    /// A file, which may be a FIFO or a terminal.
    File(File),
}

impl Sink {
    /// Opens what `config` names; `None` for a console that goes nowhere. A file is appended to, so that a log
    /// outlives a restart.
    ///
    /// # Errors
    ///
    /// [`ConsoleError::Open`].
    pub fn open(config: &ConsoleConfig) -> Result<Option<Self>, ConsoleError> {
        match config {
            ConsoleConfig::Stdio | ConsoleConfig::Virtio => Ok(Some(Self::Standard)),
            ConsoleConfig::Off => Ok(None),
            ConsoleConfig::File(path) => {
                let file = OpenOptions::new().append(true).create(true).open(path);
                let file = file.map_err(|source| ConsoleError::Open { path: path.clone(), source })?;
                Ok(Some(Self::File(file)))
            }
        }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Standard => rustix::stdio::stdout(),
            Self::File(file) => file.as_fd(),
        }
    }

    /// Writes from the front of `bytes`, and waits as long as that takes. A descriptor that does not block was made
    /// so by others who share it, and is not changed: they may outlive mvm.
    ///
    /// # Errors
    ///
    /// Those of writing.
    pub(super) fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match rustix::io::write(self.fd(), bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => return Ok(written),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    poll(&mut [PollFd::new(&self.fd(), PollFlags::OUT)], None)?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}
