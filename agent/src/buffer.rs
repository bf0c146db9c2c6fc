//! Bytes on their way from one descriptor to another.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;

use rustix::io::{Errno, write};

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

/// A buffer that is filled as long as it has room.
#[derive(Debug, Default)]
pub struct Buffer {
    bytes: VecDeque<u8>,
}

impl Buffer {
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Whether more can be put into it.
    pub fn has_room(&self) -> bool {
        self.room() > 0
    }

    /// How many bytes more it should take.
    pub fn room(&self) -> usize {
        ROOM.saturating_sub(self.bytes.len())
    }

    /// Puts bytes into it.
    pub fn extend(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
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
    use std::io::Read;

    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;

    #[test]
    fn bytes_pass_in_order() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        rustix::io::ioctl_fionbio(&writer, true).unwrap();
        let mut buffer = Buffer::default();
        let sent: Vec<u8> = (0..ROOM).map(|number| u8::try_from(number % 251).unwrap()).collect();
        buffer.extend(&sent[..1000]);
        assert_eq!(buffer.room(), ROOM - 1000);
        buffer.extend(&sent[1000..]);
        assert!(!buffer.has_room());
        let mut received = Vec::new();
        while received.len() < sent.len() {
            assert_eq!(buffer.drain(&writer).unwrap(), Moved::Some);
            let mut bytes = [0; 9999];
            let count = reader.read(&mut bytes).unwrap();
            received.extend_from_slice(&bytes[..count]);
        }
        assert!(received == sent && buffer.is_empty());
        drop(reader);
        // Another test's new process may have it open for a moment more.
        poll(&mut [PollFd::new(&writer, PollFlags::ERR)], None).unwrap();
        buffer.extend(&[1]);
        // A process that another test has just made can have a copy of the reader.
        while buffer.drain(&writer).unwrap() != Moved::End {
            buffer.extend(&[1]);
            std::thread::yield_now();
        }
    }
}
