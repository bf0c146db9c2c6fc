//! A timer that an event loop can watch.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

/// A timer by the monotonic clock, which begins stopped. Its descriptor is readable from when it has gone off until
/// [`acknowledge`](Self::acknowledge).
#[derive(Debug)]
pub struct Timer(OwnedFd);

impl Timer {
    /// A timer that is not set.
    ///
    /// # Errors
    ///
    /// The process or the host has no descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(Self(timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?))
    }

    /// Goes off once, after `wait`; a wait of nothing is the shortest there is.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::InvalidInput`] for a time that the kernel can't count.
    pub fn set_once(&self, wait: Duration) -> io::Result<()> {
        self.set(wait.max(Duration::from_nanos(1)), Duration::ZERO)
    }

    /// Goes off each time that `interval` has passed; [`Duration::ZERO`] stops it.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::InvalidInput`] for a time that the kernel can't count.
    pub fn set_each(&self, interval: Duration) -> io::Result<()> {
        self.set(interval, interval)
    }

    fn set(&self, first: Duration, interval: Duration) -> io::Result<()> {
        let timespec = |time: Duration| {
            Timespec::try_from(time).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
        };
        let times = Itimerspec { it_value: timespec(first)?, it_interval: timespec(interval)? };
        timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &times)?;
        Ok(())
    }

    /// Takes note that it has gone off, however often.
    pub fn acknowledge(&self) {
        // It fails only where it has not, or where somebody was quicker.
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::testing::wait_readable;

    #[test]
    fn it_goes_off_once_or_again_and_again_and_not_when_it_is_stopped() {
        let timer = Timer::new().unwrap();
        timer.acknowledge();
        timer.set_once(Duration::ZERO).unwrap();
        wait_readable(timer.as_raw_fd());
        timer.set_each(Duration::from_millis(1)).unwrap();
        for _ in 0..3 {
            wait_readable(timer.as_raw_fd());
            timer.acknowledge();
        }
        timer.set_each(Duration::ZERO).unwrap();
        timer.acknowledge();
        assert!(rustix::io::read(&timer.0, &mut [0; 8]).is_err());
        let error = timer.set_each(Duration::MAX).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
