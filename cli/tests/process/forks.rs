//! Copies of VMs that run.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;

use crate::snapshots::{Ends, disk_of, mvm};
use crate::vm::{Place, TALKS};

/// A VM `one` that runs.
pub fn boot(place: &Place, more: &[&str]) {
    let kernel = place.path("kernel");
    let boot = ["boot", "-d", "--kernel", kernel.to_str().unwrap(), "--memory", "32M", "--name", "one"];
    let (code, said) = mvm(place, &[&boot[..], &["--ready", "rrrr"], more].concat());
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn copies_go_on_beside_the_vm_with_disks_of_their_own() {
    let Some(place) = Place::new(TALKS) else { return };
    let _ends = Ends(&place);
    let disk = place.path("disk");
    fs::write(&disk, [7; 8192]).unwrap();
    boot(&place, &["--disk", disk.to_str().unwrap()]);
    let (code, said) = mvm(&place, &["fork", "one", "--name", "two"]);
    assert!(code == Some(0) && said.trim().len() == 12, "{said}");
    let two = disk_of(&place, "two").0;
    assert!(two.starts_with("/proc"), "{two:?}");
    // As the guest would.
    OpenOptions::new().write(true).open(&two).unwrap().write_all_at(&[8; 100], 0).unwrap();
    assert_eq!(fs::read(&disk).unwrap(), [7; 8192]);
    // One of a copy, when the first VM has ended.
    assert_eq!(mvm(&place, &["kill", "one"]).0, Some(0));
    let (code, said) = mvm(&place, &["fork", "two", "--count", "3", "--name", "copy", "--rm"]);
    assert!(code == Some(0) && said.lines().count() == 3, "{said}");
    assert_eq!(mvm(&place, &["kill", "two"]).0, Some(0));
    let (_, listed) = mvm(&place, &["ps", "--format", "{{.Names}} {{.State}}"]);
    for name in ["copy-1", "copy-2", "copy-3"] {
        assert!(listed.contains(&format!("{name} running")), "{listed}");
        let (own, content) = disk_of(&place, name);
        assert_eq!(content, [&[8; 100][..], &[7; 8092]].concat(), "{name}");
        OpenOptions::new().write(true).open(own).unwrap().write_all_at(&[9; 8192], 0).unwrap();
    }
    for name in ["copy-1", "copy-2", "copy-3"] {
        assert_eq!(mvm(&place, &["kill", name]).0, Some(0));
        mvm(&place, &["wait", name]);
    }
    // Nothing is left of them, in the directory of the disk or with the data.
    let (_, listed) = mvm(&place, &["ps", "-a", "--format", "{{.Names}}"]);
    assert!(!listed.contains("copy"), "{listed}");
    let names = |path| fs::read_dir(path).unwrap().map(|file| file.unwrap().file_name()).collect::<Vec<_>>();
    let left = names(place.path("data"));
    assert!(left.iter().all(|name| name != "memory" && !name.to_string_lossy().contains("fork")), "{left:?}");
    assert!(place.is_clean());
}

#[test]
fn what_can_t_be_copied_is_refused_with_one_line_and_the_vm_runs_on() {
    let Some(place) = Place::new(TALKS) else { return };
    let _ends = Ends(&place);
    let own = place.path("own.sock");
    boot(&place, &["--vsock", own.to_str().unwrap()]);
    for (arguments, code, expected) in [
        (&["none"][..], 1, "there is no VM or container \"none\""),
        (&["one"], 1, "own.sock, which one VM alone can have"),
        (&["one", "--count", "0"], 2, "0"),
        (&["one", "--count", "2", "-p", "1:2"], 2, "one copy only"),
        (&["one", "--count", "2", "--name", &"n".repeat(64)], 2, "invalid name"),
        (&["one", "--name", ".x"], 2, "invalid name"),
    ] {
        let (found, said) = mvm(&place, &[&["fork"], arguments].concat());
        assert!(found == Some(code) && said.contains(expected), "{arguments:?}: {found:?} {said}");
    }
    assert_eq!(mvm(&place, &["rm", "-f", "one"]).0, Some(0));
    boot(&place, &[]);
    for (arguments, code, expected) in [
        (&["one", "-p", "18080:80"][..], 1, "no network of `--net user`"),
        (&["one", "--name", "one"], 2, "one"),
    ] {
        let (found, said) = mvm(&place, &[&["fork"], arguments].concat());
        assert!(found == Some(code) && said.contains(expected), "{arguments:?}: {found:?} {said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    let (_, listed) = mvm(&place, &["ps", "--format", "{{.Names}} {{.State}}"]);
    assert_eq!(listed, "one running\n");
}
