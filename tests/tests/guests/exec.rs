//! Further commands in a container that runs, beside podman's.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::containers::{IMAGE, start, stores, text};
use super::peers::{Row, Tool, command, compare_with, script};

/// Runs until it is told to end, and has a file, a variable and a folder of its own.
const SCRIPT: &str = "echo mine >/tmp/file; echo plain >/tmp/plain; trap 'exit 9' TERM; echo ready; while :; do sleep 0.1; done";

/// A container called "box" that runs.
struct Container {
    directory: TempDir,
    child: Child,
    _output: BufReader<ChildStdout>,
}

impl Container {
    fn start(options: &[&str]) -> Self {
        let directory = TempDir::new().unwrap();
        let (child, _output) = start(directory.path(), "box", options, SCRIPT);
        Self { directory, child, _output }
    }

    /// `mvm COMMAND…`, where it is found.
    fn mvm(&self, arguments: &[&str]) -> Command {
        let mut command = stores().mvm();
        command.arg("--runtime-dir").arg(self.directory.path()).args(arguments);
        command
    }

    fn exec(&self, arguments: &[&str]) -> Output {
        self.mvm(&[&["exec"], arguments].concat()).output().unwrap()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Of the container beside which commands are run.
const OPTIONS: &[&str] = &["-e", "A=1", "-e", "B=2", "-w", "/tmp", "--pids-limit", "50"];

const ROWS: &[Row] = &[
    script(&[], "echo out; echo err >&2; exit 7"),
    script(&[], "cat file"),
    script(&[], "kill -TERM $$"),
    command(&[], &["sh", "-c", "kill -9 $$"]),
    // docker 20.10 ends with 126, and later ones as podman.
    command(&[], &["nosuch"]),
    command(&[], &["/nosuch"]),
    command(&[], &["/bin"]),
    command(&[], &["/tmp/plain"]),
    command(&["-i"], &["cat"]).input("some input\nand more\n"),
    command(&["-i"], &["head", "-c", "3"]).input("abcdefgh"),
    command(&[], &["cat"]).input("not passed on"),
    script(&["-e", "A=3", "-e", "C=4"], "echo $A $B $C $HOME"),
    command(&["-w", "/usr"], &["pwd"]),
    command(&["-w", "/nosuch"], &["pwd"]),
    script(&["-u", "1000"], "id -u; id -g; touch /x; echo $?"),
    script(&["-t"], "test -t 0 && test -t 1 && test -t 2 && echo all; echo $TERM"),
    script(&[], "test -t 0 || echo none"),
    command(&[], &["sh", "-c", "ps -o pid,ppid | awk 'NR == 2'; echo $PPID"]),
    script(&[], "cat /proc/self/cgroup; cat /sys/fs/cgroup/pids.max"),
    script(
        &[],
        "for n in pid mnt ipc uts cgroup net; do readlink /proc/1/ns/$n /proc/$$/ns/$n | uniq | wc -l; done",
    ),
    script(&[], "grep -E '^(Seccomp|NoNewPrivs):' /proc/self/status; umask"),
    script(&[], "head -c 3000000 /dev/zero | md5sum"),
    script(&[], "ls /proc/self/fd | wc -l"),
    command(&["-d"], &["sh", "-c", "echo dropped; exit 3"]),
];

/// Where podman differs, docker decides.
const DOCKER_ROWS: &[Row] = &[
    script(&["-u", "1000"], "echo $HOME; id").podman("has no home"),
    script(&[], "echo $TERM").podman("sets it without a terminal as well"),
    script(&[], "grep ^Cap /proc/self/status; env | sort").podman("has 11 capabilities of docker's 14"),
];

/// Runs the rows in a container of mvm's and in one of the other tool's.
fn compare_in_container(peer: Tool, rows: &[Row]) {
    let Some(mut start) = peer.command() else { return eprintln!("skipped: there is no {peer:?}") };
    let container = Container::start(&[OPTIONS, &["--network", "none", "-h", "box"]].concat());
    start.args(["run", "-d", "--rm", "--name", "box", "-h", "box", "--network", "none"]).args(OPTIONS);
    if peer == Tool::Podman {
        start.args(["--log-driver", "none"]);
    }
    let started = start.args([IMAGE, "sh", "-c", SCRIPT]).output().unwrap();
    assert!(started.status.success(), "{}", text(&started.stderr));
    let begin = |tool: Tool, options: &[&str]| {
        let mut command = if tool == Tool::Mvm { container.mvm(&[]) } else { tool.command()? };
        command.arg("exec").args(options).arg("box");
        Some(command)
    };
    // The script makes its files before it can be told to end.
    let mut ready = begin(peer, &[]).unwrap();
    ready.args(["sh", "-c", "until test -s /tmp/plain; do sleep 0.1; done"]);
    assert!(ready.status().unwrap().success());
    compare_with(peer, rows, begin);
    let _ = peer.command().unwrap().args(["rm", "-f", "box"]).output();
}

#[test]
fn commands_are_those_of_podman() {
    compare_in_container(Tool::Podman, ROWS);
}

#[test]
fn where_podman_differs_commands_are_those_of_docker() {
    compare_in_container(Tool::Docker, DOCKER_ROWS);
}

#[test]
fn a_command_without_its_user_or_container_is_refused() {
    let container = Container::start(OPTIONS);
    // docker has the same codes; the first of its lines is on standard output.
    for (arguments, code) in [(["-u", "nosuch", "box", "id"].as_slice(), 126), (&["nosuch", "true"], 1)] {
        let output = container.exec(arguments);
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        assert_eq!((output.status.code(), &*stdout, stderr.lines().count()), (Some(code), "", 1), "{stderr}");
    }
}

#[test]
fn a_command_in_a_paused_container_is_refused_at_once() {
    let container = Container::start(&[]);
    let said = |arguments: &[&str]| assert!(container.mvm(arguments).status().unwrap().success());
    said(&["pause", "box"]);
    let start = Instant::now();
    let refused = container.exec(&["box", "true"]);
    let line = text(&refused.stderr);
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert_eq!((refused.status.code(), line.trim()), (Some(1), "mvm: box: it is paused: `mvm resume box`"));
    said(&["unpause", "box"]);
    said(&["exec", "box", "true"]);
}

#[test]
fn commands_end_with_the_container() {
    let mut container = Container::start(&[]);
    let mut command = container.mvm(&["exec", "box", "sh", "-c", "echo started; exec sleep 1000"]);
    let mut exec = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(exec.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "started\n");
    kill_process(Pid::from_child(&container.child), Signal::TERM).unwrap();
    assert_eq!(container.child.wait().unwrap().code(), Some(9));
    // The VM may end before the agent has said that the kernel killed it.
    assert_eq!(exec.wait().unwrap().code(), Some(137));
}
