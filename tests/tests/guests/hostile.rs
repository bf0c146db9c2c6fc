//! Containers whose programs are after the VM, the agent, or the host's memory and time.

use std::io::{BufReader, Read};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tests::hostile_program;

use super::containers::{start, stores, text, with_input};

/// Waits without making a process, and ends with 5 where it is asked to.
const WAITS: &str = "mkfifo /tmp/fifo; trap 'exit 5' TERM; echo ready; while :; do read x <>/tmp/fifo; done";
/// The most time that a command has beside a hostile container, in an emulated VM.
const PATIENCE: Duration = Duration::from_secs(60);

/// A container called "box", with the program `hostile` in its /tmp.
struct Hostile {
    directory: TempDir,
    child: Child,
    _output: BufReader<ChildStdout>,
}

impl Hostile {
    fn start(options: &[&str]) -> Self {
        let directory = TempDir::new().unwrap();
        let (child, _output) = start(directory.path(), "box", options, WAITS);
        let hostile = Self { directory, child, _output };
        let put = hostile.mvm(&["exec", "-i", "box", "sh", "-c", "cat >/tmp/hostile; chmod +x /tmp/hostile"]);
        let output = with_input(put, &std::fs::read(hostile_program()).unwrap());
        assert!(output.status.success(), "{}", text(&output.stderr));
        hostile
    }

    /// `mvm COMMAND…`, where the container is found.
    fn mvm(&self, arguments: &[&str]) -> Command {
        let mut command = stores().mvm();
        command.arg("--runtime-dir").arg(self.directory.path()).args(arguments);
        command
    }

    fn exec(&self, script: &str) -> Output {
        self.mvm(&["exec", "box", "sh", "-c", script]).output().unwrap()
    }

    /// Starts as many processes as there can be, which start more all the time.
    fn bomb(&self) {
        self.start_bomb("bomb");
    }

    fn start_bomb(&self, name: &str) {
        let output = self.mvm(&["exec", "-d", "box", "/tmp/hostile", name]).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
    }

    /// The exit code of the container, which ends soon.
    fn end(&mut self) -> Option<i32> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < deadline, "the container has not ended");
            sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What is tried, and what the last line says of it.
const ATTACKS: &[(&str, &str)] = &[
    ("echo b >/proc/sysrq-trigger", "Read-only file system"),
    ("echo '|/tmp/x' >/proc/sys/kernel/core_pattern", "Read-only file system"),
    ("echo 1 >/sys/fs/cgroup/pids.max", "Read-only file system"),
    ("echo $$ >/sys/fs/cgroup/../cgroup.procs", "Read-only file system"),
    ("mount -o remount,rw /proc/sys", "ermission denied"),
    ("mount -o remount,rw /", "ermission denied"),
    ("umount /proc/sys", "not permitted"),
    ("insmod /tmp/hostile", "not permitted"),
    ("unshare -m true", "not permitted"),
    ("reboot -f", "not permitted"),
    ("mknod /tmp/mem c 1 1; cat /tmp/mem", "Permission denied"),
    ("mknod /tmp/vda b 254 0; cat /tmp/vda", "Permission denied"),
    ("mknod /dev/vdb b 254 16; cat /dev/vdb", "Permission denied"),
    ("cat /proc/1/environ", "Permission denied"),
    ("ls /proc/1/root/", "Permission denied"),
    ("/tmp/hostile vsock", "Operation not permitted"),
    ("/tmp/hostile vsock-datagrams", "Operation not permitted"),
    // The kernel has none of these.
    ("/tmp/hostile vsock-pair", "Operation not supported"),
    // By the numbers that 32-bit programs have for the call, which the filter or the kernel does not know.
    ("/tmp/hostile vsock-x32", " not "),
    ("/tmp/hostile vsock-32", " not "),
    ("/tmp/hostile vsock-device", "No such file"),
    ("/tmp/hostile module", "Operation not permitted"),
    ("/tmp/hostile bpf", "Operation not permitted"),
    ("/tmp/hostile mounts", "Operation not permitted"),
    ("/tmp/hostile handle", "Operation not permitted"),
    ("/tmp/hostile namespace", "Operation not permitted"),
    ("/tmp/hostile keys", "Operation not permitted"),
    ("/tmp/hostile ports", "Operation not permitted"),
    // It is the agent's init, a copy of the agent.
    ("/tmp/hostile ptrace", "Operation not permitted"),
    ("/tmp/hostile memory", "Permission denied"),
];

#[test]
fn what_a_containers_root_tries_is_refused() {
    let mut hostile = Hostile::start(&["--init"]);
    let script: String =
        ATTACKS.iter().map(|(attack, _)| format!("( {attack} ) 2>&1 | tail -n 1\n")).collect();
    let output = hostile.exec(&script);
    let said = text(&output.stdout);
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), ATTACKS.len(), "{said}{}", text(&output.stderr));
    let wrong: Vec<_> =
        ATTACKS.iter().zip(&lines).filter(|((_, expected), line)| !line.contains(expected)).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    // All processes but PID 1, and it that sends the signal.
    hostile.exec("kill -9 -1");
    assert_eq!(hostile.end(), Some(137));
}

#[test]
fn a_signal_to_all_processes_leaves_the_first() {
    let mut hostile = Hostile::start(&[]);
    let mut other = hostile.mvm(&["exec", "box", "sleep", "1000"]).spawn().unwrap();
    while text(&hostile.exec("pidof sleep").stdout).is_empty() {}
    hostile.exec("kill -9 -1");
    assert_eq!(other.wait().unwrap().code(), Some(137));
    assert_eq!(text(&hostile.exec("echo alive").stdout), "alive\n");
    assert!(hostile.mvm(&["stop", "box"]).status().unwrap().success());
    assert_eq!(hostile.end(), Some(5));
}

#[test]
fn a_fork_bomb_with_a_limit_is_stopped_as_any_container() {
    let mut hostile = Hostile::start(&["--pids-limit", "100"]);
    hostile.bomb();
    let deadline = Instant::now() + PATIENCE;
    let refused = loop {
        let output = hostile.mvm(&["exec", "box", "true"]).output().unwrap();
        if !output.status.success() {
            break output;
        }
        assert!(Instant::now() < deadline, "the bomb does not fill the container");
    };
    assert_eq!(refused.status.code(), Some(126));
    let said = text(&refused.stderr);
    assert!(said.contains("as many processes as its limit allows"), "{said}");
    assert!(hostile.mvm(&["stop", "-t", "60", "box"]).status().unwrap().success());
    assert_eq!(hostile.end(), Some(5));
}

#[test]
fn a_fork_bomb_without_a_limit_can_be_killed() {
    let mut hostile = Hostile::start(&["-m", "128m"]);
    hostile.bomb();
    // It may take all of the container's memory, and the first process with it.
    sleep(Duration::from_secs(3));
    let start = Instant::now();
    let output = hostile.mvm(&["kill", "box"]).output().unwrap();
    let code = hostile.end();
    assert_eq!(code, Some(137), "{}", text(&output.stderr));
    eprintln!("killed within {:?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
}

/// Attacks a container with `options` on what the agent shares with it, while sessions of exec are open. The agent goes on
/// to answer, with one line where it can't do what is asked, and stops the container.
fn outlasts(bomb: &str, options: &[&str]) {
    let mut hostile = Hostile::start(options);
    let mut sessions: Vec<Child> = (0..8)
        .map(|_| {
            let mut command = hostile.mvm(&["exec", "-i", "box", "cat"]);
            command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
        })
        .collect();
    hostile.start_bomb(bomb);
    for _ in 0..5 {
        let start = Instant::now();
        let output = hostile.exec("true");
        let said = text(&output.stderr);
        eprintln!("{bomb} {options:?}: exec {} within {:?}: {said}", output.status, start.elapsed());
        // 137 is a command that was killed for memory.
        assert!(matches!(output.status.code(), Some(0 | 126 | 137)), "{bomb}: {}: {said}", output.status);
        assert!(said.lines().count() <= 1, "{bomb}: {said}");
        assert!(start.elapsed() < PATIENCE, "{bomb}: {:?}", start.elapsed());
    }
    let stats = hostile.mvm(&["stats", "--no-stream", "box"]).output().unwrap();
    assert!(stats.status.success(), "{bomb}: {}", text(&stats.stderr));
    let stop = hostile.mvm(&["stop", "-t", "30", "box"]).output().unwrap();
    assert!(stop.status.success(), "{bomb}: {}", text(&stop.stderr));
    // By itself, or killed where it had no time to.
    let code = hostile.end();
    assert!(matches!(code, Some(5 | 137)), "{bomb}: {code:?}");
    for session in &mut sessions {
        session.wait().unwrap();
    }
}

#[test]
fn descriptors_that_a_container_takes_are_its_own() {
    outlasts("descriptors", &[]);
    outlasts("descriptors", &["--ulimit", "nofile=256"]);
}

#[test]
fn memory_that_a_container_takes_is_its_own() {
    outlasts("much-memory", &["-m", "64m"]);
}

#[test]
fn processes_that_a_container_makes_are_its_own() {
    outlasts("bomb", &["--pids-limit", "100"]);
}

/// Bytes of memory that a process has of its own.
fn private_memory(process: &Child) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() << 10
}

#[test]
fn output_that_is_not_read_waits_in_the_container() {
    let directory = TempDir::new().unwrap();
    let script = "echo ready; exec head -c 100000000 /dev/zero";
    let (mut child, mut output) = start(directory.path(), "loud", &["-m", "64m"], script);
    let state = || {
        let mut command = stores().mvm();
        command.arg("--runtime-dir").arg(directory.path());
        let output =
            command.args(["exec", "loud", "grep", "-E", "State|ctxt", "/proc/1/status"]).output().unwrap();
        text(&output.stdout)
    };
    let mut before = state();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let now = state();
        if now == before && now.contains("S (sleeping)") {
            break;
        }
        assert!(Instant::now() < deadline, "the container writes on: {now}");
        before = now;
    }
    let memory = private_memory(&child);
    eprintln!("{memory} bytes of memory");
    assert!(memory < 8 << 20, "{memory} bytes of memory");
    let mut rest = 0;
    let mut buffer = vec![0; 1 << 16];
    loop {
        match output.read(&mut buffer).unwrap() {
            0 => break,
            count => rest += count,
        }
    }
    assert_eq!((rest, child.wait().unwrap().code()), (100_000_000, Some(0)));
}
