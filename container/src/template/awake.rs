//! The agent of a VM that goes on: it is made that of another VM.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use agent_protocol::{Awakening, PodDisk, Reply, Request};

use crate::connection::{Connection, ConnectionError};
use crate::session::START;

/// Connects to the agent of a VM that goes on, and makes it another VM. The guest first ends connections that it had.
/// The device lets none be made before that, but for a guest that takes long: then one that is made at that moment is
/// ended too, of which the guest says nothing. So one that is silent is given up for another one, the first time soon.
/// To be made another VM twice does no harm.
///
/// # Errors
///
/// As [`Connection::open`], and what the agent says.
pub fn awake(vsock: &Path, disks: Vec<PodDisk>, limit: Duration) -> Result<Connection, ConnectionError> {
    let deadline = Instant::now() + limit;
    let mut patience = FIRST;
    loop {
        let is_last = Instant::now() + patience >= deadline;
        match try_awake(vsock, &disks, patience) {
            Err(error) if error.is_closed() && !is_last => std::thread::sleep(AGAIN),
            Err(ConnectionError::Silent(_) | ConnectionError::NoAnswer) if !is_last => patience *= 2,
            result => return result,
        }
    }
}

/// How long it takes the guest at the least to see that its connections have ended.
const AGAIN: Duration = Duration::from_millis(1);
/// How long each step may take at first. It takes milliseconds, and a second on an emulated processor.
const FIRST: Duration = Duration::from_secs(2);

fn try_awake(vsock: &Path, disks: &[PodDisk], patience: Duration) -> Result<Connection, ConnectionError> {
    let mut connection = Connection::open_within(vsock, patience)?;
    let mut seed = vec![0; 32];
    rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| ConnectionError::Io(error.into()))?;
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let time = u64::try_from(since_1970.as_nanos()).unwrap_or(0);
    connection.send(&Request::Awake(Box::new(Awakening { seed, time, disks: disks.to_vec() })))?;
    done(&mut connection, patience)?;
    Ok(connection)
}

/// Has the agent of a VM that is about to be saved let go of what other processes serve.
///
/// # Errors
///
/// What the agent says.
pub fn rest(connection: &mut Connection) -> Result<(), ConnectionError> {
    connection.send(&Request::Rest)?;
    done(connection, START)
}

/// Waits for the agent to say that it has done it.
pub(super) fn done(connection: &mut Connection, limit: Duration) -> Result<(), ConnectionError> {
    match connection.receive_within(limit)? {
        Reply::Done => Ok(()),
        Reply::Failed(failure) => Err(ConnectionError::Refused(failure.message)),
        other => Err(ConnectionError::Unexpected(format!("{other:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixListener;

    use agent_protocol::{VERSION, encode};

    use super::*;

    #[test]
    fn a_connection_that_the_guest_has_forgotten_is_made_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vsock");
        let listener = UnixListener::bind(&path).unwrap();
        // One connection is not answered, one is not greeted, one is ended behind the greeting, and the last one is whole.
        let guest = std::thread::spawn(move || {
            let accept = || {
                let (mut socket, _) = listener.accept().unwrap();
                let mut line = String::new();
                BufReader::new(&socket).read_line(&mut line).unwrap();
                socket.write_all(b"OK 1\n").unwrap();
                socket
            };
            let unanswered = listener.accept().unwrap();
            let silent = accept();
            let hello = encode(&Reply::Hello { version: VERSION }).unwrap();
            accept().write_all(&hello).unwrap();
            let mut last = accept();
            last.write_all(&hello).unwrap();
            last.write_all(&encode(&Reply::Done).unwrap()).unwrap();
            (unanswered, silent, last)
        });
        awake(&path, Vec::new(), START).unwrap();
        guest.join().unwrap();
    }
}
