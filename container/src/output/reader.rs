//! Reading a container's output.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use agent_protocol::Stream;
use instance::{Kept, ProcessError, earlier, open_output, time};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;

/// What is looked for of rotated files at most.
const MAX_FILES: u32 = 1000;
/// More than a line of the log can have.
const MAX_LINE: u64 = 64 << 10;
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
    path: PathBuf,
    options: LogOptions,
    /// The file that is read, the oldest first, and how many newer ones there are.
    files: Vec<File>,
    current: Option<BufReader<File>>,
    /// The beginning of a line that is not whole.
    partial: Vec<u8>,
    others: Others,
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
        let mut files = Vec::new();
        for number in 0..MAX_FILES {
            match open_output(&earlier(path, number)) {
                Ok(file) if is_same(files.last(), &file)? => {}
                Ok(file) => files.push(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(error) => return Err(error),
            }
        }
        let mut reader = Self {
            path: path.to_owned(),
            options,
            files,
            current: None,
            partial: Vec::new(),
            others: Others::default(),
            skipped: 0,
            at_start: [true; 2],
        };
        if let Some(tail) = reader.options.tail {
            let total = reader.count_lines()?;
            reader.skipped = total.saturating_sub(tail);
        }
        Ok(reader)
    }

    fn is_wanted(&self, line: &OutputLine) -> bool {
        let since = self.options.since.as_ref().is_none_or(|since| line.time >= *since);
        since && self.options.until.as_ref().is_none_or(|until| line.time < *until)
    }

    /// How many lines there are that are wanted.
    fn count_lines(&self) -> io::Result<usize> {
        let mut count = 0;
        for number in 0..self.files.len() {
            let number = u32::try_from(number).unwrap_or(u32::MAX);
            let Ok(file) = open_output(&earlier(&self.path, number)) else { break };
            let mut file = BufReader::new(file);
            let mut bytes = Vec::new();
            let mut others = Others::default();
            while read_line(&mut file, &mut bytes)? {
                let line = others.pass(bytes.len(), OutputLine::parse(&bytes))?;
                count += usize::from(line.is_some_and(|line| self.is_wanted(&line)));
                bytes.clear();
            }
        }
        Ok(count)
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

    /// The next line of those that are wanted, if there is one now.
    ///
    /// # Errors
    ///
    /// Those of reading.
    pub fn next_wanted(&mut self) -> io::Result<Option<OutputLine>> {
        while let Some(line) = self.next_line()? {
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

    /// The next line, if there is one.
    fn next_line(&mut self) -> io::Result<Option<OutputLine>> {
        loop {
            if self.current.is_none() {
                self.current = self.files.pop().map(BufReader::new);
            }
            let Some(file) = &mut self.current else {
                // It had no file, and may have one now.
                match open_output(&self.path) {
                    Ok(file) => self.files.push(file),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                    Err(error) => return Err(error),
                }
                continue;
            };
            if read_line(file, &mut self.partial)? {
                let line = self.others.pass(self.partial.len(), OutputLine::parse(&self.partial))?;
                self.partial.clear();
                match line {
                    Some(line) => return Ok(Some(line)),
                    None => continue,
                }
            }
            if self.files.is_empty() && !self.is_renamed()? {
                return Ok(None);
            }
            self.partial.clear();
            self.current = None;
        }
    }

    /// Whether another file has the name of the one that is read.
    fn is_renamed(&mut self) -> io::Result<bool> {
        let Some(file) = &self.current else { return Ok(false) };
        let identity = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
        let own = identity(file.get_ref().metadata()?);
        match open_output(&self.path) {
            Ok(there) if identity(there.metadata()?) != own => {
                // What was written to the old one before it was renamed comes first.
                let is_read = file.buffer().is_empty() && at_end(file.get_ref())?;
                if is_read {
                    self.files.push(there);
                }
                Ok(is_read)
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(false),
        }
    }
}

/// Has `reader` write all that there is, and what comes until the process that keeps `kept` ends.
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
    let events = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
    let flags = WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::ONLYDIR;
    inotify::add_watch(&events, &kept.directory, flags)?;
    let process = match kept.entry.process.open() {
        Ok(process) => Some(process),
        Err(ProcessError::Ended(_)) => None,
        Err(error) => return Err(io::Error::other(error)),
    };
    loop {
        // Looked at first: what was written before it ended is read then.
        let has_ended = process.as_ref().is_none_or(|process| process.wait(Some(Duration::ZERO)));
        reader.copy(&mut output, &mut errors)?;
        let Some(process) = process.as_ref().filter(|_| !has_ended) else { return Ok(()) };
        let reader_of_output = PollFd::new(&output, PollFlags::empty());
        let mut fds =
            [PollFd::new(&events, PollFlags::IN), PollFd::new(process, PollFlags::IN), reader_of_output];
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if fds.last().is_some_and(|output| output.revents().intersects(PollFlags::ERR | PollFlags::HUP)) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        while rustix::io::read(&events, &mut [0; 4096]).is_ok() {}
    }
}

/// How many bytes in a row are not lines of a log.
#[derive(Default)]
struct Others(u64);

impl Others {
    /// Counts a line of `length` bytes, and returns what it was read as; an error where it is of a file that is no log.
    fn pass(&mut self, length: usize, line: Option<OutputLine>) -> io::Result<Option<OutputLine>> {
        self.0 = if line.is_some() { 0 } else { self.0.saturating_add(length as u64) };
        if self.0 > MAX_OTHERS {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "what is kept of the output is no log"));
        }
        Ok(line)
    }
}

/// Whether `file` is `newer`, which was renamed since it was opened.
fn is_same(newer: Option<&File>, file: &File) -> io::Result<bool> {
    let Some(newer) = newer else { return Ok(false) };
    let (newer, file) = (newer.metadata()?, file.metadata()?);
    Ok((newer.dev(), newer.ino()) == (file.dev(), file.ino()))
}

fn at_end(mut file: &File) -> io::Result<bool> {
    use std::io::Seek;
    Ok(file.stream_position()? >= file.metadata()?.len())
}

/// Adds to `line` up to the end of a line; returns whether it is there, and removes it.
fn read_line(file: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    use std::io::Read;
    let room = MAX_LINE.saturating_sub(line.len() as u64);
    file.take(room).read_until(b'\n', line)?;
    let is_whole = line.last() == Some(&b'\n');
    if is_whole {
        line.pop();
    }
    // One that is too long is none of ours.
    Ok(is_whole || line.len() as u64 >= MAX_LINE)
}
