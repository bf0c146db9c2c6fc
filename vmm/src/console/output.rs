//! From the serial port to wherever the console goes, a line at a time.
//!
//! A guest writes byte by byte, and a system call for each would keep its vCPU from running. So bytes wait for the
//! end of their line; what has no end, such as a prompt, waits a few milliseconds.

use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

/// How long a part of a line may wait: too short to be seen, long enough for many bytes.
const PATIENCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };
/// How much may wait.
const CAPACITY: usize = 4096;

struct Pending {
    bytes: Vec<u8>,
    sink: Box<dyn Write + Send>,
    timer: OwnedFd,
}

impl Pending {
    fn write_out(&mut self) -> io::Result<()> {
        let result = self.sink.write_all(&self.bytes);
        // What could not be written is lost, as on a line without a cable.
        self.bytes.clear();
        result
    }

    fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.bytes.is_empty() {
            let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: PATIENCE };
            timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once)?;
        }
        self.bytes.extend_from_slice(bytes);
        if bytes.contains(&b'\n') || self.bytes.len() >= CAPACITY { self.write_out() } else { Ok(()) }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        // The VM is gone: there is nobody left to tell.
        let _ = self.write_out();
    }
}

/// The end that the serial port writes to.
pub struct ConsoleOutput(Arc<Mutex<Pending>>);

impl ConsoleOutput {
    /// A console that goes to `sink`.
    ///
    /// # Errors
    ///
    /// Those of making a timer.
    pub fn new(sink: Box<dyn Write + Send>) -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        Ok(Self(Arc::new(Mutex::new(Pending { bytes: Vec::with_capacity(CAPACITY), sink, timer }))))
    }

    /// The end that belongs to the event loop.
    pub fn flusher(&self) -> ConsoleFlusher {
        ConsoleFlusher(self.0.clone())
    }
}

fn lock(pending: &Mutex<Pending>) -> MutexGuard<'_, Pending> {
    pending.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Write for ConsoleOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        lock(&self.0).push(bytes)?;
        Ok(bytes.len())
    }

    /// Does nothing: the serial port asks for it after each byte.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes out what has waited long enough.
pub struct ConsoleFlusher(Arc<Mutex<Pending>>);

impl MutEventSubscriber for ConsoleFlusher {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let timer = lock(&self.0).timer.as_raw_fd();
        if let Err(error) = ops.add(Events::new_raw(timer, EventSet::IN)) {
            tracing::warn!(%error, "the console shows whole lines only");
        }
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {
        let mut pending = lock(&self.0);
        // The count of expirations says nothing; reading it makes the timer quiet.
        let _ = rustix::io::read(&pending.timer, &mut [0; 8]);
        // The serial port has no use for an error here, and the next write meets it again.
        let _ = pending.write_out();
    }
}

#[cfg(test)]
mod tests {
    use event_manager::{EventManager, SubscriberOps};

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<Vec<u8>>>>);

    impl Sink {
        fn writes(&self) -> Vec<Vec<u8>> {
            self.0.lock().unwrap().clone()
        }
    }

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if !bytes.is_empty() {
                self.0.lock().unwrap().push(bytes.to_vec());
            }
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn type_out(output: &mut ConsoleOutput, text: &[u8]) {
        for byte in text {
            output.write_all(&[*byte]).unwrap();
        }
    }

    #[test]
    fn a_line_is_one_write() {
        let sink = Sink::default();
        let mut output = ConsoleOutput::new(Box::new(sink.clone())).unwrap();
        type_out(&mut output, b"one\r\ntwo");
        assert_eq!(sink.writes(), [b"one\r\n"]);
        drop(output);
        assert_eq!(sink.writes(), [&b"one\r\n"[..], b"two"], "the end of the VM shows what is left");
    }

    #[test]
    fn a_prompt_appears_without_a_line_end() {
        let sink = Sink::default();
        let mut output = ConsoleOutput::new(Box::new(sink.clone())).unwrap();
        let mut events = EventManager::<ConsoleFlusher>::new().unwrap();
        events.add_subscriber(output.flusher());
        type_out(&mut output, b"login: ");
        assert!(sink.writes().is_empty());
        events.run_with_timeout(10_000).unwrap();
        assert_eq!(sink.writes(), [b"login: "]);
    }

    #[test]
    fn endless_output_without_lines_is_bounded() {
        let sink = Sink::default();
        let mut output = ConsoleOutput::new(Box::new(sink.clone())).unwrap();
        type_out(&mut output, &[b'x'; 3 * CAPACITY + 1]);
        assert_eq!(sink.writes().len(), 3);
    }
}
