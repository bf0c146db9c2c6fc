//! What the host says to a balloon while its guest runs.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use thiserror::Error;

use super::device::Balloon;
use super::statistics::Statistics;
use crate::lock;

/// Why a balloon can't have a size.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("a balloon of {asked} bytes is too large: this guest can give up {most} bytes at the most")]
pub struct TargetError {
    /// What was asked for, in bytes.
    pub asked: u64,
    /// The most, in bytes.
    pub most: u64,
}

/// The control side of a balloon. All sizes are those of the balloon, that is of the memory taken
/// from the guest, in bytes.
#[derive(Clone)]
pub struct BalloonHandle(Arc<Mutex<Balloon>>);

impl BalloonHandle {
    /// A handle of `balloon`, which its transport has.
    pub fn new(balloon: Arc<Mutex<Balloon>>) -> Self {
        Self(balloon)
    }

    /// The size that the balloon should have.
    pub fn target(&self) -> u64 {
        lock(&self.0).target()
    }

    /// The size that the driver says the balloon has.
    pub fn actual(&self) -> u64 {
        lock(&self.0).actual()
    }

    /// The largest size that the balloon can be given.
    pub fn largest_target(&self) -> u64 {
        lock(&self.0).largest_target()
    }

    /// Asks the guest for a balloon of `bytes`, of which parts of a page do not count. The guest takes its time, may
    /// stop at less, and takes memory back when it would otherwise have to kill a process.
    ///
    /// # Errors
    ///
    /// [`TargetError`] where the guest would be left with too little to run.
    pub fn set_target(&self, bytes: u64) -> Result<(), TargetError> {
        lock(&self.0).set_target(bytes)
    }

    /// The statistics that came last, and when they came; `None` where none ever did.
    pub fn statistics(&self) -> Option<(Instant, Statistics)> {
        lock(&self.0).statistics()
    }

    /// Asks the driver for new statistics and waits for them for up to `patience`; then as
    /// [`statistics`](Self::statistics). The event loop, which brings them, must not wait.
    pub fn refresh_statistics(&self, patience: Duration) -> Option<(Instant, Statistics)> {
        let mut balloon = lock(&self.0);
        let before = balloon.statistics().map(|(at, _)| at);
        let came = balloon.statistics_came();
        balloon.request_statistics();
        let waiting = |balloon: &mut Balloon| balloon.statistics().map(|(at, _)| at) == before;
        let result = came.wait_timeout_while(balloon, patience, waiting);
        let (balloon, _) = result.unwrap_or_else(PoisonError::into_inner);
        balloon.statistics()
    }

    /// Has the driver asked for statistics each `interval`; zero, as in the beginning, is never.
    ///
    /// # Errors
    ///
    /// Those of setting a timer: an interval that the kernel can't count.
    pub fn set_statistics_interval(&self, interval: Duration) -> io::Result<()> {
        lock(&self.0).set_statistics_interval(interval)
    }

    /// The interval at which the driver is asked for statistics; zero is never.
    pub fn statistics_interval(&self) -> Duration {
        lock(&self.0).statistics_interval()
    }
}
