//! Containers that are used for long, by many commands, and by some that do not answer or go away.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::super::containers::{IMAGE, text};
use super::host::{Host, Shared};
use super::processes::{Kind, all, signal, spawn, wait_until};
use crate::counts::{count, report};

/// What the processes of a container have open: its keeper, its VM, and all of the VM's guest.
#[derive(Clone, Copy, Debug)]
struct Open {
    keeper: usize,
    vm: usize,
    guest: usize,
}

/// The guest's kernel counts open files on each processor, and adds them up now and then.
const GUEST_IS_EXACT_TO: usize = 64;

impl Open {
    fn of(host: &Host, name: &str) -> Self {
        let keeper = host.said(&["inspect", "-f", "{{.State.Pid}}", name]).parse().unwrap();
        let vm =
            all().into_iter().find(|process| process.parent == keeper && process.kind == Kind::Vm).unwrap();
        let files = |pid: i32| std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
        let guest = host.said(&["exec", name, "cut", "-f", "1", "/proc/sys/fs/file-nr"]).parse().unwrap();
        Self { keeper: files(keeper), vm: files(vm.pid), guest }
    }
}

/// A command whose input and output are pipes.
struct Piped {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Piped {
    fn new(host: &Host, arguments: &[&str]) -> Self {
        let mut command = host.timed(arguments);
        let mut child = spawn(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
        Self { output: BufReader::new(child.stdout.take().unwrap()), child }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line
    }

    fn close_input(&mut self) {
        drop(self.child.stdin.take());
    }

    /// The exit code, and the rest of the output.
    fn finish(mut self) -> (Option<i32>, String) {
        let mut rest = String::new();
        self.output.read_to_string(&mut rest).unwrap();
        (self.child.wait().unwrap().code(), rest)
    }
}

#[test]
fn a_container_that_is_used_for_long_keeps_its_streams_and_leaks_nothing() {
    let idle = Duration::from_secs(count("IDLE", 30));
    let host = Shared::take();
    host.start("base", &["-m", "512m", "--cpus", "1"], "while :; do echo tick; sleep 0.2; done");
    let start = Instant::now();
    let mut waits =
        Piped::new(&host, &["exec", "-i", "base", "sh", "-c", "echo ready; read a; echo got $a; cat"]);
    let after = format!("cat; echo ended; sleep {}; echo after", idle.as_secs());
    let mut half = Piped::new(&host, &["exec", "-i", "base", "sh", "-c", &after]);
    assert_eq!(waits.line(), "ready\n");
    half.close_input();
    assert_eq!(half.line(), "ended\n");

    let before = Open::of(&host, "base");
    one_after_the_other(&host);
    at_once(&host);
    readers_that_go(&host);
    beside_one_that_does_not_answer(&host);
    let opened = wait_until_closed(&host, before);

    // What is waited for is that nothing happens on the streams.
    std::thread::sleep(idle.saturating_sub(start.elapsed()));
    waits.child.stdin.as_mut().unwrap().write_all(b"word\nmore\n").unwrap();
    assert_eq!(waits.line(), "got word\n");
    waits.close_input();
    assert_eq!(waits.finish(), (Some(0), "more\n".into()));
    assert_eq!(half.finish(), (Some(0), "after\n".into()));
    host.said(&["rm", "-f", "base"]);
    host.settle();
    report("seconds without a byte", idle.as_secs(), start, &format!("open {before:?}, then {opened:?}"));
}

/// Waits until no more is open than `before`.
fn wait_until_closed(host: &Host, before: Open) -> Open {
    let start = Instant::now();
    loop {
        let now = Open::of(host, "base");
        if now.keeper <= before.keeper && now.vm <= before.vm && now.guest <= before.guest + GUEST_IS_EXACT_TO
        {
            return now;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "open before: {before:?}, now: {now:?}");
    }
}

fn one_after_the_other(host: &Host) {
    let (start, times) = (Instant::now(), count("EXECS", 20));
    for number in 0..times {
        assert_eq!(host.said(&["exec", "base", "echo", &number.to_string()]), number.to_string());
    }
    report("exec one after the other", times, start, "");
}

/// Those beyond the limit of an agent are refused, in one line.
fn at_once(host: &Host) {
    let (start, times) = (Instant::now(), count("EXECS_AT_ONCE", 100));
    let mut children: Vec<Child> = Vec::new();
    for _ in 0..times {
        let mut command = host.timed(&["exec", "base", "sh", "-c", "echo runs; sleep 3"]);
        children.push(spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped())));
    }
    let (mut ran, mut refused) = (0, 0);
    for child in children {
        let output = child.wait_with_output().unwrap();
        let (said, errors) = (text(&output.stdout), text(&output.stderr));
        match output.status.code() {
            Some(0) => {
                assert_eq!((&*said, &*errors), ("runs\n", ""));
                ran += 1;
            }
            Some(126) => {
                let is_line = errors.lines().count() == 1 && errors.contains("runs 64 commands");
                assert!(is_line && said.is_empty(), "{errors}");
                refused += 1;
            }
            code => panic!("{code:?}: {errors}"),
        }
    }
    assert!(ran >= times.min(62), "{ran} ran, {refused} were refused");
    report("exec at once", times, start, &format!("{ran} ran, {refused} were refused"));
}

/// Readers that go away end what they read, and nothing else: a command that shows something is done then, and one that
/// runs something ends as if SIGPIPE had killed it.
fn readers_that_go(host: &Host) {
    let (start, times) = (Instant::now(), count("READERS", 2));
    let readers = [(&["logs", "-f", "base"][..], "tick\n", 0), (&["exec", "base", "yes"], "y\n", 141)];
    for _ in 0..times {
        for (arguments, expected, code) in readers {
            let mut reader = Piped::new(host, arguments);
            assert_eq!(reader.line(), expected);
            drop(reader.output);
            assert_eq!(reader.child.wait().unwrap().code(), Some(code), "{arguments:?}");
        }
    }
    report("readers that went away", times, start, "");
}

/// Commands for other containers, and those that list all, do not wait for a VM that is stopped.
fn beside_one_that_does_not_answer(host: &Host) {
    let start = Instant::now();
    let id = host.start("stuck", &[], "sleep 1000");
    host.start("other", &[], "sleep 1000");
    let keeper: i32 = host.said(&["inspect", "-f", "{{.State.Pid}}", &id]).parse().unwrap();
    let vm = all().into_iter().find(|process| process.parent == keeper && process.kind == Kind::Vm).unwrap();
    signal(vm.pid, Signal::STOP);
    let mut figures = String::new();
    for arguments in [
        &["ps"][..],
        &["ps", "-a"],
        &["stats", "--no-stream"],
        &["inspect", "stuck"],
        &["stop", "-t", "1", "other"],
    ] {
        let (start, output) = (Instant::now(), host.run(arguments));
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        // Figures of a lab say nothing of a host; this is for one that waits.
        assert!(start.elapsed() < Duration::from_secs(20), "{arguments:?}: {:?}", start.elapsed());
        figures += &format!("{} {:.1?}, ", arguments[0], start.elapsed());
    }
    assert_eq!(host.said(&["rm", "-f", "stuck", "other"]), "stuck\nother");
    wait_until("it was removed", |all| all.iter().all(|process| process.pid != vm.pid));
    report("commands beside a VM that is stopped", 5, start, figures.trim_end_matches(", "));
}

#[test]
fn many_containers_at_once_end_and_leave_nothing() {
    let (start, times) = (Instant::now(), count("CONTAINERS", 6));
    let host = Shared::take();
    let base = host.truth();
    let mut children = Vec::new();
    for number in 0..times {
        let run = [
            "run",
            "--rm",
            "--network",
            "none",
            "-m",
            "64m",
            "--cpus",
            "1",
            IMAGE,
            "echo",
            &number.to_string(),
        ];
        let mut command: Command = host.timed(&run);
        children.push(spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped())));
    }
    for (number, child) in children.into_iter().enumerate() {
        let output = child.wait_with_output().unwrap();
        let said = (output.status.code(), text(&output.stdout), text(&output.stderr));
        assert_eq!(said, (Some(0), format!("{number}\n"), String::new()));
    }
    host.settle();
    assert!(all().is_empty(), "{:?}", all());
    assert_eq!(host.truth(), base);
    report("containers at once", times, start, "");
}
