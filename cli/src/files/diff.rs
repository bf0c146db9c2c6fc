//! `mvm diff`.

use std::io::{self, Read, Write};

use clap::Args;

use super::{Opened, with};
use crate::process::ExitCode;
use crate::{exit_code, print};

/// The most bytes of memory for paths that are put in order: as they come where there are more.
const MOST: usize = 64 << 20;
/// About what a path takes beside its bytes.
const EACH: usize = 64;
/// The most bytes of a path.
const MAX_PATH: usize = 4096;

const EXAMPLES: &str = "\
Examples:
  mvm diff web

A is a path that the container has added, C one that it has changed, and D one
that it has deleted.";

/// Arguments of `mvm diff`, which are those of `docker diff`.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub struct DiffCommand {
    /// The container: its ID, the beginning of that, or its name
    #[arg(value_name = "CONTAINER")]
    container: String,
}

impl DiffCommand {
    /// Prints what a container has changed.
    pub fn run(self) -> ExitCode {
        with(&self.container, diff)
    }
}

fn diff(opened: &Opened) -> Result<ExitCode, String> {
    let mut stream = opened.files.changes().map_err(|error| opened.line(&error))?;
    let mut changes = Vec::new();
    let mut reader = Changes::new(&mut stream);
    let mut size = 0_usize;
    let invalid = || format!("{}: the container's agent sent an invalid list of changes", opened.word);
    while let Some(change) = reader.next().map_err(|Invalid| invalid())? {
        size = size.saturating_add(change.len()).saturating_add(EACH);
        changes.push(change);
        if size > MOST && write(&mut changes)? == Written::ReaderGone {
            return Ok(exit_code::SUCCESS.into());
        }
    }
    let is_whole = reader.is_whole();
    stream.finish().map_err(|error| opened.line(&error))?;
    if !is_whole {
        return Err(invalid());
    }
    write(&mut changes)?;
    Ok(print(b"", exit_code::SUCCESS))
}

#[derive(PartialEq, Eq)]
enum Written {
    All,
    ReaderGone,
}

/// Prints and forgets the changes, in the order of their paths.
fn write(changes: &mut Vec<Vec<u8>>) -> Result<Written, String> {
    changes.sort_unstable_by(|one, other| one.get(1..).cmp(&other.get(1..)));
    let mut out = io::BufWriter::new(io::stdout().lock());
    for change in changes.drain(..) {
        match out.write_all(line(&change).as_bytes()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(Written::ReaderGone),
            written => written.map_err(|error| format!("cannot write to standard output: {error}"))?,
        }
    }
    match out.flush() {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Written::ReaderGone),
        flushed => flushed
            .map(|()| Written::All)
            .map_err(|error| format!("cannot write to standard output: {error}")),
    }
}

/// A change as it is printed. Control characters in a path say nothing to a terminal.
fn line(change: &[u8]) -> String {
    let (kind, path) = change.split_at(1.min(change.len()));
    let mut line = format!("{} /", String::from_utf8_lossy(kind));
    for character in String::from_utf8_lossy(path).chars() {
        match character.is_control() {
            true => line.extend(character.escape_default()),
            false => line.push(character),
        }
    }
    line.push('\n');
    line
}

/// What comes is no change. What is behind it is not read: it may have no end.
#[derive(Debug)]
struct Invalid;

/// Reads the agent's list of changes.
struct Changes<'a, R> {
    stream: &'a mut R,
    buffer: Vec<u8>,
    /// What of the buffer was read, and where the next change begins.
    filled: usize,
    next: usize,
    change: Vec<u8>,
}

impl<'a, R: Read> Changes<'a, R> {
    fn new(stream: &'a mut R) -> Self {
        Self { stream, buffer: vec![0; 64 << 10], filled: 0, next: 0, change: Vec::new() }
    }

    /// The next one, which begins with its letter; none at the end.
    fn next(&mut self) -> Result<Option<Vec<u8>>, Invalid> {
        loop {
            let rest = self.buffer.get(self.next..self.filled).unwrap_or_default();
            let end = rest.iter().position(|byte| *byte == 0);
            self.change.extend_from_slice(rest.get(..end.unwrap_or(rest.len())).unwrap_or_default());
            if self.change.len() > MAX_PATH {
                return Err(Invalid);
            }
            if let Some(end) = end {
                self.next = self.next.saturating_add(end).saturating_add(1);
                let change = std::mem::take(&mut self.change);
                let is_valid = matches!(change.first(), Some(b'A' | b'C' | b'D')) && change.len() > 1;
                return if is_valid { Ok(Some(change)) } else { Err(Invalid) };
            }
            self.next = 0;
            // The stream's end or error is seen again when it is finished.
            self.filled = self.stream.read(&mut self.buffer).unwrap_or(0);
            if self.filled == 0 {
                return Ok(None);
            }
        }
    }

    /// Whether the stream did not end within a change.
    fn is_whole(&self) -> bool {
        self.change.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The changes until the end or the first invalid one, and whether the list is damaged.
    fn read(bytes: impl Read) -> (Vec<Vec<u8>>, bool) {
        let mut bytes = bytes;
        let mut changes = Changes::new(&mut bytes);
        let mut all = Vec::new();
        loop {
            match changes.next() {
                Ok(Some(change)) => all.push(change),
                Ok(None) => return (all, !changes.is_whole()),
                Err(Invalid) => return (all, true),
            }
        }
    }

    #[test]
    fn changes_are_read_and_printed() {
        let (all, is_damaged) = read(&b"Aetc/new\0C\xff\x1b[2J\0Dgone\0"[..]);
        assert!(!is_damaged);
        let lines: Vec<String> = all.iter().map(|change| line(change)).collect();
        assert_eq!(lines, ["A /etc/new\n", "C /\u{fffd}\\u{1b}[2J\n", "D /gone\n"]);
    }

    #[test]
    fn what_is_no_change_is_refused() {
        for bytes in [&b"Xetc\0"[..], b"A\0", b"\0", b"Aetc", &[b'A'; 5000]] {
            assert!(read(bytes).1, "{bytes:?}");
        }
        // Also in front of what has no end.
        for start in [&b"Aone\0Xetc\0"[..], b"Aone\0"] {
            assert_eq!(read(start.chain(io::repeat(b'A'))), (vec![b"Aone".to_vec()], true));
        }
    }

    proptest! {
        #[test]
        fn noise_is_a_change_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let (all, _) = read(&bytes[..]);
            prop_assert!(all.iter().map(Vec::len).sum::<usize>() <= bytes.len());
        }
    }
}
