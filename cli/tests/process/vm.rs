//! A VM of the program under test.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use instance::Client;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use tempfile::TempDir;

use crate::image::{Entry, elf};

/// No test takes a quarter of it; this is for one that hangs.
pub(crate) const WATCHDOG: Duration = Duration::from_secs(60);

/// How long the process lives at most after a forced end (`vmm::supervisor::FORCED_END`), and some time for a machine
/// that is busy.
pub(crate) const FORCED_END: Duration = Duration::from_secs(3 + 5);

/// Says `r` on its serial port and halts for good.
pub(crate) const IDLE: &[u8] = &[0x66, 0xba, 0xf8, 0x03, 0xb0, b'r', 0xee, 0xfa, 0xf4, 0xeb, 0xfc];
/// Powers off.
pub(crate) const ENDS: &[u8] = &[0x66, 0xba, 0x00, 0x06, 0xb0, 0x34, 0xee, 0xf4];
/// Writes `r` to its serial port without end.
pub(crate) const TALKS: &[u8] = &[0x66, 0xba, 0xf8, 0x03, 0xb0, b'r', 0xee, 0xeb, 0xfd];
/// Writes 256 KiB of `r` to its serial port and powers off.
pub(crate) const TALKS_AND_ENDS: &[u8] = &[
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xb0, b'r', // mov al, 'r'
    0xb9, 0x00, 0x00, 0x04, 0x00, // mov ecx, 0x40000
    0xee, 0xff, 0xc9, 0x75, 0xfb, // out dx, al; dec ecx; jnz
    0x66, 0xba, 0x00, 0x06, 0xb0, 0x34, 0xee, 0xf4, // S5
];

/// A directory with a kernel, and with a runtime directory of its own.
pub(crate) struct Place(TempDir);

impl Place {
    /// A place with a guest of `code`; `None`, with the reason printed, where there is no KVM.
    pub(crate) fn new(code: &[u8]) -> Option<Self> {
        if let Err(error) = OpenOptions::new().read(true).write(true).open("/dev/kvm") {
            let thread = std::thread::current();
            // Past the test harness, which would keep it to itself.
            let _ = writeln!(
                std::io::stderr(),
                "skipped {}: /dev/kvm: {error}",
                thread.name().unwrap_or("a test")
            );
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("kernel"), elf(code, Entry::Linux64)).unwrap();
        Some(Self(directory))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// mvm, which keeps its VMs here.
    pub(crate) fn mvm(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mvm"));
        command.env("XDG_RUNTIME_DIR", self.0.path()).env_remove("MVM_LOG");
        // What runs in the background of a shell without job control, as a CI job may, inherits signals that are
        // ignored.
        let heed = || {
            for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM] {
                // SAFETY: it is async-signal-safe and refers to nothing of this process.
                unsafe { libc::signal(signal, libc::SIG_DFL) };
            }
            Ok(())
        };
        // SAFETY: see there.
        unsafe { command.pre_exec(heed) };
        command
    }

    /// `mvm boot` with `arguments`, not started yet.
    pub(crate) fn boot(&self, arguments: &[&str]) -> Command {
        self.boot_named("vm", arguments)
    }

    /// The same for a VM called `name`.
    pub(crate) fn boot_named(&self, name: &str, arguments: &[&str]) -> Command {
        let mut command = self.mvm();
        command
            .arg("boot")
            .arg("--kernel")
            .arg(self.path("kernel"))
            .args(["--name", name, "--memory", "32M"]);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// The same started, once its guest has said something.
    pub(crate) fn start(&self, arguments: &[&str]) -> Vm {
        let mut vm = Vm(self.boot(arguments).spawn().unwrap());
        vm.wait_until_ready();
        vm
    }

    /// A client of the VM called `name`.
    pub(crate) fn client(&self, name: &str) -> Client {
        Client::connect(&self.control_socket(name)).unwrap()
    }

    /// The control socket of the VM called `name`.
    pub(crate) fn control_socket(&self, name: &str) -> PathBuf {
        let listed = self.mvm().args(["ps", "--json"]).output().unwrap().stdout;
        let listed: Vec<serde_json::Value> = serde_json::from_slice(&listed).unwrap();
        let vm = listed.into_iter().find(|vm| vm["name"] == name).unwrap();
        vm["control_socket"].as_str().unwrap().into()
    }

    /// Whether the VM has left nothing in the runtime directory.
    pub(crate) fn is_clean(&self) -> bool {
        let left = |path: &Path| std::fs::read_dir(path).map_or(0, |entries| entries.count());
        // The directory of names stays.
        left(&self.path("mvm")) <= 1 && left(&self.path("mvm/names")) == 0
    }
}

/// A running `mvm boot`, which does not outlive its test.
pub(crate) struct Vm(pub(crate) Child);

impl Vm {
    /// Waits until the guest says something.
    pub(crate) fn wait_until_ready(&mut self) {
        let said = self.0.stdout.as_mut().unwrap().read(&mut [0; 1]).unwrap();
        assert_eq!(said, 1, "the guest does not start: {:?}", self.0.wait());
    }

    /// The process that the guest runs in, which the one that was started keeps.
    pub(crate) fn process(&self) -> Pid {
        let keeper = self.0.id();
        let children = std::fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children")).unwrap();
        Pid::from_raw(children.trim().parse().unwrap()).unwrap()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }

    /// Makes a second request to end: `signal`, a second after the first one was taken.
    pub(crate) fn signal_twice(&mut self, signal: Signal) {
        self.signal(signal);
        self.wait_for("pressed the power button");
        // Time is what keeps requests apart.
        std::thread::sleep(Duration::from_millis(1100));
        self.signal(signal);
    }

    /// Waits until it says `words` on standard error; what it said before and these.
    pub(crate) fn wait_for(&mut self, words: &str) -> String {
        let (mut said, mut byte) = (Vec::new(), [0]);
        let errors = self.0.stderr.as_mut().unwrap();
        let timeout = Timespec::try_from(WATCHDOG).unwrap();
        while !said.ends_with(words.as_bytes()) {
            let ready = poll(&mut [PollFd::new(errors, PollFlags::IN)], Some(&timeout)).unwrap();
            assert_eq!(ready, 1, "{words:?} is not said: {}", String::from_utf8_lossy(&said));
            assert_eq!(errors.read(&mut byte).unwrap(), 1, "{}", String::from_utf8_lossy(&said));
            said.extend(byte);
        }
        String::from_utf8_lossy(&said).into_owned()
    }

    /// Waits for the end, but not for readers of its output.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        if let Some(status) = self.0.try_wait().unwrap() {
            return status;
        }
        let process = pidfd_open(Pid::from_child(&self.0), PidfdFlags::empty()).unwrap();
        let timeout = Timespec::try_from(WATCHDOG).unwrap();
        let ended = poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&timeout)).unwrap();
        assert_eq!(ended, 1, "mvm does not end");
        self.0.wait().unwrap()
    }

    /// Waits for the end; the exit code and what it said on standard error.
    pub(crate) fn finish(mut self) -> (Option<i32>, String) {
        let status = self.wait();
        let mut errors = String::new();
        self.0.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
        (status.code(), errors)
    }
}

impl Vm {
    /// Expects that SIGTERM, which it has just got, is a forced end: in time, and with nothing left in `place`.
    pub(crate) fn finish_forced(self, place: &Place) {
        let start = Instant::now();
        let (code, errors) = self.finish();
        assert_eq!(code, Some(143), "{errors}");
        assert!(start.elapsed() < FORCED_END, "{:?}", start.elapsed());
        assert!(place.is_clean());
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The text of a finished command's output.
pub(crate) fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
