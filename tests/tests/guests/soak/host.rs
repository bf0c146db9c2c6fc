//! A user with an image, a volume and containers, none of which is ever to be lost.

use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tests::{container_assets, container_image, mvm};

use super::super::containers::{IMAGE, text};
use super::processes::{Kind, Process, all, kill, spawn, wait_until};
use crate::counts::count;

/// How many seconds a command may take: more than any does, in the lab as well, and than a test has one wait.
fn longest() -> u64 {
    count("IDLE", 30) + 600
}

/// What all commands together say of what there is.
#[derive(Debug, PartialEq, Eq)]
pub struct Truth {
    said: String,
    files: Vec<String>,
}

pub struct Host(TempDir);

/// The host of all tests, for one of them at a time: the processes of another one would be taken for those of this one.
/// None is left when this is dropped.
pub struct Shared(MutexGuard<'static, Host>);

impl Shared {
    pub fn take() -> Self {
        static HOST: LazyLock<Mutex<Host>> = LazyLock::new(|| Mutex::new(Host::new()));
        Self(HOST.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Deref for Shared {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.0
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let start = Instant::now();
        // A panic here would end all tests.
        while !all().is_empty() && start.elapsed() < Duration::from_secs(60) {
            all().iter().for_each(kill);
        }
        if std::thread::panicking() {
            // The next test begins with what this one has.
            let listed = self.run(&["ps", "-a", "--format", "{{.Names}}"]);
            for name in text(&listed.stdout).lines().filter(|name| *name != "kept") {
                self.run(&["rm", "-fv", name]);
            }
            self.run(&["rmi", "-f", "local:1"]);
            self.run(&["volume", "prune", "-af"]);
        }
    }
}

impl Host {
    fn new() -> Self {
        let host = Self(TempDir::new().unwrap());
        for name in ["data", "run", "share"] {
            fs::create_dir(host.path(name)).unwrap();
        }
        fs::write(host.path("share/file"), "shared").unwrap();
        host.said(&["load", "-q", "-i", container_image().to_str().unwrap()]);
        let script = "echo content >/kept/file; echo content >/file; exit 3";
        let run = ["run", "--name", "kept", "--label", "keep", "--network", "none", "-v", "kept:/kept"];
        assert_eq!(host.run(&[&run[..], &[IMAGE, "sh", "-c", script]].concat()).status.code(), Some(3));
        host
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn environment(&self, command: &mut Command) {
        command.env("MVM_DATA_DIR", self.path("data")).env("MVM_RUNTIME_DIR", self.path("run"));
        command.env("MVM_ASSETS", container_assets()).current_dir(self.0.path()).stdin(Stdio::null());
    }

    pub fn mvm(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(mvm());
        self.environment(&mut command);
        command.args(arguments);
        command
    }

    /// A command that is killed where it hangs.
    pub fn timed(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        self.environment(&mut command);
        command.args(["--signal", "KILL"]).arg(longest().to_string()).arg(mvm()).args(arguments);
        command
    }

    /// Runs a command, which does not hang.
    pub fn run(&self, arguments: &[&str]) -> Output {
        let mut command = self.timed(arguments);
        spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped())).wait_with_output().unwrap()
    }

    /// Runs a command, which succeeds without a word of complaint; what it prints without the last end of a line.
    pub fn said(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let is_good = output.status.success() && output.stderr.is_empty();
        assert!(is_good, "{arguments:?}: {} {}", output.status, text(&output.stderr));
        text(&output.stdout).trim_end().to_owned()
    }

    /// Starts a container in the background.
    pub fn start(&self, name: &str, options: &[&str], script: &str) -> String {
        let run = ["run", "-d", "--network", "none", "--name", name];
        self.said(&[&run[..], options, &[IMAGE, "sh", "-c", script]].concat())
    }

    /// All commands that list something say it without a complaint, and what is kept is among it.
    pub fn check_kept(&self) {
        assert!(self.said(&["images", "--format", "{{.Repository}}"]).lines().any(|name| name == IMAGE));
        let state = self.said(&["inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "kept"]);
        assert_eq!(state, "exited 3");
        self.said(&["ps", "-a"]);
        self.said(&["system", "df"]);
        assert!(self.said(&["volume", "ls", "-q"]).lines().any(|name| name == "kept"));
    }

    /// What was written is there.
    pub fn check_content(&self) {
        let read = ["run", "--rm", "--network", "none", "-v", "kept:/kept", IMAGE, "cat", "/kept/file"];
        assert_eq!(self.said(&read), "content");
        self.said(&["cp", "-q", "kept:/file", "copy"]);
        assert_eq!(fs::read_to_string(self.path("copy")).unwrap(), "content\n");
    }

    /// Removes what a user removes who has seen a command fail.
    pub fn prune(&self) {
        self.said(&["container", "prune", "-f", "--filter", "label!=keep"]);
        self.said(&["image", "prune", "-f"]);
        // What `kept` has is in use.
        self.said(&["volume", "prune", "-af"]);
    }

    /// What there is: what all commands say of it, and all files.
    pub fn truth(&self) -> Truth {
        let df = "{{.Type}} {{.TotalCount}} {{.Active}}";
        let said = [
            &["images", "-a", "--format", "{{.Repository}}:{{.Tag}} {{.ID}} {{.Size}}"][..],
            &["ps", "-a", "--format", "{{.ID}} {{.Names}} {{.State}}"],
            &["volume", "ls", "-q"],
            &["system", "df", "--format", df],
        ];
        let said = said.iter().map(|arguments| self.said(arguments) + "\n").collect();
        let mut files = Vec::new();
        for name in ["data", "run"] {
            list(&self.path(name), name, &mut files);
        }
        files.retain(|file| !file.starts_with("data/events.log"));
        files.sort();
        Truth { said, files }
    }

    /// Waits until no process is left that should have ended with another one: a VM without its keeper, a keeper
    /// without its VM, what served a VM, what worked for a command. A keeper has no VM for a moment when it begins and
    /// when it ends.
    pub fn settle(&self) -> Vec<Process> {
        wait_until("it should have ended", |all| {
            let lives = |pid: i32, kinds: &[Kind]| {
                all.iter().any(|process| process.pid == pid && kinds.contains(&process.kind))
            };
            let has_vm = |pid| all.iter().any(|other| other.parent == pid && other.kind == Kind::Vm);
            all.iter().all(|process| match process.kind {
                Kind::Command | Kind::Worker => false,
                Kind::Vm => lives(process.parent, &[Kind::Keeper]),
                Kind::Virtiofsd | Kind::Passt => lives(process.parent, &[Kind::Vm, Kind::Virtiofsd]),
                Kind::Keeper => has_vm(process.pid),
            })
        })
    }

    /// Ends all processes at once, as where a host goes down without a warning.
    pub fn go_down(&self) {
        wait_until("it was killed", |all| {
            all.iter().for_each(kill);
            all.is_empty()
        });
        fs::remove_dir_all(self.path("run")).unwrap();
        fs::create_dir(self.path("run")).unwrap();
    }
}

/// All files below `root`, whose path begins with `name`.
fn list(root: &Path, name: &str, files: &mut Vec<String>) {
    for entry in fs::read_dir(root).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{name}/{}", entry.file_name().to_string_lossy());
        if entry.file_type().unwrap().is_dir() {
            list(&entry.path(), &name, files);
        }
        files.push(name);
    }
}
