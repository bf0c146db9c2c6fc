//! A pseudo-terminal with mvm on it, as a user has it.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::fs::{Mode, OFlags, open};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Termios, Winsize, tcgetattr, tcsetwinsize};
use tempfile::TempDir;

use crate::guest::{Reader, WATCHDOG};
use crate::{Boot, mvm};

/// A terminal that mvm runs on.
pub struct Terminal {
    child: Child,
    keyboard: File,
    screen: Reader,
    line: OwnedFd,
    before: Termios,
    _directory: Option<TempDir>,
}

impl Terminal {
    /// Boots a guest on a new terminal of 132 columns and 43 rows.
    pub fn boot(boot: Boot) -> Self {
        let (command, directory) = boot.command();
        Self::start(command, Some(directory))
    }

    /// Runs mvm with `arguments` on a new terminal of that size.
    pub fn run(arguments: &[&str]) -> Self {
        let mut command = Command::new(mvm());
        command.args(arguments);
        Self::of(command)
    }

    /// Runs `command` on a new terminal of that size.
    pub fn of(command: Command) -> Self {
        Self::start(command, None)
    }

    fn start(mut command: Command, directory: Option<TempDir>) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("there are pseudo-terminals");
        grantpt(&master).and_then(|()| unlockpt(&master)).expect("the terminal is ours");
        let name = ptsname(&master, Vec::new()).expect("the terminal has a name");
        let line = open(&name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).expect("the terminal opens");
        set_size(&line, 132, 43);
        let before = tcgetattr(&line).expect("it is a terminal");
        let end = || Stdio::from(line.try_clone().expect("a descriptor can be duplicated"));
        let child = command.stdin(end()).stdout(end()).stderr(end()).spawn().expect("mvm can be run");
        let keyboard = File::from(master);
        let screen = Reader::new(keyboard.try_clone().expect("a descriptor can be duplicated"), WATCHDOG);
        Self { child, keyboard, screen, line, before, _directory: directory }
    }

    /// Waits until the screen has shown `text` so many times.
    pub fn wait_for(&mut self, text: &str, times: usize) {
        self.screen.wait_for(text, times);
    }

    /// Presses keys.
    pub fn press(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).expect("the terminal takes keys");
    }

    /// Changes the window's size.
    pub fn resize(&self, columns: u16, rows: u16) {
        set_size(&self.line, columns, rows);
        // The kernel tells the terminal's foreground processes; this one is no process's controlling terminal.
        let mvm = Pid::from_child(&self.child);
        let children =
            std::fs::read_to_string(format!("/proc/{mvm}/task/{mvm}/children")).unwrap_or_default();
        let children = children.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?));
        for process in children.chain([mvm]) {
            // One of them may have ended.
            let _ = kill_process(process, Signal::WINCH);
        }
    }

    /// What the screen has shown.
    pub fn text(&self) -> String {
        self.screen.text()
    }

    /// Sends mvm a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("mvm runs");
    }

    /// Whether each key goes to the guest at once, Ctrl-C among them.
    pub fn is_raw(&self) -> bool {
        let modes = tcgetattr(self.line.as_fd()).expect("it is a terminal").local_modes;
        !modes.intersects(LocalModes::ICANON | LocalModes::ISIG | LocalModes::ECHO)
    }

    /// Waits for mvm to end; fails the test where it left the terminal otherwise than it found it.
    pub fn finish(mut self) -> ExitStatus {
        let status = self.child.wait().expect("mvm is a child");
        let after = tcgetattr(self.line.as_fd()).expect("it is a terminal");
        let modes = |termios: &Termios| {
            (termios.input_modes, termios.output_modes, termios.control_modes, termios.local_modes)
        };
        assert_eq!(
            modes(&after),
            modes(&self.before),
            "the terminal is not as it was: {}",
            self.screen.text()
        );
        status
    }
}

fn set_size(line: &OwnedFd, columns: u16, rows: u16) {
    let size = Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(line, size).expect("a terminal has a size");
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Where a test fails, its guest must not outlive it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
