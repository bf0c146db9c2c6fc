//! What keeps a container's output: a file in the form of Kubernetes' container logs, where a line has its time, the
//! stream, `F` or, where the line goes on in the next one, `P`, and the text; or systemd's journal.

mod journal;
mod reader;
#[cfg(test)]
mod tests;

use std::io::{self, BufRead};
use std::path::Path;

use agent_protocol::Stream;
use instance::{BoundedFile, time};
use serde::{Deserialize, Serialize};

use self::journal::Journal;
pub use self::journal::field_name;
pub use self::reader::{LogOptions, LogReader, OutputLine, follow, parse_time};

/// A line without an end is cut after as many bytes.
const MAX_LINE: usize = 16 << 10;
/// What is written at once, more or less.
const BATCH: usize = 64 << 10;

/// How much of a container's output is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLimits {
    /// The most bytes of a file.
    pub size: u64,
    /// The most files.
    pub files: u32,
}

impl Default for LogLimits {
    fn default() -> Self {
        Self { size: 10 << 20, files: 2 }
    }
}

/// Where a container's output is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogTarget {
    /// In files beside its record.
    Files(LogLimits),
    /// In systemd's journal, with these fields.
    Journal(Vec<(String, String)>),
}

/// What takes lines.
enum Sink {
    File(BoundedFile),
    Journal(Journal),
}

/// What keeps a container's output.
pub struct OutputLog {
    sink: Sink,
    /// The beginnings of lines of both streams that have no end yet.
    pending: [Vec<u8>; 2],
    /// Lines that were not written yet.
    batch: Vec<u8>,
    /// It cannot be written, which was logged.
    failed: bool,
}

fn index(stream: Stream) -> usize {
    usize::from(stream == Stream::Stderr)
}

/// The length of the first line of `bytes`, with its end, or of all where it has none.
fn line_length(mut bytes: &[u8]) -> usize {
    // It looks for the end in steps of whole words.
    bytes.skip_until(b'\n').unwrap_or(bytes.len())
}

impl OutputLog {
    /// Begins to write to the file at `path`, behind what it has.
    ///
    /// # Errors
    ///
    /// Those of opening it.
    pub fn open(path: &Path, limits: LogLimits) -> io::Result<Self> {
        let file = BoundedFile::open(path, limits.size, limits.files)?;
        Ok(Self::new(Sink::File(file)))
    }

    /// Begins to write to systemd's journal, with `fields` for each line.
    ///
    /// # Errors
    ///
    /// Those of connecting to it.
    pub fn journal(fields: &[(String, String)]) -> io::Result<Self> {
        Ok(Self::new(Sink::Journal(Journal::open(Path::new(journal::SOCKET), fields)?)))
    }

    fn new(sink: Sink) -> Self {
        Self { sink, pending: Default::default(), batch: Vec::new(), failed: false }
    }

    /// Adds output. Where it can't be written, for lack of space, it is missing.
    pub fn push(&mut self, stream: Stream, mut bytes: &[u8]) {
        let time = time::rfc3339(time::since_1970());
        while !bytes.is_empty() {
            bytes = self.push_line(stream, bytes, &time);
        }
        self.write();
    }

    /// Takes a line, or as much of it as there is and can be in one; what is behind it.
    fn push_line<'a>(&mut self, stream: Stream, bytes: &'a [u8], time: &str) -> &'a [u8] {
        let Some(pending) = self.pending.get_mut(index(stream)) else { return &[] };
        let room = MAX_LINE.saturating_sub(pending.len());
        let (in_reach, _) = bytes.split_at(room.min(bytes.len()));
        let length = line_length(in_reach);
        let (here, rest) = bytes.split_at(length);
        let is_whole = here.ends_with(b"\n");
        if is_whole || pending.len() + length >= MAX_LINE {
            self.line(stream, here, time, is_whole);
        } else {
            pending.extend_from_slice(here);
        }
        rest
    }

    /// Adds the line that consists of what is pending and `last`.
    fn line(&mut self, stream: Stream, last: &[u8], time: &str, is_whole: bool) {
        let Some(pending) = self.pending.get_mut(index(stream)) else { return };
        if let Sink::Journal(journal) = &mut self.sink {
            pending.extend_from_slice(last);
            journal.line(stream, pending.strip_suffix(b"\n").unwrap_or(pending), is_whole);
            pending.clear();
            return;
        }
        let name = if stream == Stream::Stderr { "stderr" } else { "stdout" };
        let tag = if is_whole { "F" } else { "P" };
        for part in [time, " ", name, " ", tag, " "] {
            self.batch.extend_from_slice(part.as_bytes());
        }
        self.batch.append(pending);
        self.batch.extend_from_slice(last);
        if !is_whole {
            self.batch.push(b'\n');
        }
        if self.batch.len() >= BATCH {
            self.write();
        }
    }

    fn write(&mut self) {
        if !self.batch.is_empty()
            && let Sink::File(file) = &mut self.sink
            && let Err(error) = file.write(&self.batch)
            && !std::mem::replace(&mut self.failed, true)
        {
            tracing::warn!(%error, "cannot write the container's log: some of its output will be missing there");
        }
        self.batch.clear();
    }

    /// Writes what has no end of a line: no more comes.
    pub fn finish(&mut self) {
        let time = time::rfc3339(time::since_1970());
        for stream in [Stream::Stdout, Stream::Stderr] {
            if self.pending.get(index(stream)).is_some_and(|pending| !pending.is_empty()) {
                // In the journal, no part of it follows.
                let is_whole = matches!(self.sink, Sink::Journal(_));
                self.line(stream, &[], &time, is_whole);
            }
        }
        self.write();
    }
}
