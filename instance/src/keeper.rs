//! What ties a VM's process and the process that keeps it, and those whose containers are in its VM.
//!
//! The keeper has the user's side: terminal, signals, output, records. The VM's process has KVM and the devices. Either
//! ends when the other one does, which the hang-up of their socket tells.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect,
    listen, recv, recvmsg, send, sendmsg, socket_with, socketpair,
};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, getpgid, kill_process_group, pidfd_open,
    pidfd_send_signal, waitid,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::clone::clone_into;

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

/// A process that [`fork`] made.
pub struct Child {
    pid: Pid,
    descriptor: OwnedFd,
    /// How it ended, which the kernel says once.
    code: Mutex<Option<u8>>,
}

/// Makes a copy of this process, which calls `run` and ends with the exit code that it returns. The copy has all open
/// files; what it does not drop it keeps open.
///
/// # Errors
///
/// Those of fork(2), and [`io::ErrorKind::ResourceBusy`] where this process has more than one thread: the copy would
/// have locks that no thread opens.
pub fn fork(run: impl FnOnce() -> u8) -> io::Result<Child> {
    fork_into(None, |_| run())
}

/// The same, whose copy is in the control group with the directory `group` where the host can do that at once; `run` is told
/// whether it is.
///
/// # Errors
///
/// As [`fork`].
pub fn fork_into(group: Option<OwnedFd>, run: impl FnOnce(bool) -> u8) -> io::Result<Child> {
    // A directory has a link from each of those in it, and two of its own.
    if std::fs::metadata("/proc/self/task").is_ok_and(|tasks| tasks.nlink() != 3) {
        return Err(io::ErrorKind::ResourceBusy.into());
    }
    // SAFETY: there is no other thread.
    let inside = group.as_ref().map(|group| unsafe { clone_into(group.as_fd()) }).filter(|pid| *pid >= 0);
    let is_inside = inside.is_some();
    // SAFETY: there is no other thread, so that the copy may do all that this process may.
    match inside.unwrap_or_else(|| unsafe { libc::fork() }) {
        0 => {
            // The copy is to reach no control group.
            drop(group);
            let code = run(is_inside);
            crate::exit_now(code)
        }
        pid => {
            let pid = Pid::from_raw(pid).filter(|_| pid > 0).ok_or_else(io::Error::last_os_error)?;
            // It can't be another process: as long as no thread waits for it, its number is its own.
            let descriptor = pidfd_open(pid, PidfdFlags::empty())?;
            Ok(Child { pid, descriptor, code: Mutex::default() })
        }
    }
}

/// The same, whose copy has nothing open but standard input and output and what is in `kept`: no lock of this process's
/// is held by it. `run` uses none of the other files that this process has open.
///
/// # Errors
///
/// As [`fork`].
pub fn fork_alone(kept: &[RawFd], run: impl FnOnce() -> u8) -> io::Result<Child> {
    let mut kept: Vec<u32> = kept.iter().filter_map(|fd| u32::try_from(*fd).ok()).collect();
    kept.sort_unstable();
    fork(|| {
        let mut first = 3;
        for end in kept.into_iter().map(Some).chain([None]) {
            let last = end.map_or(u32::MAX, |end| end.saturating_sub(1));
            if first <= last {
                // SAFETY: the copy never returns to those who own them, and `run` uses none.
                unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
            }
            first = end.map_or(first, |end| first.max(end.saturating_add(1)));
        }
        run()
    })
}

impl Child {
    /// One that was started as another program.
    ///
    /// # Errors
    ///
    /// Those of pidfd_open(2).
    pub fn of(child: &std::process::Child) -> io::Result<Self> {
        let pid = Pid::from_child(child);
        Ok(Self { pid, descriptor: pidfd_open(pid, PidfdFlags::empty())?, code: Mutex::default() })
    }

    /// A process that another one has started, which leads a group.
    ///
    /// # Errors
    ///
    /// Those of pidfd_open(2), and `NotFound` where it leads no group.
    pub fn of_group(id: i32) -> io::Result<Self> {
        let pid = Pid::from_raw(id).filter(|_| id > 1).ok_or(io::ErrorKind::NotFound)?;
        let descriptor = pidfd_open(pid, PidfdFlags::empty())?;
        if getpgid(Some(pid)) != Ok(pid) {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(Self { pid, descriptor, code: Mutex::default() })
    }

    /// Kills the group that it leads, with all that it has started.
    pub fn kill_group(&self) {
        // Once it has ended, its number may be another one's.
        let ended = poll(&mut [PollFd::new(&self.descriptor, PollFlags::IN)], Some(&Timespec::default()));
        if ended == Ok(0) {
            let _ = kill_process_group(self.pid, Signal::KILL);
        }
    }

    /// Its process ID.
    pub fn id(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Kills it.
    pub fn kill(&self) {
        // It has ended, if this fails.
        let _ = pidfd_send_signal(&self.descriptor, Signal::KILL);
    }

    /// Waits until it has ended; returns its exit code, or 128 and the number of the signal that killed it. `None`
    /// where that takes longer than `limit`. Each thread that waits gets the same.
    pub fn wait(&self, limit: Option<Duration>) -> Option<u8> {
        let deadline = limit.map(|limit| Instant::now() + limit);
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let left = left.and_then(|left| Timespec::try_from(left).ok());
            let mut polled = [PollFd::new(&self.descriptor, PollFlags::IN)];
            match poll(&mut polled, left.as_ref()) {
                Ok(0) => return None,
                Ok(_) => break,
                Err(Errno::INTR) => {}
                Err(_) => return None,
            }
        }
        let mut known = self.code.lock().unwrap_or_else(PoisonError::into_inner);
        if known.is_none() {
            let status =
                waitid(WaitId::PidFd(self.descriptor.as_fd()), WaitIdOptions::EXITED).ok().flatten()?;
            let code = status.exit_status().or_else(|| Some(128 + status.terminating_signal()?));
            *known = u8::try_from(code?).ok();
        }
        *known
    }
}

/// Has this process run in the background: in a session of its own, without the terminal or other files of the one
/// that started it, and with standard error going to `messages`.
///
/// # Errors
///
/// Those of the system calls.
pub fn go_to_the_background(messages: BorrowedFd<'_>) -> io::Result<()> {
    become_standard(messages, 2)?;
    leave_the_terminal()
}

/// The same, with standard error as it is.
///
/// # Errors
///
/// Those of the system calls.
pub fn leave_the_terminal() -> io::Result<()> {
    // It fails where this process leads a group already.
    let _ = rustix::process::setsid();
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC;
    let null = rustix::fs::open("/dev/null", flags, rustix::fs::Mode::empty())?;
    become_standard(null.as_fd(), 0)?;
    become_standard(null.as_fd(), 1)?;
    Inherited::find().close();
    Ok(())
}

fn become_standard(source: BorrowedFd<'_>, stream: RawFd) -> io::Result<()> {
    // SAFETY: the standard streams belong to the process as a whole, and what this one was is of no use any more.
    match unsafe { libc::dup2(source.as_raw_fd(), stream) } {
        ..0 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// What this process has open from the one that started it, beyond the standard streams: a lock or a pipe of a shell would
/// stay for as long as this process. Its own descriptors are all closed by exec, by which they are told apart.
pub struct Inherited(Vec<RawFd>);

impl Inherited {
    /// What there is now. Where /proc does not say it, nothing.
    pub fn find() -> Self {
        let entries = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
        let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<RawFd>().ok());
        let beyond: Vec<_> = numbers.filter(|number| *number > 2).collect();
        // SAFETY: F_GETFD does nothing to memory.
        let is_kept = |number: &RawFd| unsafe { libc::fcntl(*number, libc::F_GETFD) } == 0;
        Self(beyond.into_iter().filter(is_kept).collect())
    }

    /// Closes it.
    pub fn close(self) {
        for number in self.0 {
            // SAFETY: nothing in this process owns a descriptor that exec keeps.
            unsafe { libc::close(number) };
        }
    }
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn each_thread_that_waits_is_told_how_a_process_ended() {
        let mut process = std::process::Command::new("sh").args(["-c", "kill -KILL $$"]).spawn().unwrap();
        let child = Child::of(&process).unwrap();
        let limit = Some(Duration::from_secs(60));
        let codes: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| child.wait(limit))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(codes, [Some(137); 4]);
        assert_eq!(child.wait(limit), Some(137));
        assert!(process.wait().is_err(), "it was waited for");
    }

    #[test]
    fn a_process_with_threads_is_not_copied() {
        // The test harness has some.
        let error = fork(|| 0).err().map(|error| error.kind());
        assert_eq!(error, Some(io::ErrorKind::ResourceBusy));
    }
}
