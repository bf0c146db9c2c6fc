//! The blocks of files' data, written in the order in which they come.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::layout::{BLOCK, BLOCK_SIZE};

/// What is written at once.
const CHUNK: usize = 1 << 20;

/// Appends blocks to a file. Blocks of zeros become holes.
pub struct DataWriter<'a> {
    out: &'a File,
    /// The block at which `buffer` begins.
    next: u64,
    buffer: Vec<u8>,
}

impl<'a> DataWriter<'a> {
    /// The first block is number `first`.
    pub fn new(out: &'a File, first: u64) -> Self {
        Self { out, next: first, buffer: Vec::with_capacity(CHUNK) }
    }

    /// The number of the block that the next byte is in, where the last file has been finished.
    pub fn position(&self) -> u64 {
        self.next + self.buffered_blocks()
    }

    fn buffered_blocks(&self) -> u64 {
        u64::try_from(self.buffer.len() / BLOCK_SIZE).unwrap_or(u64::MAX)
    }

    /// Appends bytes of a file.
    pub fn append(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let (here, rest) = bytes.split_at(bytes.len().min(CHUNK - self.buffer.len()));
            self.buffer.extend_from_slice(here);
            bytes = rest;
            if self.buffer.len() == CHUNK {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Appends `count` zeros to a file.
    pub fn append_zeros(&mut self, count: u64) -> io::Result<()> {
        const ZEROS: [u8; BLOCK_SIZE] = [0; BLOCK_SIZE];
        let partial = u64::try_from(self.buffer.len()).unwrap_or(u64::MAX).next_multiple_of(BLOCK)
            - u64::try_from(self.buffer.len()).unwrap_or(u64::MAX);
        let first = partial.min(count);
        let (blocks, last) = ((count - first) / BLOCK, (count - first) % BLOCK);
        let short = |length: u64| ZEROS.get(..usize::try_from(length).unwrap_or(0)).unwrap_or_default();
        self.append(short(first))?;
        if blocks > 0 {
            self.flush()?;
            self.next += blocks;
        }
        self.append(short(last))
    }

    /// Ends a file: the next one begins in a block of its own.
    pub fn finish_file(&mut self) -> io::Result<()> {
        self.buffer.resize(self.buffer.len().next_multiple_of(BLOCK_SIZE), 0);
        if self.buffer.len() >= CHUNK { self.flush() } else { Ok(()) }
    }

    /// Writes what is buffered. The last file has been finished, or the buffer holds whole blocks.
    pub fn flush(&mut self) -> io::Result<()> {
        let mut at = self.next;
        let mut run: Option<(u64, usize)> = None;
        for (index, block) in self.buffer.chunks(BLOCK_SIZE).enumerate() {
            let is_zero = is_zero(block);
            match run {
                Some((start, first)) if is_zero => {
                    self.write(start, first, index)?;
                    run = None;
                }
                None if !is_zero => run = Some((at, index)),
                _ => {}
            }
            at += 1;
        }
        if let Some((start, first)) = run {
            self.write(start, first, self.buffer.len().div_ceil(BLOCK_SIZE))?;
        }
        self.next = at;
        self.buffer.clear();
        Ok(())
    }

    /// Writes the buffer's blocks from `first` to `end` at block `at`.
    fn write(&self, at: u64, first: usize, end: usize) -> io::Result<()> {
        let end = (end * BLOCK_SIZE).min(self.buffer.len());
        let bytes = self.buffer.get(first * BLOCK_SIZE..end).unwrap_or_default();
        self.out.write_all_at(bytes, at * BLOCK)
    }
}

/// Most blocks are not zeros from their first bytes on; what is left is compared as memory, not byte by byte.
fn is_zero(block: &[u8]) -> bool {
    const ZEROS: [u8; BLOCK_SIZE] = [0; BLOCK_SIZE];
    ZEROS.get(..block.len()) == Some(block)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes and holes come back, each file from a block of its own.
    #[test]
    fn files_begin_in_blocks_of_their_own_and_zeros_take_no_space() {
        let out = tempfile::tempfile().unwrap();
        let mut data = DataWriter::new(&out, 1);
        data.append(&[7; 5000]).unwrap();
        data.finish_file().unwrap();
        assert_eq!(data.position(), 3);
        data.append(&[8; 3]).unwrap();
        data.append_zeros(100 << 20).unwrap();
        data.append(&[9; 3]).unwrap();
        data.finish_file().unwrap();
        data.flush().unwrap();
        assert_eq!(data.position(), 3 + (100 << 8) + 1);
        let read = |at: u64, length: usize| {
            let mut bytes = vec![0; length];
            out.read_exact_at(&mut bytes, at).unwrap();
            bytes
        };
        assert_eq!((read(BLOCK, 5000), read(BLOCK + 5000, 8)), (vec![7; 5000], vec![0; 8]));
        assert_eq!(read(3 * BLOCK, 4), [8, 8, 8, 0]);
        assert_eq!(read(3 * BLOCK + 3 + (100 << 20), 4), [9, 9, 9, 0]);
        let used = std::os::unix::fs::MetadataExt::blocks(&out.metadata().unwrap()) * 512;
        assert!(used < 1 << 20, "{used} bytes are used");
    }
}
