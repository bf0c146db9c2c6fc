//! Sockets of vsock(7), which the standard library does not have.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use agent_protocol::HOST_CID;

/// How many connections may wait to be accepted: those of as many commands as there can be, and more. One that finds no
/// room is refused.
const BACKLOG: i32 = 512;

fn address(cid: u32, port: u32) -> libc::sockaddr_vm {
    // SAFETY: all zeros is a valid address.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = FAMILY;
    address.svm_cid = cid;
    address.svm_port = port;
    address
}

/// `AF_VSOCK` as an address has it.
const FAMILY: libc::sa_family_t = 40;
#[allow(clippy::cast_possible_truncation, reason = "it is 16")]
const LENGTH: libc::socklen_t = size_of::<libc::sockaddr_vm>() as libc::socklen_t;

fn socket(flags: i32) -> io::Result<OwnedFd> {
    // SAFETY: it takes no memory of ours.
    let fd = unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC | flags, 0) };
    // SAFETY: the call made the descriptor, which has no other owner.
    if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(unsafe { OwnedFd::from_raw_fd(fd) }) }
}

fn check(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A socket that listens on `port`.
pub fn listen(port: u32) -> io::Result<OwnedFd> {
    let socket = socket(libc::SOCK_NONBLOCK)?;
    let address = address(libc::VMADDR_CID_ANY, port);
    // SAFETY: the address lives until the call returns, and has that length.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), LENGTH) })?;
    // SAFETY: it takes no memory of ours.
    check(unsafe { libc::listen(socket.as_raw_fd(), BACKLOG) })?;
    Ok(socket)
}

/// A connection to `port` of the host.
pub fn connect(port: u32) -> io::Result<OwnedFd> {
    let socket = socket(0)?;
    let address = address(HOST_CID, port);
    // SAFETY: the address lives until the call returns, and has that length.
    check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), LENGTH) })?;
    rustix::io::ioctl_fionbio(&socket, true)?;
    Ok(socket)
}

/// A connection to `port` of the host that is made while others are served: it can be written to when it is there.
pub fn begin_to_connect(port: u32) -> io::Result<OwnedFd> {
    let socket = socket(libc::SOCK_NONBLOCK)?;
    let address = address(HOST_CID, port);
    // SAFETY: the address lives until the call returns, and has that length.
    match check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), LENGTH) }) {
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(socket),
        result => result.map(|()| socket),
    }
}

/// The next connection, or `None` where there is none that comes from the host.
pub fn accept(listener: impl AsFd) -> Option<OwnedFd> {
    let mut peer = address(0, 0);
    let mut length = LENGTH;
    let fd = listener.as_fd().as_raw_fd();
    // SAFETY: the address has room for what the length says, and both live until the call returns.
    let fd = unsafe {
        libc::accept4(fd, (&raw mut peer).cast(), &raw mut length, libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK)
    };
    if fd < 0 {
        return None;
    }
    // SAFETY: the call made the descriptor, which has no other owner.
    let connection = unsafe { OwnedFd::from_raw_fd(fd) };
    (peer.svm_cid == HOST_CID).then_some(connection)
}
