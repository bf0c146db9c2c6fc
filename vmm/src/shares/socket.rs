//! Sockets to the back ends of shares.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect as connect_to, getsockname, listen,
    socket_with,
};

/// How long to wait for a listener whose backlog is full.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

fn unix_socket(flags: SocketFlags) -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::UNIX, SocketType::STREAM, flags | SocketFlags::CLOEXEC, None)?)
}

/// Makes a listening socket and a connection to it: virtiofsd accepts a listener only, and serves its first connection.
///
/// The kernel chooses a name for the listener that is not in the file system, so nothing is left behind. Other
/// processes could connect to it, but its backlog has room for one connection, which is ours, or this fails.
///
/// # Errors
///
/// Those of the system calls.
pub(super) fn connected_listener() -> io::Result<(OwnedFd, UnixStream)> {
    let listener = unix_socket(SocketFlags::empty())?;
    bind(&listener, &SocketAddrUnix::new_unnamed())?;
    listen(&listener, 0)?;
    // A blocking socket would wait if another process was first.
    let stream = unix_socket(SocketFlags::NONBLOCK)?;
    connect_to(&stream, &getsockname(&listener)?)?;
    let stream = UnixStream::from(stream);
    stream.set_nonblocking(false)?;
    Ok((listener, stream))
}

/// Connects to the socket at `path`.
///
/// # Errors
///
/// Those of the system calls; the listener's backlog is full.
pub(super) fn connect(path: &Path) -> io::Result<UnixStream> {
    let stream = unix_socket(SocketFlags::empty())?;
    set_socket_timeout(&stream, Timeout::Send, Some(CONNECT_TIMEOUT))?;
    connect_to(&stream, &SocketAddrUnix::new(path)?)?;
    set_socket_timeout(&stream, Timeout::Send, None)?;
    Ok(stream.into())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn the_first_connection_is_ours_and_others_have_no_room() {
        let (listener, mut stream) = connected_listener().unwrap();
        let stranger = unix_socket(SocketFlags::NONBLOCK).unwrap();
        let refused = connect_to(&stranger, &getsockname(&listener).unwrap());
        assert_eq!(refused, Err(rustix::io::Errno::AGAIN));
        let (mut accepted, _) = UnixListener::from(listener).accept().unwrap();
        accepted.write_all(b"x").unwrap();
        stream.read_exact(&mut [0]).unwrap();
    }

    #[test]
    fn a_path_without_a_listener_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        assert_eq!(connect(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
        drop(UnixListener::bind(&path).unwrap());
        assert_eq!(connect(&path).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        let _listener = UnixListener::bind(directory.path().join("live")).unwrap();
        connect(&directory.path().join("live")).unwrap();
    }
}
