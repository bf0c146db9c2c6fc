use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use instance::keeper::{Child, Tie};
use jail::Report;
use serde_json::json;

use super::keeper_side::VmProcess;
use super::messages::{Fault, FromVm, Message};

/// A program in a group of its own that runs until it is ended.
fn program() -> (std::process::Child, Child) {
    let program = Command::new("sleep").arg("infinity").process_group(0).spawn().unwrap();
    let seen = Child::of(&program).unwrap();
    (program, seen)
}

/// Expects that `vm` is killed for what it has said.
fn expect_refused(vm: &VmProcess) {
    let Some(FromVm::Failed(failure)) = vm.receive() else { panic!("it is taken") };
    assert_eq!(failure.fault, Fault::Guest);
    assert_eq!(vm.wait(Duration::from_secs(10)), Some(128 + 9));
}

#[test]
fn a_vm_that_was_taken_over_has_no_other_processes_ended() {
    let ((_process, child), (mut other, seen)) = (program(), program());
    let (ours, theirs) = Tie::pair().unwrap();
    let vm = VmProcess::of(ours, child);
    let confined = |helpers| Message::Confined { report: Report::default(), helpers };
    theirs.send(&confined(Vec::new())).unwrap();
    theirs.send(&confined(vec![other.id()])).unwrap();
    expect_refused(&vm);
    assert_eq!(seen.wait(Some(Duration::ZERO)), None, "it was ended");
    other.kill().unwrap();
    other.wait().unwrap();
}

#[test]
fn a_vm_that_says_what_is_not_understood_is_killed() {
    let long = "x".repeat(70_000);
    for said in [json!(7), json!({ "Ended": {} }), json!([]), json!({ "NewConsole": null }), json!(long)] {
        let (_process, child) = program();
        let (ours, theirs) = Tie::pair().unwrap();
        theirs.send(&said).unwrap();
        expect_refused(&VmProcess::of(ours, child));
    }
}
