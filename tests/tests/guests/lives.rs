//! A container's further lives: made by one command, started by another, and started again after its end.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tests::Terminal;

use super::containers::{IMAGE, text};
use super::life::{mvm, said, start};

#[test]
fn what_a_container_wrote_is_there_when_it_is_started_again() {
    let script = "echo x >>/count; wc -l </count; trap 'exit 3' TERM; while :; do sleep 0.1; done";
    let id = said(&["create", "--name", "again", "--network", "none", IMAGE, "sh", "-c", script]);
    assert_eq!(said(&["inspect", "-f", "{{.State.Status}}", "again"]), "created");
    assert_eq!(said(&["start", "again"]), "again");
    assert_eq!(said(&["start", "again"]), "again");
    assert_eq!(said(&["inspect", "-f", "{{.State.Status}} {{.Id}}", "again"]), format!("running {id}"));
    assert_eq!(said(&["stop", "again"]), "again");
    assert_eq!(said(&["inspect", "-f", "{{.State.ExitCode}}", "again"]), "3");
    // One that has ended is started, one that runs is stopped first.
    assert_eq!(said(&["restart", "again"]), "again");
    assert_eq!(said(&["exec", "again", "cat", "/count"]), "x\nx");
    assert_eq!(said(&["restart", "again"]), "again");
    assert_eq!(said(&["kill", "again"]), "again");
    assert_eq!(said(&["wait", "again"]), "137");
    // After its VM was killed, too, and with its own exit code.
    let refused = mvm(&["rmi", IMAGE]);
    assert!(text(&refused.stderr).contains("conflict: a container uses image"), "{refused:?}");
    let counted = said(&["logs", "again"]);
    assert_eq!(counted.split_whitespace().collect::<Vec<_>>(), ["1", "2", "3"]);
    assert_eq!(said(&["rm", "again"]), "again");
    assert_eq!(text(&mvm(&["start", "again"]).stderr).lines().count(), 1);
}

#[test]
fn one_that_is_started_with_its_output_ends_with_its_exit_code() {
    said(&[
        "create",
        "-i",
        "--name",
        "job",
        "--network",
        "none",
        IMAGE,
        "sh",
        "-c",
        "read a; echo \"got $a\"; exit 5",
    ]);
    let mut start = super::life::command(&["start", "-ai", "job"]);
    let (reader, mut writer) = std::io::pipe().unwrap();
    std::io::Write::write_all(&mut writer, b"word\n").unwrap();
    drop(writer);
    let output = start.stdin(reader).output().unwrap();
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(5), "got word\n".into()));
    said(&["rm", "job"]);
}

/// A container whose count of lives is in a file, and that ends with 3.
const COUNTS: &str = "echo x >>/count; echo life $(wc -l </count); exit 3";

#[test]
fn one_that_fails_is_started_again_as_often_as_its_policy_says() {
    let id = said(&[
        "run",
        "-d",
        "--name",
        "fails",
        "--restart",
        "on-failure:2",
        "--network",
        "none",
        IMAGE,
        "sh",
        "-c",
        COUNTS,
    ]);
    // One life after the other is waited for; its keeper is one process for all of them.
    let deadline = Instant::now() + Duration::from_secs(120);
    while said(&["inspect", "-f", "{{.State.Status}} {{.RestartCount}}", &id]) != "exited 2" {
        assert_eq!(said(&["wait", "fails"]), "3");
        assert!(Instant::now() < deadline);
    }
    assert_eq!(said(&["logs", "fails"]), "life 1\nlife 2\nlife 3");
    let form = "{{.RestartCount}} {{.State.Status}} {{.HostConfig.RestartPolicy.Name}} {{.HostConfig.RestartPolicy.MaximumRetryCount}}";
    assert_eq!(said(&["inspect", "-f", form, &id]), "2 exited on-failure 2");
    said(&["rm", "fails"]);
}

#[test]
fn one_in_front_is_started_again_in_the_background() {
    let script = "trap 'exit 3' TERM; echo life; while :; do sleep 0.1; done";
    let run = ["run", "--name", "front", "--network", "none", IMAGE, "sh", "-c", script];
    let mut front = super::life::command(&run).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(front.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "life");
    assert_eq!(said(&["update", "--restart", "always", "front"]), "front");
    said(&["exec", "front", "kill", "1"]);
    // The command has nothing to do with the next life.
    assert_eq!(front.wait().unwrap().code(), Some(3));
    assert!(lines.next().is_none());
    let mut follow = super::life::command(&["logs", "-f", "front"]).stdout(Stdio::piped()).spawn().unwrap();
    let again = BufReader::new(follow.stdout.take().unwrap()).lines().take(2);
    assert_eq!(again.map(|line| line.unwrap()).collect::<Vec<_>>(), ["life", "life"]);
    assert_eq!(said(&["inspect", "-f", "{{.RestartCount}} {{.State.Status}}", "front"]), "1 running");
    assert_eq!(said(&["stop", "-t", "-1", "front"]), "front");
    assert!(follow.wait().unwrap().success());
    assert_eq!(said(&["inspect", "-f", "{{.State.ExitCode}}", "front"]), "3");
    said(&["rm", "front"]);
}

#[test]
fn one_that_is_always_started_again_is_stopped_for_good() {
    said(&[
        "run",
        "-d",
        "--name",
        "always",
        "--restart",
        "always",
        "--network",
        "none",
        IMAGE,
        "sh",
        "-c",
        COUNTS,
    ]);
    let mut follow = super::life::command(&["logs", "-f", "always"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(follow.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "life 1");
    assert_eq!(lines.next().unwrap().unwrap(), "life 2");
    assert!(text(&mvm(&["exec", "always", "true"]).stderr).lines().count() <= 1);
    assert_eq!(said(&["stop", "always"]), "always");
    assert!(follow.wait().unwrap().success());
    let status = || said(&["ps", "-a", "--filter", "name=always", "--format", "{{.Status}}"]);
    assert!(status().starts_with("Exited ("), "{}", status());
    // A stop counts for the next start of the host, but for `always`.
    assert_eq!(said(&["system", "restore"]), "always");
    // Also while it waits for its next start.
    let start = Instant::now();
    while !status().starts_with("Restarting") {
        assert!(start.elapsed() < Duration::from_secs(100), "{}", status());
    }
    assert_eq!(said(&["kill", "always"]), "always");
    assert!(status().starts_with("Exited ("), "{}", status());
    assert_eq!(said(&["start", "always"]), "always");
    assert_eq!(said(&["rm", "-f", "always"]), "always");
    assert_eq!(said(&["system", "restore"]), "");
}

#[test]
fn one_that_is_left_by_keys_runs_on_and_is_attached_to_again() {
    let mut run = Terminal::of(super::life::command(&[
        "run",
        "-it",
        "--name",
        "shell",
        "--network",
        "none",
        IMAGE,
        "sh",
    ]));
    run.wait_for("# ", 1);
    let (_keeper, vm) = super::life::pids("shell");
    let errors = std::fs::read_to_string(format!("/proc/{vm}/fdinfo/2")).unwrap();
    let flags = errors.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim();
    assert!(flags.ends_with('1'), "the VM's process may read what its user types: {errors}");
    run.press("X=kept; echo $((40+2))\r");
    run.wait_for("42", 1);
    run.press("\x10\x11");
    run.wait_for("runs on", 1);
    assert!(run.finish().success());
    assert_eq!(said(&["inspect", "-f", "{{.State.Running}}", "shell"]), "true");
    // A further command ends without another key, and is left by the same ones.
    let mut exec =
        Terminal::of(super::life::command(&["exec", "-it", "shell", "sh", "-c", "echo $((30+3)); exit 5"]));
    exec.wait_for("33", 1);
    assert_eq!(exec.finish().code(), Some(5));
    let mut exec = Terminal::of(super::life::command(&["exec", "-it", "shell", "sh"]));
    exec.wait_for("# ", 1);
    exec.press("\x10\x11");
    assert_eq!(exec.finish().code(), Some(0));
    let noted = [
        "events",
        "--since",
        "1h",
        "--until",
        "0s",
        "--filter",
        "container=shell",
        "--format",
        "{{.Action}}",
    ];
    let noted = said(&noted);
    let ends: Vec<_> = noted.lines().filter(|action| ["exec_die", "exec_detach"].contains(action)).collect();
    assert_eq!(ends, ["exec_die", "exec_detach"], "{noted}");
    let mut attach = Terminal::of(super::life::command(&["attach", "shell"]));
    attach.press("\r");
    attach.wait_for("# ", 1);
    attach.press("stty size; echo $X-$((50+5)); exit 7\r");
    attach.wait_for("43 132", 1);
    attach.wait_for("kept-55", 1);
    assert_eq!(attach.finish().code(), Some(7));
    assert_eq!(said(&["wait", "shell"]), "7");
    said(&["rm", "shell"]);
}

#[test]
fn a_terminal_without_input_has_its_size_and_is_not_raw() {
    let script = "trap 'echo got it; exit 3' INT; while :; do stty size; sleep 0.1; done";
    let run = ["run", "-t", "--name", "shows", "--network", "none", IMAGE, "sh", "-c", script];
    let mut run = Terminal::of(super::life::command(&run));
    run.wait_for("43 132", 1);
    // Ctrl-C is a signal: its keys are not read.
    assert!(!run.is_raw());
    run.resize(100, 30);
    run.wait_for("30 100", 1);
    run.signal(Signal::INT);
    run.wait_for("got it", 1);
    assert_eq!(run.finish().code(), Some(3));
    let shown = "{{.Action}} {{.Actor.Attributes.height}} {{.Actor.Attributes.width}}";
    let filters = ["--filter", "container=shows", "--filter", "event=resize", "--format", shown];
    let noted = said(&[&["events", "--since", "1h", "--until", "0s"][..], &filters].concat());
    assert_eq!(noted, "resize 43 132\nresize 30 100");
    said(&["rm", "shows"]);
}

/// With `--sig-proxy=false` a signal ends the command, as with docker, and otherwise it is the container's.
#[test]
fn signals_are_the_containers_or_the_commands() {
    // Who gets a line has taken his signals before.
    let script = "trap 'echo got it; exit 3' TERM; while :; do echo line; sleep 0.1; done";
    let ended_by_signal = |arguments: &[&str]| {
        let mut child = super::life::command(arguments).stdout(Stdio::piped()).spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut lines = String::new();
        output.read_line(&mut lines).unwrap();
        assert_eq!(lines, "line\n");
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        output.read_to_string(&mut lines).unwrap();
        (child.wait().unwrap().code(), lines.contains("got it"))
    };
    let run = ["run", "--sig-proxy=false", "--name", "proxy", "--network", "none", IMAGE, "sh", "-c", script];
    assert_eq!(ended_by_signal(&run), (Some(143), false));
    assert_eq!(ended_by_signal(&["attach", "--sig-proxy=false", "proxy"]), (Some(143), false));
    assert_eq!(said(&["inspect", "-f", "{{.State.Running}}", "proxy"]), "true");
    assert_eq!(ended_by_signal(&["attach", "proxy"]), (Some(3), true));
    said(&["rm", "proxy"]);
}

#[test]
fn one_in_the_background_takes_input_of_those_who_attach() {
    start(&["-i", "--name", "cat", IMAGE, "sh", "-c", "while read a; do echo got $a; done; echo end"]);
    let (reader, mut writer) = std::io::pipe().unwrap();
    let mut attach =
        super::life::command(&["attach", "cat"]).stdin(reader).stdout(Stdio::piped()).spawn().unwrap();
    writer.write_all(b"one\n").unwrap();
    let mut lines = BufReader::new(attach.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "got one");
    // The end of one input is not that of the container.
    drop(writer);
    assert_eq!(said(&["inspect", "-f", "{{.State.Running}}", "cat"]), "true");
    attach.kill().unwrap();
    attach.wait().unwrap();
    let silent =
        super::life::command(&["attach", "--no-stdin", "cat"]).stdout(Stdio::piped()).spawn().unwrap();
    said(&["stop", "-t", "1", "cat"]);
    assert_eq!(silent.wait_with_output().unwrap().status.code(), Some(137));
    said(&["rm", "cat"]);
}

#[test]
fn limits_and_processes_of_one_that_runs_are_those_of_its_vm() {
    start(&["--name", "limits", "-m", "128m", "--cpus", "1", IMAGE, "sleep", "1000"]);
    let top = said(&["top", "limits"]);
    let lines: Vec<Vec<&str>> = top.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"], "{top}");
    assert!(lines.len() == 2 && lines[1][0] == "root" && lines[1][7..] == ["sleep", "1000"], "{top}");
    assert_eq!(
        said(&["update", "--memory", "64m", "--pids-limit", "9", "--cpus", "0.5", "limits"]),
        "limits"
    );
    let read = |name: &str| said(&["exec", "limits", "cat", &format!("/sys/fs/cgroup/{name}")]);
    assert_eq!(
        (read("memory.max"), read("pids.max"), read("cpu.max")),
        ("67108864".into(), "9".into(), "50000 100000".into())
    );
    let refused = mvm(&["update", "--memory", "1g", "limits"]);
    assert!(text(&refused.stderr).contains("its VM has "), "{refused:?}");
    assert_eq!(said(&["update", "--pids-limit", "-1", "limits"]), "limits");
    assert_eq!(read("pids.max"), "max");
    assert_eq!(said(&["inspect", "-f", "{{.HostConfig.Memory}}", "limits"]), "67108864");
    said(&["rm", "-f", "limits"]);
}

#[test]
fn health_is_checked_and_events_are_told() {
    let check = "test -e /good && echo is good";
    let options = ["--health-cmd", check, "--health-interval", "300ms", "--health-retries", "2"];
    let mut events =
        super::life::command(&["events", "--filter", "container=health", "--format", "{{.Action}}"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
    let mut actions = BufReader::new(events.stdout.take().unwrap()).lines().map(|line| line.unwrap());
    start(&[&options[..], &["--name", "health", IMAGE, "sleep", "1000"]].concat());
    assert_eq!(actions.by_ref().find(|action| action != "create").as_deref(), Some("start"));
    assert_eq!(actions.next().as_deref(), Some("health_status: unhealthy"));
    assert!(
        said(&["ps", "--filter", "health=unhealthy", "--format", "{{.Status}}"]).ends_with("(unhealthy)")
    );
    said(&["exec", "health", "touch", "/good"]);
    assert_eq!(
        actions.by_ref().find(|action| action.starts_with("health")).as_deref(),
        Some("health_status: healthy")
    );
    let form =
        "{{.State.Health.Status}} {{.State.Health.FailingStreak}} {{(index .State.Health.Log 0).ExitCode}}";
    assert!(said(&["inspect", "-f", form, "health"]).starts_with("healthy 0 "));
    said(&["stop", "-t", "0", "health"]);
    assert!(actions.by_ref().any(|action| action == "die"));
    events.kill().unwrap();
    events.wait().unwrap();
    said(&["rm", "health"]);
}
