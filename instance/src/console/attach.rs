//! The other end of a console's socket: a user's terminal on the console of a VM that another process runs.

use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};
use thiserror::Error;

use super::escape::{ATTACHED_HELP, Command, Escape};
use super::terminal::{RawTerminal, in_foreground, take_terminal};
use crate::signals::{Signals, ignore_limits_and_terminal, take_attached};

/// How much that is typed waits for a guest that does not read. The socket holds some more.
const TYPED_AHEAD: usize = 64 << 10;

/// How often a process in the background looks whether it has been given the terminal: fg(1) tells one that was not
/// stopped nothing.
const LOOK_AGAIN: Timespec = Timespec { tv_sec: 0, tv_nsec: 300_000_000 };

/// Why one can't be attached to a console.
#[derive(Debug, Error)]
pub enum AttachError {
    /// No VM listens there.
    #[error("no VM's console is at {}", path.display())]
    Connect {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The terminal could not be set up.
    #[error("cannot set up the terminal")]
    Terminal(#[source] io::Error),
    /// The console's output could not be shown.
    #[error("cannot write to standard output")]
    Output(#[source] io::Error),
    /// Another system call failed.
    #[error("the connection to the console failed")]
    Host(#[source] io::Error),
}

/// Why one is attached no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detached {
    /// The user wanted to leave; the VM goes on.
    ByUser,
    /// The VM has ended.
    Ended,
    /// A signal asked this process to end; the VM goes on.
    Signal(i32),
}

/// Attaches standard input and output to the console whose socket is at `path`, until the user leaves it or the VM
/// ends. On a terminal, which is in raw mode meanwhile, Ctrl-A d or Ctrl-A x leaves. Where standard input ends, the
/// output goes on.
///
/// The process's ending signals are taken from here on.
///
/// # Errors
///
/// [`AttachError`]; the terminal is as it was.
pub fn attach(path: &Path) -> Result<Detached, AttachError> {
    let connected = UnixStream::connect(path);
    let stream = connected.map_err(|source| AttachError::Connect { path: path.to_owned(), source })?;
    ignore_limits_and_terminal();
    let signals = take_attached().map_err(AttachError::Host)?;
    let terminal = RawTerminal::enter().map_err(AttachError::Terminal)?;
    let (stdin, stdout) = (io::stdin(), io::stdout());
    let escape = stdin.is_terminal().then(Escape::default);
    let foreground = in_foreground();
    let session = Session { stream, stdin, stdout, escape, to_send: Vec::new(), typing: true, foreground };
    let result = session.run(&signals);
    drop(terminal);
    result
}

struct Session<Input: AsFd, Output: AsFd> {
    stream: UnixStream,
    stdin: Input,
    stdout: Output,
    /// Only a terminal has an escape character: a file may contain any byte.
    escape: Option<Escape>,
    /// What was typed and not sent yet.
    to_send: Vec<u8>,
    /// Standard input has not ended.
    typing: bool,
    /// The terminal is this process's to read.
    foreground: bool,
}

impl<Input: AsFd, Output: AsFd> Session<Input, Output> {
    fn run(mut self, signals: &Signals) -> Result<Detached, AttachError> {
        loop {
            let (typed, output) = self.wait(signals).map_err(AttachError::Host)?;
            while let Some(signal) = signals.next() {
                if signal != libc::SIGCONT {
                    return Ok(Detached::Signal(signal));
                }
                self.foreground = self.escape.is_none();
            }
            if self.escape.is_some() && !self.foreground {
                self.foreground = take_terminal().map_err(AttachError::Terminal)?;
            }
            if output && !self.show()? {
                return Ok(Detached::Ended);
            }
            if typed && self.read_keys() {
                return Ok(Detached::ByUser);
            }
            self.send();
        }
    }

    /// Waits until something happens: whether something was typed, and whether there is output.
    fn wait(&self, signals: &Signals) -> io::Result<(bool, bool)> {
        let reads = self.typing && self.foreground && self.to_send.len() < TYPED_AHEAD;
        let stream = if self.to_send.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT };
        let mut fds = vec![PollFd::new(signals, PollFlags::IN), PollFd::new(&self.stream, stream)];
        // poll() reports a hang-up even without a requested event, again and again.
        if reads {
            fds.push(PollFd::new(&self.stdin, PollFlags::IN));
        }
        let look = (!self.foreground).then_some(LOOK_AGAIN);
        match poll(&mut fds, look.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut ready = fds.iter().map(|fd| fd.revents());
        let output = ready.nth(1).is_some_and(|events| !(events - PollFlags::OUT).is_empty());
        Ok((ready.next().is_some_and(|events| !events.is_empty()), output))
    }

    /// Shows what the guest outputs; false at its end.
    fn show(&self) -> Result<bool, AttachError> {
        let mut buffer = [0; 4096];
        let mut rest = match recv(&self.stream, &mut buffer, RecvFlags::DONTWAIT) {
            Ok((0, _)) => return Ok(false),
            Ok((received, _)) => buffer.get(..received).unwrap_or_default(),
            Err(Errno::AGAIN | Errno::INTR) => return Ok(true),
            // The VM's process was killed.
            Err(Errno::CONNRESET) => return Ok(false),
            Err(error) => return Err(AttachError::Host(error.into())),
        };
        while !rest.is_empty() {
            let written = write(&self.stdout, rest).map_err(AttachError::Output)?;
            rest = rest.get(written..).unwrap_or_default();
        }
        Ok(true)
    }

    /// Takes what was typed; whether the user wants to leave.
    fn read_keys(&mut self) -> bool {
        if self.escape.is_some() && !in_foreground() {
            self.foreground = false;
            return false;
        }
        let mut buffer = [0; 4096];
        let typed = match rustix::io::read(&self.stdin, &mut buffer) {
            Ok(read @ 1..) => buffer.get(..read).unwrap_or_default(),
            Err(Errno::AGAIN | Errno::INTR) => return false,
            Ok(_) | Err(_) => {
                self.typing = false;
                return false;
            }
        };
        let Some(escape) = &mut self.escape else {
            self.to_send.extend_from_slice(typed);
            return false;
        };
        let mut leaves = false;
        for command in escape.filter(typed, &mut self.to_send) {
            match command {
                Command::Stop | Command::Detach => leaves = true,
                // It fails if standard error is closed.
                Command::Help => drop(io::stderr().write_all(ATTACHED_HELP.as_bytes())),
            }
        }
        leaves
    }

    /// Sends what was typed, as far as the socket takes it. Where the VM has ended, that shows as its output's end.
    fn send(&mut self) {
        if !self.to_send.is_empty()
            && let Ok(sent) = send(&self.stream, &self.to_send, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)
        {
            self.to_send.drain(..sent.min(self.to_send.len()));
        }
        if !self.typing && self.to_send.is_empty() {
            // Nothing depends on it: the VM just does not wait for more.
            let _ = shutdown(&self.stream, Shutdown::Write);
        }
    }
}

/// Writes from the front of `bytes`, and waits as long as that takes, also where the descriptor does not block.
fn write(to: impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    loop {
        match rustix::io::write(&to, bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => return Ok(written),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                poll(&mut [PollFd::new(&to, PollFlags::OUT)], None)?;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{PipeReader, PipeWriter, Read, pipe};
    use std::thread::JoinHandle;

    use super::*;

    /// A session on a thread: the VM's end, keys, screen.
    struct User {
        vm: UnixStream,
        keys: Option<PipeWriter>,
        screen: PipeReader,
        session: JoinHandle<Result<Detached, AttachError>>,
    }

    fn attached(on_terminal: bool) -> User {
        let ((vm, stream), (stdin, keys), (screen, stdout)) =
            (UnixStream::pair().unwrap(), pipe().unwrap(), pipe().unwrap());
        let session = std::thread::spawn(move || {
            let signals = Signals::block(&[libc::SIGUSR2]).unwrap();
            let escape = on_terminal.then(Escape::default);
            Session { stream, stdin, stdout, escape, to_send: Vec::new(), typing: true, foreground: true }
                .run(&signals)
        });
        User { vm, keys: Some(keys), screen, session }
    }

    impl User {
        fn type_in(&mut self, keys: &[u8]) {
            self.keys.as_mut().unwrap().write_all(keys).unwrap();
        }
        fn expect(from: &mut impl Read, text: &[u8]) {
            let mut seen = vec![0; text.len()];
            from.read_exact(&mut seen).unwrap();
            assert_eq!(seen, text);
        }
    }

    #[test]
    fn keys_go_to_the_vm_its_output_to_the_screen_and_leaving_leaves_the_vm() {
        for leave in [b"\x01d", b"\x01x"] {
            let mut user = attached(true);
            user.type_in(b"ls\x03\x01\x01");
            User::expect(&mut user.vm, b"ls\x03\x01");
            user.vm.write_all(b"a file\r\n").unwrap();
            User::expect(&mut user.screen, b"a file\r\n");
            user.type_in(leave);
            assert_eq!(user.session.join().unwrap().unwrap(), Detached::ByUser);
            assert_eq!(user.vm.read(&mut [0]).unwrap(), 0);
        }
    }

    #[test]
    fn the_end_of_the_vm_is_seen_after_its_last_output() {
        let mut user = attached(true);
        user.vm.write_all(b"Power down").unwrap();
        drop(user.vm);
        assert_eq!(user.session.join().unwrap().unwrap(), Detached::Ended);
        let mut screen = String::new();
        user.screen.read_to_string(&mut screen).unwrap();
        assert_eq!(screen, "Power down");
    }

    #[test]
    fn the_end_of_a_files_input_is_not_the_end_of_the_output_and_no_byte_is_special() {
        let mut user = attached(false);
        user.type_in(b"\x01x");
        user.keys = None;
        let mut typed = Vec::new();
        user.vm.read_to_end(&mut typed).unwrap();
        assert_eq!(typed, b"\x01x");
        user.vm.write_all(b"still here").unwrap();
        User::expect(&mut user.screen, b"still here");
        drop(user.vm);
        assert_eq!(user.session.join().unwrap().unwrap(), Detached::Ended);
    }

    #[test]
    fn a_user_who_types_more_than_the_vm_reads_can_still_leave() {
        let mut user = attached(true);
        // More than the socket holds, less than what waits besides.
        let size = rustix::net::sockopt::socket_send_buffer_size(&user.vm).unwrap();
        user.type_in(&vec![b'x'; size / 4]);
        user.type_in(b"\x01d");
        assert_eq!(user.session.join().unwrap().unwrap(), Detached::ByUser);
    }

    #[test]
    fn where_no_console_is_the_message_says_where() {
        let error = attach(Path::new("/nonexistent/console.sock")).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/console.sock"), "{error}");
    }
}
