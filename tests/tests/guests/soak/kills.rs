//! Commands of which one process is killed at a random moment.

use std::process::Stdio;
use std::time::{Duration, Instant};

use super::super::containers::IMAGE;
use super::super::passt::Uplink;
use super::host::{Host, Shared};
use super::processes::{Kind, all, kill, spawn};
use crate::counts::{Random, count, report};

/// What a test does, which is repeated.
struct Case {
    name: &'static str,
    /// Whether the container `base` runs meanwhile.
    with_base: bool,
    /// A command that makes what it needs.
    before: &'static [&'static str],
    command: &'static [&'static str],
    /// Which processes are killed, one after the other.
    victims: &'static [Kind],
}

const RUN: &[&str] = &[
    "run",
    "-d",
    "--name",
    "new",
    "--network",
    "user",
    "-p",
    "127.0.0.1:8099:80",
    "-v",
    "named:/named",
    "-v",
    "/anonymous",
    "-v",
    "./share:/share",
    IMAGE,
    "sh",
    "-c",
    "echo written >/named/file; exec sleep 1000",
];
const CREATE: &[&str] =
    &["create", "--name", "new", "--network", "none", "-v", "/anonymous", IMAGE, "sleep", "1000"];
const OWN: &[Kind] = &[Kind::Command, Kind::Keeper, Kind::Vm];
const WITH_WORKER: &[Kind] = &[Kind::Command, Kind::Worker, Kind::Vm, Kind::Keeper];

const CASES: &[Case] = &[
    Case {
        name: "run",
        with_base: false,
        before: &[],
        command: RUN,
        victims: &[Kind::Command, Kind::Keeper, Kind::Vm, Kind::Virtiofsd, Kind::Passt],
    },
    Case { name: "start", with_base: false, before: CREATE, command: &["start", "new"], victims: OWN },
    Case { name: "rm", with_base: false, before: RUN, command: &["rm", "-fv", "new"], victims: OWN },
    Case {
        name: "exec",
        with_base: true,
        before: &[],
        command: &["exec", "base", "sh", "-c", "cat /etc/passwd; echo x >/tmp/x"],
        victims: OWN,
    },
    Case {
        name: "cp from",
        with_base: true,
        before: &[],
        command: &["cp", "-q", "base:/bin/busybox", "copy"],
        victims: WITH_WORKER,
    },
    Case {
        name: "cp to",
        with_base: true,
        before: &[],
        command: &["cp", "-q", "share", "base:/tmp/copy"],
        victims: OWN,
    },
    Case {
        name: "commit",
        with_base: true,
        before: &[],
        command: &["commit", "base", "local:1"],
        victims: WITH_WORKER,
    },
    Case {
        name: "cp from one that has ended",
        with_base: false,
        before: &[],
        command: &["cp", "-q", "kept:/file", "copy"],
        victims: &[Kind::Command, Kind::Worker, Kind::Vm],
    },
];

/// A name that a test has for each case, so that one of them can be run.
macro_rules! cases {
    ($($test:ident: $number:expr,)*) => {
        $(#[test]
        fn $test() {
            repeat(&CASES[$number]);
        })*
    };
}

cases! {
    run_that_is_killed: 0,
    start_that_is_killed: 1,
    rm_that_is_killed: 2,
    exec_that_is_killed: 3,
    cp_from_a_container_that_is_killed: 4,
    cp_to_a_container_that_is_killed: 5,
    commit_that_is_killed: 6,
    cp_from_one_that_has_ended_that_is_killed: 7,
}

fn repeat(case: &Case) {
    let (start, times, mut random) = (Instant::now(), count("KILLS", 2), Random::of(case.name));
    let uplink = Uplink::new(false);
    let host = Shared::take();
    let has_network = uplink.is_some();
    let run = |arguments: &[&str]| {
        let arguments: Vec<&str> = arguments
            .iter()
            .map(|word| if *word == "user" && !has_network { "none" } else { *word })
            .collect();
        host.run(&arguments)
    };
    let base = host.truth();
    let prepare = || {
        if case.with_base && host.said(&["ps", "-q", "--filter", "name=base"]).is_empty() {
            host.run(&["rm", "-f", "base"]);
            host.start("base", &[], "while :; do date >/ticks; sleep 0.1; done");
        }
        if !case.before.is_empty() {
            assert!(run(case.before).status.success(), "{:?}", case.before);
        }
    };
    prepare();
    let command = Instant::now();
    let output = run(case.command);
    assert!(output.status.success(), "{}: {output:?}", case.name);
    let takes = command.elapsed();
    undo(&host);
    let first = random.below(100);
    for number in 0..times {
        prepare();
        let victim = case.victims[usize::try_from(first + number).unwrap() % case.victims.len()];
        let moment = takes.mul_f64(f64::from(u32::try_from(random.below(110)).unwrap()) / 100.0);
        let said = interrupt(&host, case, victim, moment, has_network);
        let context = format!("{}: {victim:?} killed after {moment:?} of {takes:?}, {said}", case.name);
        eprintln!("{context}");
        host.settle();
        host.check_kept();
        // What runs can be used, and has its files.
        for name in host.said(&["ps", "--format", "{{.Names}}"]).lines() {
            let exec = host.run(&["exec", name, "true"]);
            let is_ours = name == "base" || name == "new";
            assert!(
                is_ours && (exec.status.success() || is_starting(&host, name)),
                "{context}: {name}: {exec:?}"
            );
        }
        undo(&host);
    }
    prepare();
    let output = run(case.command);
    assert!(output.status.success(), "{}: {output:?}", case.name);
    undo(&host);
    let removed = host.run(&["rm", "-f", "base"]);
    assert!(removed.status.success(), "{removed:?}");
    host.settle();
    assert!(all().is_empty(), "{:?}", all());
    assert_eq!(host.truth(), base, "{}", case.name);
    if case.command.contains(&"kept:/file") {
        host.check_content();
    }
    report(&format!("{} killed", case.name), times, start, &format!("takes {takes:.2?}"));
}

/// Whether the command of a container has not begun yet, or has ended meanwhile.
fn is_starting(host: &Host, name: &str) -> bool {
    let state = host.run(&["inspect", "-f", "{{.State.StartedAt}} {{.State.Running}}", name]);
    let state = String::from_utf8(state.stdout).unwrap();
    state.starts_with("0001") || state.trim_end().ends_with("false")
}

/// Runs the command, and kills one of its processes after so long; what came of it.
fn interrupt(host: &Host, case: &Case, victim: Kind, moment: Duration, has_network: bool) -> String {
    let mut command = host.mvm(&[]);
    command
        .args(case.command.iter().map(|word| if *word == "user" && !has_network { "none" } else { *word }));
    let mut child = spawn(command.stdout(Stdio::null()).stderr(Stdio::piped()));
    // The moment is what is tested: there is no event to wait for.
    std::thread::sleep(moment);
    let victims: Vec<_> = all().into_iter().filter(|process| process.kind == victim).collect();
    if victims.is_empty() || victim == Kind::Command {
        child.kill().unwrap();
    } else {
        victims.iter().for_each(kill);
    }
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    // One that failed has said so in one line, unless it was killed itself.
    if output.status.code().is_some_and(|code| code != 0) {
        assert!(
            errors.starts_with("mvm: ") && errors.lines().count() == 1,
            "{victim:?}, {moment:?}: {errors}"
        );
    }
    format!("{}: {}", output.status, errors.trim_end())
}

/// Takes back what a command has done if it has.
fn undo(host: &Host) {
    let removed = host.run(&["rm", "-fv", "new"]);
    assert!(removed.status.success(), "{removed:?}");
    host.said(&["rmi", "-f", "local:1"]);
    host.prune();
    let _ = std::fs::remove_file(host.path("copy"));
}
