//! Which process a VM is, beyond its process ID: that is given to another process after the VM's end.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, open};
use rustix::param::clock_ticks_per_second;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A process, named so that no other process of this boot or of another one has the same name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// The process ID.
    pub pid: i32,
    /// When it started, in clock ticks since the host's boot (proc_pid_stat(5), field 22).
    pub start_time: u64,
    /// The boot that the time counts from.
    pub boot_id: String,
}

/// Why a process can't be named, or is not there.
#[derive(Debug, Error)]
pub enum ProcessError {
    /// A file of /proc can't be read.
    #[error("cannot read {path}: is /proc mounted?")]
    Proc {
        /// Which one.
        path: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The process has ended; its number may be another's now.
    #[error("process {0} has ended")]
    Ended(i32),
    /// The host refuses to let it be waited for or signalled.
    #[error("cannot reach process {pid}")]
    Refused {
        /// Which.
        pid: i32,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Reads a file of /proc that is a line, in one go: it is read at each start.
fn read(path: &str) -> Result<String, ProcessError> {
    let error = |source| ProcessError::Proc { path: path.to_owned(), source };
    let mut line = [0; 2048];
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = open(path, flags, Mode::empty()).map_err(|errno| error(errno.into()))?;
    let length = rustix::io::read(&file, &mut line).map_err(|errno| error(errno.into()))?;
    Ok(String::from_utf8_lossy(line.get(..length).unwrap_or_default()).into_owned())
}

/// Field 22 of a stat file. The name in its second field may contain anything, spaces and brackets among them.
fn start_time(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// Whether field 3 of a stat file says that the process is stopped.
fn is_stopped(stat: &str) -> bool {
    stat.rsplit_once(')').is_some_and(|(_, behind)| behind.trim_start().starts_with(['T', 't']))
}

fn start_time_of(pid: &str) -> Result<u64, ProcessError> {
    let path = format!("/proc/{pid}/stat");
    start_time(&read(&path)?)
        .ok_or_else(|| ProcessError::Proc { path, source: io::Error::from(io::ErrorKind::InvalidData) })
}

impl Process {
    /// This process.
    ///
    /// # Errors
    ///
    /// [`ProcessError::Proc`].
    pub fn own() -> Result<Self, ProcessError> {
        let path = "/proc/self/stat";
        let stat = read(path)?;
        let pid = stat.split_ascii_whitespace().next().and_then(|pid| pid.parse().ok());
        let (Some(pid), Some(start_time)) = (pid, start_time(&stat)) else {
            let source = io::Error::from(io::ErrorKind::InvalidData);
            return Err(ProcessError::Proc { path: path.to_owned(), source });
        };
        Ok(Self { pid, start_time, boot_id: read(BOOT_ID)?.trim_end().to_owned() })
    }

    /// The process `pid` of this boot, which has not been waited for: a child of this one.
    ///
    /// # Errors
    ///
    /// [`ProcessError::Proc`].
    pub fn child_of(own: &Self, pid: i32) -> Result<Self, ProcessError> {
        Ok(Self { pid, start_time: start_time_of(&pid.to_string())?, boot_id: own.boot_id.clone() })
    }

    /// How long ago the process started.
    pub fn age(&self) -> Duration {
        let now = clock_gettime(ClockId::Boottime);
        let now =
            Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0));
        let start =
            Duration::from_secs(self.start_time) / u32::try_from(clock_ticks_per_second()).unwrap_or(100);
        now.saturating_sub(start)
    }

    /// Whether it is stopped (SIGSTOP, or by a debugger), so that it does not answer. False where that is not known.
    pub fn is_stopped(&self) -> bool {
        let stat = read(&format!("/proc/{}/stat", self.pid));
        stat.is_ok_and(|stat| start_time(&stat) == Some(self.start_time) && is_stopped(&stat))
    }

    /// A descriptor of the process, by which it and no other can be signalled and waited for.
    ///
    /// # Errors
    ///
    /// [`ProcessError`].
    pub fn open(&self) -> Result<OpenProcess, ProcessError> {
        let ended = || ProcessError::Ended(self.pid);
        let pid = Some(self.pid).filter(|pid| *pid > 0).and_then(Pid::from_raw).ok_or_else(ended)?;
        // The descriptor first: what is checked then is the process that it stands for, or none.
        let descriptor = pidfd_open(pid, PidfdFlags::empty()).map_err(|error| match error {
            rustix::io::Errno::SRCH => ended(),
            error => ProcessError::Refused { pid: self.pid, source: error.into() },
        })?;
        let start_time = start_time_of(&self.pid.to_string()).map_err(|_| ended())?;
        if start_time != self.start_time || read(BOOT_ID)?.trim_end() != self.boot_id {
            return Err(ended());
        }
        Ok(OpenProcess { pid: self.pid, descriptor })
    }
}

/// Ends this process with `code` at once: no destructor runs and no buffer is written, since another thread may hold
/// their locks.
pub fn exit_now(code: u8) -> ! {
    // SAFETY: the call has no preconditions and does not return.
    unsafe { libc::_exit(code.into()) }
}

/// A process that can be signalled and waited for.
pub struct OpenProcess {
    pid: i32,
    descriptor: OwnedFd,
}

impl OpenProcess {
    /// Sends a signal.
    ///
    /// # Errors
    ///
    /// [`ProcessError`].
    pub fn signal(&self, signal: Signal) -> Result<(), ProcessError> {
        pidfd_send_signal(&self.descriptor, signal).map_err(|error| match error {
            rustix::io::Errno::SRCH => ProcessError::Ended(self.pid),
            error => ProcessError::Refused { pid: self.pid, source: error.into() },
        })
    }

    /// Waits until the process has ended; returns whether it did so in time. Without `timeout` it waits on.
    pub fn wait(&self, timeout: Option<Duration>) -> bool {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        loop {
            let left = deadline
                .map(|deadline| deadline.saturating_duration_since(Instant::now()))
                .and_then(|left| Timespec::try_from(left).ok());
            // A process that has ended makes its descriptor readable (pidfd_open(2)).
            let mut polled = [PollFd::new(&self.descriptor, PollFlags::IN)];
            match poll(&mut polled, left.as_ref()) {
                Ok(ready) => return ready > 0,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    }
}

impl AsFd for OpenProcess {
    /// Readable when the process has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn the_start_time_is_found_behind_any_name() {
        let fields = "S 1 2 3 0 -1 4 5 6 7 8 9 10 11 12 20 0 1 0 4711 99";
        for name in ["sh", "a b", "x) R 1 1 (y", ")"] {
            assert_eq!(start_time(&format!("12 ({name}) {fields}")), Some(4711), "{name}");
        }
        assert_eq!(start_time("12 (sh) S 1"), None);
        assert_eq!(start_time(""), None);
    }

    #[test]
    fn a_process_that_is_stopped_is_known() {
        let sleeper = Sleeper::new();
        let pid = i32::try_from(sleeper.0.id()).unwrap();
        let process = Process::child_of(&Process::own().unwrap(), pid).unwrap();
        assert!(!process.is_stopped());
        let pid = Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, Signal::STOP).unwrap();
        // SAFETY: the call writes to no memory of this process.
        unsafe { libc::waitpid(process.pid, std::ptr::null_mut(), libc::WUNTRACED) };
        assert!(process.is_stopped());
        assert!(!Process { start_time: 0, ..process }.is_stopped(), "it is another one");
    }

    /// A process that does nothing, and does not outlive its test.
    struct Sleeper(std::process::Child);

    impl Sleeper {
        fn new() -> Self {
            Self(Command::new("sleep").arg("1000").stdout(std::process::Stdio::null()).spawn().unwrap())
        }
    }

    impl Drop for Sleeper {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn named(child: &Sleeper) -> Process {
        let pid = i32::try_from(child.0.id()).unwrap();
        Process { pid, start_time: start_time_of(&pid.to_string()).unwrap(), ..Process::own().unwrap() }
    }

    #[test]
    fn a_process_is_signalled_and_waited_for() {
        let mut child = Sleeper::new();
        let process = named(&child).open().unwrap();
        assert!(!process.wait(Some(Duration::ZERO)));
        process.signal(Signal::KILL).unwrap();
        assert!(process.wait(Some(Duration::from_secs(60))));
        child.0.wait().unwrap();
        assert!(matches!(process.signal(Signal::KILL), Err(ProcessError::Ended(_))));
    }

    #[test]
    fn another_process_with_the_same_number_is_not_taken_for_it() {
        let mut child = Sleeper::new();
        let process = named(&child);
        let earlier = Process { start_time: process.start_time - 1, ..process.clone() };
        let of_another_boot = Process { boot_id: "0".into(), ..process.clone() };
        for stranger in [earlier, of_another_boot] {
            assert!(matches!(stranger.open(), Err(ProcessError::Ended(_))), "{stranger:?}");
        }
        for pid in [0, -1, i32::MIN] {
            let process = Process { pid, ..process.clone() };
            assert!(matches!(process.open(), Err(ProcessError::Ended(_))), "{pid}");
        }
        process.open().unwrap().signal(Signal::KILL).unwrap();
        child.0.wait().unwrap();
        assert!(matches!(process.open(), Err(ProcessError::Ended(_))));
    }
}
