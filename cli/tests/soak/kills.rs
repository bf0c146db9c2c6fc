//! Commands that are killed at random moments.

use std::process::{Command, Stdio};
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};

use crate::counts::{Random, count, report};
use crate::host::{CASES, Case, Host};
use crate::place::Place;
use crate::server::{Registry, Wants};

/// Whom a test kills.
#[derive(Clone, Copy, Debug)]
enum Victim {
    Command,
    Worker,
    Both,
}

/// A registry with the image `other:1`.
pub fn registry() -> Registry {
    let (registry, place) = (Registry::start(&Wants::default()), Place::new());
    registry.push(&place, &place.archive(&[1 << 20, 100_000, 2000]), "other:1", None);
    registry
}

#[test]
fn commands_that_are_killed_lose_nothing_and_leave_nothing() {
    let (registry, times) = (registry(), count("KILLS", 5));
    let host = Host::new(&registry.host, |_| None);
    let base = host.truth();
    for case in CASES {
        let (start, mut random) = (Instant::now(), Random::of(case.name));
        prepare(&host, case);
        // How long it takes, and its second time has all that the first one made.
        let command = Instant::now();
        host.said(case.command);
        let takes = u64::try_from(command.elapsed().as_micros()).unwrap();
        host.undo();
        assert_eq!(host.truth(), base, "{}: undone", case.name);
        for _ in 0..times {
            prepare(&host, case);
            let victim =
                [Victim::Command, Victim::Worker, Victim::Both][usize::try_from(random.below(3)).unwrap()];
            let moment = random.below(takes * 11 / 10);
            kill(&host, case, victim, moment);
            host.wait_for_processes();
            host.check_kept();
            host.prune();
            host.undo();
            assert_eq!(host.truth(), base, "{}: {victim:?} killed after {moment} us of {takes}", case.name);
        }
        prepare(&host, case);
        host.said(case.command);
        host.undo();
        assert_eq!(host.truth(), base, "{}: once more", case.name);
        report(&format!("{} killed", case.name), times, start, "");
    }
}

fn prepare(host: &Host, case: &Case) {
    for arguments in case.before {
        host.said(arguments);
    }
}

/// Runs the command, and kills it or the process that works for it after so many microseconds.
fn kill(host: &Host, case: &Case, victim: Victim, moment: u64) {
    let mut command: Command = host.mvm(case.command);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    // The moment is what is tested: there is no event to wait for.
    std::thread::sleep(std::time::Duration::from_micros(moment));
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id()));
    let worker = children.ok().and_then(|text| text.split_whitespace().next()?.parse().ok());
    if let (Victim::Worker | Victim::Both, Some(worker)) = (victim, worker) {
        // It may have ended since.
        let _ = kill_process(Pid::from_raw(worker).unwrap(), Signal::KILL);
    }
    if !matches!(victim, Victim::Worker) || worker.is_none() {
        child.kill().unwrap();
    }
    child.wait().unwrap();
}
