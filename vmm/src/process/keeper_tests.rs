use std::fs::Permissions;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use instance::keeper::{Child, Tie};
use jail::Report;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::json;

use super::keeper_side::{Taken, VmProcess};
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

/// Its copy keeps the socket open, as one of a process that was taken over does.
#[test]
#[expect(clippy::zombie_processes, reason = "it is waited for by its descriptor")]
fn a_vm_that_has_left_a_copy_has_ended_and_its_copy_ends() {
    let (ours, theirs) = Tie::pair().unwrap();
    theirs.send(&FromVm::Built).unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", "sleep infinity & exit 3"]).process_group(0);
    command.stdout(theirs.as_fd().try_clone_to_owned().unwrap());
    let process = command.spawn().unwrap();
    drop((theirs, command));
    let watched = ours.as_fd().try_clone_to_owned().unwrap();
    let vm = VmProcess::of(ours, Child::of(&process).unwrap());
    assert!(matches!(vm.receive(), Some(FromVm::Built)));
    assert!(vm.receive().is_none());
    assert_eq!(vm.wait(Duration::from_secs(10)), Some(3));
    let limit = Timespec::try_from(Duration::from_secs(10)).unwrap();
    let mut closed = [PollFd::new(&watched, PollFlags::empty())];
    assert_eq!(poll(&mut closed, Some(&limit)), Ok(1), "the copy lives");
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

#[test]
fn a_vm_that_says_too_much_is_read_slowly_and_to_its_end() {
    let (_process, child) = program();
    let (ours, theirs) = Tie::pair().unwrap();
    let vm = VmProcess::of(ours, child);
    let start = Instant::now();
    let flood = std::thread::spawn(move || {
        let mut sent = 0;
        while sent < 1500 {
            // There is no room until some are read.
            match theirs.send(&FromVm::Printed) {
                Ok(()) => sent += 1,
                Err(error) => {
                    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
                    std::thread::yield_now();
                }
            }
        }
    });
    let mut heard = 0;
    while vm.receive().is_some() {
        heard += 1;
    }
    // A thousand at once, and then each millisecond one.
    let took = start.elapsed();
    assert!(heard == 1500 && took >= Duration::from_millis(499), "{heard} in {took:?}");
    flood.join().unwrap();
    vm.kill();
}

#[test]
fn a_new_console_file_has_the_mode_of_the_old_one_whatever_the_vm_says() {
    let directory = tempfile::tempdir().unwrap();
    let [path, moved] = ["console", "moved"].map(|name| directory.path().join(name));
    std::fs::write(&path, "old").unwrap();
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    std::fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
    let (_process, child) = program();
    let (ours, theirs) = Tie::pair().unwrap();
    let vm = VmProcess::with_console(ours, child, path.clone());
    theirs.send(&Message::Confined { report: Report::default(), helpers: Vec::new() }).unwrap();
    assert!(matches!(vm.take(vm.wait_for_message()), Taken::Handled));
    let file = path.metadata().unwrap();
    let full = json!({ "NewConsole": { "device": file.dev(), "inode": file.ino(), "mode": 0o777 } });
    theirs.send(&full).unwrap();
    assert!(matches!(vm.take(vm.wait_for_message()), Taken::Handled));
    assert_eq!(std::fs::read(directory.path().join("console.1")).unwrap(), b"old");
    assert_eq!(mode(&path), 0o640);
    // Another program has renamed it.
    std::fs::rename(&path, &moved).unwrap();
    theirs.send(&full).unwrap();
    assert!(matches!(vm.take(vm.wait_for_message()), Taken::Handled));
    assert_eq!((mode(&path), moved.exists()), (0o640, true));
    vm.kill();
}
