//! Bytes in the order in which they came, in memory of a fixed size.

use std::io::IoSlice;

/// A bounded queue of bytes that is read into and written from in place.
#[derive(Debug)]
pub struct Ring {
    bytes: Box<[u8]>,
    /// Where the first byte is.
    start: usize,
    len: usize,
}

impl Ring {
    /// An empty one for up to `capacity` bytes, which take memory once they are used.
    pub fn new(capacity: usize) -> Self {
        Self { bytes: vec![0; capacity].into_boxed_slice(), start: 0, len: 0 }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn room(&self) -> usize {
        self.bytes.len() - self.len
    }

    /// Where the next bytes go, up to the end of the memory: all of the room may be more.
    pub fn space(&mut self) -> &mut [u8] {
        let capacity = self.bytes.len();
        let end = self.start + self.len;
        let range = if end < capacity { end..capacity } else { end - capacity..self.start };
        self.bytes.get_mut(range).unwrap_or_default()
    }

    /// Adds `count` bytes that were put into [`space`](Self::space).
    pub fn fill(&mut self, count: usize) {
        self.len += count.min(self.room());
    }

    /// Removes `count` bytes from the front.
    pub fn consume(&mut self, count: usize) {
        let count = count.min(self.len);
        self.len -= count;
        self.start = match self.start + count {
            // What is used again and again stays in the processor's cache.
            _ if self.len == 0 => 0,
            start if start >= self.bytes.len() => start - self.bytes.len(),
            start => start,
        };
    }

    /// `count` bytes behind the first `skipped`, in up to two pieces.
    pub fn slices(&self, skipped: usize, count: usize) -> [IoSlice<'_>; 2] {
        let skipped = skipped.min(self.len);
        let count = count.min(self.len - skipped);
        let from = self.start + skipped;
        let capacity = self.bytes.len();
        let piece = |from: usize, to: usize| self.bytes.get(from..to).unwrap_or_default();
        let [first, second] = if from >= capacity {
            [piece(from - capacity, from - capacity + count), &[][..]]
        } else {
            let here = count.min(capacity - from);
            [piece(from, from + here), piece(0, count - here)]
        };
        [IoSlice::new(first), IoSlice::new(second)]
    }
}
