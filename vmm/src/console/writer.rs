//! The thread that writes the console's output to where the user wants it.
//!
//! It is a thread of its own because what it writes to may block, and may not be made not to: the terminal's
//! descriptor is shared with the shell that started mvm.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use instance::start_without_signals;

use super::hub::Reader;
use super::sink::Sink;
use crate::exit::{ExitReason, ExitSlot};

/// How long the end of a VM waits for a reader that reads nothing, and for one that reads at all.
const STANDSTILL: Duration = Duration::from_secs(2);
const LONGEST_END: Duration = Duration::from_secs(10);

/// The host's end of the thread.
pub(super) struct Writer {
    /// Whether anything was written lately; the thread has ended when the sender is gone.
    progress: Receiver<()>,
}

impl Writer {
    /// Starts to write what `reader` reads to `sink`. Where that is standard output and its reader has gone, the VM
    /// ends through `exit`.
    ///
    /// # Errors
    ///
    /// Those of starting a thread.
    pub(super) fn start(reader: Reader, sink: Sink, exit: &Arc<ExitSlot>) -> io::Result<Self> {
        let (sender, progress) = mpsc::sync_channel(1);
        let exit = Arc::clone(exit);
        let thread = devices::thread("console");
        start_without_signals(|| thread.spawn(move || write_all(&reader, sink, &exit, &sender)))?;
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

fn write_all(reader: &Reader, mut sink: Sink, exit: &ExitSlot, progress: &SyncSender<()>) {
    let mut bytes = Vec::new();
    while reader.wait(&mut bytes) > 0 {
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            // What can't be written is lost, as on a line without a cable: the guest goes on, and a disk that was
            // full may have space for what comes.
            let written = match sink.write(rest) {
                Ok(written) => written,
                Err(error) => {
                    if sink.has_lost_its_reader(&error) {
                        // SIGPIPE is ignored, so that no other pipe ends the VM; this one does.
                        exit.end(ExitReason::Signal(libc::SIGPIPE));
                    }
                    break;
                }
            };
            rest = rest.get(written..).unwrap_or_default();
            // It fails where that was sent already and not received yet.
            let _ = progress.try_send(());
        }
        bytes.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::io::{PipeReader, Read, Write, pipe};
    use std::os::fd::{AsFd, BorrowedFd, IntoRawFd, OwnedFd};

    use super::*;
    use crate::console::hub::{Hub, Output};
    use crate::console::ring::CAPACITY;

    fn exit_slot() -> Arc<ExitSlot> {
        Arc::new(ExitSlot::new().unwrap())
    }

    fn pipe_sink() -> (PipeReader, Sink) {
        let (reader, writer) = pipe().unwrap();
        (reader, Sink::File(OwnedFd::from(writer).into()))
    }

    #[test]
    fn output_that_is_not_read_delays_nothing_and_the_reader_learns_what_it_missed() {
        const LENGTH: usize = 3 * CAPACITY;
        let (mut pipe, sink) = pipe_sink();
        let hub = Hub::new().unwrap();
        let writer = Writer::start(hub.awaited_reader(), sink, &exit_slot()).unwrap();
        let mut output = Output::new(&hub);
        let mut write = |bytes: usize| (0..bytes / 64).for_each(|_| output.write_all(&[b'x'; 64]).unwrap());
        // The thread has taken more than the pipe holds, so that it takes nothing more until the pipe is read.
        let first = rustix::pipe::fcntl_getpipe_size(&pipe).unwrap() + 64;
        write(first);
        let start = Instant::now();
        while hub.awaited_unread() > 0 {
            assert!(start.elapsed() < Duration::from_secs(60), "the thread does not take the output");
            hub.tick();
            std::thread::yield_now();
        }
        write(LENGTH - first);
        hub.close();
        assert!(!writer.finish(), "the output is not read");
        // A reader that reads at last gets what the pipe holds, what is missing, and the latest.
        let mut text = String::new();
        pipe.read_to_string(&mut text).unwrap();
        let (before, after) = text.split_once("\r\n[mvm: ").unwrap();
        let (dropped, after) = after.split_once(" bytes of console output dropped]\r\n").unwrap();
        assert_eq!(after.len(), CAPACITY);
        assert!(!before.is_empty() && !after.contains("dropped"), "it is said once");
        assert_eq!(before.len() + dropped.parse::<usize>().unwrap() + after.len(), LENGTH);
    }

    #[test]
    fn the_end_waits_for_a_reader_that_is_merely_slow() {
        let (mut pipe, sink) = pipe_sink();
        let hub = Hub::new().unwrap();
        let writer = Writer::start(hub.awaited_reader(), sink, &exit_slot()).unwrap();
        Output::new(&hub).write_all(&vec![b'x'; CAPACITY]).unwrap();
        let slow = std::thread::spawn(move || {
            let (mut buffer, mut seen) = ([0; 16 << 10], 0);
            while let Ok(read @ 1..) = pipe.read(&mut buffer) {
                seen += read;
                std::thread::sleep(Duration::from_millis(5));
            }
            seen
        });
        hub.close();
        assert!(writer.finish());
        drop(writer);
        assert_eq!(slow.join().unwrap(), CAPACITY);
    }

    #[test]
    fn a_descriptor_that_does_not_block_is_waited_for_and_stays_as_it_is() {
        let (mut pipe, sink) = pipe_sink();
        let Sink::File(file) = &sink else { panic!("it is a pipe") };
        rustix::io::ioctl_fionbio(file, true).unwrap();
        let same = file.as_fd().try_clone_to_owned().unwrap();
        let hub = Hub::new().unwrap();
        let writer = Writer::start(hub.awaited_reader(), sink, &exit_slot()).unwrap();
        Output::new(&hub).write_all(&vec![b'x'; CAPACITY]).unwrap();
        hub.close();
        let mut seen = vec![0; CAPACITY];
        pipe.read_exact(&mut seen).unwrap();
        assert!(writer.finish());
        assert!(rustix::fs::fcntl_getfl(same).unwrap().contains(rustix::fs::OFlags::NONBLOCK));
    }

    #[test]
    fn a_vm_whose_standard_output_is_not_read_any_more_ends_as_a_filter_does() {
        for is_standard in [true, false] {
            let (pipe, writer) = pipe().unwrap();
            let sink = if is_standard {
                let fd = OwnedFd::from(writer).into_raw_fd();
                // SAFETY: the descriptor is open and never closed.
                Sink::Standard(unsafe { BorrowedFd::borrow_raw(fd) })
            } else {
                Sink::File(OwnedFd::from(writer).into())
            };
            drop(pipe);
            let (hub, exit) = (Hub::new().unwrap(), exit_slot());
            let writer = Writer::start(hub.awaited_reader(), sink, &exit).unwrap();
            Output::new(&hub).write_all(b"x").unwrap();
            hub.close();
            assert!(writer.finish());
            assert_eq!(exit.reason(), is_standard.then_some(ExitReason::Signal(libc::SIGPIPE)));
        }
    }

    #[test]
    fn a_reader_that_has_gone_holds_up_no_other() {
        let (pipe, sink) = pipe_sink();
        drop(pipe);
        let hub = Hub::new().unwrap();
        let writer = Writer::start(hub.awaited_reader(), sink, &exit_slot()).unwrap();
        Output::new(&hub).write_all(&vec![b'x'; CAPACITY]).unwrap();
        hub.close();
        assert!(writer.finish());
    }
}
