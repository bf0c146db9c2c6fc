//! How the queues of a tap are set up for the driver.
//!
//! Each ioctl for that takes the RTNL lock, which the whole host has one of, and tells all listeners of netlink. So
//! those that change nothing are left out, and the others are limited: a driver that resets its device or sends
//! commands in a loop waits.

use std::io;
use std::num::NonZeroU64;
use std::os::fd::RawFd;
use std::sync::Arc;

use super::config;
use super::device::NetMetrics;
use super::tap::Tap;
use crate::virtio::rate_limit::{Limit, RateLimiter, RateLimits};

/// How many ioctls there may be in a second in the long run, and at once: a driver that uses all pairs after another
/// one takes two for each, to detach and to attach it.
pub(super) const IOCTLS: Limit = Limit {
    per_second: NonZeroU64::new(16).unwrap(),
    burst: NonZeroU64::new(4 * config::MAX_PAIRS as u64).unwrap(),
};

/// What a driver wants of a tap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TapSettings {
    /// By how many queues packets come.
    pub(super) pairs: u16,
    /// The offloads that the driver accepts, as feature bits.
    pub(super) offloads: u64,
}

/// The queues of a tap; none if the backend is not a tap.
pub(super) struct Taps {
    taps: Vec<Tap>,
    /// How many of them are attached: the first ones.
    attached: usize,
    /// The offloads that the kernel has, `TUN_F_*`.
    offloads: u32,
    limiter: RateLimiter,
    metrics: Arc<NetMetrics>,
}

impl Taps {
    /// Takes `taps`, all of which are attached and have no offloads.
    ///
    /// # Errors
    ///
    /// The process has no descriptor left for a timer.
    pub(super) fn new(taps: Vec<Tap>, limit: Limit, metrics: Arc<NetMetrics>) -> io::Result<Self> {
        // An ioctl counts as a byte: of bytes, more may be taken than are there, to be paid for by those behind.
        let limiter = RateLimiter::new(RateLimits { bandwidth: Some(limit), operations: None })?;
        Ok(Self { attached: taps.len(), taps, offloads: 0, limiter, metrics })
    }

    /// Sets the tap up if the limit allows, and returns the number of ioctls; `None` if it has to wait, and then
    /// [`timer`](Self::timer) says when to try again. What changes nothing is always allowed.
    ///
    /// # Errors
    ///
    /// The host's.
    pub(super) fn try_set(&mut self, settings: TapSettings) -> io::Result<Option<u64>> {
        let ioctls = self.ioctls_for(settings);
        if ioctls > 0 && self.limiter.reserve(ioctls).is_none() {
            return Ok(None);
        }
        self.set(settings).map(|()| Some(ioctls))
    }

    /// Sets the tap up at once, for the host and not for a driver.
    ///
    /// # Errors
    ///
    /// The host's.
    pub(super) fn set(&mut self, settings: TapSettings) -> io::Result<()> {
        let offloads = config::tap_offloads(settings.offloads);
        // They are the interface's, and set by the first queue, the only one that is always attached.
        if let Some(first) = self.taps.first()
            && self.offloads != offloads
        {
            self.metrics.tap_ioctls.increment();
            first.set_offloads(offloads)?;
            self.offloads = offloads;
        }
        let count = self.wanted(settings);
        while self.attached > count {
            self.set_attached(self.attached - 1, false)?;
            self.attached -= 1;
        }
        while self.attached < count {
            self.set_attached(self.attached, true)?;
            self.attached += 1;
        }
        Ok(())
    }

    fn set_attached(&self, index: usize, attached: bool) -> io::Result<()> {
        self.metrics.tap_ioctls.increment();
        self.taps.get(index).map_or(Ok(()), |tap| tap.set_attached(attached))
    }

    fn wanted(&self, settings: TapSettings) -> usize {
        usize::from(settings.pairs).clamp(1, self.taps.len().max(1)).min(self.taps.len())
    }

    /// How many ioctls it takes.
    fn ioctls_for(&self, settings: TapSettings) -> u64 {
        let changes_offloads =
            !self.taps.is_empty() && self.offloads != config::tap_offloads(settings.offloads);
        self.attached.abs_diff(self.wanted(settings)) as u64 + u64::from(changes_offloads)
    }

    /// Whether a change waits for the limit.
    pub(super) fn is_waiting(&self) -> bool {
        self.limiter.is_waiting()
    }

    /// The timer that becomes readable when a change may be tried again.
    pub(super) fn timer(&self) -> Option<RawFd> {
        self.limiter.timer()
    }

    /// Handles the expiry of the timer.
    pub(super) fn timer_expired(&mut self) {
        self.limiter.timer_expired();
    }
}
