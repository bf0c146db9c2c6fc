//! VMs that are saved beside their record, and go on from there.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;

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
