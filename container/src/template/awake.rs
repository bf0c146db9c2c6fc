//! The agent of a VM that goes on: it is made that of another VM.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use agent_protocol::{Awakening, PodDisk, Reply, Request};

use crate::connection::{Connection, ConnectionError};
use crate::session::START;

/// Connects to the agent of a VM that goes on, and makes it another VM. The guest first ends connections that it had,
/// and with them one that is made at that moment.
///
/// # Errors
///
/// As [`Connection::open`], and what the agent says.
pub fn awake(vsock: &Path, disks: Vec<PodDisk>, limit: Duration) -> Result<Connection, ConnectionError> {
    let deadline = Instant::now() + limit;
    loop {
        match try_awake(vsock, &disks) {
            Err(error) if error.is_closed() && Instant::now() < deadline => {
                std::thread::sleep(AGAIN);
            }
            result => return result,
        }
    }
}

/// How long it takes the guest at the least to see that its connections have ended.
const AGAIN: Duration = Duration::from_millis(1);

fn try_awake(vsock: &Path, disks: &[PodDisk]) -> Result<Connection, ConnectionError> {
    let mut connection = Connection::open(vsock)?;
    let mut seed = vec![0; 32];
    rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| ConnectionError::Io(error.into()))?;
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let time = u64::try_from(since_1970.as_nanos()).unwrap_or(0);
    connection.send(&Request::Awake(Box::new(Awakening { seed, time, disks: disks.to_vec() })))?;
    done(&mut connection)?;
    Ok(connection)
}

/// Has the agent of a VM that is about to be saved let go of what other processes serve.
///
/// # Errors
///
/// What the agent says.
pub fn rest(connection: &mut Connection) -> Result<(), ConnectionError> {
    connection.send(&Request::Rest)?;
    done(connection)
}

fn done(connection: &mut Connection) -> Result<(), ConnectionError> {
    match connection.receive_within(START)? {
        Reply::Done => Ok(()),
        Reply::Failed(failure) => Err(ConnectionError::Refused(failure.message)),
        other => Err(ConnectionError::Unexpected(format!("{other:?}"))),
    }
}
