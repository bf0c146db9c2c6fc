//! A guest, from its boot to its exit code.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::{kernel, mvm, rootfs};

/// Few guests of a test take as long; it bounds a test that hangs, and none waits for it to pass.
pub(crate) const WATCHDOG: Duration = Duration::from_secs(300);

/// How to boot a guest.
pub struct Boot {
    directory: TempDir,
    arguments: Vec<String>,
    append: Vec<String>,
    has_kernel: bool,
    has_rootfs: bool,
    watchdog: Duration,
}

impl Default for Boot {
    fn default() -> Self {
        Self::new()
    }
}

impl Boot {
    /// A guest with mvm's own kernel and root file system unless others are set. Its init does not react to the power
    /// button: a test that presses it has a script that does.
    pub fn new() -> Self {
        let directory = TempDir::new().expect("a directory can be made");
        Self {
            directory,
            arguments: Vec::new(),
            append: vec!["quiet".into(), "mvm.button=ignore".into()],
            has_kernel: false,
            has_rootfs: false,
            watchdog: WATCHDOG,
        }
    }

    /// Adds a flag and its value.
    pub fn flag(mut self, flag: &str, value: impl AsRef<Path>) -> Self {
        self.has_kernel |= flag == "--kernel" || flag == "--config";
        self.has_rootfs |= flag == "--rootfs" || flag == "--initrd";
        self.arguments.extend([flag.to_owned(), value.as_ref().to_str().expect("UTF-8").to_owned()]);
        self
    }

    /// Adds a flag without a value.
    pub fn switch(mut self, flag: &str) -> Self {
        self.arguments.push(flag.to_owned());
        self
    }

    /// Adds a kernel argument.
    pub fn append(mut self, argument: &str) -> Self {
        self.append.push(argument.to_owned());
        self
    }

    /// Lets each wait for this guest take so long before it fails the test.
    pub fn watchdog(mut self, limit: Duration) -> Self {
        self.watchdog = limit;
        self
    }

    /// Lets init run `script` in place of a shell.
    pub fn script(self, script: &str) -> Self {
        let path = self.directory.path().join("script");
        let mut text = format!("{script}\nexit 0\n");
        // A disk has whole sectors.
        text.extend(std::iter::repeat_n('\n', text.len().next_multiple_of(512) - text.len()));
        std::fs::write(&path, text).expect("the script can be written");
        let disk = format!("{},readonly,id=script", path.display());
        self.flag("--disk", disk)
    }

    /// The command line.
    pub fn command(mut self) -> (Command, TempDir) {
        if !self.has_kernel {
            self = self.flag("--kernel", kernel("vmlinux"));
        }
        if !self.has_rootfs {
            let copy = self.directory.path().join("rootfs.ext4");
            std::fs::copy(rootfs(), &copy).expect("the root file system can be copied");
            self = self.flag("--rootfs", copy);
        }
        let mut command = Command::new(mvm());
        command.arg("boot").args(self.arguments).arg("--append").arg(self.append.join(" "));
        (command, self.directory)
    }

    /// Boots the guest with pipes for input and output.
    pub fn start(self) -> Guest {
        let watchdog = self.watchdog;
        let (command, directory) = self.command();
        Guest::spawn(command, directory, watchdog)
    }

    /// Boots the guest and waits for its end.
    pub fn run(self) -> Outcome {
        let mut guest = self.start();
        guest.close_input();
        guest.finish()
    }
}

/// Reads on a thread of its own what somebody waits for.
pub(crate) struct Reader {
    chunks: Receiver<Vec<u8>>,
    seen: Vec<u8>,
    watchdog: Duration,
}

impl Reader {
    pub(crate) fn new(mut source: impl Read + Send + 'static, watchdog: Duration) -> Self {
        let (sender, chunks) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = source.read(&mut buffer) {
                if sender.send(buffer.iter().take(length).copied().collect()).is_err() {
                    break;
                }
            }
        });
        Self { chunks, seen: Vec::new(), watchdog }
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.seen).into_owned()
    }

    /// Waits until `text` was seen `times` times.
    pub(crate) fn wait_for(&mut self, text: &str, times: usize) {
        let deadline = Instant::now() + self.watchdog;
        while self.text().matches(text).count() < times {
            match self.chunks.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(chunk) => self.seen.extend(chunk),
                Err(error) => panic!("no {text:?} ({error}) in:\n{}", self.text()),
            }
        }
    }

    /// Reads to the end.
    pub(crate) fn rest(&mut self) {
        let deadline = Instant::now() + self.watchdog;
        loop {
            match self.chunks.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(chunk) => self.seen.extend(chunk),
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => panic!("the guest does not end:\n{}", self.text()),
            }
        }
    }
}

/// A guest that runs.
pub struct Guest {
    child: Child,
    input: Option<ChildStdin>,
    output: Reader,
    errors: Reader,
    _directory: TempDir,
}

impl Guest {
    /// Runs `command`, which boots guests, with pipes for input and output. `directory` is removed at its end.
    pub fn spawn(mut command: Command, directory: TempDir, watchdog: Duration) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the command can be run");
        let stdout = child.stdout.take().expect("it is piped");
        let stderr = child.stderr.take().expect("it is piped");
        Self {
            input: child.stdin.take(),
            output: Reader::new(stdout, watchdog),
            errors: Reader::new(stderr, watchdog),
            child,
            _directory: directory,
        }
    }

    /// Waits until the console has shown `text` so many `times`.
    pub fn wait_for_times(&mut self, text: &str, times: usize) {
        self.output.wait_for(text, times);
    }

    /// Waits until the console has shown `text`.
    pub fn wait_for(&mut self, text: &str) {
        self.output.wait_for(text, 1);
    }

    /// Waits until mvm has said `text` on standard error.
    pub fn wait_for_error(&mut self, text: &str) {
        self.errors.wait_for(text, 1);
    }

    /// Types `text`.
    pub fn type_text(&mut self, text: &str) {
        let input = self.input.as_mut().expect("the input is open");
        input.write_all(text.as_bytes()).expect("mvm reads its input");
    }

    /// Ends the input.
    pub fn close_input(&mut self) {
        self.input = None;
    }

    /// The process that the guest runs in, which the one that was started has made and keeps.
    pub fn vm_pid(&self) -> Pid {
        let keeper = self.pid().as_raw_nonzero();
        let children = std::fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children"));
        let children = children.expect("mvm runs");
        let vm = children.trim().parse().ok().and_then(Pid::from_raw);
        vm.unwrap_or_else(|| panic!("mvm has no process for the VM alone: {children:?}"))
    }

    /// The process ID of mvm.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Sends mvm a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("mvm runs");
    }

    /// Waits for the end. The input stays open until then, unless it was closed.
    pub fn finish(mut self) -> Outcome {
        self.output.rest();
        let status = self.child.wait().expect("mvm is a child");
        self.errors.rest();
        Outcome { status, output: self.output.text(), errors: self.errors.text() }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Where a test fails, its guest must not outlive it; where it has ended, there is nothing to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How a guest ended.
#[derive(Debug)]
pub struct Outcome {
    /// mvm's exit status.
    pub status: ExitStatus,
    /// What the console showed.
    pub output: String,
    /// What mvm said on standard error.
    pub errors: String,
}

impl Outcome {
    /// Fails the test where the exit code is another.
    pub fn expect_code(self, code: i32) -> Self {
        assert_eq!(self.status.code(), Some(code), "{self}");
        self
    }

    /// Fails the test where the console did not show a line with just `text`.
    pub fn expect_line(self, text: &str) -> Self {
        assert!(self.output.lines().any(|line| line.trim() == text), "no line {text:?}: {self}");
        self
    }

    /// Fails the test where neither the console nor standard error has `text`.
    pub fn expect(self, text: &str) -> Self {
        assert!(self.output.contains(text) || self.errors.contains(text), "no {text:?}: {self}");
        self
    }

    /// The word behind `name=` in the console's output.
    pub fn value(&self, name: &str) -> &str {
        let found = self.output.lines().find_map(|line| line.trim().strip_prefix(&format!("{name}=")));
        found.unwrap_or_else(|| panic!("no {name}= in {self}"))
    }

    /// The number behind `name=` in the console's output.
    pub fn number(&self, name: &str) -> u64 {
        self.value(name).parse().unwrap_or_else(|error| panic!("{name} is not a number ({error}): {self}"))
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}\nconsole:\n{}\nstderr:\n{}", self.status, self.output, self.errors)
    }
}
