//! Containers whose VM's process does not answer, or ends before it has said anything.

use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::containers::{IMAGE, stores, text};
use super::life::{command, ends, mvm, pids, process, said, start};

fn signal(name: &str, pid: &str) {
    assert!(Command::new("kill").args([name, pid]).status().unwrap().success());
}

fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(60), "{what}");
        sleep(Duration::from_millis(50));
    }
}

fn state(id: &str) -> String {
    said(&["inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", id])
}

#[test]
fn one_whose_vm_is_stopped_can_be_ended() {
    for end in [&["stop", "-t", "1"][..], &["kill"], &["rm", "-f"]] {
        let id = start(&[IMAGE, "sleep", "1000"]);
        let (keeper, vm) = pids(&id);
        let (keeper, vm_process) = (process(&keeper), process(&vm));
        signal("-STOP", &vm);
        assert_eq!(said(&[end, &[&id]].concat()), id);
        assert!(ends(&keeper) && ends(&vm_process), "{end:?}");
        if end[0] != "rm" {
            assert_eq!(state(&id), "exited 137", "{end:?}");
            said(&["rm", &id]);
        }
    }
}

#[test]
fn a_vm_that_is_stopped_ends_with_its_keeper() {
    let id = start(&[IMAGE, "sleep", "1000"]);
    let (keeper, vm) = pids(&id);
    let vm_process = process(&vm);
    signal("-STOP", &vm);
    signal("-KILL", &keeper);
    assert!(ends(&vm_process));
    said(&["rm", &id]);
}

fn in_front(name: &str) -> (Child, String) {
    let arguments = ["run", "--network", "none", "--name", name, IMAGE, "sleep", "1000"];
    let run = command(&arguments).stderr(Stdio::piped()).spawn().unwrap();
    eventually("the container is there", || mvm(&["inspect", name]).status.success());
    eventually("its VM is there", || !pids(name).1.is_empty());
    let (_, vm) = pids(name);
    (run, vm)
}

#[test]
fn the_third_signal_ends_one_whose_vm_is_stopped() {
    let (mut run, vm) = in_front("third");
    let has_started = || !said(&["inspect", "-f", "{{.State.StartedAt}}", "third"]).starts_with("0001");
    eventually("the container runs", has_started);
    signal("-STOP", &vm);
    let pid = run.id().to_string();
    let pending = || {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        !status
            .lines()
            .any(|line| line.starts_with("ShdPnd:") && line.trim_end().ends_with("0000000000000000"))
    };
    for _ in 0..3 {
        signal("-TERM", &pid);
        eventually("the signal is taken", || !pending());
    }
    assert_eq!(run.wait().unwrap().code(), Some(143));
    assert_eq!(state("third"), "exited 143");
    said(&["rm", "third"]);
}

#[test]
fn the_end_of_a_vm_that_has_not_said_anything_is_kept() {
    let (run, vm) = in_front("early");
    signal("-KILL", &vm);
    let output = run.wait_with_output().unwrap();
    assert!(output.status.code() == Some(137), "{output:?}");
    assert!(text(&output.stderr).contains("the container's VM was killed"), "{output:?}");
    assert_eq!(state("early"), "exited 137");
    said(&["rm", "early"]);
}

#[test]
fn the_background_keeps_no_files_of_who_started_it() {
    let mvm = stores().mvm();
    let script = "exec 7>&1; \"$@\" >/dev/null; echo started";
    let mut shell = Command::new("sh");
    shell.args(["-c", script, "sh"]).arg(mvm.get_program());
    shell.envs(mvm.get_envs().filter_map(|(name, value)| Some((name, value?))));
    shell.args(["run", "-d", "--network", "none", "--name", "files", IMAGE, "sleep", "1000"]);
    // It is read to the end, which comes when no process has it open.
    let output = shell.output().unwrap();
    assert_eq!(text(&output.stdout), "started\n", "{output:?}");
    assert_eq!(state("files"), "running 0");
    said(&["rm", "-f", "files"]);
}
