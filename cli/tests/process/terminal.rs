//! A terminal with a shell on it, as a user has one.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use rustix::fs::{Mode, OFlags, open};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};

use crate::vm::{Place, WATCHDOG};

/// An interactive bash, which has the terminal as its controlling one and does job control.
pub(crate) struct Shell {
    child: Child,
    terminal: File,
    output: Receiver<Vec<u8>>,
    seen: String,
}

impl Shell {
    /// A shell in which `mvm` runs the program under test on the VMs of `place`, and `$K` is its kernel.
    pub(crate) fn new(place: &Place) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).and_then(|()| unlockpt(&master)).unwrap();
        let line = open(ptsname(&master, Vec::new()).unwrap(), OFlags::RDWR | OFlags::NOCTTY, Mode::empty())
            .unwrap();
        let mvm = place.mvm();
        let mut command = Command::new("bash");
        command.args(["--norc", "--noprofile", "-i"]);
        command.envs(mvm.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command
            .env("M", mvm.get_program())
            .env("K", place.path("kernel"))
            .env("PS1", "$ ")
            .env("TERM", "dumb");
        let number = line.as_raw_fd();
        let end = || Stdio::from(line.try_clone().unwrap());
        command.stdin(end()).stdout(end()).stderr(end());
        // SAFETY: both are system calls, and the descriptor is open in the new process.
        unsafe {
            command.pre_exec(move || {
                libc::setsid();
                match libc::ioctl(number, libc::TIOCSCTTY, 0) {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                }
            });
        }
        let child = command.spawn().unwrap();
        let terminal = File::from(master);
        let (mut source, (sender, output)) = (terminal.try_clone().unwrap(), channel());
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = source.read(&mut buffer) {
                if sender.send(buffer[..length].to_vec()).is_err() {
                    break;
                }
            }
        });
        let mut shell = Self { child, terminal, output, seen: String::new() };
        shell.wait_for("$ ");
        shell
    }

    /// Types `text`.
    pub(crate) fn type_text(&mut self, text: &str) {
        self.terminal.write_all(text.as_bytes()).unwrap();
    }

    /// Runs `command`, of which `until` is waited for in what is shown behind it.
    pub(crate) fn run(&mut self, command: &str, until: &str) -> String {
        self.type_text(&format!("{command}\n"));
        self.wait_for(command);
        self.wait_for(until)
    }

    /// Waits until `text` is shown; what was shown since the last time, up to its end.
    pub(crate) fn wait_for(&mut self, text: &str) -> String {
        let deadline = Instant::now() + WATCHDOG;
        loop {
            if let Some(at) = self.seen.find(text) {
                let rest = self.seen.split_off(at + text.len());
                return std::mem::replace(&mut self.seen, rest);
            }
            match self.output.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.seen.push_str(&String::from_utf8_lossy(&bytes).replace('\r', "")),
                Err(error) => panic!("no {text:?} ({error}) in: {}", self.seen),
            }
        }
    }

    /// The process of mvm that the shell has started.
    pub(crate) fn mvm(&self) -> Pid {
        let parent = format!("PPid:\t{}\n", self.child.id());
        let processes = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
            let status = std::fs::read_to_string(entry.path().join("status")).ok()?;
            let pid = entry.file_name().to_str()?.parse().ok()?;
            (status.contains(&parent) && status.starts_with("Name:\tmvm\n")).then_some(pid)
        });
        Pid::from_raw(processes.last().expect("mvm runs")).unwrap()
    }

    /// Stops mvm as kill(1) does.
    pub(crate) fn stop(&mut self) {
        kill_process(self.mvm(), Signal::STOP).unwrap();
        self.wait_for("Stopped");
        self.wait_for("$ ");
    }

    /// Whether each key goes to the program at once.
    pub(crate) fn is_raw(&self) -> bool {
        !tcgetattr(&self.terminal).unwrap().local_modes.intersects(LocalModes::ICANON | LocalModes::ISIG)
    }

    /// Waits until the terminal is in raw mode.
    pub(crate) fn wait_until_raw(&self) {
        let start = Instant::now();
        while !self.is_raw() {
            assert!(start.elapsed() < WATCHDOG, "the terminal is not in raw mode; seen: {}", self.seen);
            std::thread::yield_now();
        }
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = kill_process(Pid::from_child(&self.child), Signal::KILL);
        let _ = self.child.wait();
    }
}
