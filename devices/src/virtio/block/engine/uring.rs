//! I/O through io_uring.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use io_uring::types::{Fd, FsyncFlags};
use io_uring::{IoUring, Probe, opcode, squeue};
use vmm_sys_util::eventfd::EventFd;

use super::super::super::iovecs::IoVecs;
use super::super::disk::Disk;
use super::{Completion, MAX_IN_FLIGHT, Operation};

/// A ring of the kernel's, with room for all that may be in flight.
pub(in super::super) struct Uring {
    ring: IoUring,
    file: Arc<File>,
    wake: EventFd,
}

impl Uring {
    pub(super) fn new(disk: &Disk, wake: &EventFd) -> io::Result<Self> {
        let entries = u32::from(MAX_IN_FLIGHT);
        // Completions are brought to the event loop's thread at its next system call instead of by an
        // interrupt of it; from Linux 5.19 on. A ring for one thread only would not do: a reset comes from
        // a vCPU's thread.
        let ring = match IoUring::builder().setup_coop_taskrun().build(entries) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => IoUring::new(entries)?,
            other => other?,
        };
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        let needed =
            [opcode::Readv::CODE, opcode::Writev::CODE, opcode::Fsync::CODE, opcode::Fallocate::CODE];
        if !needed.iter().all(|&code| probe.is_supported(code)) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        ring.submitter().register_eventfd(wake.as_raw_fd())?;
        Ok(Self { ring, file: Arc::clone(&disk.file), wake: wake.try_clone()? })
    }

    /// See [`Engine::start`](super::Engine::start).
    ///
    /// # Safety
    ///
    /// What is left of `ranges`, and the memory that it names, have to stay valid until the completion was
    /// taken.
    pub(super) unsafe fn start(&mut self, number: u16, operation: Operation, offset: u64, ranges: &IoVecs) {
        let entry = self.entry(operation, offset, ranges).user_data(u64::from(number));
        loop {
            // SAFETY: the caller promises that all that the entry points to outlives the operation.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                return;
            }
            // It can't be: the ring has room for all that may be in flight.
            self.submit();
        }
    }

    fn entry(&self, operation: Operation, offset: u64, ranges: &IoVecs) -> squeue::Entry {
        let fd = Fd(self.file.as_raw_fd());
        let ranges = ranges.left();
        let count = u32::try_from(ranges.len()).unwrap_or(u32::MAX);
        match operation {
            Operation::Read => opcode::Readv::new(fd, ranges.as_ptr(), count).offset(offset).build(),
            Operation::Write => opcode::Writev::new(fd, ranges.as_ptr(), count).offset(offset).build(),
            Operation::Sync => opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build(),
            Operation::Allocate { mode, length } => {
                opcode::Fallocate::new(fd, length).offset(offset).mode(mode).build()
            }
        }
    }

    pub(super) fn submit(&mut self) {
        while !self.ring.submission().is_empty() {
            match self.ring.submit() {
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                Err(error) => {
                    // The kernel is short of something. What is not submitted stays in the ring; the event
                    // loop comes back to it after it has done all else.
                    tracing::warn!(%error, "the kernel takes no disk I/O now; it will be tried again");
                    let _ = self.wake.write(1);
                    return;
                }
            }
        }
    }

    pub(super) fn pop(&mut self) -> Option<Completion> {
        let entry = self.ring.completion().next()?;
        // It is what `start` put there.
        let number = u16::try_from(entry.user_data()).unwrap_or(u16::MAX);
        Some(Completion { number, result: entry.result() })
    }

    pub(super) fn set_wake_ups(&mut self, enabled: bool) {
        let completions = self.ring.completion();
        if enabled {
            completions.enable_eventfd();
            // The caller looks for completions next, and must not have looked before: the kernel adds one and
            // then reads whether to wake us.
            fence(Ordering::SeqCst);
        } else {
            completions.disable_eventfd();
        }
    }

    pub(super) fn wait(&mut self) -> io::Result<()> {
        match self.ring.submitter().submit_and_wait(1) {
            Ok(_) => Ok(()),
            // All of these pass: a signal, a shortage, completions that nobody took yet.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)) => {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}
