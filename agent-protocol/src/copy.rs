//! Files on their way into a container and out of it.
//!
//! Behind some requests and answers come the bytes of a stream, in pieces: the length of each, four bytes, little
//! endian, and so many bytes. The length zero is the end of the stream.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};

use crate::MAX_PIECE;

/// What is to be done with files of a container. Paths are those of its root directory; a process in the container's
/// mount namespace and root does it, so that no link leads out of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CopyWhat {
    /// Say what is at a path, as lstat(2) does. The answer is [`Reply::Found`](crate::Reply::Found); or
    /// [`Reply::Failed`](crate::Reply::Failed), of the kind [`NotFound`](crate::FailureKind::NotFound) where nothing is
    /// there.
    Look {
        /// The path.
        path: Vec<u8>,
    },
    /// Send a tar stream of what is at a path. The answer is [`Reply::Found`](crate::Reply::Found) as above; behind it
    /// come the stream in pieces, and [`Reply::Done`](crate::Reply::Done) or [`Reply::Failed`](crate::Reply::Failed).
    Read {
        /// The path.
        path: Vec<u8>,
        /// What it is called in the stream.
        name: Vec<u8>,
        /// Holes of files may be holes in the stream.
        sparse: bool,
    },
    /// Unpack a tar stream in a directory. The answer is [`Reply::Started`](crate::Reply::Started); then the host sends
    /// the stream in pieces, and the answer to that is [`Reply::Done`](crate::Reply::Done). In place of both may come
    /// [`Reply::Failed`](crate::Reply::Failed).
    Write {
        /// The directory.
        path: Vec<u8>,
        /// The files belong to the container's user, and not to the users and groups that the stream has.
        to_user: bool,
    },
    /// Send what the container has changed of its root. The answer is [`Reply::Started`](crate::Reply::Started), and
    /// behind it comes, as with [`CopyWhat::Read`], a stream of changes: `A`, `C` or `D` for what was added, changed or
    /// deleted, the path without a slash in front, and a zero.
    Changes,
    /// The same as a tar stream, which is a layer of an image (OCI image specification).
    Layer {
        /// The container's processes stand still meanwhile.
        pauses: bool,
    },
    /// The same for a tar stream of all that is in its root, without what is mounted there.
    Root,
}

/// What a file is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileInfo {
    /// Kind and permissions, as `st_mode` of stat(2).
    pub mode: u32,
    /// Bytes.
    pub size: u64,
    /// When it was changed last: seconds and nanoseconds since 1970.
    pub mtime: (i64, u32),
    /// What a symbolic link leads to in the end, whether there is something or not; empty for other files.
    pub target: Vec<u8>,
}

/// How many bytes a piece has, unless it is the last.
const PIECE: usize = 64 << 10;

/// Writes a stream in pieces.
#[derive(Debug)]
pub struct PieceWriter<W> {
    out: W,
    buffer: Vec<u8>,
}

impl<W: Write> PieceWriter<W> {
    /// A stream that goes to `out`.
    pub fn new(out: W) -> Self {
        Self { out, buffer: Vec::with_capacity(PIECE) }
    }

    /// Where it goes.
    pub fn get_ref(&self) -> &W {
        &self.out
    }

    fn send(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let length = u32::try_from(self.buffer.len()).unwrap_or_default();
        self.out.write_all(&length.to_le_bytes())?;
        self.out.write_all(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }

    /// Sends the rest and the end; where the stream went.
    ///
    /// # Errors
    ///
    /// Those of writing.
    pub fn finish(mut self) -> io::Result<W> {
        self.send()?;
        self.out.write_all(&0_u32.to_le_bytes())?;
        self.out.flush()?;
        Ok(self.out)
    }
}

impl<W: Write> Write for PieceWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(PIECE - self.buffer.len());
        self.buffer.extend(bytes.iter().take(count));
        if self.buffer.len() == PIECE {
            self.send()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send()?;
        self.out.flush()
    }
}

/// Reads a stream that comes in pieces. It reads nothing that is behind the end.
#[derive(Debug)]
pub struct PieceReader<R> {
    input: R,
    /// How much of a piece is still to come.
    left: usize,
    has_ended: bool,
    /// The length of a piece that can't be, after which nothing is read.
    invalid: Option<usize>,
}

impl<R: Read> PieceReader<R> {
    /// A stream that comes from `input`.
    pub fn new(input: R) -> Self {
        Self { input, left: 0, has_ended: false, invalid: None }
    }

    /// Whether its end has come.
    pub fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Where it comes from.
    pub fn into_inner(self) -> R {
        self.input
    }
}

impl<R: Read> Read for PieceReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() || self.has_ended {
            return Ok(0);
        }
        if self.left == 0 && self.invalid.is_none() {
            let mut length = [0; 4];
            self.input.read_exact(&mut length)?;
            match usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX) {
                0 => {
                    self.has_ended = true;
                    return Ok(0);
                }
                length @ 1..=MAX_PIECE => self.left = length,
                length => self.invalid = Some(length),
            }
        }
        if let Some(length) = self.invalid {
            let error = format!("a piece of a stream has {length} bytes: it can have up to {MAX_PIECE}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, error));
        }
        let most = self.left.min(buffer.len());
        let count = self.input.read(buffer.get_mut(..most).unwrap_or_default())?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left = self.left.saturating_sub(count);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_stream_comes_back_and_what_is_behind_it_stays(parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..90_000), 0..6)) {
            let mut writer = PieceWriter::new(Vec::new());
            for part in &parts {
                writer.write_all(part).unwrap();
            }
            let mut wire = writer.finish().unwrap();
            wire.extend(b"rest");
            let mut reader = PieceReader::new(&wire[..]);
            let mut received = Vec::new();
            reader.read_to_end(&mut received).unwrap();
            prop_assert!(received == parts.concat() && reader.has_ended());
            prop_assert_eq!(reader.into_inner(), b"rest");
        }

        #[test]
        fn noise_is_an_error_or_a_stream(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut received = Vec::new();
            let _ = PieceReader::new(&bytes[..]).read_to_end(&mut received);
            prop_assert!(received.len() <= bytes.len());
        }
    }

    #[test]
    fn a_stream_without_an_end_is_an_error() {
        let mut writer = PieceWriter::new(Vec::new());
        writer.write_all(b"some bytes").unwrap();
        let wire = writer.finish().unwrap();
        for length in 0..wire.len() {
            let error = PieceReader::new(&wire[..length]).read_to_end(&mut Vec::new()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        }
        let long = u32::try_from(MAX_PIECE + 1).unwrap().to_le_bytes();
        let mut reader = PieceReader::new(&long[..]);
        for _ in 0..2 {
            let error = reader.read(&mut [0]).unwrap_err();
            assert!(error.to_string().contains("up to 262144"), "{error}");
        }
    }
}
