//! Taps: network interfaces of the host whose packets a process reads and writes.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use libc::{
    IFF_ATTACH_QUEUE, IFF_DETACH_QUEUE, IFF_MULTI_QUEUE, IFF_NO_PI, IFF_TAP, IFF_TUN_EXCL, IFF_VNET_HDR,
    TUNSETIFF, TUNSETOFFLOAD, TUNSETQUEUE, TUNSETVNETHDRSZ, c_int, c_uint,
};
use rustix::io::Errno;
use thiserror::Error;

use super::header::HEADER;
use super::interface::{Interface, InterfaceName, Request};
use crate::virtio::iovecs::IoVecs;

const TUN: &str = "/dev/net/tun";
/// The name of taps that mvm makes; the kernel replaces `%d` by a number.
const NEW_NAME: &str = "mvm%d";
/// The offloads of `TUNSETOFFLOAD` for UDP, which Linux has since 6.2.
const UDP_SEGMENTATION: u32 = libc::TUN_F_USO4 | libc::TUN_F_USO6;

/// Why a tap can't be opened or made.
#[derive(Debug, Error)]
pub enum TapError {
    /// No such interface.
    #[error(
        "there is no tap {0}: make it with `ip tuntap add {0} mode tap user $USER`, or use bridge=BRIDGE"
    )]
    Missing(InterfaceName),
    /// The driver is missing.
    #[error("cannot open {TUN}: load the host's tun driver with `modprobe tun`")]
    Driver(#[source] io::Error),
    /// The driver's device file is not for this user.
    #[error(
        "no permission to open {TUN}: run as root, or give your user access to it (a udev rule with a group)"
    )]
    DriverPermission(#[source] io::Error),
    /// The process or the host has no file descriptor left, or another error of the driver.
    #[error("cannot open {TUN}")]
    DriverOpen(#[source] io::Error),
    /// The tap belongs to another user.
    #[error(
        "no permission for tap {0}: make it with `ip tuntap add {0} mode tap user $USER`, or run as root"
    )]
    Permission(InterfaceName),
    /// Taps are made by root.
    #[error("no permission to make a tap: run as root, or make one yourself and use tap=NAME")]
    MayNotMake,
    /// Used by another process.
    #[error("tap {0} is in use by another VM")]
    Busy(InterfaceName),
    /// Another kind of interface.
    #[error("{0} is not a tap: make one with `ip tuntap add NAME mode tap user $USER`")]
    NotATap(InterfaceName),
    /// A tap for one queue.
    #[error(
        "tap {0} has one queue: make it with `ip tuntap add {0} mode tap multi_queue`, or leave queues= out"
    )]
    OneQueue(InterfaceName),
    /// More queues than the tap has.
    #[error("tap {0} has too few free queues: another VM may be using it")]
    TooManyQueues(InterfaceName),
    /// Any other error of the host.
    #[error("cannot use tap {name}")]
    Host {
        /// Which tap.
        name: String,
        /// The host's error.
        #[source]
        source: io::Error,
    },
}

impl TapError {
    /// Why [`TUN`] can't be opened.
    fn opening(error: io::Error) -> Self {
        match Errno::from_io_error(&error) {
            Some(Errno::ACCESS | Errno::PERM) => Self::DriverPermission(error),
            Some(Errno::NOENT | Errno::NXIO | Errno::NODEV) => Self::Driver(error),
            _ => Self::DriverOpen(error),
        }
    }
}

/// The ioctls that a test's stand-in for a tap got.
#[cfg(any(test, fuzzing))]
pub(super) type Ioctls = Arc<std::sync::Mutex<Vec<String>>>;

/// One queue of a tap.
#[derive(Clone)]
pub struct Tap {
    file: Arc<File>,
    has_udp_segmentation: bool,
    /// System calls for packets, to be counted for a turn.
    calls: u64,
    /// A test's stand-in for the interface: the ioctls that it got.
    #[cfg(any(test, fuzzing))]
    ioctls: Option<Ioctls>,
}

impl Tap {
    /// Opens `queues` queues of the existing tap `name`. All of them are attached.
    ///
    /// # Errors
    ///
    /// [`TapError`] says what to do about it.
    pub fn open(name: &InterfaceName, queues: u16) -> Result<Vec<Self>, TapError> {
        let host = |source| TapError::Host { name: name.to_string(), source };
        // For root, the kernel would make a tap that is missing.
        if Interface::find(name).map_err(host)?.is_none() {
            return Err(TapError::Missing(name.clone()));
        }
        let mut flags = if queues > 1 { IFF_MULTI_QUEUE } else { 0 };
        let mut first = Self::attach(&mut Request::new(name), flags)?;
        if queues == 1 && is(&first, Errno::INVAL) {
            // A tap for several queues needs the flag even with one.
            flags = IFF_MULTI_QUEUE;
            first = Self::attach(&mut Request::new(name), flags)?;
        }
        let first = match first {
            Ok(tap) => tap,
            Err(error) if is_error(&error, Errno::INVAL) && queues > 1 => {
                let single = Self::attach(&mut Request::new(name), 0)?;
                let is_tap = single.is_ok() || is(&single, Errno::BUSY) || is(&single, Errno::PERM);
                let name = name.clone();
                return Err(if is_tap { TapError::OneQueue(name) } else { TapError::NotATap(name) });
            }
            Err(error) if is_error(&error, Errno::INVAL) => return Err(TapError::NotATap(name.clone())),
            Err(error) if is_error(&error, Errno::PERM) => return Err(TapError::Permission(name.clone())),
            Err(error) if is_error(&error, Errno::BUSY) => return Err(TapError::Busy(name.clone())),
            Err(error) if is_error(&error, Errno::TOOBIG) => {
                return Err(TapError::TooManyQueues(name.clone()));
            }
            Err(source) => return Err(host(source)),
        };
        Self::with_further(first, name, queues, flags)
    }

    /// Makes a tap with a name that the kernel chooses. It is removed when all of its queues are closed.
    ///
    /// # Errors
    ///
    /// [`TapError`]: the process is not allowed to, or the host refuses.
    pub fn make(queues: u16) -> Result<(InterfaceName, Vec<Self>), TapError> {
        let host = |source| TapError::Host { name: NEW_NAME.to_owned(), source };
        let mut request = Request::unnamed(NEW_NAME);
        let flags = IFF_TUN_EXCL | if queues > 1 { IFF_MULTI_QUEUE } else { 0 };
        let first = match Self::attach(&mut request, flags)? {
            Ok(tap) => tap,
            Err(error) if is_error(&error, Errno::PERM) => return Err(TapError::MayNotMake),
            Err(source) => return Err(host(source)),
        };
        let name: InterfaceName = request.name().parse().map_err(|error| host(io::Error::other(error)))?;
        let taps = Self::with_further(first, &name, queues, flags & !IFF_TUN_EXCL)?;
        Ok((name, taps))
    }

    fn with_further(
        first: Self,
        name: &InterfaceName,
        queues: u16,
        flags: c_int,
    ) -> Result<Vec<Self>, TapError> {
        let mut taps = vec![first];
        for _ in 1..queues {
            taps.push(Self::attach(&mut Request::new(name), flags)?.map_err(|source| match source {
                error if is_error(&error, Errno::TOOBIG) => TapError::TooManyQueues(name.clone()),
                source => TapError::Host { name: name.to_string(), source },
            })?);
        }
        Ok(taps)
    }

    /// A datagram socket in place of a tap, which notes its ioctls in `ioctls`. An ioctl blocks as long as a test holds
    /// the lock.
    #[cfg(any(test, fuzzing))]
    pub(super) fn of_socket(socket: std::os::unix::net::UnixDatagram, ioctls: Ioctls) -> Self {
        let _ = socket.set_nonblocking(true);
        let file = Arc::new(File::from(std::os::fd::OwnedFd::from(socket)));
        Self { file, has_udp_segmentation: true, calls: 0, ioctls: Some(ioctls) }
    }

    /// One whose packets are those of `socket`, for a fuzzer.
    #[cfg(fuzzing)]
    pub fn stand_in(socket: std::os::unix::net::UnixDatagram) -> Self {
        Self::of_socket(socket, Ioctls::default())
    }

    /// Opens the driver and attaches to the tap that `request` names; the inner error is the kernel's refusal of that.
    fn attach(request: &mut Request, flags: c_int) -> Result<io::Result<Self>, TapError> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
        let file = options.open(TUN).map_err(TapError::opening)?;
        let flags = i16::try_from(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | flags & !IFF_TUN_EXCL).unwrap_or(0)
            | if flags & IFF_TUN_EXCL != 0 { i16::MIN } else { 0 };
        request.set(&flags.to_ne_bytes());
        let attached = request.call(&file, TUNSETIFF).and_then(|()| {
            let header = c_int::try_from(HEADER).unwrap_or(0);
            // SAFETY: the kernel reads an integer there.
            check(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETVNETHDRSZ, &header) })
        });
        Ok(attached.and_then(|()| {
            let mut tap = Self {
                file: Arc::new(file),
                has_udp_segmentation: false,
                calls: 0,
                #[cfg(any(test, fuzzing))]
                ioctls: None,
            };
            tap.has_udp_segmentation = tap.set_offloads(libc::TUN_F_CSUM | UDP_SEGMENTATION).is_ok();
            // None are set until a driver has negotiated some.
            tap.set_offloads(0).map(|()| tap)
        }))
    }

    /// Counts a system call for a packet.
    pub(super) fn count_call(&mut self) {
        self.calls += 1;
    }

    /// The number of calls that were counted since this was last asked.
    pub(super) fn take_calls(&mut self) -> u64 {
        std::mem::take(&mut self.calls)
    }

    /// Whether the host's kernel segments UDP packets (USO).
    pub(super) fn has_udp_segmentation(&self) -> bool {
        self.has_udp_segmentation
    }

    /// Sets the offloads of packets to the guest, `TUN_F_*`. Without any, they have their checksums and are not longer
    /// than the interface's MTU. The call takes the host's RTNL lock.
    pub(super) fn set_offloads(&self, offloads: c_uint) -> io::Result<()> {
        #[cfg(any(test, fuzzing))]
        if let Some(ioctls) = &self.ioctls {
            crate::lock(ioctls).push(format!("offloads {offloads:#x}"));
            return Ok(());
        }
        // SAFETY: the argument is a value, not a pointer.
        check(unsafe { libc::ioctl(self.file.as_raw_fd(), TUNSETOFFLOAD, libc::c_ulong::from(offloads)) })
    }

    /// Attaches this queue, so that packets come by it, or detaches it. It is an error if that is so already. The call
    /// takes the host's RTNL lock.
    pub(super) fn set_attached(&self, attached: bool) -> io::Result<()> {
        #[cfg(any(test, fuzzing))]
        if let Some(ioctls) = &self.ioctls {
            crate::lock(ioctls).push(format!("attached {attached}"));
            return Ok(());
        }
        let flags = if attached { IFF_ATTACH_QUEUE } else { IFF_DETACH_QUEUE };
        let mut request = Request::unnamed("");
        request.set(&i16::try_from(flags).unwrap_or(0).to_ne_bytes());
        request.call(&*self.file, TUNSETQUEUE)
    }

    /// Reads a packet with its header to `ranges`, and returns the count of bytes; those without room are lost.
    ///
    /// # Safety
    ///
    /// The memory that is left of `ranges` has to be valid during the call.
    pub(super) unsafe fn receive(&self, ranges: &IoVecs) -> io::Result<usize> {
        let ranges = ranges.left();
        let count = c_int::try_from(ranges.len()).unwrap_or(c_int::MAX);
        // SAFETY: `ranges` has `count` elements, and the caller says that they name valid memory.
        length(unsafe { libc::readv(self.file.as_raw_fd(), ranges.as_ptr(), count) })
    }

    /// Writes the packet in `ranges`, its header first.
    ///
    /// # Safety
    ///
    /// The memory that is left of `ranges` has to be valid during the call.
    pub(super) unsafe fn send(&self, ranges: &IoVecs) -> io::Result<()> {
        let ranges = ranges.left();
        let count = c_int::try_from(ranges.len()).unwrap_or(c_int::MAX);
        // SAFETY: `ranges` has `count` elements, and the caller says that they name valid memory.
        length(unsafe { libc::writev(self.file.as_raw_fd(), ranges.as_ptr(), count) }).map(drop)
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn is_error(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}

fn is(result: &io::Result<Tap>, errno: Errno) -> bool {
    result.as_ref().is_err_and(|error| is_error(error, errno))
}

fn check(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The result of a call that transfers bytes.
pub(super) fn length(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn why_the_driver_cannot_be_opened_says_what_to_do() {
        for (error, advice) in [
            (Errno::ACCESS, "permission"),
            (Errno::PERM, "permission"),
            (Errno::NOENT, "modprobe tun"),
            (Errno::NODEV, "modprobe tun"),
            (Errno::MFILE, "cannot open /dev/net/tun"),
        ] {
            let text = TapError::opening(error.into()).to_string();
            assert!(text.contains(advice), "{error}: {text}");
            assert_eq!(text.contains("modprobe"), advice.contains("modprobe"), "{error}: {text}");
        }
    }
}
