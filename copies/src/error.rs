//! Why a tree can't be copied.

use std::fmt;
use std::io;

use erofs::StreamError;
use rustix::io::Errno;
use thiserror::Error;

use crate::MAX_PATH;

/// A path in a message: control characters are escaped, and it is no longer than a line.
pub(crate) struct Shown<'a>(pub(crate) &'a [u8]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MOST: usize = 200;
        let text = String::from_utf8_lossy(self.0);
        for character in text.chars().take(MOST) {
            match character.is_control() {
                true => write!(f, "{}", character.escape_default())?,
                false => write!(f, "{character}")?,
            }
        }
        if text.chars().nth(MOST).is_some() { f.write_str("…") } else { Ok(()) }
    }
}

/// Why a tree can't be read, or its stream not be written.
#[derive(Debug, Error)]
pub enum PackError {
    /// A file.
    #[error("cannot {doing} {path}")]
    File {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A path that no system call takes.
    #[error("{0} has more than {MAX_PATH} bytes")]
    TooLong(String),
    /// Where the stream goes.
    #[error("cannot write the archive")]
    Write(#[source] io::Error),
}

impl PackError {
    pub(crate) fn file(doing: &'static str, path: &[u8]) -> impl FnOnce(Errno) -> Self {
        let path = Shown(path).to_string();
        move |error| Self::File { doing, path, source: error.into() }
    }
}

/// Why a stream can't be made a tree.
#[derive(Debug, Error)]
pub enum UnpackError {
    /// The stream.
    #[error(transparent)]
    Stream(StreamError),
    /// Something else than a stream.
    #[error("it is not a tar archive")]
    NotTar,
    /// A file.
    #[error("cannot {doing} {path}")]
    File {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A name that leads out of the directory.
    #[error("{0} in the archive is outside of the directory that it is for")]
    Outside(String),
    /// A name that can't be that of a file.
    #[error("{0} in the archive has a zero byte, or more than {MAX_PATH} bytes")]
    Name(String),
    /// An entry that was not asked for.
    #[error("the archive has {0} in it, which was not asked for")]
    Unexpected(String),
    /// A file in place of a directory.
    #[error("cannot overwrite directory {0} with what is not a directory")]
    OverDirectory(String),
    /// A directory in place of a file.
    #[error("cannot overwrite {0}, which is not a directory, with a directory")]
    OverFile(String),
    /// A link to what is not there.
    #[error("{path} is a hard link to {target}, which is not there")]
    HardLink {
        /// The link.
        path: String,
        /// What it is to.
        target: String,
    },
}

impl From<StreamError> for UnpackError {
    fn from(error: StreamError) -> Self {
        match error {
            StreamError::NotTar => Self::NotTar,
            error => Self::Stream(error),
        }
    }
}

impl UnpackError {
    pub(crate) fn file(doing: &'static str, path: &[u8]) -> impl FnOnce(Errno) -> Self {
        let path = Shown(path).to_string();
        move |error| Self::File { doing, path, source: error.into() }
    }
}
