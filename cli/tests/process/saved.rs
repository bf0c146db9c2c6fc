//! VMs that are saved beside their record, and go on from there.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::process::Stdio;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};

use crate::forks::boot;
use crate::snapshots::{Ends, disk_of, mvm};
use crate::vm::{Place, TALKS};

fn state(place: &Place) -> String {
    mvm(place, &["ps", "-a", "--filter", "name=one", "--format", "{{.ID}} {{.State}} {{.Status}}"]).1
}

#[test]
fn a_vm_that_is_saved_has_no_process_and_goes_on_as_itself() {
    let Some(place) = Place::new(TALKS) else { return };
    let _ends = Ends(&place);
    let disk = place.path("disk");
    fs::write(&disk, [7; 8192]).unwrap();
    boot(&place, &["--disk", disk.to_str().unwrap()]);
    let id = state(&place)[..12].to_owned();
    for _ in 0..2 {
        let log = || mvm(&place, &["logs", "one"]).1;
        assert_eq!(mvm(&place, &["pause", "--save", "one"]), (Some(0), "one\n".into()));
        assert_eq!(state(&place), format!("{id} paused Saved\n"));
        let before = log();
        for arguments in [&["exec", "one", "true"][..], &["start", "one"], &["rm", "one"], &["fork", "one"]] {
            let (code, said) = mvm(&place, arguments);
            assert!(code != Some(0) && said.contains("it is saved: `mvm resume`"), "{arguments:?}: {said}");
        }
        assert_eq!(mvm(&place, &["resume", "one"]), (Some(0), "one\n".into()));
        assert!(state(&place).starts_with(&format!("{id} running Up")), "{}", state(&place));
        // What it had printed stays, and it prints more.
        while log().len() <= before.len() {}
        assert!(log().starts_with(&before));
        assert_eq!(disk_of(&place, "one").0, disk);
    }
    let (code, said) = mvm(&place, &["resume", "one"]);
    assert!(code == Some(1) && said.contains("it is not paused"), "{said}");
    assert_eq!(mvm(&place, &["pause", "--save", "one"]).0, Some(0));
    // Another one writes to its disk.
    OpenOptions::new().write(true).open(&disk).unwrap().write_all_at(&[8; 100], 0).unwrap();
    let (code, said) = mvm(&place, &["resume", "one"]);
    assert!(code == Some(1) && said.contains("has changed since it was saved"), "{said}");
    assert_eq!(state(&place), format!("{id} paused Saved\n"));
    assert_eq!(mvm(&place, &["kill", "one"]).0, Some(0));
    assert!(state(&place).starts_with(&format!("{id} exited Exited (137)")), "{}", state(&place));
    assert_eq!(mvm(&place, &["rm", "one"]).0, Some(0));
    assert!(place.is_clean());
}

#[test]
fn what_can_t_go_on_stays_saved() {
    let Some(place) = Place::new(TALKS) else { return };
    let _ends = Ends(&place);
    boot(&place, &["--rm"]);
    assert_eq!(mvm(&place, &["pause", "one"]).0, Some(0));
    assert_eq!(mvm(&place, &["pause", "--save", "one"]).0, Some(0));
    let instances = place.path("data").join("instances");
    let own = fs::read_dir(&instances).unwrap().map(|entry| entry.unwrap().path());
    let saved = own.map(|path| path.join("saved")).find(|path| path.exists()).unwrap();
    let (whole, vm) = (fs::read(saved.join("state")).unwrap(), fs::read(saved.join("vm.json")).unwrap());
    for (content, expected) in [(&b"not a state"[..], "state"), (&whole[..whole.len() / 2], "state")] {
        fs::write(saved.join("state"), content).unwrap();
        let (code, said) = mvm(&place, &["resume", "one"]);
        assert!(code == Some(1) && said.contains(expected) && said.lines().count() == 1, "{code:?}: {said}");
        assert!(state(&place).ends_with(" paused Saved\n"), "{}", state(&place));
    }
    fs::write(saved.join("state"), &whole).unwrap();
    // A process that was killed while it was about to go on.
    fs::rename(&saved, saved.with_file_name("resuming")).unwrap();
    assert_eq!(mvm(&place, &["resume", "one"]), (Some(0), "one\n".into()));
    assert!(state(&place).contains(" running Up"), "{}", state(&place));
    assert_eq!(mvm(&place, &["pause", "--save", "one"]).0, Some(0));
    assert_eq!(mvm(&place, &["rm", "-f", "one"]).0, Some(0));
    assert_eq!(state(&place), "");
    // Saved by a process that was killed before it ended the VM, which has run on and ends otherwise.
    boot(&place, &[]);
    let mut own = fs::read_dir(&instances).unwrap().map(|entry| entry.unwrap().path());
    let own = own.find(|path| path.join("record.json").exists()).unwrap();
    fs::create_dir(own.join("saved.new")).unwrap();
    fs::write(own.join("saved.new/vm.json"), vm).unwrap();
    assert_eq!(mvm(&place, &["kill", "one"]).0, Some(0));
    assert!(state(&place).contains(" exited Exited (137)"), "{}", state(&place));
    assert_eq!(fs::read_dir(&own).unwrap().filter(|file| file.as_ref().unwrap().path().is_dir()).count(), 0);
    assert_eq!(mvm(&place, &["rm", "one"]).0, Some(0));
    assert!(place.is_clean());
}

/// Only one command saves a VM at a time, and one that is interrupted lets it run on, or has saved it.
#[test]
fn a_save_that_is_interrupted_leaves_a_vm_that_runs_or_is_saved() {
    let Some(place) = Place::new(TALKS) else { return };
    let _ends = Ends(&place);
    boot(&place, &[]);
    let instances = place.path("data").join("instances");
    let mut own = fs::read_dir(&instances).unwrap().map(|entry| entry.unwrap().path());
    let own = own.find(|path| path.join("record.json").exists()).unwrap();
    let (mut saved, mut gave_up) = (0, 0);
    for milliseconds in (0..60).step_by(3).map(Some).chain([None]) {
        let mut command = place.mvm();
        command.env("MVM_DATA_DIR", place.path("data")).args(["pause", "--save", "one"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        if let Some(milliseconds) = milliseconds {
            std::thread::sleep(Duration::from_millis(milliseconds));
            let _ = kill_process(Pid::from_child(&child), Signal::TERM);
        }
        let status = child.wait().unwrap();
        assert!(!own.join("saved.new").exists(), "after {milliseconds:?} ms: {status}");
        let now = state(&place);
        if now.ends_with(" paused Saved\n") {
            saved += 1;
            assert_eq!(mvm(&place, &["resume", "one"]).0, Some(0));
        } else {
            gave_up += 1;
            assert!(
                now.contains(" running Up") && !status.success(),
                "after {milliseconds:?} ms: {status}: {now}"
            );
        }
    }
    assert!(saved > 0 && gave_up > 0, "{saved} {gave_up}");
    // Another command is at it.
    let lock = OpenOptions::new().write(true).open(own.join("saving")).unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    let (code, said) = mvm(&place, &["pause", "--save", "one"]);
    assert!(code == Some(1) && said.contains("it is being saved by another command"), "{code:?}: {said}");
    assert!(state(&place).contains(" running Up"));
    drop(lock);
    assert_eq!(mvm(&place, &["pause", "--save", "one"]).0, Some(0));
    assert_eq!(mvm(&place, &["rm", "-f", "one"]).0, Some(0));
    assert!(place.is_clean());
}

/// What a VM's process says of the VM counts for nothing; its keeper has noted what it was started with.
#[test]
fn a_vm_whose_read_only_disk_was_replaced_is_neither_saved_nor_copied() {
    let Some(place) = Place::new(TALKS) else { return };
    let _ends = Ends(&place);
    let disk = place.path("disk");
    fs::write(&disk, [7; 4096]).unwrap();
    boot(&place, &["--disk", &format!("{},readonly", disk.display())]);
    let snapshot = place.path("one.snap");
    fs::write(&disk, [8; 4096]).unwrap();
    for arguments in [
        &["pause", "--save", "one"][..],
        &["fork", "one", "--name", "two"],
        &["snapshot", "one", snapshot.to_str().unwrap()],
    ] {
        let (code, said) = mvm(&place, arguments);
        assert!(
            code == Some(1) && said.contains("was replaced or changed since it started"),
            "{code:?}: {said}"
        );
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(state(&place).contains(" running Up"), "{}", state(&place));
    }
    assert!(!snapshot.exists());
    assert_eq!(mvm(&place, &["rm", "-f", "one"]).0, Some(0));
    assert!(place.is_clean());
}
