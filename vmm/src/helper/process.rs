//! A helper process, from its start to its end.

use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Child, ChildStderr, Command, ExitStatus};
use std::time::{Duration, Instant};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use super::Program;
use crate::confinement::is_confined;

/// How many lines of its messages are logged, since a guest may be able to provoke any number.
const MAX_LINES: u32 = 100;
/// How many bytes of a line are logged.
const MAX_LINE: usize = 1024;
/// How long it may take to end after the connection to it was lost.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// A helper that runs. Dropping it ends the process.
pub struct Helper {
    program: &'static Program,
    /// What it is for, as the log says it.
    role: String,
    child: Child,
    pidfd: OwnedFd,
    messages: ChildStderr,
    /// The start of a line whose end has not been read yet.
    line: Vec<u8>,
    lines: u32,
    has_ended: bool,
}

impl Helper {
    /// Starts `command`, which was set up by `confine`, as the `program` for `role`. The descriptors that it inherits
    /// are closed in this process.
    ///
    /// # Errors
    ///
    /// Those of the system calls; no process is left behind.
    pub fn start(program: &'static Program, role: String, mut command: Command) -> io::Result<Self> {
        let mut child = command.spawn()?;
        let set_up = |child: &mut Child| {
            let messages = child.stderr.take().ok_or(io::ErrorKind::BrokenPipe)?;
            rustix::io::ioctl_fionbio(&messages, true)?;
            Ok((messages, pidfd_open(Pid::from_child(child), PidfdFlags::empty())?))
        };
        match set_up(&mut child) {
            Ok((messages, pidfd)) => Ok(Self {
                program,
                role,
                child,
                pidfd,
                messages,
                line: Vec::new(),
                lines: 0,
                has_ended: false,
            }),
            Err(error) => {
                end(&mut child);
                Err(error)
            }
        }
    }

    /// Why it ended, on one line, by its last messages if there are any; `None` if it still runs.
    pub fn into_last_words(mut self) -> Option<String> {
        let deadline = Instant::now() + END_TIMEOUT;
        if !becomes_readable(&self.pidfd, deadline) {
            return None;
        }
        let mut said = Vec::new();
        // What it wrote before it ended is in the pipe, which holds up to 64 KiB.
        let _ = (&mut self.messages).take(1 << 16).read_to_end(&mut said);
        let said = String::from_utf8_lossy(&said);
        let lines: Vec<_> = said.lines().map(self.program.message).filter(|line| !line.is_empty()).collect();
        let message = match self.wait() {
            _ if !lines.is_empty() => lines.join("; ").escape_debug().take(MAX_LINE).collect(),
            Ok(status) => format!("it ended with {status}"),
            Err(error) => format!("it ended ({error})"),
        };
        self.has_ended = true;
        Some(message)
    }

    /// The number of its process, which leads a group of its own.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Discards the messages so far.
    pub(crate) fn forget_messages(&mut self) {
        let mut waste = Vec::new();
        let _ = (&mut self.messages).take(1 << 16).read_to_end(&mut waste);
    }

    /// Logs a part of its messages, 4 KiB at most; false at their end.
    fn log_messages(&mut self) -> bool {
        let mut buffer = [0; 4096];
        match self.messages.read(&mut buffer) {
            Ok(0) => false,
            Ok(read) => {
                for byte in buffer.iter().take(read) {
                    match byte {
                        b'\n' => self.log_line(),
                        byte if self.line.len() < MAX_LINE => self.line.push(*byte),
                        _ => {}
                    }
                }
                true
            }
            Err(error) => matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted),
        }
    }

    fn log_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        let line = String::from_utf8_lossy(&line);
        let message = (self.program.message)(&line);
        if message.is_empty() {
            return;
        }
        self.lines = self.lines.saturating_add(1);
        let Self { program: Program { name, .. }, role, .. } = self;
        if self.lines <= MAX_LINES {
            tracing::warn!(%role, "{name}: {}", message.escape_debug());
        } else if self.lines == MAX_LINES + 1 {
            tracing::warn!(%role, "{name} has more messages, which are not logged");
        }
    }

    /// Logs its last messages and that it has ended.
    fn log_end(&mut self) {
        let status = self.wait();
        // No more than the pipe holds: a process that it started may have the other end, too.
        for _ in 0..16 {
            if !becomes_readable(&self.messages, Instant::now()) || !self.log_messages() {
                break;
            }
        }
        self.log_line();
        let Self { program: Program { name, .. }, role, .. } = self;
        match status {
            Ok(status) => tracing::error!(%role, %status, "{name} has ended"),
            Err(error) => tracing::error!(%role, %error, "{name} has ended with an unknown status"),
        }
    }

    /// Waits for the end of the process, and kills what it has started: virtiofsd's server is its child.
    fn wait(&mut self) -> io::Result<ExitStatus> {
        self.has_ended = true;
        if !becomes_readable(&self.pidfd, Instant::now()) {
            return self.child.wait();
        }
        kill_group(&self.child);
        self.child.wait()
    }
}

/// Waits until `fd` is readable or at its end; false if it isn't by `deadline`.
pub(crate) fn becomes_readable(fd: impl AsFd, deadline: Instant) -> bool {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let Ok(left) = Timespec::try_from(left) else { return false };
        match poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&left)) {
            Ok(ready) => return ready > 0,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

/// Kills the process and all that it has started, waits for it, and ignores errors: there is none that it survives. A
/// process that is confined may not signal others: it leaves them to the process that keeps it.
fn end(child: &mut Child) {
    if is_confined() {
        return;
    }
    kill_group(child);
    let _ = child.wait();
}

/// Kills the process group of `child`, which must not have been waited for: until then the number is not used again.
fn kill_group(child: &Child) {
    if is_confined() {
        return;
    }
    // It fails only if no process of the group is left.
    let _ = kill_process_group(Pid::from_child(child), Signal::KILL);
}

impl MutEventSubscriber for Helper {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        for fd in [self.messages.as_raw_fd(), self.pidfd.as_raw_fd()] {
            if let Err(error) = ops.add(Events::new_raw(fd, EventSet::IN)) {
                tracing::error!(%error, "cannot watch {}", self.program.name);
            }
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        let is_over = if events.fd() == self.messages.as_raw_fd() {
            !self.log_messages()
        } else {
            self.log_end();
            true
        };
        if is_over {
            // It fails only if it is not watched any more.
            let _ = ops.remove(Events::empty_raw(events.fd()));
        }
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        if !self.has_ended {
            end(&mut self.child);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::FromRawFd;

    use super::*;
    use crate::helper::command::WITHHELD;
    use crate::helper::{Package, confine};

    static SHELL: Program = Program {
        name: "sh",
        variable: "",
        places: &[],
        package: Package { since: &[], otherwise: "", build: None },
        message: str::trim,
    };

    fn program(script: &str) -> Helper {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        confine(&mut command, Vec::new());
        Helper::start(&SHELL, "test".to_owned(), command).unwrap()
    }

    #[test]
    fn its_last_messages_say_why_it_failed() {
        let failure = |script: &str| program(script).into_last_words().unwrap();
        assert_eq!(
            failure("echo ' no'; echo ' because ' >&2; echo >&2; echo why >&2; exit 1"),
            "because; why"
        );
        assert!(failure("exit 7").contains("exit status: 7"));
        assert_eq!(failure("printf '\\033[1mno\\n' >&2"), "\\u{1b}[1mno");
        let long = failure("yes x | head -c 60000 >&2");
        assert!(long.len() == MAX_LINE && long.lines().count() == 1, "{long}");
    }

    #[test]
    fn it_inherits_what_it_is_given_and_nothing_else() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut command = Command::new("/bin/sh");
        let number = writer.as_raw_fd();
        // Open without close-on-exec, as mvm may have inherited it, and of a number that no process comes to by itself.
        // SAFETY: the descriptor that is returned has no other owner.
        let stray = unsafe { OwnedFd::from_raw_fd(libc::fcntl(number, libc::F_DUPFD, 300)) };
        command.args(["-c", &format!("(pwd; env; ls /proc/self/fd) >/proc/self/fd/{number}")]);
        confine(&mut command, vec![writer.into()]);
        let helper = Helper::start(&SHELL, "test".to_owned(), command).unwrap();
        let stray_number = stray.as_raw_fd().to_string();
        drop(stray);
        let mut said = String::new();
        reader.read_to_string(&mut said).unwrap();
        let lines: Vec<_> = said.lines().collect();
        assert!(lines.contains(&"/") && lines.contains(&number.to_string().as_str()), "{said}");
        assert!(!lines.contains(&stray_number.as_str()) && !said.contains("PATH=/"), "{said}");
        drop(helper);
    }

    #[test]
    fn a_running_process_has_not_failed_and_ends_with_its_owner() {
        let process = program("sleep 1000 & echo >&2; wait");
        let pid = Pid::from_child(&process.child);
        let reader = process.pidfd.try_clone().unwrap();
        drop(process);
        assert!(becomes_readable(&reader, Instant::now() + Duration::from_secs(60)));
        wait_until_group_is_gone(pid);
    }

    /// Orphans are reaped by init, whenever it gets to it.
    fn wait_until_group_is_gone(pid: Pid) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while rustix::process::test_kill_process_group(pid) != Err(rustix::io::Errno::SRCH) {
            assert!(Instant::now() < deadline, "its child is left");
            std::thread::yield_now();
        }
    }

    #[test]
    fn it_outlives_the_signals_that_end_a_service_and_not_what_it_depends_on() {
        let signals = "for signal in TERM INT HUP; do kill -$signal $$ || exit 1; done";
        let said = program(&format!("{signals}; exec grep SigBlk /proc/self/status >&2")).into_last_words();
        let blocked = said.as_deref().and_then(|said| said.strip_prefix("SigBlk:\\t")).unwrap();
        let mask = WITHHELD.iter().fold(0_u64, |mask, signal| mask | 1 << (signal - 1));
        // A program that has handlers for them is not ended either.
        assert_eq!(u64::from_str_radix(blocked, 16).unwrap() & mask, mask, "{said:?}");
    }

    #[test]
    fn it_gets_no_rights_and_leaves_no_dump() {
        let said = program("grep NoNewPrivs /proc/self/status >&2; ulimit -Hc >&2").into_last_words();
        assert_eq!(said.as_deref(), Some("NoNewPrivs:\\t1; 0"));
    }

    #[test]
    fn what_it_started_ends_with_it() {
        let mut process = program("sleep 1000 & echo $! >&2");
        let pid = Pid::from_child(&process.child);
        assert!(becomes_readable(&process.pidfd, Instant::now() + Duration::from_secs(60)));
        rustix::process::test_kill_process_group(pid).unwrap();
        process.log_end();
        wait_until_group_is_gone(pid);
    }

    #[test]
    fn a_flood_of_messages_is_cut() {
        let mut process = program("yes | head -c 1000000 >&2; yes x | tr -d '\\n' | head -c 100000 >&2");
        while process.log_messages() {
            assert!(process.line.len() <= MAX_LINE);
            let _ = poll(&mut [PollFd::new(&process.messages, PollFlags::IN)], None);
        }
        assert_eq!(process.lines, 500_000);
    }

    #[test]
    fn its_last_messages_are_logged_before_its_end() {
        let mut process = program("echo one >&2; printf two >&2");
        assert!(becomes_readable(&process.pidfd, Instant::now() + Duration::from_secs(60)));
        process.log_end();
        assert_eq!((process.lines, process.line.len()), (2, 0));
    }
}
