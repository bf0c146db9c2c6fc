//! This process's standard input and output, connected with a container's.

use std::fs::File;
use std::io::{self, Write};
use std::mem::ManuallyDrop;
use std::os::fd::{FromRawFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};

use agent_protocol::Stream;

use crate::attach::{Attachments, Input};
use crate::connection::Connection;
use crate::ender::Ender;
use crate::output::OutputLog;
use crate::streams::{self, Place};
use crate::timing::{Step, Timing};

/// The standard descriptor, which is never closed.
fn standard(fd: RawFd) -> ManuallyDrop<File> {
    // SAFETY: the standard descriptors are open for as long as the process lives, and this never closes one.
    ManuallyDrop::new(unsafe { File::from_raw_fd(fd) })
}

/// Passes input on until it ends. The thread may outlive the process, while it waits for input.
pub fn pass_input(connection: Connection, place: Place, input: Input) -> io::Result<()> {
    Builder::new().name("stdin".into()).stack_size(256 << 10).spawn(move || match input {
        Input::Standard => streams::pass_input(connection, &place, &*standard(libc::STDIN_FILENO)),
        Input::Attached(source) => streams::pass_input(connection, &place, source),
    })?;
    Ok(())
}

/// The name of a thread for an output, and the standard descriptor of it.
fn standard_of(stream: Stream) -> (&'static str, RawFd) {
    match stream {
        Stream::Stderr => ("stderr", libc::STDERR_FILENO),
        Stream::Stdin | Stream::Stdout => ("stdout", libc::STDOUT_FILENO),
    }
}

/// Where a container's output goes.
#[derive(Clone)]
pub struct Outputs {
    /// To this process's standard output, and to its standard error.
    pub attached: (bool, bool),
    /// To its log.
    pub log: Option<Arc<Mutex<OutputLog>>>,
    /// To those who are attached.
    pub attachments: Arc<Attachments>,
    /// What ends the container when the reader of standard output has gone: as with any filter, the rest is not needed.
    pub ender: Ender,
    /// What notes when the first of it comes.
    pub timing: Timing,
}

impl Outputs {
    /// Passes what comes on `connection` on until it ends.
    pub fn pass(&self, connection: Connection, place: Place) -> io::Result<JoinHandle<io::Result<()>>> {
        let (name, fd) = standard_of(place.stream);
        let (output, errors) = self.attached;
        let is_attached = if place.stream == Stream::Stderr { errors } else { output };
        let target = is_attached.then(|| standard(fd));
        let (log, timing) = (self.log.clone(), Some(self.timing.clone()));
        let attachments = self.attachments.clone();
        let target = LoggedOutput { target, log, attachments, timing, stream: place.stream };
        let ender = self.ender.clone();
        let pass = move || {
            let result = streams::pass_output(connection, &place, target);
            if result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
                ender.end(Some(libc::SIGPIPE));
            }
            result
        };
        Builder::new().name(name.into()).stack_size(256 << 10).spawn(pass)
    }

    /// Writes what the log has not written yet.
    pub fn finish(&self) {
        if let Some(log) = &self.log {
            log.lock().unwrap_or_else(PoisonError::into_inner).finish();
        }
    }
}

struct LoggedOutput {
    target: Option<ManuallyDrop<File>>,
    log: Option<Arc<Mutex<OutputLog>>>,
    attachments: Arc<Attachments>,
    /// Where nothing has come yet.
    timing: Option<Timing>,
    stream: Stream,
}

impl Write for LoggedOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(timing) = self.timing.take() {
            timing.mark(Step::FirstOutput);
        }
        // The log has it first: a reader that does not read holds up what comes next, and not this.
        if let Some(log) = &self.log {
            log.lock().unwrap_or_else(PoisonError::into_inner).push(self.stream, bytes);
        }
        if let Some(target) = &mut self.target {
            target.write_all(bytes)?;
        }
        self.attachments.pass_output(self.stream, bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Passes what comes on `connection` to standard output or error until it ends.
pub fn pass_output(connection: Connection, place: Place) -> io::Result<JoinHandle<io::Result<()>>> {
    let (name, fd) = standard_of(place.stream);
    let pass = move || streams::pass_output(connection, &place, &*standard(fd));
    Builder::new().name(name.into()).stack_size(256 << 10).spawn(pass)
}
