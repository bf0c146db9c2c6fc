//! The host's end of the serial console.

mod escape;
mod input;
mod output;
mod terminal;

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::PathBuf;

use thiserror::Error;

pub use input::ConsoleInput;
pub use output::{ConsoleFlusher, ConsoleOutput};
pub use terminal::{RawTerminal, restore as restore_terminal};

use crate::ConsoleConfig;

/// Why the console could not be set up.
#[derive(Debug, Error)]
pub enum ConsoleError {
    /// The file could not be opened.
    #[error("cannot open the console's file {}", path.display())]
    Open {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Standard input could not be set up.
    #[error("cannot set up the terminal")]
    Terminal(#[source] io::Error),
}

/// Opens what the console goes to. A file is appended to, so that a log outlives a restart.
///
/// # Errors
///
/// [`ConsoleError::Open`].
pub fn open_sink(config: &ConsoleConfig) -> Result<Box<dyn Write + Send>, ConsoleError> {
    match config {
        ConsoleConfig::Stdio => Ok(Box::new(StandardOutput)),
        ConsoleConfig::Off => Ok(Box::new(io::sink())),
        ConsoleConfig::File(path) => {
            let file = OpenOptions::new().append(true).create(true).open(path);
            let file = file.map_err(|source| ConsoleError::Open { path: path.clone(), source })?;
            Ok(Box::new(file))
        }
    }
}

/// Standard output without a buffer of its own.
struct StandardOutput;

impl Write for StandardOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::io::write(rustix::stdio::stdout(), bytes)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
