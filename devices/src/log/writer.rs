//! The thread that writes to standard error.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::{Log, shared};

/// How long the end waits for a reader that reads nothing, and for one that reads.
const STANDSTILL: Duration = Duration::from_millis(500);
const MOST: Duration = Duration::from_secs(2);

/// While it exists, a thread writes the lines, and no caller waits. When it is dropped, it waits a bounded time until
/// all lines were written.
pub struct Writer(Arc<Log>);

impl Writer {
    /// Starts the thread for standard error.
    ///
    /// # Errors
    ///
    /// Those of starting a thread.
    pub fn start() -> io::Result<Self> {
        Self::start_for(Arc::clone(shared()))
    }

    pub(super) fn start_for(log: Arc<Log>) -> io::Result<Self> {
        let for_thread = Arc::clone(&log);
        crate::spawn("log", move || for_thread.queue.write_waiting())?;
        log.queue.start();
        Ok(Self(log))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.0.sum_up();
        // A reader that does not read by then misses the rest. The thread then waits until the process ends.
        self.0.queue.close(STANDSTILL, MOST);
    }
}
