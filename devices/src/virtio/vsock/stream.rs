//! A socket of the host.

use std::ffi::OsString;
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, SocketAddrUnix, SocketFlags,
    SocketType, connect, recv, sendmsg, shutdown, socket_with,
};

use crate::virtio::iovecs::IoVecs;

/// The most ranges that one call takes (`IOV_MAX`).
const MAX_RANGES: usize = 1024;

/// A Unix stream socket that never waits.
pub(super) struct HostStream(OwnedFd);

/// What became of an attempt to connect.
pub(super) enum Attempt {
    Connected,
    /// The listener has more waiting than it takes: try again later.
    Busy,
}

impl HostStream {
    /// A socket that is connected already and non-blocking.
    pub(super) fn accepted(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// A socket to be connected.
    pub(super) fn new() -> Result<Self, Errno> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).map(Self)
    }

    /// Connects to the socket at `path`.
    pub(super) fn connect(&self, path: &Path) -> Result<Attempt, Errno> {
        match connect(&self.0, &SocketAddrUnix::new(path)?) {
            Ok(()) => Ok(Attempt::Connected),
            Err(Errno::AGAIN | Errno::INTR) => Ok(Attempt::Busy),
            Err(error) => Err(error),
        }
    }

    /// Reads what there is into `ranges`; zero is the end.
    ///
    /// # Safety
    ///
    /// The memory that is left of `ranges` has to be valid during the call.
    pub(super) unsafe fn read(&self, ranges: &IoVecs) -> Result<usize, Errno> {
        let ranges = ranges.left();
        let count = i32::try_from(ranges.len().min(MAX_RANGES)).unwrap_or(i32::MAX);
        // SAFETY: `ranges` has at least `count` elements, and the caller says that they name valid memory.
        result(unsafe { libc::readv(self.0.as_raw_fd(), ranges.as_ptr(), count) })
    }

    /// Writes as much of `ranges` as there is room for.
    ///
    /// # Safety
    ///
    /// The memory that is left of `ranges` has to be valid during the call.
    pub(super) unsafe fn write(&self, ranges: &IoVecs) -> Result<usize, Errno> {
        let ranges = ranges.left();
        // SAFETY: all fields of the structure may be zero.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = ranges.as_ptr().cast_mut();
        // Its type depends on the C library.
        message.msg_iovlen = ranges.len().min(MAX_RANGES) as _;
        // SAFETY: the call reads the ranges, of which there are as many as it says, and the caller says that they
        // name valid memory.
        result(unsafe { libc::sendmsg(self.0.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) })
    }

    /// Writes as much of `bytes` as there is room for.
    pub(super) fn write_bytes(&self, bytes: &[IoSlice]) -> Result<usize, Errno> {
        sendmsg(&self.0, bytes, &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL)
    }

    /// Reads into `bytes` and leaves what was read where it is.
    pub(super) fn peek(&self, bytes: &mut [u8]) -> Result<usize, Errno> {
        recv(&self.0, bytes, RecvFlags::PEEK).map(|(length, _)| length)
    }

    /// Reads into `bytes`.
    pub(super) fn read_bytes(&self, bytes: &mut [u8]) -> Result<usize, Errno> {
        recv(&self.0, bytes, RecvFlags::empty()).map(|(length, _)| length)
    }

    /// Ends a direction. It fails only where the other end is gone, and then there is none to end.
    pub(super) fn shut(&self, direction: Shutdown) {
        let _ = shutdown(&self.0, direction);
    }
}

impl AsFd for HostStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn result(value: isize) -> Result<usize, Errno> {
    usize::try_from(value).map_err(|_| {
        Errno::from_raw_os_error(std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
    })
}

/// Where a process of the host listens for the guest's connections to `port`.
pub(super) fn path_of_port(path: &Path, port: u32) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(format!("_{port}"));
    name.into()
}
