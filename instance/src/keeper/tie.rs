//! The socket between processes that belong to one VM.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind,
    connect, listen, recv, recvmsg, send, sendmsg, shutdown, socket_with, socketpair,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The most bytes of a message.
const MAX_MESSAGE: usize = 64 << 10;
/// The most open files that come with one (unix(7), `SCM_RIGHTS`).
pub const MAX_FILES: usize = 253;
/// How many may wait to be taken as clients.
const BACKLOG: i32 = 64;

/// One end of the socket between a VM's process and its keeper. A message is a value as JSON.
pub struct Tie(OwnedFd);

impl Tie {
    /// Both ends.
    ///
    /// # Errors
    ///
    /// Those of socketpair(2).
    pub fn pair() -> io::Result<(Self, Self)> {
        let flags = SocketFlags::CLOEXEC;
        let (one, other) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        Ok((Self(one), Self(other)))
    }

    /// A connection to what listens at `path`.
    ///
    /// # Errors
    ///
    /// Those of connect(2): `NotFound` and `ConnectionRefused` where nothing listens.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(Self(socket))
    }

    /// Sends a message with open files, up to [`MAX_FILES`], of which the receiver gets its own copies.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send); `InvalidInput` where there are more files.
    pub fn send_with(&self, message: &impl Serialize, files: &[BorrowedFd<'_>]) -> io::Result<()> {
        let bytes = serde_json::to_vec(message)?;
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if files.len() > MAX_FILES
            || !(files.is_empty() || ancillary.push(SendAncillaryMessage::ScmRights(files)))
        {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "there are too many files for a message",
            ));
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        sendmsg(&self.0, &[IoSlice::new(&bytes)], &mut ancillary, flags)?;
        Ok(())
    }

    /// Waits for a message and the files that come with it; `None` when the other process has ended.
    ///
    /// # Errors
    ///
    /// It can't be understood.
    pub fn receive_with<T: DeserializeOwned>(&self) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        let mut bytes = vec![0; MAX_MESSAGE];
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let count = loop {
            match recvmsg(
                &self.0,
                &mut [IoSliceMut::new(&mut bytes)],
                &mut ancillary,
                RecvFlags::CMSG_CLOEXEC,
            ) {
                Err(Errno::INTR) => {}
                Err(Errno::CONNRESET) => return Ok(None),
                received => break received?.bytes,
            }
        };
        let mut files = Vec::new();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(sent) = message {
                files.extend(sent);
            }
        }
        if count == 0 {
            return Ok(None);
        }
        Ok(Some((serde_json::from_slice(bytes.get(..count).unwrap_or_default())?, files)))
    }

    /// Waits for a message until `deadline`; `None` when the other process has ended.
    ///
    /// # Errors
    ///
    /// `TimedOut`, or it can't be understood.
    pub fn receive_by<T: DeserializeOwned>(&self, deadline: Instant) -> io::Result<Option<T>> {
        self.wait(deadline)?;
        self.receive()
    }

    /// The same, with the files that come with it.
    ///
    /// # Errors
    ///
    /// As [`receive_by`](Self::receive_by).
    pub fn receive_with_by<T: DeserializeOwned>(
        &self,
        deadline: Instant,
    ) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        self.wait(deadline)?;
        self.receive_with()
    }

    /// Waits until there is a message, or the other process has ended.
    fn wait(&self, deadline: Instant) -> io::Result<()> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).ok();
            match poll(&mut [PollFd::new(&self.0, PollFlags::IN)], left.as_ref()) {
                Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Sends a message, from any thread.
    ///
    /// # Errors
    ///
    /// The other process has ended, or has not read what was sent before: this does not wait for it.
    pub fn send(&self, message: &impl Serialize) -> io::Result<()> {
        let bytes = serde_json::to_vec(message)?;
        send(&self.0, &bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?;
        Ok(())
    }

    /// Takes no more messages: those that have come are received, and then the end, also where another process has the
    /// other end open.
    pub fn hang_up(&self) {
        // The other end is closed, if this fails.
        let _ = shutdown(&self.0, Shutdown::Read);
    }

    /// Waits for a message; `None` when the other process has ended.
    ///
    /// # Errors
    ///
    /// It can't be understood.
    pub fn receive<T: DeserializeOwned>(&self) -> io::Result<Option<T>> {
        let mut bytes = vec![0; MAX_MESSAGE];
        loop {
            match recv(&self.0, &mut *bytes, RecvFlags::empty()) {
                Ok((0, _)) | Err(Errno::CONNRESET) => return Ok(None),
                Ok((count, _)) => {
                    return Ok(Some(serde_json::from_slice(bytes.get(..count).unwrap_or_default())?));
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for Tie {
    /// Readable when there is a message.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Where other processes connect to one.
pub struct TieListener(OwnedFd);

impl TieListener {
    /// Listens at `path`, where nothing is.
    ///
    /// # Errors
    ///
    /// Those of the system calls.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        bind(&socket, &SocketAddrUnix::new(path)?)?;
        listen(&socket, BACKLOG)?;
        Ok(Self(socket))
    }

    /// Waits for the next that connects.
    ///
    /// # Errors
    ///
    /// Those of accept(2).
    pub fn accept(&self) -> io::Result<Tie> {
        loop {
            match accept_with(&self.0, SocketFlags::CLOEXEC) {
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                accepted => return Ok(Tie(accepted?)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn messages_arrive_whole_and_in_order_and_then_the_end() {
        let (one, other) = Tie::pair().unwrap();
        one.send(&"first").unwrap();
        one.send(&"second").unwrap();
        assert_eq!(other.receive::<String>().unwrap().unwrap(), "first");
        assert!(other.receive::<u32>().is_err());
        drop(one);
        assert!(other.receive::<String>().unwrap().is_none());
        assert!(other.send(&1).is_err());
    }

    #[test]
    fn after_hanging_up_there_is_what_has_come_and_then_the_end() {
        let (one, other) = Tie::pair().unwrap();
        one.send(&"first").unwrap();
        other.hang_up();
        assert!(one.send(&"second").is_err());
        assert_eq!(other.receive::<String>().unwrap().unwrap(), "first");
        assert!(other.receive::<String>().unwrap().is_none());
    }

    #[test]
    fn a_peer_that_does_not_read_is_not_waited_for() {
        let (one, _other) = Tie::pair().unwrap();
        let sent = (0..100_000).take_while(|number| one.send(number).is_ok()).count();
        assert!((1..100_000).contains(&sent));
    }

    #[test]
    fn open_files_come_with_messages_and_no_more_than_fit() {
        use std::fs::File;
        use std::io::Read;
        use std::os::unix::fs::FileExt;
        let (one, other) = Tie::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        file.write_at(b"text", 0).unwrap();
        one.send_with(&"plain", &[]).unwrap();
        one.send_with(&"many", &vec![file.as_fd(); MAX_FILES]).unwrap();
        one.send_with(&"dropped", &[file.as_fd()]).unwrap();
        let too_many = one.send_with(&"too many", &vec![file.as_fd(); MAX_FILES + 1]).unwrap_err();
        assert_eq!(too_many.kind(), io::ErrorKind::InvalidInput);
        let (message, files) = other.receive_with::<String>().unwrap().unwrap();
        assert_eq!((&*message, files.len()), ("plain", 0));
        let (message, files) = other.receive_with::<String>().unwrap().unwrap();
        assert_eq!((&*message, files.len()), ("many", MAX_FILES));
        let mut text = String::new();
        File::from(files.into_iter().next_back().unwrap()).read_to_string(&mut text).unwrap();
        assert_eq!(text, "text");
        // Who expects no files gets none.
        assert_eq!(other.receive::<String>().unwrap().unwrap(), "dropped");
        drop(one);
        assert!(other.receive_with::<String>().unwrap().is_none());
    }

    #[test]
    fn clients_connect_by_a_path_and_are_not_waited_for_without_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pod.sock");
        assert_eq!(Tie::connect(&path).err().unwrap().kind(), io::ErrorKind::NotFound);
        let listener = TieListener::bind(&path).unwrap();
        assert!(TieListener::bind(&path).is_err());
        let client = Tie::connect(&path).unwrap();
        client.send(&7).unwrap();
        let server = listener.accept().unwrap();
        assert_eq!(server.receive_by::<u32>(Instant::now() + Duration::from_secs(10)).unwrap(), Some(7));
        let error = server.receive_by::<u32>(Instant::now() + Duration::from_millis(5)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let error = server.receive_with_by::<u32>(Instant::now() + Duration::from_millis(5)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(client);
        assert_eq!(server.receive_by::<u32>(Instant::now() + Duration::from_secs(10)).unwrap(), None);
        drop((listener, server));
        assert_eq!(Tie::connect(&path).err().unwrap().kind(), io::ErrorKind::ConnectionRefused);
    }
}
