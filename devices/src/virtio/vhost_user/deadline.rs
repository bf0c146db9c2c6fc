//! A bound on how long a back end may take.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

/// Runs `exchange`, which waits for whoever is at the other end of `socket`, and gives its result; `None` where it was
/// not over after `limit`. Then the socket is shut down, which ends any wait for it, and is of no more use.
///
/// Neither a timeout of the socket nor a non-blocking one would do: `vhost` tries again on both, without end.
///
/// # Errors
///
/// No thread can be had to watch the time.
pub(super) fn within<T>(
    limit: Duration,
    socket: &UnixStream,
    exchange: impl FnOnce() -> T,
) -> io::Result<Option<T>> {
    thread::scope(|scope| {
        let (done, is_done) = channel::<()>();
        let watch = thread::Builder::new().name("vhost-user".into()).spawn_scoped(scope, move || {
            let late = is_done.recv_timeout(limit) == Err(RecvTimeoutError::Timeout);
            if late {
                // It fails only where the other end has gone, which ends the wait as well.
                let _ = socket.shutdown(Shutdown::Both);
            }
            late
        })?;
        let result = exchange();
        drop(done);
        let late = watch.join().unwrap_or(true);
        Ok((!late).then_some(result))
    })
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn an_exchange_that_ends_in_time_gives_its_result_and_leaves_the_socket_alone() {
        let (socket, mut other) = UnixStream::pair().unwrap();
        assert_eq!(within(Duration::from_secs(60), &socket, || 7).unwrap(), Some(7));
        io::Write::write_all(&mut &socket, b"x").unwrap();
        other.read_exact(&mut [0]).unwrap();
    }

    #[test]
    fn a_peer_that_says_nothing_does_not_hold_the_exchange_for_ever() {
        let (socket, _silent) = UnixStream::pair().unwrap();
        let wait = || (&socket).read(&mut [0]);
        assert!(within(Duration::from_millis(20), &socket, wait).unwrap().is_none());
    }
}
