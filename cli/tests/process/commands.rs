//! Commands that ask VMs, some of which do not answer.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::vm::{IDLE, Place, text};

/// What each command may take, and some time for a machine that is busy.
const QUICK: Duration = Duration::from_secs(3 + 5);

#[test]
fn a_vm_whose_process_is_stopped_is_listed_as_not_responding_and_holds_nothing_up() {
    let Some(place) = Place::new(IDLE) else { return };
    let vm = place.start(&[]);
    vm.signal(Signal::STOP);
    let run = |arguments: &[&str]| {
        let start = Instant::now();
        let output = place.mvm().args(arguments).output().unwrap();
        assert!(start.elapsed() < QUICK, "{arguments:?}: {:?}", start.elapsed());
        (output.status.code(), text(&output))
    };
    let (code, said) = run(&["ps"]);
    assert!(code == Some(0) && said.contains("not responding"), "{said}");
    let (_, said) = run(&["stats", "--no-stream"]);
    assert!(said.contains("not responding"), "{said}");
    let (code, said) = run(&["stop", "--time", "1", "vm"]);
    assert!(code == Some(0) && said.contains("VM vm: no answer, killed after"), "{said}");
}

#[test]
fn stop_says_when_it_had_to_kill() {
    let Some(place) = Place::new(IDLE) else { return };
    let vm = place.start(&[]);
    let output = place.mvm().args(["stop", "--time", "2", "vm"]).output().unwrap();
    assert_eq!(output.stdout, b"vm\n");
    assert!(text(&output).contains("mvm: VM vm: killed after 2 s"), "{}", text(&output));
    assert_eq!(vm.finish().0, Some(137));
}
