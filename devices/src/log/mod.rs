//! What mvm says on standard error.
//!
//! A guest, a helper process or a client can cause most of these lines, as often as it likes, from vCPU threads and
//! from the event loop. Three rules hold for every line, because they are rules of the
//! [`tracing::Subscriber`] itself ([`init`]) and not of the places that log:
//!
//! * each place in the source has a token bucket for each device (`limit`); a place names the device in the field
//!   `device`. What a bucket has no token for is counted and left out.
//! * a line goes to a bounded queue, and a thread writes it ([`Writer`]). Where standard error is not read, lines are
//!   dropped and counted; no vCPU and no event loop waits.
//! * control characters are escaped (`line`), so that no guest writes to the user's terminal through an error message.

mod limit;
mod line;
mod queue;
mod subscriber;
#[cfg(test)]
mod tests;
mod writer;

use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use tracing::level_filters::LevelFilter;

use self::limit::{Key, Limiter, Rate, Verdict};
use self::queue::Queue;
use self::subscriber::LogSubscriber;
use crate::lock;

pub use self::line::Escaped;
pub use self::writer::Writer;

/// A descriptor's lines, and how often who may add to them.
struct Log {
    queue: Queue,
    limiter: Mutex<Limiter>,
}

impl Log {
    fn new(fd: BorrowedFd<'static>) -> Self {
        Self { queue: Queue::new(fd), limiter: Mutex::default() }
    }

    fn judge(&self, key: Key, rate: Rate) -> Verdict {
        lock(&self.limiter).judge(key, rate, Instant::now())
    }

    /// Says how many lines were left out since it was last said.
    fn sum_up(&self) {
        let left_out = lock(&self.limiter).take_left_out();
        if left_out > 0 {
            self.queue.push(&format!("mvm: warning: {left_out} more lines like those above were left out\n"));
        }
    }
}

/// That of this process's standard error.
fn shared() -> &'static Arc<Log> {
    static SHARED: OnceLock<Arc<Log>> = OnceLock::new();
    SHARED.get_or_init(|| Arc::new(Log::new(rustix::stdio::stderr())))
}

/// Sends the process's log lines of `level` and above to standard error. A second call does nothing.
pub fn init(level: LevelFilter) {
    // It fails only where a subscriber was set before.
    let _ = tracing::subscriber::set_global_default(LogSubscriber::new(level, Arc::clone(shared())));
}

/// An error and its causes on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line = format!("{line}: {error}");
        cause = error.source();
    }
    line
}

/// Says `message` on a line of its own, as the answer to what the user asked for: no level hides it and no bucket
/// counts it.
pub fn say(message: impl fmt::Display) {
    shared().queue.push(&line::plain(&message));
}

/// Waits until everything was written, but not long: for a process that is about to end whatever else it does. Nothing
/// more is written afterwards.
pub fn finish_quickly() {
    shared().queue.close(Duration::from_millis(100), Duration::from_millis(300));
}

/// Prints text of mvm's own, which may have several lines, as it is.
pub fn print(text: &str) {
    shared().queue.push(text);
}
