//! A helper process, from its start to its end.

use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Child, ChildStderr, Command};
use std::time::{Duration, Instant};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use super::Program;

/// How many of its lines are passed on: a guest may be able to have it complain without end.
const MAX_LINES: u32 = 100;
/// The most bytes of a line that are passed on.
const MAX_LINE: usize = 1024;
/// How long it is waited for after the connection to it broke: it has little left to do.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// A helper that runs. It ends with this.
pub struct Helper {
    program: &'static Program,
    /// What it does, for messages.
    role: String,
    child: Child,
    pidfd: OwnedFd,
    messages: ChildStderr,
    /// The start of a line that has no end yet.
    line: Vec<u8>,
    lines: u32,
    has_ended: bool,
}

impl Helper {
    /// Starts `command`, which `confine` has seen, and which is a `program` that does `role`. The
    /// descriptors that it inherits are closed here.
    ///
    /// # Errors
    ///
    /// Those of the system calls; nothing is left behind.
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

    /// Why it ended, on one line and in its own words where it has any; `None` where it runs.
    pub fn into_last_words(mut self) -> Option<String> {
        let deadline = Instant::now() + LAST_WORDS;
        if !becomes_readable(&self.pidfd, deadline) {
            return None;
        }
        let mut said = Vec::new();
        // All that it wrote before it ended is in the pipe; a pipe holds 64 KiB.
        let _ = (&mut self.messages).take(1 << 16).read_to_end(&mut said);
        let said = String::from_utf8_lossy(&said);
        let lines: Vec<_> = said.lines().map(self.program.message).filter(|line| !line.is_empty()).collect();
        let message = match self.child.wait() {
            _ if !lines.is_empty() => lines.join("; ").chars().take(MAX_LINE).collect(),
            Ok(status) => format!("it ended with {status}"),
            Err(error) => format!("it ended ({error})"),
        };
        self.has_ended = true;
        Some(message)
    }

    /// Forgets what it has said so far.
    pub(crate) fn forget_messages(&mut self) {
        let mut waste = Vec::new();
        let _ = (&mut self.messages).take(1 << 16).read_to_end(&mut waste);
    }

    /// Passes on what it said. False at the end.
    fn pass_messages(&mut self) -> bool {
        let mut buffer = [0; 4096];
        // A part a turn: it may write as fast as it is read.
        match self.messages.read(&mut buffer) {
            Ok(0) => false,
            Ok(read) => {
                for byte in buffer.iter().take(read) {
                    match byte {
                        b'\n' => self.pass_line(),
                        byte if self.line.len() < MAX_LINE => self.line.push(*byte),
                        _ => {}
                    }
                }
                true
            }
            Err(error) => matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted),
        }
    }

    fn pass_line(&mut self) {
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
            tracing::warn!(%role, "{name} says more; it is left out");
        }
    }

    /// Tells that it has ended, after what it said last.
    fn tell_end(&mut self) {
        self.has_ended = true;
        // No more than a pipe holds: what it started may live, and write as fast as this reads.
        for _ in 0..16 {
            if !becomes_readable(&self.messages, Instant::now()) || !self.pass_messages() {
                break;
            }
        }
        self.pass_line();
        let Self { program: Program { name, .. }, role, .. } = self;
        match self.child.wait() {
            Ok(status) => tracing::error!(%role, %status, "{name} has ended"),
            Err(error) => tracing::error!(%role, %error, "{name} is lost"),
        }
    }
}

/// Whether `fd` can be read, or has come to its end, before `deadline`.
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

/// Kills it with all that it started, and waits for it.
fn end(child: &mut Child) {
    // It has a group of its own, and has not been waited for: the number is still its.
    let _ = kill_process_group(Pid::from_child(child), Signal::KILL);
    let _ = child.wait();
}

impl MutEventSubscriber for Helper {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        for fd in [self.messages.as_raw_fd(), self.pidfd.as_raw_fd()] {
            if let Err(error) = ops.add(Events::new_raw(fd, EventSet::IN)) {
                tracing::error!(%error, "{} will not be heard", self.program.name);
            }
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        let is_over = if events.fd() == self.messages.as_raw_fd() {
            !self.pass_messages()
        } else {
            self.tell_end();
            true
        };
        if is_over {
            // It fails only where it is not watched any more.
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

    use super::super::confine;
    use super::*;

    static SHELL: Program = Program { name: "sh", variable: "", places: &[], message: str::trim };

    fn program(script: &str) -> Helper {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        confine(&mut command, Vec::new());
        Helper::start(&SHELL, "test".to_owned(), command).unwrap()
    }

    #[test]
    fn its_last_words_say_why_it_failed() {
        let failure = |script: &str| program(script).into_last_words().unwrap();
        assert_eq!(
            failure("echo ' no'; echo ' because ' >&2; echo >&2; echo why >&2; exit 1"),
            "because; why"
        );
        assert!(failure("exit 7").contains("exit status: 7"));
        let long = failure("yes x | head -c 60000 >&2");
        assert!(long.len() == MAX_LINE && long.lines().count() == 1, "{long}");
    }

    #[test]
    fn it_inherits_what_it_is_given_and_nothing_else() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut command = Command::new("/bin/sh");
        let number = writer.as_raw_fd();
        // Open without close-on-exec, as mvm may have inherited it, and of a number that no process comes to by itself.
        // SAFETY: the descriptor that is returned belongs to nobody else.
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
    fn a_process_that_lives_has_not_failed_and_ends_with_its_owner() {
        let process = program("sleep 1000 & echo >&2; wait");
        let pid = Pid::from_child(&process.child);
        let reader = process.pidfd.try_clone().unwrap();
        drop(process);
        assert!(becomes_readable(&reader, Instant::now() + Duration::from_secs(60)));
        // Its child is waited for by another process, in its own time.
        let deadline = Instant::now() + Duration::from_secs(60);
        while rustix::process::test_kill_process_group(pid) != Err(rustix::io::Errno::SRCH) {
            assert!(Instant::now() < deadline, "its child is left");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_flood_of_messages_is_cut() {
        let mut process = program("yes | head -c 1000000 >&2; yes x | tr -d '\\n' | head -c 100000 >&2");
        while process.pass_messages() {
            assert!(process.line.len() <= MAX_LINE);
            let _ = poll(&mut [PollFd::new(&process.messages, PollFlags::IN)], None);
        }
        assert_eq!(process.lines, 500_000);
    }

    #[test]
    fn what_it_said_last_is_passed_on_before_its_end() {
        let mut process = program("echo one >&2; printf two >&2");
        assert!(becomes_readable(&process.pidfd, Instant::now() + Duration::from_secs(60)));
        process.tell_end();
        assert_eq!((process.lines, process.line.len()), (2, 0));
    }
}
