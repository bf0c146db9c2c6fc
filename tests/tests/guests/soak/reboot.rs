//! A host that goes down while everything is at work, and comes back.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use super::super::containers::{IMAGE, text};
use super::host::{Host, Shared};
use super::processes::spawn;
use crate::counts::{Random, count, report};

/// Commands that are under way when the host goes down.
const WORK: &[&[&str]] = &[
    &["run", "-d", "--name", "new", "--network", "none", "-v", "/anonymous", IMAGE, "sleep", "1000"],
    &["exec", "always", "sh", "-c", "while :; do date; done"],
    &["cp", "-q", "always:/bin/busybox", "copy"],
    &["commit", "always", "local:1"],
    &["run", "--rm", "--network", "none", "-v", "/anonymous", IMAGE, "true"],
    &["volume", "create", "named"],
];

#[test]
fn what_had_succeeded_is_there_when_the_host_comes_back() {
    let (start, times, mut random) = (Instant::now(), count("REBOOTS", 1), Random::of("reboot"));
    let host = Shared::take();
    let base = host.truth();
    let lives = "echo x >>/lives; echo x >>/volume/lives; sync; echo up; while :; do sleep 0.1; done";
    host.start("always", &["--restart", "always", "--label", "keep", "-v", "volume:/volume"], lives);
    host.start("once", &[], "trap 'exit 0' TERM; while :; do sleep 0.1; done");
    host.start("stopped", &["--restart", "unless-stopped"], "sleep 1000");
    stop(&host);
    for life in 1..=times {
        wait_for_lives(&host, life);
        let work: Vec<Child> = WORK.iter().map(|arguments| begin(&host, arguments)).collect();
        // The moment is what is tested: there is no event to wait for.
        std::thread::sleep(Duration::from_millis(random.below(6000)));
        host.go_down();
        for mut child in work {
            child.wait().unwrap();
        }
        host.check_kept();
        let state = |name: &str| host.said(&["inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", name]);
        assert_eq!(state("always"), "exited 255");
        assert_eq!(state("stopped"), "exited 137");
        assert_eq!(host.said(&["ps", "-q"]), "");
        // What is half done goes.
        host.said(&["rmi", "-f", "local:1"]);
        host.prune();
        assert_eq!(host.said(&["system", "restore"]), "always");
        assert_eq!(host.said(&["ps", "--format", "{{.Names}}"]), "always");
        host.start("once", &[], "sleep 1000");
        host.start("stopped", &["--restart", "unless-stopped"], "sleep 1000");
        stop(&host);
    }
    wait_for_lives(&host, times + 1);
    host.said(&["rm", "-fv", "always", "once", "stopped"]);
    let _ = std::fs::remove_file(host.path("copy"));
    host.prune();
    host.settle();
    assert_eq!(host.truth(), base);
    host.check_content();
    report("the host went down", times, start, "");
}

/// Stops the container that stays so, which does not hear that it is to end, as mvm says.
fn stop(host: &Host) {
    let output = host.run(&["stop", "-t", "0", "stopped"]);
    let said = (output.status.code(), text(&output.stdout));
    assert_eq!(said, (Some(0), "stopped\n".into()));
    let errors = text(&output.stderr);
    assert!(errors.starts_with("mvm: stopped: killed after ") && errors.lines().count() == 1, "{errors}");
}

fn begin(host: &Host, arguments: &[&str]) -> Child {
    spawn(host.mvm(arguments).stdout(Stdio::null()).stderr(Stdio::null()))
}

/// Waits until `always` runs for so many times, and has what it wrote in each.
fn wait_for_lives(host: &Host, lives: u64) {
    let start = Instant::now();
    let count = || host.said(&["logs", "always"]).lines().filter(|line| *line == "up").count();
    while u64::try_from(count()).unwrap() < lives {
        assert!(start.elapsed() < Duration::from_secs(60), "it is not up");
    }
    for file in ["/lives", "/volume/lives"] {
        let lines = host.said(&["exec", "always", "sh", "-c", &format!("wc -l <{file}")]);
        assert_eq!(lines.trim(), lives.to_string(), "{file}");
    }
}
