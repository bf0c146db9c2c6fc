//! A virtiofsd process of mvm's own, from its start to its end.

use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, ChildStderr};
use std::time::{Duration, Instant};

use devices::virtio::vhost_user::ShareTag;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use super::command::command;
use super::program::find_program;
use super::{ShareError, socket};
use crate::ShareConfig;

/// How many of its lines are passed on: a guest may be able to have it complain without end.
const MAX_LINES: u32 = 100;
/// The most bytes of a line that are passed on.
const MAX_LINE: usize = 1024;
/// How long it is waited for after the connection to it broke: it has little left to do.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// A virtiofsd that runs. It ends with this.
pub struct Virtiofsd {
    tag: ShareTag,
    child: Child,
    pidfd: OwnedFd,
    messages: ChildStderr,
    /// The start of a line that has no end yet.
    line: Vec<u8>,
    lines: u32,
    has_ended: bool,
}

impl Virtiofsd {
    /// Starts it for `share`, and connects to it.
    ///
    /// # Errors
    ///
    /// [`ShareError`]: there is no such folder, or no virtiofsd.
    pub fn start(share: &ShareConfig) -> Result<(Self, UnixStream), ShareError> {
        let folder = |source| ShareError::Folder { path: share.path.clone(), source };
        let path = share.path.canonicalize().map_err(folder)?;
        if !path.is_dir() {
            return Err(ShareError::NotAFolder(share.path.clone()));
        }
        let program = find_program().ok_or(ShareError::NoProgram)?;
        let start = || {
            let (listener, stream) = socket::connected_listener()?;
            let child = command(&program, share, &path, &listener).spawn()?;
            Ok((Self::of(child, share.tag.clone())?, stream))
        };
        start().map_err(|source| ShareError::Start {
            program: program.clone(),
            tag: share.tag.clone(),
            source,
        })
    }

    fn of(mut child: Child, tag: ShareTag) -> io::Result<Self> {
        let set_up = |child: &mut Child| {
            let messages = child.stderr.take().ok_or(io::ErrorKind::BrokenPipe)?;
            rustix::io::ioctl_fionbio(&messages, true)?;
            Ok((messages, pidfd_open(Pid::from_child(child), PidfdFlags::empty())?))
        };
        match set_up(&mut child) {
            Ok((messages, pidfd)) => {
                Ok(Self { tag, child, pidfd, messages, line: Vec::new(), lines: 0, has_ended: false })
            }
            Err(error) => {
                end(&mut child);
                Err(error)
            }
        }
    }

    /// Why it ended, in its own words; `None` where it runs.
    pub(super) fn into_failure(mut self) -> Option<ShareError> {
        let deadline = Instant::now() + LAST_WORDS;
        if !becomes_readable(&self.pidfd, deadline) {
            return None;
        }
        let mut said = Vec::new();
        // All that it wrote before it ended is in the pipe; a pipe holds 64 KiB.
        let _ = (&mut self.messages).take(1 << 16).read_to_end(&mut said);
        let said = String::from_utf8_lossy(&said);
        let lines: Vec<_> = said.lines().map(message).filter(|line| !line.is_empty()).collect();
        let message = match self.child.wait() {
            _ if !lines.is_empty() => lines.join("; ").chars().take(MAX_LINE).collect(),
            Ok(status) => format!("it ended with {status}"),
            Err(error) => format!("it ended ({error})"),
        };
        self.has_ended = true;
        // virtiofsd's words for all that its sandbox needs and the host does not allow.
        let hint = if message.contains("sandbox") {
            " (sandbox=chroot takes root, sandbox=none no rights, behind the share: it is held less)"
        } else {
            ""
        };
        Some(ShareError::Ended { tag: self.tag.clone(), message, hint })
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
        self.lines = self.lines.saturating_add(1);
        if self.lines <= MAX_LINES {
            let line = String::from_utf8_lossy(&line);
            tracing::warn!(share = %self.tag, "virtiofsd: {}", message(&line).escape_debug());
        } else if self.lines == MAX_LINES + 1 {
            tracing::warn!(share = %self.tag, "virtiofsd says more; it is left out");
        }
    }
}

/// What is behind the time, the level and the module.
fn message(line: &str) -> &str {
    match line.strip_prefix('[').and_then(|line| line.split_once("] ")) {
        Some((_, message)) => message.trim(),
        None => line.trim(),
    }
}

fn becomes_readable(pidfd: &OwnedFd, deadline: Instant) -> bool {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let Ok(left) = Timespec::try_from(left) else { return false };
        match poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&left)) {
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

impl MutEventSubscriber for Virtiofsd {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        for fd in [self.messages.as_raw_fd(), self.pidfd.as_raw_fd()] {
            if let Err(error) = ops.add(Events::new_raw(fd, EventSet::IN)) {
                tracing::error!(%error, "virtiofsd will not be heard");
            }
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        let is_over = if events.fd() == self.messages.as_raw_fd() {
            !self.pass_messages()
        } else {
            self.has_ended = true;
            match self.child.wait() {
                Ok(status) => tracing::error!(share = %self.tag, %status, "virtiofsd has ended"),
                Err(error) => tracing::error!(share = %self.tag, %error, "virtiofsd is lost"),
            }
            true
        };
        if is_over {
            // It fails only where it is not watched any more.
            let _ = ops.remove(Events::empty_raw(events.fd()));
        }
    }
}

impl Drop for Virtiofsd {
    fn drop(&mut self) {
        if !self.has_ended {
            end(&mut self.child);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    fn program(script: &str) -> Virtiofsd {
        use std::os::unix::process::CommandExt;
        let mut command = Command::new("sh");
        command.args(["-c", script]).process_group(0).stdin(Stdio::null()).stderr(Stdio::piped());
        Virtiofsd::of(command.spawn().unwrap(), "/work".parse().unwrap()).unwrap()
    }

    #[test]
    fn what_it_says_is_told_without_time_and_module() {
        assert_eq!(message("[2026-01-02T03:04:05Z ERROR virtiofsd] Error [x] here "), "Error [x] here");
        assert_eq!(message("no brackets"), "no brackets");
        assert_eq!(message("[no end"), "[no end");
    }

    #[test]
    fn its_last_words_say_why_it_failed() {
        let failure = |script: &str| program(script).into_failure().unwrap().to_string();
        let said = failure("echo '[now ERROR virtiofsd] Error entering sandbox: Unshare' >&2; exit 1");
        assert!(
            said.contains("does not share /work: Error entering sandbox: Unshare (sandbox=chroot"),
            "{said}"
        );
        assert!(failure("exit 7").contains("exit status: 7"));
        let long = failure("yes x | head -c 60000 >&2");
        assert!(long.len() < 2 * MAX_LINE && long.lines().count() == 1, "{long}");
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
}
