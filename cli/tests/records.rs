//! What lies where the records of containers should be, and is none: each command says so in a line, and none waits.

#![allow(missing_docs, reason = "tests are named after what they show")]
#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rstest::rstest;
use serde_json::json;
use tempfile::TempDir;

/// No command takes a hundredth of it.
const PROMPTLY: Duration = Duration::from_secs(10);
const WEB: &str = "0123456789ab";
const GOOD: &str = "abcdef012345";

/// Records of two containers that have ended: `web`, which is tampered with, and `good`.
struct Records(TempDir);

impl Records {
    fn new() -> Self {
        let records = Self(TempDir::new().unwrap());
        for (id, name) in [(WEB, "web"), (GOOD, "good")] {
            let directory = records.path(id);
            fs::create_dir_all(&directory).unwrap();
            fs::create_dir_all(records.path("names")).unwrap();
            let process = json!({"pid": 1 << 30, "start_time": 1, "boot_id": "none"});
            let record = json!({"format": 1, "id": id, "name": name, "kind": "container", "created": 1000,
                "started": 2000, "process": process, "image": "tiny", "image_id": "sha256:00", "command": ["sh"]});
            fs::write(directory.join("record.json"), record.to_string()).unwrap();
            let end = json!({"code": 7, "finished": 3000});
            fs::write(directory.join("end.json"), end.to_string()).unwrap();
            let line = "1970-01-01T00:00:02.000000000Z stdout F hello\n";
            fs::write(directory.join("output.log"), line).unwrap();
            symlink(id, records.path("names").join(name)).unwrap();
        }
        records
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join("instances").join(name)
    }

    /// Runs mvm, which ends promptly.
    fn mvm(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new("timeout");
        command.args(["--signal", "KILL", "20", env!("CARGO_BIN_EXE_mvm")]).args(arguments);
        command.env("MVM_DATA_DIR", self.0.path()).env("XDG_RUNTIME_DIR", self.0.path());
        let start = Instant::now();
        let output = command.stdin(Stdio::null()).output().unwrap();
        assert!(start.elapsed() < PROMPTLY, "{arguments:?}: {output:?}");
        output
    }
}

fn fifo(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

fn directory(path: &Path) {
    fs::create_dir(path).unwrap();
    fs::write(path.join("in-it"), "").unwrap();
}

fn huge(path: &Path) {
    fs::File::create(path).unwrap().set_len(1 << 40).unwrap();
}

fn garbage(path: &Path) {
    fs::write(path, b"\x1b[2J\xff{\"format\": \0".repeat(1000)).unwrap();
}

fn deep(path: &Path) {
    fs::write(path, "[".repeat(500_000)).unwrap();
}

fn empty(path: &Path) {
    fs::write(path, "").unwrap();
}

fn endless(path: &Path) {
    symlink("/dev/zero", path).unwrap();
}

fn terminal(path: &Path) {
    symlink("/dev/tty", path).unwrap();
}

fn itself(path: &Path) {
    symlink(path, path).unwrap();
}

fn socket(path: &Path) {
    drop(UnixListener::bind(path).unwrap());
}

fn nothing(_: &Path) {}

#[rstest]
fn what_is_no_record_is_said_in_a_line_and_removed_by_force(
    #[values("record.json", "end.json", "output.log", "mvm.log", "names/web")] file: &str,
    #[values(fifo, directory, huge, garbage, deep, empty, endless, terminal, itself, socket, nothing)]
    put: fn(&Path),
) {
    let records = Records::new();
    let path = if file.contains('/') { records.path(file) } else { records.path(WEB).join(file) };
    let _ = fs::remove_file(&path);
    put(&path);
    for arguments in [
        &["ps", "-a"][..],
        &["ps", "-a", "--format", "{{json .}}"],
        &["inspect", WEB],
        &["logs", "-n", "3", WEB],
        &["logs", "-f", WEB],
        &["wait", WEB],
        &["stop", WEB],
        &["kill", WEB],
        &["exec", WEB, "true"],
        &["system", "df", "-v"],
        &["image", "prune", "--force"],
        &["stats", "--no-stream", WEB],
        &["inspect", "web"],
        &["rm", "web"],
        &["run", "--name", "web", "--pull", "never", "none"],
    ] {
        let output = records.mvm(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        let is_line = errors.is_empty() || errors.starts_with("mvm: ") && errors.lines().count() == 1;
        assert!(is_line && !errors.contains('\x1b') && errors.len() < 1000, "{arguments:?}: {errors}");
        assert!(matches!(output.status.code(), Some(0 | 1 | 3 | 7 | 125)), "{arguments:?}: {output:?}");
        if arguments[0] == "ps" {
            assert!(String::from_utf8_lossy(&output.stdout).contains("good"), "{arguments:?}: {output:?}");
        }
    }
    assert!(records.mvm(&["rm", "--force", WEB, GOOD]).status.success());
    assert!(!records.path(WEB).exists() && !records.path(GOOD).exists());
    assert_eq!(String::from_utf8_lossy(&records.mvm(&["ps", "-aq"]).stdout), "");
}

/// One whose keeper runs, which is this process, and writes on.
#[test]
fn a_log_is_followed_until_its_time() {
    let records = Records::new();
    let read = |path: &str| fs::read_to_string(path).unwrap();
    let stat = read("/proc/self/stat");
    // Behind the name in parentheses, as field 22 (proc_pid_stat(5)).
    let started: u64 = stat
        .rsplit(')')
        .next()
        .and_then(|fields| fields.split_whitespace().nth(19))
        .unwrap()
        .parse()
        .unwrap();
    let boot = read("/proc/sys/kernel/random/boot_id");
    let process = json!({"pid": std::process::id(), "start_time": started, "boot_id": boot.trim_end()});
    let path = records.path(WEB).join("record.json");
    let mut record: serde_json::Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    record["process"] = process;
    fs::write(&path, record.to_string()).unwrap();
    let until = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + 2;
    let late = "2999-01-01T00:00:02.000000000Z stdout F late\n";
    let mut log = fs::OpenOptions::new().append(true).open(records.path(WEB).join("output.log")).unwrap();
    log.write_all(late.as_bytes()).unwrap();
    let followed = records.mvm(&["logs", "-f", "--until", &until.to_string(), WEB]);
    assert!(followed.status.success() && followed.stderr.is_empty(), "{followed:?}");
    assert_eq!(followed.stdout, b"hello\n");
    let ended = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    assert!(ended >= Duration::from_secs(until), "it did not follow");
}
