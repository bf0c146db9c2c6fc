//! The disks that take containers' changes.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::containers::{IMAGE, run, stores, text};

/// A container whose script waits for lines, so that its disk can be looked at meanwhile.
struct Waiting {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Waiting {
    fn start(mut command: Command, options: &[&str], script: &str) -> Self {
        command.args(["run", "-i"]).args(options).args([IMAGE, "sh", "-c", script]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self { child, output }
    }

    /// The next line that it says.
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn go_on(&mut self) {
        self.child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    }

    fn end(mut self) -> String {
        drop(self.child.stdin.take());
        let mut rest = String::new();
        self.output.read_to_string(&mut rest).unwrap();
        assert!(self.child.wait().unwrap().success(), "{rest}");
        rest
    }
}

/// The disk of the one container that runs with this directory of data.
fn disk(data: &Path) -> PathBuf {
    let kept = std::fs::read_dir(data.join("instances")).unwrap();
    let mut disks = kept.map(|entry| entry.unwrap().path().join("changes.ext4")).filter(|disk| disk.exists());
    disks.next().unwrap()
}

/// Bytes that the host keeps of a file.
fn used(path: &Path) -> u64 {
    path.metadata().unwrap().blocks() * 512
}

/// mvm with a directory of data of its own, where the images are those of all tests.
fn with_data(data: &Path) -> Command {
    let images = stores().directory.path().join("images");
    std::os::unix::fs::symlink(images, data.join("images")).unwrap();
    let mut command = stores().mvm();
    command.env("MVM_DATA_DIR", data);
    command
}

const MANY: u64 = 300 << 20;

#[test]
fn a_container_writes_more_than_its_memory_and_what_it_removes_is_given_back() {
    let data = TempDir::new().unwrap();
    let script = "
        dd if=/dev/zero of=/big bs=1M count=300 conv=fsync 2>/dev/null; stat -c %s /big; read x
        rm /big; sync; echo removed; read x; exit 0";
    let mut container = Waiting::start(with_data(data.path()), &["--rm", "-m", "64m"], script);
    assert_eq!(container.line(), MANY.to_string());
    let path = disk(data.path());
    let full = used(&path);
    assert!((MANY..MANY + (32 << 20)).contains(&full), "{full}");
    assert_eq!(path.metadata().unwrap().len(), 20 << 30);
    container.go_on();
    assert_eq!(container.line(), "removed");
    // The journal's next commit, after five seconds at most, says which blocks are free.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while used(&path) > 32 << 20 && std::time::Instant::now() < deadline {
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    assert!(used(&path) < 32 << 20, "{} of {full}", used(&path));
    container.end();
    assert!(!path.exists(), "the disk of a container that ended");
}

#[test]
fn a_disk_has_the_size_that_was_asked_for() {
    for (options, least, most) in [
        (&[][..], 19 << 20, 20 << 20),
        (&["--storage-opt", "size=256m"][..], 200 << 10, 256 << 10),
        (&["--storage-opt", "size=3g"][..], 2900 << 10, 3 << 20),
        (&["--storage-opt", "size=30g"][..], 28 << 20, 30 << 20),
        (&["--storage-opt", "memory", "-m", "128m"][..], 64 << 10, 64 << 10),
        (&["--storage-opt", "size=0", "-m", "128m"][..], 64 << 10, 64 << 10),
        (&["--read-only", "-m", "128m"][..], 64 << 10, 64 << 10),
    ] {
        let arguments = [options, &[IMAGE, "sh", "-c", "df -k / | tail -1 | awk '{print $2}'"]].concat();
        let output = run(&arguments);
        let size: u64 = text(&output.stdout).trim().parse().unwrap_or_default();
        assert!((least..=most).contains(&size), "{options:?}: {size} KiB, {}", text(&output.stderr));
    }
}

/// The file system is as e2fsprogs wants it after it was grown and used.
#[test]
fn e2fsck_finds_no_fault() {
    for size in ["256m", "5g", "20g", "100g"] {
        let data = TempDir::new().unwrap();
        let script = "mkdir /d && for i in $(seq 300); do echo $i >/d/$i; done; rm /d/1*; sync; echo done; read x; exit 0";
        let option = format!("size={size}");
        let mut container = Waiting::start(with_data(data.path()), &["--storage-opt", &option], script);
        assert_eq!(container.line(), "done");
        // As it is when the VM is killed now: what the journal has is not elsewhere yet.
        let copy = data.path().join("copy");
        let copied = Command::new("cp").arg("--sparse=always").arg(disk(data.path())).arg(&copy).status();
        assert!(copied.unwrap().success());
        container.end();
        let check = |options: &[&str]| {
            let output = Command::new("e2fsck").args(options).arg(&copy).output().unwrap();
            (output.status.code(), text(&output.stdout))
        };
        let (code, said) = check(&["-p", "-E", "journal_only"]);
        assert!(code.is_some_and(|code| code < 2), "{size}: {said}");
        let (code, said) = check(&["-f", "-n"]);
        assert_eq!(code, Some(0), "{size}: {said}");
    }
}

/// The host's file system is a small one.
#[test]
fn a_full_host_is_an_error_in_the_container() {
    let data = TempDir::new().unwrap();
    let mounted =
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=64m", "mvm-test"]).arg(data.path()).status();
    if !mounted.unwrap().success() {
        return eprintln!("skipped: no file system can be mounted here");
    }
    let script = "dd if=/dev/zero of=/x bs=1M count=200 conv=fsync 2>/dev/null; echo $?; echo alive";
    let mut command = with_data(data.path());
    let output = command.args(["run", IMAGE, "sh", "-c", script]).output().unwrap();
    let unmounted = Command::new("umount").arg("-l").arg(data.path()).status();
    assert_eq!(text(&output.stdout), "1\nalive\n", "{}", text(&output.stderr));
    assert!(unmounted.unwrap().success());
}
