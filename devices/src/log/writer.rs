//! The thread that writes to standard error.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::{Log, shared};

/// How long the end waits for a reader who reads nothing, and for one who reads.
const STANDSTILL: Duration = Duration::from_millis(500);
const MOST: Duration = Duration::from_secs(2);

/// While it lives, a thread writes what is said, and nobody who says something waits. When it goes, it waits a bounded
/// time until all was written.
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
        // Who does not read what is left misses it. The thread then waits until the process ends.
        self.0.queue.close(STANDSTILL, MOST);
    }
}
