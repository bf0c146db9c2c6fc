//! Who copies the disks of a VM while it is saved: its process opens none of their paths and has no file to copy to.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SendFlags, send};

/// How long the copies may take.
const LIMIT: Duration = Duration::from_secs(15 * 60);

/// A socket by which another process hears that the VM stands still. It stands still until that process closes its end
/// or says something.
#[derive(Debug)]
pub struct Hold(OwnedFd);

impl Hold {
    /// By `socket`, whose other end that process has.
    pub fn new(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// Says that the VM stands still.
    pub(super) fn begin(&self) -> io::Result<()> {
        send(&self.0, b"p", SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?;
        Ok(())
    }

    /// Waits for the other process.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::TimedOut`] after a quarter of an hour.
    pub(super) fn wait(&self) -> io::Result<()> {
        self.wait_until(Instant::now() + LIMIT)
    }

    /// Whether it lasts: the other process has said nothing, and lives.
    pub(crate) fn lasts(&self) -> bool {
        self.wait_until(Instant::now()).is_err()
    }

    fn wait_until(&self, end: Instant) -> io::Result<()> {
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
            match poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&timeout)) {
                Ok(1..) => return Ok(()),
                Ok(0) if left.is_zero() => return Err(io::ErrorKind::TimedOut.into()),
                Ok(0) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn it_lasts_until_the_other_end_is_closed_or_says_something() {
        for says in [false, true] {
            let (mut far, near) = UnixStream::pair().unwrap();
            let hold = Hold::new(near.into());
            hold.begin().unwrap();
            far.read_exact(&mut [0]).unwrap();
            let soon = Instant::now() + Duration::from_millis(20);
            assert_eq!(hold.wait_until(soon).unwrap_err().kind(), io::ErrorKind::TimedOut);
            assert!(hold.lasts());
            if says {
                far.write_all(b"x").unwrap();
                hold.wait().unwrap();
            }
            drop(far);
            hold.wait().unwrap();
            assert!(!hold.lasts() && hold.begin().is_err());
        }
    }

    #[test]
    fn a_file_is_no_socket() {
        assert!(Hold::new(tempfile::tempfile().unwrap().into()).begin().is_err());
    }
}
