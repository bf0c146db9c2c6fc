//! Pulls that are interrupted, and pulls at once.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::place::{Place, run};
use crate::server::{Registry, Wants};

/// How often a pull is killed.
const RUNS: u32 = 30;
const LAYERS: [usize; 4] = [6 << 20, 3 << 20, 1 << 20, 2000];

/// A pull is killed at moments that are spread over the time that it takes; the process that works or the one that
/// waits for it. Each time nothing is half done, and the last one completes what the others have begun.
#[test]
fn killed_pulls_leave_nothing_half_done() {
    let registry = Registry::start(&Wants::default());
    let place = Place::new();
    let archive = place.archive(&LAYERS);
    registry.push(&place, &archive, "a:1", None);
    let image = format!("{}/a:1", registry.host);
    let start = Instant::now();
    let whole = Place::new();
    whole.succeed(&["pull", &image]);
    let time = start.elapsed();
    for number in 0..RUNS {
        let mut mvm = place.mvm(&["pull", &image]);
        let mut child = mvm.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // The time at which a process is killed is what is tested: there is no event to wait for.
        std::thread::sleep(time * (number * 7 % RUNS) / RUNS);
        let worker = worker_of(child.id());
        match worker.filter(|_| number % 2 == 0) {
            Some(worker) => drop(run_kill("-KILL", worker)),
            None => child.kill().unwrap(),
        }
        child.wait().unwrap();
        // The image is there as a whole, or not at all.
        if !place.succeed(&["images", "-q"]).is_empty() {
            place.succeed(&["save", "-o", "saved.tar", &image]);
            place.succeed(&["rmi", &image]);
        }
    }
    place.succeed(&["pull", &image]);
    place.check_store(LAYERS.len());
    assert_eq!(place.succeed(&["images", "-q"]), whole.succeed(&["images", "-q"]));
    for place in [&place, &whole] {
        place.succeed(&["save", "-o", place.path("saved.tar").to_str().unwrap(), &image]);
    }
    run(std::process::Command::new("cmp").args([place.path("saved.tar"), whole.path("saved.tar")]));
}

fn run_kill(signal: &str, process: u32) -> bool {
    std::process::Command::new("kill").args([signal, &process.to_string()]).status().unwrap().success()
}

/// The process that works for another one.
pub fn worker_of(process: u32) -> Option<u32> {
    let children = std::fs::read_to_string(format!("/proc/{process}/task/{process}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

/// Waits until the process that works is there.
pub fn wait_for_worker(process: u32) -> u32 {
    let start = Instant::now();
    loop {
        match worker_of(process) {
            Some(worker) => return worker,
            None => assert!(start.elapsed() < Duration::from_secs(20), "there is no process that works"),
        }
        std::thread::yield_now();
    }
}

#[test]
fn pulls_of_the_same_layers_at_once_share_the_work() {
    let registry = Registry::start(&Wants::default());
    let place = Place::new();
    registry.push(&place, &place.archive(&LAYERS), "a:1", None);
    let image = format!("{}/a:1", registry.host);
    let children: Vec<_> = (0..3)
        .map(|_| place.mvm(&["pull", &image]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap())
        .collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    place.check_store(LAYERS.len());
    let config = place.succeed(&["images", "-q", "--no-trunc"]);
    let got = registry.requests("\"GET /v2/a/blobs/");
    let got: Vec<&str> = got.iter().filter_map(|line| line.split('"').nth(1)).collect();
    let layers: Vec<&&str> = got.iter().filter(|line| !line.contains(config.trim())).collect();
    let different: BTreeSet<&&&str> = layers.iter().collect();
    assert_eq!((layers.len(), different.len()), (LAYERS.len(), LAYERS.len()), "{got:?}");
}
