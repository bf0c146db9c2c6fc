//! How the guest's connections reach sockets of the host: by their paths, or by another process where this one may not
//! open them.
//!
//! That process gets a message for each connection, with a number that the device chooses and the guest's port, and
//! answers with the number, an error or none, and the connected socket. Neither waits for the other.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recv, recvmsg, send, sendmsg,
};

use super::super::rate_limit::Pace;
use super::stream::{Attempt, HostStream, path_of_port};

/// A number of eight bytes, and a port or an error of four.
const MESSAGE: usize = 12;
/// How many connections are made in a second. Each is some microseconds of work.
const DIALS_PER_SECOND: NonZeroU64 = NonZeroU64::new(10_000).unwrap();

fn message(number: u64, value: u32) -> [u8; MESSAGE] {
    let mut bytes = [0; MESSAGE];
    let (front, back) = bytes.split_at_mut(8);
    front.copy_from_slice(&number.to_le_bytes());
    back.copy_from_slice(&value.to_le_bytes());
    bytes
}

fn parse(bytes: &[u8]) -> Option<(u64, u32)> {
    let (number, value) = bytes.split_first_chunk()?;
    Some((u64::from_le_bytes(*number), u32::from_le_bytes(value.try_into().ok()?)))
}

/// The device's end of the socket to the other process.
#[derive(Debug)]
pub(super) struct Dialer(OwnedFd);

/// What the other process answered.
pub(super) struct Answer {
    /// Which connection.
    pub(super) number: u64,
    pub(super) result: Result<HostStream, Errno>,
}

impl Dialer {
    /// `socket` is of the type SOCK_SEQPACKET.
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// Asks for a connection to the socket of `port`.
    ///
    /// # Errors
    ///
    /// [`Errno::AGAIN`]: the process has to answer others first.
    pub(super) fn ask(&self, number: u64, port: u32) -> Result<(), Errno> {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        send(&self.0, &message(number, port), flags).map(drop)
    }

    /// The next answer, if there is one.
    ///
    /// # Errors
    ///
    /// [`Errno::AGAIN`]: there is none yet. Others: there will be none any more.
    pub(super) fn answer(&self) -> Result<Option<Answer>, Errno> {
        let mut bytes = [0; MESSAGE];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let count = recvmsg(&self.0, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, flags)?.bytes;
        let mut socket = None;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(mut sockets) = message {
                socket = sockets.next();
            }
        }
        if count == 0 {
            return Err(Errno::PIPE);
        }
        let answer = bytes.get(..count).and_then(parse);
        Ok(answer.map(|(number, error)| {
            let refused = i32::try_from(error).ok().filter(|error| *error > 0).map(Errno::from_raw_os_error);
            let socket = socket.ok_or(refused.unwrap_or(Errno::CONNREFUSED));
            Answer { number, result: socket.map(HostStream::accepted) }
        }))
    }
}

impl AsFd for Dialer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Connects the guest's connections for a device in another process, which has the other end of `socket`, until that
/// process has ended. They go to the sockets at `path` with the ports behind it; see the module above.
pub fn dial(socket: &OwnedFd, path: &Path) {
    let pace = Pace::new(DIALS_PER_SECOND);
    let mut bytes = [0; MESSAGE];
    loop {
        pace.keep();
        let request = match recv(socket, &mut bytes, RecvFlags::empty()) {
            Ok((0, _)) => return,
            // What is not understood is from a process that was taken over, and is not answered.
            Ok((count, _)) => bytes.get(..count).and_then(parse),
            Err(Errno::INTR) => continue,
            Err(_) => return,
        };
        let Some((number, port)) = request else { continue };
        let stream =
            HostStream::new().and_then(|stream| match stream.connect(&path_of_port(path, port))? {
                Attempt::Connected => Ok(stream),
                Attempt::Busy => Err(Errno::AGAIN),
            });
        if answer(socket, number, stream).is_err() {
            return;
        }
    }
}

/// Sends an answer, and waits for room: who asks reads its answers, or has ended.
fn answer(socket: &OwnedFd, number: u64, stream: Result<HostStream, Errno>) -> Result<(), Errno> {
    let error = match &stream {
        Ok(_) => 0,
        Err(error) => error.raw_os_error().unsigned_abs(),
    };
    let bytes = message(number, error);
    let sockets: Vec<_> = stream.iter().map(AsFd::as_fd).collect();
    loop {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !sockets.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(&sockets));
        }
        match sendmsg(socket, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => drop(poll(&mut [PollFd::new(socket, PollFlags::OUT)], None)),
            result => return result.map(drop),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::{UnixListener, UnixStream};

    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
    }

    fn next(dialer: &Dialer) -> Answer {
        poll(&mut [PollFd::new(&dialer.0, PollFlags::IN)], None).unwrap();
        dialer.answer().unwrap().unwrap()
    }

    #[test]
    fn sockets_are_connected_by_the_other_process() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vsock");
        let listener = UnixListener::bind(directory.path().join("vsock_7")).unwrap();
        let (one, other) = pair();
        let thread = std::thread::spawn(move || dial(&other, &path));
        let dialer = Dialer::new(one);
        assert_eq!(dialer.answer().err(), Some(Errno::AGAIN));
        dialer.ask(1 << 40, 7).unwrap();
        dialer.ask(5, 8).unwrap();
        let answer = next(&dialer);
        assert_eq!(answer.number, 1 << 40);
        let mut guest = UnixStream::from(rustix::io::dup(answer.result.unwrap().as_fd()).unwrap());
        let (mut host, _) = listener.accept().unwrap();
        host.write_all(b"text").unwrap();
        let mut text = [0; 4];
        poll(&mut [PollFd::new(&guest, PollFlags::IN)], None).unwrap();
        guest.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"text");
        let answer = next(&dialer);
        assert_eq!((answer.number, answer.result.err()), (5, Some(Errno::NOENT)));
        drop(dialer);
        thread.join().unwrap();
    }

    #[test]
    fn noise_is_not_answered_and_a_flood_is_refused() {
        let (one, other) = pair();
        let dialer = Dialer::new(one);
        let asked = (0..1_000_000).take_while(|number| dialer.ask(*number, 1).is_ok()).count();
        assert!((1..1_000_000).contains(&asked));
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vsock");
        let thread = std::thread::spawn(move || dial(&other, &path));
        for number in 0..asked {
            assert_eq!(next(&dialer).number, number as u64);
        }
        for noise in [&[1_u8][..], &[0; MESSAGE - 1], &[0; MESSAGE + 30]] {
            send(&dialer.0, noise, SendFlags::empty()).unwrap();
        }
        dialer.ask(9, 2).unwrap();
        // The first bytes of the last noise are a message.
        assert_eq!((next(&dialer).number, next(&dialer).number), (0, 9));
        drop(dialer);
        thread.join().unwrap();
    }

    #[test]
    fn more_connections_than_a_second_has_are_made_later() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vsock.sock");
        let (ours, theirs) = pair();
        let start = std::time::Instant::now();
        let asked = std::thread::spawn(move || {
            let dialer = Dialer::new(theirs);
            for number in 0..11_000 {
                while dialer.ask(number, 1).is_err() {
                    drop(next(&dialer));
                }
            }
            // Dropping the socket would end what is not answered.
            while next(&dialer).number < 10_999 {}
        });
        dial(&ours, &path);
        asked.join().unwrap();
        assert!(start.elapsed() >= std::time::Duration::from_millis(99), "{:?}", start.elapsed());
    }
}
