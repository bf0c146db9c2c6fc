//! The thread that writes the console's output to where the user wants it.
//!
//! It is a thread of its own because what it writes to may block, and may not be made not to: the terminal's
//! descriptor is shared with the shell that started mvm.

use std::io;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use super::hub::Reader;
use super::sink::Sink;
use crate::signals::start_without_signals;

/// How long the end of a VM waits for a reader that reads nothing, and for one that reads at all.
const STANDSTILL: Duration = Duration::from_secs(2);
const LONGEST_END: Duration = Duration::from_secs(10);

/// The host's end of the thread.
pub(super) struct Writer {
    /// Whether anything was written of late; the end is told by the sender's end.
    progress: Receiver<()>,
}

impl Writer {
    /// Starts to write what `reader` reads to `sink`.
    ///
    /// # Errors
    ///
    /// Those of starting a thread.
    pub(super) fn start(reader: Reader, sink: Sink) -> io::Result<Self> {
        let (sender, progress) = mpsc::sync_channel(1);
        let thread = std::thread::Builder::new().name("console".to_owned());
        start_without_signals(|| thread.spawn(move || write_all(&reader, &sink, &sender)))?;
        Ok(Self { progress })
    }

    /// Waits until all was written, after the hub was closed; false where the reader is too slow for that. The
    /// thread then waits for it until the process ends.
    pub(super) fn finish(&self) -> bool {
        let end = Instant::now() + LONGEST_END;
        loop {
            let patience = end.saturating_duration_since(Instant::now()).min(STANDSTILL);
            match self.progress.recv_timeout(patience) {
                Ok(()) => {}
                Err(RecvTimeoutError::Timeout) => return false,
                Err(RecvTimeoutError::Disconnected) => return true,
            }
        }
    }
}

fn write_all(reader: &Reader, sink: &Sink, progress: &SyncSender<()>) {
    let mut bytes = Vec::new();
    while reader.wait(&mut bytes) > 0 {
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            // What can't be written is lost, as on a line without a cable: the guest goes on, and a disk that was
            // full may have space for what comes.
            let Ok(written) = sink.write(rest) else { break };
            rest = rest.get(written..).unwrap_or_default();
            // Where it was said already and nobody has looked, it need not be said again.
            let _ = progress.try_send(());
        }
        bytes.clear();
    }
}
