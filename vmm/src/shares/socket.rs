//! Sockets to the processes that serve shares.

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

/// How long a listener with a full backlog is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

fn unix_socket(flags: SocketFlags) -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::UNIX, SocketType::STREAM, flags | SocketFlags::CLOEXEC, None)?)
}

/// Makes a listening socket and a connection to it. virtiofsd takes a listener only, and serves the first who connects.
///
/// The kernel gives the listener a name that is not in the file system: nothing is left behind. Others on the host
/// could connect to the name, but the listener's queue has room for just one, and that one is ours, or this fails.
///
/// # Errors
///
/// Those of the system calls.
pub(super) fn connected_listener() -> io::Result<(OwnedFd, UnixStream)> {
    let listener = unix_socket(SocketFlags::empty())?;
    bind(&listener, &SocketAddrUnix::new_unnamed())?;
    listen(&listener, 0)?;
    // Where another was first, a connection that may wait would wait.
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
/// Those of the system calls; nobody who listens has room for one more.
pub(super) fn connect(path: &Path) -> io::Result<UnixStream> {
    let stream = unix_socket(SocketFlags::empty())?;
    set_socket_timeout(&stream, Timeout::Send, Some(PATIENCE))?;
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
    fn the_first_connection_is_ours_and_there_is_no_room_for_others() {
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
