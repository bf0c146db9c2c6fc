//! VMs in the background: when they are ready, and records of other versions of mvm.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::vm::{ENDS, IDLE, Place, TALKS, WATCHDOG, text};

/// Says `r`, `r`, `e` and then halts.
const SAYS: &[u8] =
    &[0x66, 0xba, 0xf8, 0x03, 0xb0, b'r', 0xee, 0xee, 0xb0, b'e', 0xee, 0xfa, 0xf4, 0xeb, 0xfc];

/// Runs mvm with what is kept in `place`; its exit code and all that it says.
fn mvm(place: &Place, arguments: &[&str]) -> (Option<i32>, String) {
    let mut mvm = place.mvm();
    let output = mvm.env("MVM_DATA_DIR", place.path("data")).args(arguments).output().unwrap();
    (output.status.code(), text(&output))
}

/// Boots a VM in the background with these arguments.
fn detach(place: &Place, arguments: &[&str]) -> (Option<i32>, String) {
    let kernel = place.path("kernel");
    let boot = ["boot", "-d", "--kernel", kernel.to_str().unwrap(), "--memory", "32M", "--name", "vm"];
    mvm(place, &[&boot[..], arguments].concat())
}

#[test]
fn a_vm_in_the_background_is_ready_when_it_has_printed_the_text() {
    let Some(place) = Place::new(SAYS) else { return };
    let (code, id) = detach(&place, &["--ready", "re", "--ready-timeout", "50s"]);
    assert_eq!((code, id.trim().len()), (Some(0), 12), "{id}");
    // The log has it by then.
    assert_eq!(mvm(&place, &["logs", "vm"]), (Some(0), "rre".into()));
    assert_eq!(mvm(&place, &["kill", "vm"]).0, Some(0));
    assert_eq!(mvm(&place, &["wait", "vm"]), (Some(0), "137\n".into()));
}

#[test]
fn a_vm_that_does_not_become_ready_is_ended_and_named() {
    let Some(place) = Place::new(IDLE) else { return };
    let start = Instant::now();
    let (code, said) = detach(&place, &["--ready", "login:", "--ready-timeout", "300ms"]);
    assert!((Duration::from_millis(300)..WATCHDOG).contains(&start.elapsed()));
    assert_eq!(code, Some(124), "{said}");
    assert!(said.contains(" did not print \"login:\" within 300ms, and was ended\n"), "{said}");
    assert_eq!(mvm(&place, &["logs", "vm"]), (Some(0), "r".into()));
    assert_eq!(mvm(&place, &["wait", "vm"]), (Some(0), "124\n".into()));
}

#[test]
fn a_vm_that_ends_before_it_is_ready_is_a_failure() {
    let Some(place) = Place::new(ENDS) else { return };
    let (code, said) = detach(&place, &["--rm", "--ready", "login:"]);
    assert_eq!((code, said.lines().count()), (Some(1), 1), "{said}");
    assert!(said.contains(" ended before it printed \"login:\": "), "{said}");
    let (_, said) = mvm(&place, &["ps", "-aq"]);
    assert_eq!(said, "");
}

#[test]
fn a_vm_that_talks_without_end_is_ended_as_well() {
    let Some(place) = Place::new(TALKS) else { return };
    let (code, said) = detach(&place, &["--rm", "--ready", "rx", "--ready-timeout", "300ms"]);
    assert_eq!((code, said.lines().count()), (Some(124), 1), "{said}");
}

/// A record of the VM `id`, and how to change it.
struct Doctored(PathBuf);

impl Doctored {
    fn change(&self, change: impl FnOnce(&mut serde_json::Map<String, Value>)) {
        let mut content: Value = serde_json::from_slice(&fs::read(&self.0).unwrap()).unwrap();
        change(content.as_object_mut().unwrap());
        fs::write(&self.0, content.to_string()).unwrap();
    }
}

#[test]
fn what_another_version_has_started_is_listed_and_ended_or_named() {
    let Some(place) = Place::new(IDLE) else { return };
    let (code, id) = detach(&place, &["--ready", "r"]);
    assert_eq!(code, Some(0), "{id}");
    let id = id.trim();
    let records = [
        place.path("mvm").join(id).join("vm.json"),
        place.path("data/instances").join(id).join("record.json"),
    ];
    let records = records.map(Doctored);
    for record in &records {
        record.change(|record| drop(record.insert("format".into(), json!(99))));
    }
    let newer = "its format 99 is newer than 1, the newest that this mvm reads: use a newer mvm";
    for command in [
        &["ps"][..],
        &["ps", "-a"],
        &["logs", "vm"],
        &["stop", "vm"],
        &["exec", "vm", "true"],
        &["inspect", "vm"],
    ] {
        let (code, said) = mvm(&place, command);
        let lines: Vec<_> = said.lines().filter(|line| line.starts_with("mvm: ")).collect();
        assert!(!lines.is_empty() && lines.iter().all(|line| line.contains(newer)), "{command:?}: {said}");
        assert_eq!(code == Some(0), command[0] == "ps", "{command:?}: {code:?} {said}");
    }
    for record in &records {
        record.change(|record| {
            record.remove("format");
            record.insert("later".into(), json!({"a": [1]}));
        });
    }
    let (code, said) = mvm(&place, &["ps"]);
    assert!(code == Some(0) && said.contains(id) && !said.contains("mvm: "), "{said}");
    assert_eq!(mvm(&place, &["logs", "vm"]), (Some(0), "r".into()));
    let (code, said) = mvm(&place, &["exec", "vm", "true"]);
    assert!(code == Some(1) || code == Some(125), "{code:?}");
    assert!(said.contains("without the socket device") && said.contains("`mvm boot --agent`"), "{said}");
    let (code, said) = mvm(&place, &["stop", "--time", "1", "vm"]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(mvm(&place, &["wait", "vm"]).0, Some(0));
    assert_eq!(mvm(&place, &["rm", "vm"]).0, Some(0));
}
