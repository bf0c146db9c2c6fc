//! Where the agent of a VM is reached, and for what of it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use agent_protocol::GUEST;
use instance::Signals;
use thiserror::Error;

use crate::connection::{self, Connection, ConnectionError};
use crate::machine::VSOCK;

/// The socket of a VM's device by which the agent in its guest is reached, in the VM's directory. Where the device's
/// socket has another place, it is a link to that.
pub const AGENT: &str = "agent.sock";

/// How long each step of a connection to a guest's agent may take: the guest may run no such program.
const PATIENCE: Duration = Duration::from_secs(10);

/// A VM whose guest can't be reached.
#[derive(Debug, Error)]
#[error(
    "it is a VM without the socket device by which mvm's agent in its guest is reached: start it with `mvm boot \
    --agent`"
)]
pub struct NoDevice;

/// The agent of a container, or of a VM's guest.
#[derive(Clone, Debug)]
pub struct Agent {
    /// The socket of the VM's vsock device.
    pub path: PathBuf,
    /// The container, or [`GUEST`].
    pub container: String,
}

impl Agent {
    /// That of the VM whose directory is `directory`: of the container `container`, unless it is one of `mvm boot`.
    ///
    /// # Errors
    ///
    /// [`NoDevice`].
    pub fn find(directory: &Path, container: &str) -> Result<Self, NoDevice> {
        let guest = directory.join(AGENT);
        // The link may lead nowhere any more.
        if guest.symlink_metadata().is_ok() {
            return Ok(Self { path: guest, container: GUEST.to_owned() });
        }
        let path = directory.join(VSOCK);
        if path.exists() { Ok(Self { path, container: container.to_owned() }) } else { Err(NoDevice) }
    }

    /// Whether it is the agent of a guest.
    pub fn is_of_guest(&self) -> bool {
        self.container == GUEST
    }

    /// A connection to it.
    pub fn open(&self) -> Result<Connection, ConnectionError> {
        self.open_unless(None)
    }

    /// The same, unless a signal comes that asks this process to end.
    pub fn open_unless(&self, signals: Option<&Signals>) -> Result<Connection, ConnectionError> {
        if !self.is_of_guest() {
            return Connection::open_unless(&self.path, connection::PATIENCE, signals);
        }
        Connection::open_unless(&self.path, PATIENCE, signals).map_err(|error| match error {
            ConnectionError::Io(_)
            | ConnectionError::NoAnswer
            | ConnectionError::Silent(_)
            | ConnectionError::Closed => ConnectionError::NotInGuest,
            error => error,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs::write;
    use std::io::Write;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;
    use std::thread;

    use agent_protocol::{Reply, VERSION, encode};
    use rstest::rstest;

    use super::*;

    #[test]
    fn a_vm_of_mvm_boot_is_known_by_the_place_of_its_agent() {
        let directory = tempfile::tempdir().unwrap();
        let find = || Agent::find(directory.path(), "0123456789ab");
        assert!(find().unwrap_err().to_string().contains("`mvm boot --agent`"));
        write(directory.path().join(VSOCK), "").unwrap();
        let agent = find().unwrap();
        assert!(agent.container == "0123456789ab" && !agent.is_of_guest() && agent.path.ends_with(VSOCK));
        symlink("/nowhere", directory.path().join(AGENT)).unwrap();
        let agent = find().unwrap();
        assert!(agent.is_of_guest() && agent.path.ends_with(AGENT));
        let said = agent.open().err().unwrap().to_string();
        assert!(said.contains("mvm's agent does not answer in the guest") && !said.contains('\n'), "{said}");
    }

    /// What the device and a program in the guest say: no agent, a hostile one, or one that is newer.
    #[rstest]
    #[case::nothing(vec![], "does not answer in the guest")]
    #[case::no_line(b"hello\n".to_vec(), "unexpected message: hello")]
    #[case::endless_line(vec![b'x'; 100], "unexpected message: xxx")]
    #[case::closed(b"OK 5\n".to_vec(), "does not answer in the guest")]
    #[case::text([&b"OK 5\n"[..], b"SSH-2.0-OpenSSH_9.2\r\n"].concat(), "the agent sent an invalid message")]
    #[case::long([&b"OK 5\n"[..], &[0xff; 64]].concat(), "the agent sent an invalid message")]
    #[case::reply([&b"OK 5\n"[..], &encode(&Reply::Done).unwrap()].concat(), "unexpected message: Done")]
    #[case::newer([&b"OK 5\n"[..], &encode(&Reply::Hello { version: VERSION + 1 }).unwrap()].concat(), "or a newer one")]
    fn what_is_no_agent_gets_a_line(#[case] says: Vec<u8>, #[case] expected: &str) {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join(AGENT)).unwrap();
        let fake = thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            let _ = std::io::Read::read(&mut socket, &mut [0; 64]);
            let _ = socket.write_all(&says);
        });
        let error = Agent::find(directory.path(), "").unwrap().open().err().unwrap();
        let said = std::error::Error::source(&error)
            .map_or_else(|| error.to_string(), |source| format!("{error}: {source}"));
        assert!(said.contains(expected) && !said.contains('\n'), "{said}");
        fake.join().unwrap();
    }
}
