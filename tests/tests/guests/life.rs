//! A container's life: in the background, seen by other commands, and after its end.

use std::io::{BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tests::Boot;

use super::containers::{IMAGE, ends_within, output, stores, text};

/// Runs mvm with these arguments.
pub(super) fn mvm(arguments: &[&str]) -> Output {
    output(command(arguments))
}

pub(super) fn command(arguments: &[&str]) -> Command {
    let mut command = stores().mvm();
    command.args(arguments).stdin(Stdio::null());
    command
}

/// What mvm prints with these arguments, without the last line's end.
pub(super) fn said(arguments: &[&str]) -> String {
    let output = mvm(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    text(&output.stdout).trim_end().to_owned()
}

/// Starts a container in the background; returns its ID.
pub(super) fn start(arguments: &[&str]) -> String {
    let id = said(&[&["run", "-d", "--network", "none"], arguments].concat());
    assert!(id.len() == 12 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id:?}");
    id
}

/// The process that keeps a container, and that of its VM.
pub(super) fn pids(id: &str) -> (String, String) {
    let keeper = said(&["inspect", "-f", "{{.State.Pid}}", id]);
    let children = std::fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children")).unwrap();
    (keeper, children.trim().to_owned())
}

/// A descriptor of a process.
pub(super) fn process(pid: &str) -> OwnedFd {
    pidfd_open(Pid::from_raw(pid.parse().unwrap()).unwrap(), PidfdFlags::empty()).unwrap()
}

/// Whether a process ends within a minute.
pub(super) fn ends(process: &OwnedFd) -> bool {
    ends_within(process, Duration::from_secs(60))
}

#[test]
fn a_container_lives_in_the_background_and_is_kept_until_it_is_removed() {
    let script = "echo out; echo err >&2; trap 'echo bye; exit 5' TERM; while :; do sleep 0.1; done";
    let id = start(&["--name", "life", "-l", "a=b", IMAGE, "sh", "-c", script]);
    let listed =
        said(&["ps", "--format", "{{.ID}} {{.Names}} {{.Kind}} {{.Image}} {{.State}} {{.Label \"a\"}}"]);
    assert!(listed.contains(&format!("{id} life container {IMAGE} running b")), "{listed}");
    let exec = mvm(&["exec", "life", "sh", "-c", "cat /proc/1/cmdline | tr '\\0' ' '; exit 3"]);
    assert_eq!((exec.status.code(), text(&exec.stdout).contains("trap")), (Some(3), true));
    // The other stream may be read a moment later.
    let mut follow =
        command(&["logs", "-f", "life"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (mut output, mut errors) = (String::new(), String::new());
    let mut out = BufReader::new(follow.stdout.take().unwrap());
    out.read_line(&mut output).unwrap();
    BufReader::new(follow.stderr.take().unwrap()).read_line(&mut errors).unwrap();
    assert_eq!((&*output, &*errors), ("out\n", "err\n"));
    assert_eq!(
        said(&["inspect", "-f", "{{.State.Running}} {{.Config.Image}}", "life"]),
        format!("true {IMAGE}")
    );
    // The memory is that of the VM, and not of the process that keeps it.
    let usage = said(&["stats", "--no-stream", "--json", "life"]);
    let resident = usage.split("\"resident_bytes\":").nth(1).and_then(|text| text.split(',').next());
    assert!(resident.and_then(|bytes| bytes.parse::<u64>().ok()).unwrap() > 20 << 20, "{usage}");
    // By docker's fields it is what the container uses of its VM.
    let fields = said(&["stats", "--no-stream", "--format", "{{.Name}} {{.PIDs}} {{.MemUsage}}", "life"]);
    // The shell, and what it waits with.
    let pids = fields.split_whitespace().nth(1).and_then(|pids| pids.parse().ok());
    assert!(matches!(pids, Some(1..=2)) && fields.contains("MiB / "), "{fields}");
    // Its name is taken, and what runs is not removed.
    let taken = mvm(&["run", "--name", "life", IMAGE, "true"]);
    assert!(taken.status.code() == Some(125) && text(&taken.stderr).contains("the name life is in use"));
    let running = mvm(&["rm", "life"]);
    assert!(running.status.code() == Some(1) && text(&running.stderr).contains("it is running"));
    let waiter = command(&["wait", "life"]).stdout(Stdio::piped()).spawn().unwrap();
    assert_eq!(said(&["stop", "life"]), "life");
    assert_eq!(text(&waiter.wait_with_output().unwrap().stdout), "5\n");
    // Who follows gets the last line, and ends.
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "bye\n");
    assert!(follow.wait().unwrap().success());
    assert_eq!(text(&mvm(&["logs", "life"]).stdout), "out\nbye\n");
    assert!(!said(&["ps", "-q"]).contains(&id));
    let listed = said(&["ps", "-a", "--filter", "name=life", "--format", "{{.State}} {{.Status}}"]);
    assert!(listed.starts_with("exited Exited (5) "), "{listed}");
    assert_eq!(said(&["inspect", "-f", "{{.State.ExitCode}} {{.State.Status}}", "life"]), "5 exited");
    let ended = mvm(&["exec", "life", "true"]);
    assert!(
        ended.status.code() == Some(1) && text(&ended.stderr).contains("it is not running: it ended with 5")
    );
    assert_eq!(said(&["stop", "life"]), "life");
    assert_eq!(said(&["rm", "life"]), "life");
    assert!(text(&mvm(&["logs", "life"]).stderr).contains("there is no VM or container \"life\""));
    assert_eq!(said(&["rm", "--force", "life"]), "");
}

#[test]
fn what_cannot_start_in_the_background_says_why() {
    let run = |arguments: &[&str]| {
        let output = mvm(&[&["run", "-d", "--network", "none"], arguments].concat());
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let (code, output, errors) = run(&["--name", "nosuch", IMAGE, "/no/such"]);
    assert_eq!((code, &*output), (Some(127), ""), "{errors}");
    assert!(errors.contains("no such file"), "{errors}");
    // It is kept, with the reason.
    assert_eq!(said(&["inspect", "-f", "{{.State.ExitCode}}", "nosuch"]), "127");
    assert!(said(&["inspect", "-f", "{{.State.Error}}", "nosuch"]).contains("no such file"));
    said(&["rm", "nosuch"]);
    let (code, _, errors) = run(&["--rm", IMAGE, "/etc/passwd"]);
    assert_eq!(code, Some(126), "{errors}");
    let (code, _, errors) = run(&["--pull", "never", "no/such/image"]);
    assert!(code == Some(125) && errors.contains("there is no image"), "{errors}");
}

#[test]
fn one_that_is_killed_leaves_nothing_but_its_record() {
    let id = start(&["--name", "killed", IMAGE, "sleep", "1000"]);
    let gone = start(&["--rm", IMAGE, "sleep", "1000"]);
    assert_eq!(said(&["kill", "killed"]), "killed");
    assert_eq!(said(&["wait", "killed"]), "137");
    assert_eq!(said(&["rm", "-f", &id, &gone]), format!("{id}\n{gone}"));
    let listed = said(&["ps", "-aq"]);
    assert!(!listed.contains(&id) && !listed.contains(&gone), "{listed}");
}

#[test]
fn a_keeper_and_its_vm_end_with_each_other() {
    let kill = |pid: &str| assert!(Command::new("kill").args(["-9", pid]).status().unwrap().success());
    // The keeper: its container's end is not known.
    let id = start(&[IMAGE, "sleep", "1000"]);
    let (keeper, vm) = pids(&id);
    let vm_process = process(&vm);
    kill(&keeper);
    assert_eq!(said(&["wait", &id]), "255");
    assert!(ends(&vm_process), "the VM's process outlives its keeper");
    said(&["rm", &id]);
    // The VM's process.
    let id = start(&[IMAGE, "sleep", "1000"]);
    let (_, vm) = pids(&id);
    kill(&vm);
    assert_eq!(said(&["wait", &id]), "137");
    let error = said(&["inspect", "-f", "{{.State.Error}}", &id]);
    assert!(error.contains("its process ended with 137"), "{error}");
    said(&["rm", &id]);
}

#[test]
fn a_vm_lives_in_the_background_too() {
    let boot = |name: &str, script: &str| {
        let (mut boot, directory) =
            Boot::new().switch("--detach").flag("--name", name).script(script).command();
        boot.envs(stores().mvm().get_envs().filter_map(|(name, value)| Some((name, value?))));
        (boot.output().unwrap(), directory)
    };
    let (booted, _directory) = boot("machine", "echo ready; read line");
    assert!(booted.status.success(), "{}", text(&booted.stderr));
    let listed = said(&["ps", "--filter", "kind=vm", "--format", "{{.Names}} {{.Kind}} {{.State}}"]);
    assert_eq!(listed, "machine vm running");
    // Its script reads the console, which has an end as soon as somebody types one.
    let mut console =
        command(&["console", "machine"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut seen = String::new();
    let mut output = BufReader::new(console.stdout.take().unwrap());
    while !seen.contains("ready") {
        assert_ne!(output.read_line(&mut seen).unwrap(), 0, "{seen}");
    }
    std::io::Write::write_all(&mut console.stdin.as_ref().unwrap(), b"\n").unwrap();
    assert_eq!(said(&["wait", "machine"]), "0");
    console.wait().unwrap();
    assert!(said(&["logs", "machine"]).contains("ready"));
    assert_eq!(said(&["inspect", "-f", "{{.State.Status}} {{.Kind}}", "machine"]), "exited vm");
    assert_eq!(said(&["rm", "machine"]), "machine");
    let (refused, _directory) = boot("..", "");
    assert_eq!(refused.status.code(), Some(2));
}

#[test]
fn a_reader_that_goes_ends_what_it_read() {
    let script = format!(
        "{} run --rm --network none {IMAGE} yes | head -1; echo ${{PIPESTATUS[0]}}",
        tests::mvm().display()
    );
    let shell = |script: &str| {
        let mut shell = Command::new("bash");
        shell
            .args(["-c", script])
            .envs(stores().mvm().get_envs().filter_map(|(name, value)| Some((name, value?))));
        text(&shell.output().unwrap().stdout)
    };
    assert_eq!(shell(&script), "y\n141\n");
    let id = start(&["--rm", IMAGE, "sleep", "1000"]);
    let script = format!("{} exec {id} yes | head -1; echo ${{PIPESTATUS[0]}}", tests::mvm().display());
    assert_eq!(shell(&script), "y\n141\n");
    said(&["rm", "-f", &id]);
}
