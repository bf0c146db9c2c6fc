//! What ties a VM's process and the process that keeps it, and those whose containers are in its VM.
//!
//! The keeper has the user's side: terminal, signals, output, records. The VM's process has KVM and the devices. Either
//! ends when the other one does, which the hang-up of their socket tells.

mod orphans;
mod tie;

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, getpgid, kill_process_group, pidfd_open,
    pidfd_send_signal, waitid,
};

use super::clone::clone_into;
pub use orphans::{adopt_orphans, end_orphans};
pub use tie::{MAX_FILES, Tie, TieListener};

/// A process that [`fork`] made.
pub struct Child {
    pid: Pid,
    descriptor: OwnedFd,
    /// How it ended, which the kernel says once.
    code: Mutex<Option<u8>>,
}

impl AsFd for Child {
    /// Readable when it has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
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

/// The same, whose copy is in the control group with the directory `group` where the host can do that at once; `run` is
/// told whether it is.
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
        if !self.has_ended() {
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

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        poll(&mut [PollFd::new(&self.descriptor, PollFlags::IN)], Some(&Timespec::default())) != Ok(0)
    }

    /// Waits until it has ended; returns its exit code, or 128 and the number of the signal that killed it. `None`
    /// where that takes longer than `limit`. Each thread that waits gets the same.
    pub fn wait(&self, limit: Option<Duration>) -> Option<u8> {
        self.wait_and(limit, || ())
    }

    /// The same. What it has left in the group that it leads, if it leads one, is killed.
    pub fn wait_with_group(&self, limit: Option<Duration>) -> Option<u8> {
        self.wait_and(limit, || {
            // All at once: what is copied meanwhile is killed as well. No other group has its number as long as it has.
            let _ = kill_process_group(self.pid, Signal::KILL);
        })
    }

    /// Calls `last` once it has ended, as long as its number is its own.
    fn wait_and(&self, limit: Option<Duration>, last: impl FnOnce()) -> Option<u8> {
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
            last();
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

/// The same, with standard error as it is: where that is a terminal, it can only be written to, and where the host does
/// not open it so, it leads nowhere.
///
/// # Errors
///
/// Those of the system calls.
pub fn leave_the_terminal() -> io::Result<()> {
    // As long as the terminal is this session's.
    let [_, _, errors] = standard_streams();
    if errors.is_terminal() {
        let own = write_only(errors).or_else(|_| rustix::fs::open("/dev/null", WRITE_ONLY, Mode::empty()))?;
        become_standard(own.as_fd(), 2)?;
    }
    // It fails where this process leads a group already.
    let _ = rustix::process::setsid();
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    become_standard(null.as_fd(), 0)?;
    become_standard(null.as_fd(), 1)?;
    Inherited::find().close();
    Ok(())
}

/// Standard input, output and error, to be looked at: what is written goes by the log.
pub fn standard_streams() -> [BorrowedFd<'static>; 3] {
    // SAFETY: they are open for as long as the process lives, as Rust's start-up code opens what was closed, and only
    // replaced.
    [0, 1, 2].map(|number| unsafe { BorrowedFd::borrow_raw(number) })
}

/// How a terminal is opened to be written to.
const WRITE_ONLY: OFlags = OFlags::WRONLY.union(OFlags::NOCTTY).union(OFlags::CLOEXEC);

/// What `terminal` is, to be written to alone.
fn write_only(terminal: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let own = format!("/proc/self/fd/{}", terminal.as_raw_fd());
    let opened = rustix::fs::open(own, WRITE_ONLY, Mode::empty()).or_else(|error| {
        // It is another user's, as after su(1). The terminal of this session can be opened all the same.
        rustix::termios::tcgetsid(terminal).map_err(|_| error)?;
        rustix::fs::open("/dev/tty", WRITE_ONLY, Mode::empty())
    });
    Ok(opened?)
}

fn become_standard(source: BorrowedFd<'_>, stream: RawFd) -> io::Result<()> {
    // SAFETY: the standard streams belong to the process as a whole, and what this one was is of no use any more.
    match unsafe { libc::dup2(source.as_raw_fd(), stream) } {
        ..0 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// What this process has open from the one that started it, beyond the standard streams: a lock or a pipe of a shell
/// would stay for as long as this process. Its own descriptors are all closed by exec, by which they are told apart.
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
    use std::os::fd::FromRawFd;

    use super::*;

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
    #[expect(clippy::zombie_processes, reason = "it is waited for by its descriptor")]
    fn what_a_process_leaves_in_its_group_ends_with_it() {
        use std::os::unix::process::CommandExt;
        for leads in [true, false] {
            let (end, theirs) = io::pipe().unwrap();
            let mut command = std::process::Command::new("sh");
            command.args(["-c", "sleep 20 & exit 3"]).stdout(theirs);
            if leads {
                command.process_group(0);
            }
            let process = command.spawn().unwrap();
            drop(command);
            let child = Child::of(&process).unwrap();
            assert_eq!(child.wait_with_group(Some(Duration::from_secs(60))), Some(3));
            // Closed by the last process that has it. Nothing in the group of another one is ended.
            let limit = Timespec { tv_sec: if leads { 15 } else { 0 }, tv_nsec: 0 };
            let closed = poll(&mut [PollFd::new(&end, PollFlags::empty())], Some(&limit));
            assert_eq!(closed, Ok(usize::from(leads)));
        }
    }

    #[test]
    fn a_terminal_that_is_written_to_can_not_be_read() {
        use std::io::{Read, Write};
        let (mut near, mut far) = (-1, -1);
        let (no_name, no_modes, no_size) = (std::ptr::null_mut(), std::ptr::null(), std::ptr::null());
        // SAFETY: the call writes two descriptors, and what it does not get it does not use.
        assert_eq!(unsafe { libc::openpty(&raw mut near, &raw mut far, no_name, no_modes, no_size) }, 0);
        // SAFETY: both are new.
        let [mut near, far] = [near, far].map(|fd| unsafe { std::fs::File::from_raw_fd(fd) });
        let mut own = std::fs::File::from(write_only(far.as_fd()).unwrap());
        own.write_all(b"said").unwrap();
        let mut said = [0; 4];
        near.read_exact(&mut said).unwrap();
        assert_eq!(&said, b"said");
        near.write_all(b"typed\n").unwrap();
        assert_eq!(own.read(&mut [0]).unwrap_err().raw_os_error(), Some(libc::EBADF));
        assert!(write_only(std::fs::File::open("/dev/null").unwrap().as_fd()).is_ok());
    }

    #[test]
    fn a_process_with_threads_is_not_copied() {
        // The test harness has some.
        let error = fork(|| 0).err().map(|error| error.kind());
        assert_eq!(error, Some(io::ErrorKind::ResourceBusy));
    }
}
