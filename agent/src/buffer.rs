//! Bytes on their way from one descriptor to another.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;

use rustix::io::{Errno, read, write};

/// The most that waits.
const ROOM: usize = 64 << 10;

/// What came of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moved {
    /// Bytes, or none for now.
    Some,
    /// The other side has closed.
    End,
}

/// A bounded buffer.
#[derive(Debug, Default)]
pub struct Buffer {
    bytes: VecDeque<u8>,
}

impl Buffer {
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Whether more can be read into it.
    pub fn has_room(&self) -> bool {
        self.bytes.len() < ROOM
    }

    /// Reads once from `source`, as much as there is room for.
    pub fn fill(&mut self, source: impl AsFd) -> io::Result<Moved> {
        let mut space = [0; ROOM];
        let room = ROOM.saturating_sub(self.bytes.len());
        let space = space.get_mut(..room).unwrap_or_default();
        match read(source, &mut *space) {
            Ok(0) => Ok(Moved::End),
            Ok(count) => {
                self.bytes.extend(space.get(..count).unwrap_or_default());
                Ok(Moved::Some)
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(Moved::Some),
            // A terminal whose last user has gone.
            Err(Errno::IO) => Ok(Moved::End),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes once to `target`.
    pub fn drain(&mut self, target: impl AsFd) -> io::Result<Moved> {
        let (front, _) = self.bytes.as_slices();
        match write(target, front) {
            Ok(count) => {
                self.bytes.drain(..count.min(self.bytes.len()));
                Ok(Moved::Some)
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(Moved::Some),
            Err(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN | Errno::IO) => Ok(Moved::End),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn bytes_pass_in_order_and_no_more_than_fit_are_taken() {
        let (mut reader, mut writer) = std::io::pipe().unwrap();
        let (mut out_reader, out_writer) = std::io::pipe().unwrap();
        rustix::io::ioctl_fionbio(&reader, true).unwrap();
        let mut buffer = Buffer::default();
        assert_eq!(buffer.fill(&reader).unwrap(), Moved::Some);
        let sent: Vec<u8> = (0..60_000_u32).map(|number| (number % 251) as u8).collect();
        for piece in sent.chunks(30_000) {
            writer.write_all(piece).unwrap();
            buffer.fill(&reader).unwrap();
        }
        assert!(buffer.has_room());
        writer.write_all(&sent).unwrap();
        buffer.fill(&reader).unwrap();
        assert!(!buffer.has_room());
        let mut received = vec![0; sent.len()];
        let mut got = 0;
        while got < received.len() {
            buffer.drain(&out_writer).unwrap();
            got += out_reader.read(&mut received[got..]).unwrap();
        }
        assert_eq!(received, sent);
        drop(writer);
        reader.read_exact(&mut vec![0; 60_000 - (ROOM - 60_000)]).unwrap();
        assert_eq!(buffer.fill(&reader).unwrap(), Moved::End);
        drop(out_reader);
        buffer.bytes.push_back(1);
        assert_eq!(buffer.drain(&out_writer).unwrap(), Moved::End);
    }
}
