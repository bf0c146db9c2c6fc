//! Running in the background: the user's command ends when what it has started runs, and another process keeps it.

use std::io::{self, BufRead, BufReader, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use instance::BoundedFile;
use instance::keeper::{Child, fork, fork_alone, go_to_the_background};
use serde::{Deserialize, Serialize};

/// The most bytes of a report.
const MAX_REPORT: u64 = 64 << 10;
/// The most bytes of a file of messages, of which there are two.
const MAX_MESSAGES: u64 = 1 << 20;

/// What came of a start in the background.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Report {
    /// It runs.
    Started {
        /// Its ID.
        id: String,
    },
    /// It does not.
    Failed {
        /// The exit code for it.
        code: u8,
        /// Why not, on one line.
        message: String,
    },
}

/// By what the process in the background tells the one in front what came of the start.
pub struct Reporter {
    report: Option<PipeWriter>,
    messages: Option<PipeReader>,
}

impl Reporter {
    /// Tells it. The first report counts.
    pub fn report(&mut self, report: &Report) {
        if let Some(mut pipe) = self.report.take() {
            let mut line = serde_json::to_vec(report).unwrap_or_default();
            line.push(b'\n');
            // The user may have ended the process in front.
            let _ = pipe.write_all(&line);
        }
    }

    /// Has what this process says from now on, and has said since the start, go to the file at `path`, on a thread of
    /// its own.
    pub fn keep_messages(&mut self, path: PathBuf) -> io::Result<()> {
        let Some(mut messages) = self.messages.take() else { return Ok(()) };
        let mut file = BoundedFile::open(&path, MAX_MESSAGES, 2)?;
        std::thread::Builder::new().name("messages".into()).stack_size(128 << 10).spawn(move || {
            let mut bytes = vec![0; 4096];
            while let Ok(count @ 1..) = messages.read(&mut bytes) {
                // Where there is no space they are missing.
                let _ = file.write(bytes.get(..count).unwrap_or_default());
            }
        })?;
        Ok(())
    }
}

/// A reporter for several threads; one without a reporter reports nothing.
#[derive(Clone)]
pub struct SharedReporter(Arc<Mutex<Option<Reporter>>>);

impl SharedReporter {
    /// `reporter`, if there is one.
    pub fn new(reporter: Option<Reporter>) -> Self {
        Self(Arc::new(Mutex::new(reporter)))
    }

    /// The reporter, for a moment.
    pub fn lock(&self) -> MutexGuard<'_, Option<Reporter>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells it. The first report counts. Returns whether there is one to tell.
    pub fn report(&self, report: &Report) -> bool {
        let mut reporter = self.lock();
        reporter.iter_mut().for_each(|reporter| reporter.report(report));
        reporter.is_some()
    }
}

/// A reporter for this process, which is in the background and was executed anew: what it says is kept again.
///
/// # Errors
///
/// Those of the system calls.
pub fn again() -> io::Result<Reporter> {
    let (messages, our_messages) = io::pipe()?;
    go_to_the_background(our_messages.as_fd())?;
    Ok(Reporter { report: None, messages: Some(messages) })
}

/// Calls `keep` in a process in the background, which ends with its exit code; returns what it reports. This process
/// has one thread yet.
///
/// # Errors
///
/// Those of the system calls.
pub fn start(keep: impl FnOnce(Reporter) -> u8) -> io::Result<Report> {
    start_by(|_, run| fork(run), keep)
}

/// The same, where the process in the background has nothing open that this one has.
///
/// # Errors
///
/// Those of the system calls.
pub fn start_alone(keep: impl FnOnce(Reporter) -> u8) -> io::Result<Report> {
    start_by(|kept, run| fork_alone(kept, run), keep)
}

/// Makes the process by `fork`, which gets what that needs to have open.
fn start_by(
    fork: impl FnOnce(&[RawFd], &mut dyn FnMut() -> u8) -> io::Result<Child>,
    keep: impl FnOnce(Reporter) -> u8,
) -> io::Result<Report> {
    let (ours, their_report) = io::pipe()?;
    let (messages, their_messages) = io::pipe()?;
    let kept = [&ours.as_fd(), &their_report.as_fd(), &messages.as_fd(), &their_messages.as_fd()];
    let kept = kept.map(|fd| fd.as_raw_fd());
    let mut ours = Some(ours);
    let mut keep = Some(keep);
    let mut theirs = Some((their_report, messages, their_messages));
    let _child = fork(&kept, &mut || {
        drop(ours.take());
        let (Some((report, messages, their_messages)), Some(keep)) = (theirs.take(), keep.take()) else {
            return 0;
        };
        if go_to_the_background(their_messages.as_fd()).is_err() {
            return crate::exit_code::HOST;
        }
        drop(their_messages);
        keep(Reporter { report: Some(report), messages: Some(messages) })
    })?;
    drop(theirs);
    let mut line = String::new();
    if let Some(report) = ours {
        BufReader::new(report.take(MAX_REPORT)).read_line(&mut line)?;
    }
    let ended = "the process in the background ended before it had started anything";
    serde_json::from_str(&line).map_err(|_| io::Error::other(ended))
}
