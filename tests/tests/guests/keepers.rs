//! What the two processes of a container have open, and what they keep others from.

use std::collections::BTreeSet;
use std::fs::{DirEntry, read_dir, read_link};
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::containers::{IMAGE, stores, text, with_input};
use super::life::{command, pids, said, start};

/// Makes an image of one file with noise in it; returns bytes of all layers that are in the store with it.
fn another_image(name: &str) -> u64 {
    let script = "d=$(mktemp -d) && head -c 3000000 /dev/urandom >$d/noise && tar -C $d -c noise && rm -r $d";
    let tar = Command::new("sh").args(["-c", script]).output().unwrap();
    assert!(tar.status.success());
    let output = with_input(command(&["import", "-", name]), &tar.stdout);
    assert!(output.status.success(), "{output:?}");
    layers()
}

/// Bytes of the files of layers in the store.
fn layers() -> u64 {
    fn bytes(path: &Path) -> u64 {
        let entries = read_dir(path).unwrap().map(|entry| entry.unwrap());
        entries
            .map(|entry| {
                entry
                    .metadata()
                    .map_or(0, |data| if data.is_dir() { bytes(&entry.path()) } else { data.len() })
            })
            .sum()
    }
    bytes(&stores().directory.path().join("images/layers"))
}

#[test]
fn images_give_their_space_back_while_containers_run() {
    let before = layers();
    // Nothing of a container needs its image's files in the store when its VM has them open.
    let id = start(&["--name", "holds", IMAGE, "sleep", "1000"]);
    let mut front = command(&["run", "--network", "none", "--name", "in-front", IMAGE, "sleep", "1000"]);
    let mut front = front.stdout(Stdio::null()).spawn().unwrap();
    while !super::life::mvm(&["exec", "in-front", "true"]).status.success() {}
    let with = another_image("other:1");
    assert!(with > before + 2_000_000, "{with} {before}");
    said(&["rmi", "-f", "other:1"]);
    assert_eq!(layers(), before);
    assert!(another_image("other:2") > before + 2_000_000);
    said(&["tag", "other:2", "other:3"]);
    assert!(said(&["image", "prune", "--all", "--force"]).contains("untagged: other:3"));
    assert_eq!(layers(), before);
    // Its own image stays, as containers use it.
    said(&["image", "inspect", IMAGE]);
    said(&["rm", "-f", &id, "in-front"]);
    front.wait().unwrap();
}

/// The files that a process has open, by name, without numbers and directories.
fn open_files(pid: &str) -> Vec<String> {
    let name = |target: String| match target.split_once([':', '/']) {
        Some(("socket", _)) => "socket".into(),
        Some(("pipe", _)) => "pipe".into(),
        Some(("anon_inode", name)) => name.trim_end_matches(|last: char| last.is_ascii_digit()).to_owned(),
        _ => target.rsplit('/').next().unwrap().to_owned(),
    };
    let entries = read_dir(format!("/proc/{pid}/fd")).unwrap();
    let target = |entry: std::io::Result<DirEntry>| read_link(entry.unwrap().path()).ok();
    entries.filter_map(|entry| Some(name(target(entry)?.display().to_string()))).collect()
}

#[test]
fn the_process_of_a_vm_has_what_is_its_own_only() {
    let id = start(&["--name", "own", IMAGE, "sleep", "1000"]);
    let (_, vm) = pids(&id);
    let files = open_files(&vm);
    // Its messages, and what it reports of a system call that it may not make; both go to the keeper.
    assert_eq!(files.iter().filter(|file| *file == "pipe").count(), 2, "{files:?}");
    // The lock of its user's ID is called as that is.
    let is_number = |name: &str| name.bytes().all(|byte| byte.is_ascii_digit());
    let kinds: BTreeSet<&str> =
        files.iter().map(|name| if is_number(name) { "the ID" } else { name }).collect();
    let expected = [
        "[eventfd]",
        "[eventpoll]",
        "[io_uring]",
        "[timerfd]",
        "agent.erofs",
        "changes.ext4",
        "console.log",
        "kvm-vcpu:",
        "kvm-vm",
        "layer.erofs",
        "merged.erofs",
        "null",
        "pipe",
        "smaps_rollup",
        "socket",
        "statm",
        "the ID",
        "zero",
    ];
    assert_eq!(kinds, BTreeSet::from(expected));
    for stream in [0, 1] {
        assert_eq!(read_link(format!("/proc/{vm}/fd/{stream}")).unwrap(), Path::new("/dev/null"));
    }
    said(&["rm", "-f", &id]);
}

/// Says which signals it gets; PID 1 ends at those alone that it handles, and KILL.
const HEARS: &str = "for s in HUP INT TERM USR1 USR2 WINCH ALRM PIPE; do trap \"echo $s\" $s; done; \
                     mkfifo /tmp/fifo; trap 'echo QUIT; exit 6' QUIT; echo ready; while :; do read x <>/tmp/fifo; done";

/// Waits until the log of `name` ends with `line`.
fn wait_for_line(name: &str, line: &str) {
    let start = Instant::now();
    while said(&["logs", "-n", "1", name]) != line {
        assert!(start.elapsed() < Duration::from_secs(60), "{line}: {}", said(&["logs", name]));
    }
}

#[test]
fn a_container_gets_every_signal_and_as_often_as_it_is_sent() {
    let id = start(&["--name", "hears", IMAGE, "sh", "-c", HEARS]);
    wait_for_line("hears", "ready");
    let signals =
        [("USR1", "USR1"), ("sigusr2", "USR2"), ("28", "WINCH"), ("SIGALRM", "ALRM"), ("PIPE", "PIPE")];
    // A third one that asks it to end is a signal as well.
    let asks = [("HUP", "HUP"), ("HUP", "HUP"), ("TERM", "TERM"), ("INT", "INT"), ("HUP", "HUP")];
    for (signal, line) in signals.into_iter().chain(asks) {
        assert_eq!(said(&["kill", "-s", signal, "hears"]), "hears");
        wait_for_line("hears", line);
        // The next one is another line.
        if line == "HUP" {
            said(&["kill", "-s", "USR1", "hears"]);
            wait_for_line("hears", "USR1");
        }
    }
    // One that it does not handle.
    said(&["kill", "-s", "RTMIN+3", "hears"]);
    // It stands still, and goes on.
    said(&["kill", "-s", "STOP", "hears"]);
    said(&["kill", "-s", "USR2", "hears"]);
    assert_eq!(said(&["exec", "hears", "sed", "-n", "s/^State:.//p", "/proc/1/status"]), "T (stopped)");
    said(&["kill", "-s", "CONT", "hears"]);
    wait_for_line("hears", "USR2");
    said(&["kill", "-s", "QUIT", "hears"]);
    assert_eq!(said(&["wait", "hears"]), "6");
    said(&["rm", &id]);
}

#[test]
fn of_eighty_commands_at_once_those_beyond_the_limit_are_refused_with_a_line() {
    let id = start(&["--name", "many", "-m", "512m", IMAGE, "sleep", "1000"]);
    let exec = || {
        let mut command = command(&["exec", "many", "sh", "-c", "echo runs; exec sleep 1000"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let mut all: Vec<_> = (0..80).map(|_| exec()).collect();
    let mut runs = 0;
    let mut refused = Vec::new();
    for child in &mut all {
        let mut first = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut first).unwrap();
        if first == "runs\n" {
            runs += 1;
            continue;
        }
        let mut errors = String::new();
        child.stderr.as_mut().unwrap().read_to_string(&mut errors).unwrap();
        refused.push((child.wait().unwrap().code(), errors));
    }
    said(&["rm", "-f", &id]);
    assert!(all.iter_mut().all(|child| child.wait().unwrap().code().is_some()));
    assert_eq!((runs, refused.len()), (64, 16), "{refused:?}");
    for (code, errors) in refused {
        let is_line = errors.lines().count() == 1 && errors.contains("runs 64 commands");
        assert!(is_line && code == Some(126), "{code:?}: {errors}");
    }
}

/// Runs containers whose image, log and changes are on a disk of 8 MiB.
const FULL: &str = r#"
    mount -t tmpfs -o size=8m none "$1" || exit 77
    cd "$2"; export MVM_DATA_DIR="$1" XDG_RUNTIME_DIR="$2"
    "$mvm" load -qi "$image" >/dev/null
    run() { "$mvm" run --network none --rm localhost/busybox "$@" >out 2>err; echo "$1 $? $(wc -c <out)"; }
    run sh -c 'yes 0123456789012345678901234567890123456789012345678901234567890 | head -n 200000'
    grep -c "cannot write the container's log" err
    run dd if=/dev/zero of=/file bs=1M count=64 conv=fsync
    grep -q 'disk I/O failed: No space left on device' err && echo said
    run echo after
    "$mvm" ps -a --format '{{.Status}}'
    echo INSTANCES: $(ls "$1/instances") TMP: $(ls "$1/images/tmp")
"#;
/// The first one writes whole 12 MB, with one line of the log that is full. The second one's disk fails.
const FULL_SAYS: &str = "sh 0 12400000\n1\ndd 1 0\nsaid\necho 0 6\nINSTANCES: TMP:\n";

#[test]
fn on_a_full_disk_a_container_runs_on_without_its_log() {
    let directory = TempDir::new().unwrap();
    let mount = TempDir::new().unwrap();
    let mut shell = Command::new("unshare");
    shell.args(["--mount", "sh", "-c", FULL, "sh"]).arg(mount.path()).arg(directory.path());
    shell
        .env("mvm", tests::mvm())
        .env("image", tests::container_image())
        .env("MVM_ASSETS", tests::container_assets());
    let output = shell.output().unwrap();
    assert_eq!(text(&output.stdout), FULL_SAYS, "{}", text(&output.stderr));
}
