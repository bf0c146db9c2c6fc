//! Containers in VMs of their own. `table.rs` has what is compared with podman and docker.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};
use tempfile::TempDir;
use tests::{container_assets, container_image, mvm};

use super::passt::{Uplink, serve};

/// The image of `tools/busybox-image`.
pub(super) const IMAGE: &str = "localhost/busybox";

/// How long a command of a test may take: more than any does, in the lab as well.
pub(super) const LONGEST: Duration = Duration::from_secs(600);

/// mvm's store with the image in it, made once, and podman's, made once where a test asks for it: that takes as long as
/// some tests.
pub(super) struct Stores {
    pub(super) directory: TempDir,
    has_podman: OnceLock<bool>,
}

pub(super) fn stores() -> &'static Stores {
    static STORES: OnceLock<Stores> = OnceLock::new();
    STORES.get_or_init(|| {
        let stores = Stores { directory: TempDir::new().unwrap(), has_podman: OnceLock::new() };
        let loaded = stores.mvm().args(["load", "-i"]).arg(container_image()).output().unwrap();
        assert!(loaded.status.success(), "{}", text(&loaded.stderr));
        assert_eq!(text(&loaded.stdout), "Loaded image: localhost/busybox:latest\n");
        stores
    })
}

pub(super) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl Stores {
    pub(super) fn mvm(&self) -> Command {
        let mut command = Command::new(mvm());
        command.env("MVM_DATA_DIR", self.directory.path()).env("MVM_ASSETS", container_assets());
        command.stdin(Stdio::null());
        command
    }

    /// podman, or none where it is not installed.
    pub(super) fn podman(&self) -> Option<Command> {
        let has_podman = self.has_podman.get_or_init(|| {
            let Ok(loaded) = self.podman_without_image().args(["load", "-i"]).arg(container_image()).output()
            else {
                return false;
            };
            assert!(loaded.status.success(), "{}", text(&loaded.stderr));
            true
        });
        has_podman.then(|| self.podman_without_image())
    }

    fn podman_without_image(&self) -> Command {
        let place = |name: &str| self.directory.path().join(name);
        let mut command = Command::new("podman");
        command.arg("--root").arg(place("podman")).arg("--runroot").arg(place("podman-run"));
        command.args(["--cgroup-manager", "cgroupfs", "--events-backend", "none"]).stdin(Stdio::null());
        // conmon leaves a file `oom` in it.
        command.current_dir(self.directory.path());
        command
    }
}

/// Runs a container of mvm's with these arguments behind `run`.
pub(super) fn run(arguments: &[&str]) -> Output {
    let mut command = stores().mvm();
    command.arg("run").args(arguments);
    output(command)
}

#[test]
fn timing_shows_the_whole_way_from_the_image_to_the_end() {
    let output = run(&["--rm", "--timing", "--network", "none", IMAGE, "echo", "hello"]);
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(0), "hello\n"));
    let errors = text(&output.stderr);
    let rows: Vec<_> = errors.lines().skip(1).collect();
    let names: Vec<_> = rows.iter().filter_map(|row| row.split("  ").next()).collect();
    let place = |name: &str| {
        names.iter().position(|known| *known == name).unwrap_or_else(|| panic!("{name}: {errors}"))
    };
    let order = [
        "image",
        "record",
        "process of the VM",
        "open KVM",
        "memory",
        "kernel",
        "devices",
        "vCPUs",
        "first guest instruction",
        "init",
        "agent connected",
        "container started",
        "container ended",
        "VM ended",
    ];
    assert!(order.map(place).is_sorted(), "{errors}");
    assert!(
        place("first byte of output") < place("VM ended") && place("disk for changes") < place("devices"),
        "{errors}"
    );
    let times: Vec<f64> = rows.iter().filter_map(|row| row.split_whitespace().last()?.parse().ok()).collect();
    assert!(times.len() == rows.len() && times.is_sorted(), "{errors}");
}

/// Runs a command with this input, as [`output`] does.
pub fn with_input(mut command: Command, input: &[u8]) -> Output {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || {
        // A container that does not read all of it is a case as well.
        let _ = stdin.write_all(&input);
    });
    let output = finish(child, &command);
    writer.join().unwrap();
    output
}

/// Runs a command to its end, which comes, or the test fails.
pub(super) fn output(mut command: Command) -> Output {
    finish(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap(), &command)
}

fn finish(child: Child, command: &Command) -> Output {
    let process = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).unwrap();
    let watchdog = std::thread::spawn(move || {
        let has_ended = ends_within(&process, LONGEST);
        if !has_ended {
            pidfd_send_signal(&process, Signal::KILL).unwrap();
        }
        has_ended
    });
    let output = child.wait_with_output().unwrap();
    assert!(watchdog.join().unwrap(), "{command:?} does not end: {output:?}");
    output
}

/// Whether a process ends in this time: its descriptor becomes readable then.
pub(super) fn ends_within(process: &OwnedFd, limit: Duration) -> bool {
    let limit = Timespec::try_from(limit).unwrap();
    poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&limit)).unwrap() == 1
}

#[test]
fn a_container_cannot_reach_the_agent_or_the_vms_disks() {
    let script = "
        mknod /tmp/disk b 254 0 && cat /tmp/disk >/dev/null; echo $?
        mknod /dev/disk b 254 0 && cat /dev/disk >/dev/null; echo $?
        mknod /dev/full2 c 1 7 && cat /dev/full2 >/dev/null; echo $?
        ls /run 2>&1 | wc -l
        cat /proc/1/comm
        ls /dev/vda /dev/vsock 2>/dev/null | wc -l";
    let output = run(&[IMAGE, "sh", "-c", script]);
    assert_eq!(text(&output.stdout), "1\n1\n1\n1\nsh\n0\n", "{}", text(&output.stderr));
}

#[test]
fn a_privileged_container_has_all_of_its_vm() {
    let script = "ls /dev/vda /dev/vdb /dev/null; grep ^Seccomp: /proc/self/status | cut -f 2
        head -c 1100 /dev/vdb | wc -c; mount -t tmpfs none /tmp; echo $?; ls /dev/ptmx /dev/pts";
    let expected = "/dev/null\n/dev/vda\n/dev/vdb\n0\n1100\n0\n/dev/ptmx\n\n/dev/pts:\nptmx\n";
    let output = run(&["--privileged", IMAGE, "sh", "-c", script]);
    assert_eq!(text(&output.stdout), expected, "{}", text(&output.stderr));
    let output = run(&["--privileged", "-t", IMAGE, "sh", "-c", "test -t 0 && ls /dev/console"]);
    assert_eq!(text(&output.stdout), "/dev/console\r\n", "{}", text(&output.stderr));
}

#[test]
fn a_signal_is_passed_on_and_the_exit_code_comes_back() {
    let mut command = stores().mvm();
    command.args([
        "run",
        IMAGE,
        "sh",
        "-c",
        "trap 'echo got it; exit 3' TERM; echo ready; while :; do sleep 0.1; done",
    ]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    assert_eq!((rest.as_str(), child.wait().unwrap().code()), ("got it\n", Some(3)));
}

#[test]
fn folders_of_the_host_are_shared() {
    let (folder, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    std::fs::write(folder.path().join("given"), "from the host\n").unwrap();
    let volumes =
        [format!("{}:/data", folder.path().display()), format!("{}:/other:ro", other.path().display())];
    let script = "cat /data/given; echo from the container >/data/made; touch /other/x 2>/dev/null; echo $?";
    let output = run(&["-v", &volumes[0], "-v", &volumes[1], IMAGE, "sh", "-c", script]);
    assert_eq!(text(&output.stdout), "from the host\n1\n", "{}", text(&output.stderr));
    assert_eq!(std::fs::read_to_string(folder.path().join("made")).unwrap(), "from the container\n");
}

/// Starts a container called `name` that says "ready", and waits for that.
pub fn start(
    directory: &Path,
    name: &str,
    options: &[&str],
    script: &str,
) -> (Child, BufReader<ChildStdout>) {
    let mut command = stores().mvm();
    command.arg("--runtime-dir").arg(directory).args(["run", "--rm", "--name", name]).args(options);
    let mut child = command.args([IMAGE, "sh", "-c", script]).stdout(Stdio::piped()).spawn().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    (child, output)
}

#[test]
fn stop_sends_the_stop_signal_and_kills_later() {
    let directory = TempDir::new().unwrap();
    let stop = |name: &str| {
        let mut command = stores().mvm();
        command.arg("--runtime-dir").arg(directory.path()).args(["stop", name]);
        command.output().unwrap()
    };
    let script = "trap 'echo asked; exit 4' INT; echo ready; while :; do sleep 0.1; done";
    let (mut child, mut output) = start(directory.path(), "polite", &["--stop-signal", "SIGINT"], script);
    assert!(stop("polite").status.success());
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    assert_eq!((rest.as_str(), child.wait().unwrap().code()), ("asked\n", Some(4)));

    let script = "trap '' TERM; echo ready; while :; do sleep 1; done";
    let (mut child, _output) = start(directory.path(), "deaf", &["--stop-timeout", "2"], script);
    assert!(text(&stop("deaf").stderr).contains("killed after"));
    assert_eq!(child.wait().unwrap().code(), Some(137));
}

#[test]
fn a_third_signal_ends_a_container_that_hears_none() {
    let directory = TempDir::new().unwrap();
    let script = "trap '' TERM INT; echo ready; while :; do sleep 1; done";
    let (mut child, _output) = start(directory.path(), "deaf", &[], script);
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    for _ in 0..3 {
        assert_eq!(child.try_wait().unwrap(), None);
        kill_process(pid, Signal::TERM).unwrap();
        // Two at once would be one.
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(child.wait().unwrap().code(), Some(143));
}

#[test]
fn a_signal_while_the_vm_boots_ends_it() {
    let directory = TempDir::new().unwrap();
    let mut command = stores().mvm();
    command
        .arg("--runtime-dir")
        .arg(directory.path().join("run"))
        .args(["run", "--rm", "--name", "early", IMAGE, "sleep", "60"]);
    let mut child = command.spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    // It is a link to a name, not to a file.
    let is_there = || directory.path().join("run/names/early").is_symlink();
    while !is_there() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(143));
    assert!(!is_there());
}

#[test]
fn a_container_without_memory_is_killed_and_so_it_says() {
    let script = "tail -c 100000000 /dev/zero | cat >/dev/null; echo not here";
    let output =
        run(&["-m", "32m", IMAGE, "sh", "-c", &format!("exec tail -c 100000000 /dev/zero # {script}")]);
    assert_eq!(output.status.code(), Some(137), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("no memory left"), "{}", text(&output.stderr));
}

#[test]
fn a_container_that_fills_its_root_gets_an_error_and_lives_on() {
    let script = "dd if=/dev/zero of=/x bs=1M count=300 2>/dev/null; echo $?; rm /x; echo more >/y; cat /y";
    for storage in ["memory", "size=256m"] {
        let output = run(&["-m", "64m", "--storage-opt", storage, IMAGE, "sh", "-c", script]);
        assert_eq!(text(&output.stdout), "1\nmore\n", "{storage}: {}", text(&output.stderr));
    }
}

#[test]
fn much_output_arrives_whole_on_both_streams() {
    let output = run(&[IMAGE, "sh", "-c", "seq 1 200000; seq 1 200000 >&2"]);
    let expected: String = (1..=200_000).map(|number| format!("{number}\n")).collect();
    assert!(text(&output.stdout) == expected && text(&output.stderr) == expected);
}

/// Without a network of the host there is none for containers either, and so the others here have none.
#[test]
fn a_container_reaches_the_hosts_networks_and_its_ports_are_published() {
    let Some(_uplink) = Uplink::new(false) else { return };
    let served = serve("203.0.113.5:8000", "from outside");
    let script = "ip -4 -o addr show eth0 | awk '{print $4}'; cat /etc/resolv.conf; wget -qO- http://203.0.113.5:8000/x";
    let output = run(&[IMAGE, "sh", "-c", script]);
    let expected = "10.88.0.2/24\nnameserver 10.88.0.3\nfrom outside";
    assert_eq!(text(&output.stdout), expected, "{}", text(&output.stderr));
    assert_eq!(served.join().unwrap(), "/x");

    let mut command = stores().mvm();
    let server = "echo published >/tmp/index.html; exec httpd -f -p 80 -h /tmp";
    command.args(["run", "-p", "127.0.0.1:18080:80", IMAGE, "sh", "-c", server]);
    let mut child = command.spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    let answer = loop {
        // passt accepts before the container listens, and closes then.
        let mut answer = String::new();
        if let Ok(mut stream) = TcpStream::connect("127.0.0.1:18080") {
            let _ = stream.write_all(b"GET / HTTP/1.0\r\n\r\n");
            let _ = stream.read_to_string(&mut answer);
        }
        if !answer.is_empty() || Instant::now() > deadline {
            break answer;
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    assert!(answer.contains("published"), "{answer}");
    // httpd does not handle it, and as PID 1 it is not killed by it either.
    kill_process(pid, Signal::KILL).unwrap();
    child.wait().unwrap();
}

#[test]
fn nothing_is_left_of_a_container() {
    let directory = TempDir::new().unwrap();
    let runtime: PathBuf = directory.path().join("run");
    let mut command = stores().mvm();
    command.arg("--runtime-dir").arg(&runtime).args(["run", "--rm", "--name", "web", IMAGE, "true"]);
    assert!(command.status().unwrap().success());
    let left = |path: &Path| {
        std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>()
    };
    let names = left(&runtime);
    assert!(names.iter().all(|name| name == "names") && left(&runtime.join("names")).is_empty(), "{names:?}");
}
