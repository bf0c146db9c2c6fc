//! Reading a container's output.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use agent_protocol::Stream;
use instance::{Changes, Kept, Lines, ProcessError, time};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// More than a line of the log can have.
const MAX_LINE: usize = 64 << 10;
/// The most bytes in a row that are no lines: a host that goes down leaves less of them.
const MAX_OTHERS: u64 = 64 << 20;

/// Which lines are wanted.
#[derive(Clone, Debug, Default)]
pub struct LogOptions {
    /// Only so many of the last lines.
    pub tail: Option<usize>,
    /// Only those from this time on (RFC 3339, UTC).
    pub since: Option<String>,
    /// Only those before this time.
    pub until: Option<String>,
    /// Each with its time in front.
    pub timestamps: bool,
    /// Each with this in front, behind the time.
    pub details: Option<String>,
}

/// A line of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputLine {
    /// When it was written.
    pub time: String,
    /// To which stream.
    pub stream: Stream,
    /// It ends here.
    pub is_whole: bool,
    /// What was written, without the end of the line.
    pub text: Vec<u8>,
}

impl OutputLine {
    /// Reads a line of the log, without its end; `None` where it is none: a host that went down can leave half of one.
    pub fn parse(line: &[u8]) -> Option<Self> {
        let mut parts = line.splitn(4, |byte| *byte == b' ');
        let time = std::str::from_utf8(parts.next()?).ok()?.to_owned();
        let stream = match parts.next()? {
            b"stdout" => Stream::Stdout,
            b"stderr" => Stream::Stderr,
            _ => return None,
        };
        let is_whole = match parts.next()? {
            b"F" => true,
            b"P" => false,
            _ => return None,
        };
        Some(Self { time, stream, is_whole, text: parts.next()?.to_vec() })
    }
}

/// A time for [`LogOptions`]: what [`time::parse_point`] reads.
pub fn parse_time(text: &str) -> Option<String> {
    time::parse_point(text, time::since_1970()).map(time::rfc3339)
}

/// Reads a container's log from its beginning, and what is added to it.
pub struct LogReader {
    lines: LogLines,
    options: LogOptions,
    /// Lines that are left out yet.
    skipped: usize,
    /// The last line that was printed had an end.
    at_start: [bool; 2],
}

impl LogReader {
    /// Opens the log at `path`; one that is missing is empty.
    ///
    /// # Errors
    ///
    /// Those of opening its files.
    pub fn open(path: &Path, options: LogOptions) -> io::Result<Self> {
        let lines = LogLines::open(path)?;
        let mut reader = Self { lines, options, skipped: 0, at_start: [true; 2] };
        if let Some(tail) = reader.options.tail {
            let mut total = 0_usize;
            let mut lines = LogLines::open(path)?;
            while let Some(line) = lines.next_line()? {
                total += usize::from(reader.is_wanted(&line));
            }
            reader.skipped = total.saturating_sub(tail);
        }
        Ok(reader)
    }

    fn is_wanted(&self, line: &OutputLine) -> bool {
        let since = self.options.since.as_ref().is_none_or(|since| line.time >= *since);
        since && self.options.until.as_ref().is_none_or(|until| line.time < *until)
    }

    /// Writes all lines that there are to these two.
    ///
    /// # Errors
    ///
    /// Those of reading and writing.
    pub fn copy(&mut self, mut output: impl Write, mut errors: impl Write) -> io::Result<()> {
        while let Some(line) = self.next_wanted()? {
            let stream = usize::from(line.stream == Stream::Stderr);
            let target: &mut dyn Write = if stream == 1 { &mut errors } else { &mut output };
            if let Some(at_start) = self.at_start.get_mut(stream) {
                if self.options.timestamps && *at_start {
                    write!(target, "{} ", line.time)?;
                }
                if let Some(details) = self.options.details.as_ref().filter(|_| *at_start) {
                    write!(target, "{details} ")?;
                }
                *at_start = line.is_whole;
            }
            target.write_all(&line.text)?;
            if line.is_whole {
                target.write_all(b"\n")?;
            }
        }
        output.flush()?;
        errors.flush()
    }

    /// For how long what comes may be wanted; `None`: without end.
    fn time_left(&self) -> Option<Duration> {
        let now = time::since_1970();
        let until = time::parse_point(self.options.until.as_deref()?, now)?;
        Some(until.saturating_sub(now))
    }

    /// The next line of those that are wanted, if there is one now.
    ///
    /// # Errors
    ///
    /// Those of reading.
    pub fn next_wanted(&mut self) -> io::Result<Option<OutputLine>> {
        while let Some(line) = self.lines.next_line()? {
            if !self.is_wanted(&line) {
                continue;
            }
            if self.skipped == 0 {
                return Ok(Some(line));
            }
            self.skipped -= 1;
        }
        Ok(None)
    }
}

/// Has `reader` write all that there is, and what comes until the process that keeps `kept` ends, or until what comes
/// is later than what is wanted.
///
/// # Errors
///
/// Those of reading and writing, and of inotify. `BrokenPipe` where `output` is read no more, also while there is
/// nothing to write.
pub fn follow(
    reader: &mut LogReader,
    kept: &Kept,
    mut output: impl Write + AsFd,
    mut errors: impl Write,
) -> io::Result<()> {
    let changes = Changes::of(&kept.directory)?;
    let process = match kept.entry.process.open() {
        Ok(process) => Some(process),
        Err(ProcessError::Ended(_)) => None,
        Err(error) => return Err(io::Error::other(error)),
    };
    loop {
        // Looked at first: what was written before it ended is read then.
        let has_ended = process.as_ref().is_none_or(|process| process.wait(Some(Duration::ZERO)));
        let left = reader.time_left();
        let has_ended = has_ended || left == Some(Duration::ZERO);
        reader.copy(&mut output, &mut errors)?;
        let Some(process) = process.as_ref().filter(|_| !has_ended) else { return Ok(()) };
        let reader_of_output = PollFd::new(&output, PollFlags::empty());
        let mut fds =
            [PollFd::new(&changes, PollFlags::IN), PollFd::new(process, PollFlags::IN), reader_of_output];
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut fds, left.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if fds.last().is_some_and(|output| output.revents().intersects(PollFlags::ERR | PollFlags::HUP)) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        changes.clear();
    }
}

/// The lines of a log, and how many bytes in a row are none.
struct LogLines {
    lines: Lines,
    others: u64,
}

impl LogLines {
    fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { lines: Lines::open(path, MAX_LINE)?, others: 0 })
    }

    /// The next line, if there is one; an error where the file is no log.
    fn next_line(&mut self) -> io::Result<Option<OutputLine>> {
        while let Some(bytes) = self.lines.next_line()? {
            if let Some(line) = OutputLine::parse(bytes) {
                self.others = 0;
                return Ok(Some(line));
            }
            self.others = self.others.saturating_add(bytes.len() as u64);
            if self.others > MAX_OTHERS {
                let error = "what is kept of the output is no log";
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wanted_until_a_time_is_awaited_until_then() {
        let directory = tempfile::tempdir().unwrap();
        let left = |until: Option<&str>| {
            let options =
                LogOptions { until: until.map(|text| parse_time(text).unwrap()), ..LogOptions::default() };
            LogReader::open(&directory.path().join("log"), options).unwrap().time_left()
        };
        assert_eq!(left(None), None);
        assert_eq!(left(Some("2024-01-01T00:00:00Z")), Some(Duration::ZERO));
        assert!(left(Some("2999-01-01T00:00:00Z")).unwrap() > Duration::from_secs(1 << 30));
    }
}
