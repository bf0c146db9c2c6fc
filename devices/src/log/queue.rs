//! The lines that wait to be written.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::lock;

/// The most bytes that wait. As many may be with the thread that writes.
pub(super) const CAPACITY: usize = 64 << 10;

/// How much is written at once: what a pipe takes as one.
const PIECE: usize = 4096;

/// How lines get to the descriptor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Mode {
    /// The caller writes: no guest runs, and a short command has no thread.
    #[default]
    Direct,
    /// A thread writes.
    Thread,
    /// The thread writes what there is and then ends.
    Closing,
}

#[derive(Default)]
struct State {
    mode: Mode,
    waiting: String,
    dropped: u64,
    /// The thread has lines that it took and has not written to their end.
    writing: bool,
    /// Counts what was written, for a caller that waits for progress.
    pieces: u64,
}

/// The lines for one descriptor.
pub(super) struct Queue {
    fd: BorrowedFd<'static>,
    state: Mutex<State>,
    /// There is something to write, or something was written.
    changed: Condvar,
}

impl Queue {
    /// A queue of lines for `fd`, which are written at once until [`start`](Self::start).
    pub(super) fn new(fd: BorrowedFd<'static>) -> Self {
        Self { fd, state: Mutex::default(), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Adds whole lines, or counts them as dropped where there is no room.
    pub(super) fn push(&self, lines: &str) {
        let mut state = self.lock();
        if state.mode == Mode::Direct {
            drop(state);
            // Where standard error is closed, there is nowhere else to say it.
            return drop(write_all(self.fd, lines.as_bytes(), || {}));
        }
        if state.waiting.len() + lines.len() > CAPACITY {
            state.dropped += 1;
            return;
        }
        state.waiting.push_str(lines);
        drop(state);
        self.changed.notify_all();
    }

    /// From now on [`write_waiting`](Self::write_waiting) writes the lines.
    pub(super) fn start(&self) {
        self.lock().mode = Mode::Thread;
    }

    /// Takes what waits, with a line that says what was dropped behind it. `None` after [`close`](Self::close).
    fn take(&self) -> Option<String> {
        let mut state = self.lock();
        state.writing = false;
        self.changed.notify_all();
        while state.waiting.is_empty() && state.dropped == 0 {
            if state.mode == Mode::Closing {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
        let mut lines = std::mem::take(&mut state.waiting);
        let dropped = std::mem::take(&mut state.dropped);
        if dropped > 0 {
            lines.push_str(&dropped_line(dropped));
        }
        state.writing = true;
        Some(lines)
    }

    /// Writes lines as they come, until the queue is closed.
    pub(super) fn write_waiting(&self) {
        while let Some(lines) = self.take() {
            let progress = || {
                self.lock().pieces += 1;
                self.changed.notify_all();
            };
            // Where standard error is closed, there is nowhere else to say it.
            let _ = write_all(self.fd, lines.as_bytes(), progress);
        }
    }

    /// Ends the thread once it has written all. Waits for that as long as something is written at least every
    /// `standstill`, and not longer than `most`; false, where lines are left.
    pub(super) fn close(&self, standstill: Duration, most: Duration) -> bool {
        let end = Instant::now() + most;
        let mut state = self.lock();
        state.mode = Mode::Closing;
        self.changed.notify_all();
        while state.writing || !state.waiting.is_empty() || state.dropped > 0 {
            let before = state.pieces;
            let time = end.saturating_duration_since(Instant::now()).min(standstill);
            let unchanged =
                |state: &mut State| state.pieces == before && (state.writing || !state.waiting.is_empty());
            let waited = self.changed.wait_timeout_while(state, time, unchanged);
            let (next, result) = waited.unwrap_or_else(std::sync::PoisonError::into_inner);
            state = next;
            if result.timed_out() {
                return false;
            }
        }
        true
    }
}

fn dropped_line(dropped: u64) -> String {
    format!("mvm: warning: {dropped} lines were dropped here, as standard error was not read\n")
}

/// Writes `bytes`, and waits as long as that takes. The descriptor is shared with others and stays as it is.
fn write_all(fd: BorrowedFd<'_>, bytes: &[u8], progress: impl Fn()) -> io::Result<()> {
    for mut piece in bytes.chunks(PIECE) {
        while !piece.is_empty() {
            match rustix::io::write(fd, piece) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => piece = piece.get(written..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    poll(&mut [PollFd::new(&fd.as_fd(), PollFlags::OUT)], None)?;
                }
                Err(error) => return Err(error.into()),
            }
        }
        progress();
    }
    Ok(())
}
