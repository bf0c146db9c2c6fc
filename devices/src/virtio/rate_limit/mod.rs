//! Rate limits: bytes and operations a second that a device moves for its guest.

mod bucket;
mod pace;

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use self::bucket::Bucket;
pub use self::bucket::Limit;
pub use self::pace::Pace;
use crate::{Timer, lock};

/// What is limited. By default, nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateLimits {
    /// Bytes of data.
    pub bandwidth: Option<Limit>,
    /// Requests or packets.
    pub operations: Option<Limit>,
}

/// The token buckets of one device or one direction, shared by all of its limiters.
///
/// It outlives its limiters, so that a device that is reset goes on with what was left.
#[derive(Clone)]
pub struct Allowance(Option<Arc<Mutex<Buckets>>>);

struct Buckets {
    bandwidth: Option<Bucket>,
    operations: Option<Bucket>,
}

/// The buckets' saved state: for each, how long it takes to become full. A bucket without a limit has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateLimitState {
    /// Time until the bucket of bytes is full.
    pub bandwidth: Option<Duration>,
    /// Time until the bucket of operations is full.
    pub operations: Option<Duration>,
}

impl Allowance {
    /// Full buckets for `limits`; without limits, it costs nothing.
    pub fn new(limits: RateLimits) -> Self {
        if limits == RateLimits::default() {
            return Self(None);
        }
        let now = Instant::now();
        let bucket = |limit: Limit| Bucket::new(limit, now);
        let (bandwidth, operations) = (limits.bandwidth.map(bucket), limits.operations.map(bucket));
        Self(Some(Arc::new(Mutex::new(Buckets { bandwidth, operations }))))
    }

    /// Makes a limiter on these buckets, with a timer of its own.
    ///
    /// # Errors
    ///
    /// The process has no file descriptor left for the timer.
    pub fn limiter(&self) -> io::Result<RateLimiter> {
        let Some(buckets) = self.0.clone() else { return Ok(RateLimiter(None)) };
        Ok(RateLimiter(Some(Limited { buckets, timer: Timer::new()?, waiting: false })))
    }

    /// How full the buckets are now.
    pub fn state(&self) -> RateLimitState {
        let Some(buckets) = &self.0 else { return RateLimitState::default() };
        let (buckets, now) = (lock(buckets), Instant::now());
        let lacks = |bucket: &Option<Bucket>| bucket.as_ref().map(|bucket| bucket.lacks(now));
        RateLimitState { bandwidth: lacks(&buckets.bandwidth), operations: lacks(&buckets.operations) }
    }

    /// Makes the buckets as full as they were when `state` was taken. A bucket that `state` does not have stays as it
    /// is, and what it says of a limit that is not set is ignored.
    pub fn restore(&self, state: &RateLimitState) {
        let Some(buckets) = &self.0 else { return };
        let (mut buckets, now) = (lock(buckets), Instant::now());
        if let (Some(bucket), Some(lacks)) = (&mut buckets.bandwidth, state.bandwidth) {
            bucket.set_lacks(lacks, now);
        }
        if let (Some(bucket), Some(lacks)) = (&mut buckets.operations, state.operations) {
            bucket.set_lacks(lacks, now);
        }
    }
}

/// Decides when a device may start an operation.
///
/// A device [reserves](Self::reserve) an operation before it takes it from its queue, and [corrects](Self::correct) the
/// reservation once it knows how many bytes are moved. The check and the reservation are one step under one lock, so
/// that of several threads no two get the same token. Work that has to wait stays in the queue, at no cost to the
/// host, and the timer wakes the device.
pub struct RateLimiter(Option<Limited>);

/// A limiter with something to limit.
struct Limited {
    buckets: Arc<Mutex<Buckets>>,
    timer: Timer,
    /// The timer is armed, and its expiry was not handled yet.
    waiting: bool,
}

/// One operation that may start, with the bytes that were taken for it.
#[derive(Debug, Default)]
pub struct Reservation {
    bytes: u64,
}

impl RateLimiter {
    /// A limiter for `limits` with buckets of its own; without limits, it costs nothing.
    ///
    /// # Errors
    ///
    /// The process has no file descriptor left for the timer.
    pub fn new(limits: RateLimits) -> io::Result<Self> {
        Allowance::new(limits).limiter()
    }

    /// Reserves one operation that moves `bytes` bytes, or as many as are known of so far, if each bucket has a token.
    /// If not, it arms the timer, which becomes readable when an operation may start.
    pub fn reserve(&mut self, bytes: u64) -> Option<Reservation> {
        let reservation = Reservation { bytes };
        let Some(limited) = &mut self.0 else { return Some(reservation) };
        let Err(wait) = lock(&limited.buckets).reserve(bytes, Instant::now()) else {
            return Some(reservation);
        };
        if let Err(error) = limited.wait(wait) {
            // Waiting without a timer would stop the device for good.
            tracing::error!(%error, "cannot arm the timer of a rate limit; the operation is not delayed");
            lock(&limited.buckets).take(bytes, Instant::now());
            return Some(reservation);
        }
        None
    }

    /// Corrects a reservation to the `bytes` that the operation really moves.
    pub fn correct(&mut self, reservation: &mut Reservation, bytes: u64) {
        let reserved = std::mem::replace(&mut reservation.bytes, bytes);
        if let Some(limited) = &self.0
            && reserved != bytes
        {
            lock(&limited.buckets).correct(reserved, bytes, Instant::now());
        }
    }

    /// Takes back a reservation for an operation that did not take place.
    pub fn give_back(&mut self, reservation: Reservation) {
        if let Some(limited) = &self.0 {
            lock(&limited.buckets).give_back(reservation.bytes, Instant::now());
        }
    }

    /// Whether an operation waits for the timer.
    pub fn is_waiting(&self) -> bool {
        self.0.as_ref().is_some_and(|limited| limited.waiting)
    }

    /// The timer, which becomes readable when an operation may start that could not before.
    pub fn timer(&self) -> Option<RawFd> {
        self.0.as_ref().map(|limited| limited.timer.as_raw_fd())
    }

    /// Handles the expiry of the timer.
    pub fn timer_expired(&mut self) {
        if let Some(limited) = &mut self.0 {
            limited.timer.acknowledge();
            limited.waiting = false;
        }
    }
}

impl Buckets {
    /// Takes one operation of `bytes` bytes, or says how long until that is possible.
    fn reserve(&mut self, bytes: u64, now: Instant) -> Result<(), Duration> {
        let wait = |bucket: &Option<Bucket>| bucket.as_ref().and_then(|bucket| bucket.wait(now));
        match wait(&self.bandwidth).max(wait(&self.operations)) {
            Some(wait) => Err(wait),
            None => {
                self.take(bytes, now);
                Ok(())
            }
        }
    }

    fn take(&mut self, bytes: u64, now: Instant) {
        if let Some(bucket) = &mut self.bandwidth {
            bucket.take(bytes, now);
        }
        if let Some(bucket) = &mut self.operations {
            bucket.take(1, now);
        }
    }

    fn correct(&mut self, reserved: u64, bytes: u64, now: Instant) {
        if let Some(bucket) = &mut self.bandwidth {
            bucket.give_back(reserved, now);
            bucket.take(bytes, now);
        }
    }

    fn give_back(&mut self, bytes: u64, now: Instant) {
        if let Some(bucket) = &mut self.bandwidth {
            bucket.give_back(bytes, now);
        }
        if let Some(bucket) = &mut self.operations {
            bucket.give_back(1, now);
        }
    }
}

impl Limited {
    /// Arms the timer, unless it is armed already: the wait only gets shorter while nothing is taken.
    fn wait(&mut self, time: Duration) -> io::Result<()> {
        if !self.waiting {
            self.timer.set_once(time)?;
            self.waiting = true;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
