//! The thread for what may take seconds and must keep neither the event loop nor the supervisor from working: pausing a
//! VM, resuming it, changing a disk's size.

use std::io;
use std::sync::mpsc::{self, SyncSender};

/// What the thread does, one after the other.
pub(crate) type Job = Box<dyn FnOnce() + Send>;

/// How many jobs wait at most, besides the one that is worked on: as many as the control socket has connections.
pub(crate) const WAITING: usize = 15;

/// What the thread is called, and a copy of the process that it makes to save the VM.
pub(crate) const COPYING_THREAD: &str = "background";

/// Gives jobs to the thread. It ends when the last of these is dropped, after the job that it works on.
#[derive(Clone)]
pub struct Background(SyncSender<Job>);

impl Background {
    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// The host has no thread left.
    pub fn start() -> io::Result<Self> {
        let (jobs, given) = mpsc::sync_channel::<Job>(WAITING);
        devices::thread(COPYING_THREAD).spawn(move || given.iter().for_each(|job| job()))?;
        Ok(Self(jobs))
    }

    /// Has the thread do `job`; false where too many wait already.
    pub(crate) fn run(&self, job: Job) -> bool {
        self.0.try_send(job).is_ok()
    }
}
