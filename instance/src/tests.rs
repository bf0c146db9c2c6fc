use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Barrier;

use proptest::prelude::*;
use rstest::rstest;
use tempfile::TempDir;

use super::*;
use crate::{Identity, Instance, Summary};

fn claim_at(registry: Registry, name: Option<&str>, id: Option<&str>) -> Result<Instance, InstanceError> {
    let identity = Identity {
        id: id.map(|id| id.parse().unwrap()),
        name: name.map(|name| name.parse().unwrap()),
        directory: None,
    };
    let summary =
        Summary { cpus: 1, memory: 512 << 20, kernel: "vmlinux".into(), rootfs: None, stop_timeout_ms: None };
    Instance::claim_at(registry, &identity, summary)
}

/// A place for VMs of a test's own.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn base(&self) -> PathBuf {
        self.0.path().join("mvm")
    }

    fn registry(&self) -> Registry {
        Registry::at(&self.base())
    }

    fn claim(&self, name: Option<&str>, id: Option<&str>) -> Result<Instance, InstanceError> {
        claim_at(self.registry(), name, id)
    }

    /// What a VM leaves behind that was killed: all but its lock.
    fn killed(&self, name: Option<&str>, id: &str) {
        let instance = self.claim(name, Some(id)).unwrap();
        let record = fs::read(instance.path().join("vm.json")).unwrap();
        let link = name.map(|name| self.base().join(NAMES).join(name));
        let target = link.as_ref().map(|link| fs::read_link(link).unwrap());
        drop(instance);
        // A copy is not locked.
        let directory = self.base().join(id);
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("vm.json"), record).unwrap();
        if let (Some(link), Some(target)) = (link, target) {
            symlink(target, link).unwrap();
        }
    }

    fn running(&self) -> Vec<String> {
        let (running, damaged) = self.registry().running().unwrap();
        assert!(damaged.is_empty(), "{damaged:?}");
        running.into_iter().map(|vm| vm.record.id.to_string()).collect()
    }

    /// Everything there is.
    fn entries(&self) -> usize {
        let base = fs::read_dir(self.base()).unwrap().flatten();
        let names = fs::read_dir(self.base().join(NAMES)).map_or(0, Iterator::count);
        base.filter(|entry| entry.file_name() != NAMES).count() + names
    }
}

#[test]
fn a_vm_is_there_from_its_claim_to_its_end() {
    let place = Place::new();
    assert!(place.running().is_empty());
    let instance = place.claim(Some("web"), None).unwrap();
    let id = instance.id().to_string();
    assert_eq!(place.running(), [id.as_str()]);
    assert!(matches!(place.registry().find("nothing"), Err(InstanceError::NotFound(_))));
    for word in [id.as_str(), &id[..1], &id[..11], "web"] {
        let vm = place.registry().find(word).unwrap();
        assert_eq!(vm.record.name.as_ref().map(|name| name.as_str()), Some("web"));
        assert_eq!(vm.record.process, crate::Process::own().unwrap());
        assert_eq!(vm.directory, instance.path());
    }
    drop(instance);
    assert_eq!(place.entries(), 0, "nothing is left");
    assert!(place.running().is_empty());
}

#[rstest]
#[case("1", None)]
#[case("10", Some("100000000000"))]
#[case("111111111111", Some("111111111111"))]
#[case("100000000000", Some("100000000000"))]
#[case("2", None)]
#[case("", None)]
#[case("..", None)]
#[case("names", None)]
#[case("1f", Some("1f0000000000"))]
#[case("abc", Some("111111111111"))]
#[case("ABC", None)]
fn a_word_means_one_vm_or_none(#[case] word: &str, #[case] expected: Option<&str>) {
    let place = Place::new();
    let _vms = [
        place.claim(None, Some("100000000000")).unwrap(),
        // A name wins over the beginning of an ID.
        place.claim(Some("abc"), Some("111111111111")).unwrap(),
        place.claim(None, Some("1f0000000000")).unwrap(),
        place.claim(None, Some("abc000000000")).unwrap(),
    ];
    let found = place.registry().find(word);
    assert_eq!(found.as_ref().ok().map(|vm| vm.record.id.as_str()), expected);
    match found {
        Err(InstanceError::Ambiguous(_)) => assert_eq!(word, "1"),
        Err(error) => assert!(matches!(error, InstanceError::NotFound(_)), "{error}"),
        Ok(_) => {}
    }
}

#[test]
fn names_and_ids_are_had_by_one_vm_at_a_time() {
    let place = Place::new();
    let first = place.claim(Some("web"), Some("0123456789ab")).unwrap();
    assert!(matches!(place.claim(Some("web"), None), Err(InstanceError::NameTaken { .. })));
    assert!(matches!(place.claim(None, Some("0123456789ab")), Err(InstanceError::IdTaken(_))));
    assert_eq!(place.running().len(), 1, "those who failed left nothing");
    drop(first);
    place.claim(Some("web"), Some("0123456789ab")).unwrap();
}

#[test]
fn of_many_who_want_a_name_at_once_one_has_it() {
    let place = Place::new();
    let (start, end) = (Barrier::new(8), Barrier::new(8));
    let won: Vec<bool> = std::thread::scope(|scope| {
        let claim = || {
            start.wait();
            let claimed = place.claim(Some("web"), None);
            // None releases its lock before all have tried.
            end.wait();
            match claimed {
                Ok(_) => true,
                Err(InstanceError::NameTaken { .. }) => false,
                Err(error) => panic!("{error}"),
            }
        };
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(claim)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(won.iter().filter(|won| **won).count(), 1);
    assert_eq!(place.entries(), 0);
}

#[test]
fn what_a_killed_vm_left_is_not_listed_and_goes() {
    let place = Place::new();
    place.killed(Some("web"), "0123456789ab");
    assert_eq!(place.entries(), 2);
    assert!(matches!(place.registry().find("web"), Err(InstanceError::NotFound(_))));
    assert!(matches!(place.registry().find("0123456789ab"), Err(InstanceError::NotFound(_))));
    assert!(place.running().is_empty());
    assert_eq!(place.entries(), 0, "a list removes it");
    place.killed(Some("web"), "0123456789ab");
    let next = place.claim(Some("other"), None).unwrap();
    assert_eq!(place.entries(), 2, "the next start removes it");
    drop(next);
    place.killed(Some("web"), "0123456789ab");
    place.claim(Some("web"), Some("0123456789ab")).expect("its name and ID are free");
    assert_eq!(place.entries(), 0);
}

/// The name that a killed VM had belongs to another one by now.
#[test]
fn the_name_of_another_vm_survives_the_removal_of_remains() {
    let place = Place::new();
    place.killed(Some("web"), "0123456789ab");
    fs::remove_file(place.base().join(NAMES).join("web")).unwrap();
    let remains = fs::read(place.base().join("0123456789ab/vm.json")).unwrap();
    let web = place.claim(Some("web"), None).unwrap();
    fs::create_dir(place.base().join("0123456789ab")).unwrap();
    fs::write(place.base().join("0123456789ab/vm.json"), remains).unwrap();
    assert_eq!(place.running(), [web.id().to_string()]);
    assert!(place.registry().find("web").is_ok());
    assert_eq!(place.entries(), 2);
}

#[test]
fn one_without_a_record_is_about_to_come_or_to_go() {
    let place = Place::new();
    for _ in 0..20 {
        let instance = place.claim(None, None).unwrap();
        fs::remove_file(instance.path().join("vm.json")).unwrap();
        let registry = place.registry();
        std::thread::scope(|scope| {
            let listed = scope.spawn(|| registry.running().unwrap());
            drop(instance);
            let (running, damaged) = listed.join().unwrap();
            assert!(running.is_empty() && damaged.is_empty(), "{running:?} {damaged:?}");
        });
    }
}

#[test]
fn a_damaged_record_is_reported_and_affects_no_other_vm() {
    let place = Place::new();
    let good = place.claim(None, Some("000000000001")).unwrap();
    let bad = place.claim(Some("bad"), Some("000000000002")).unwrap();
    fs::write(bad.path().join("vm.json"), "{").unwrap();
    let (running, damaged) = place.registry().running().unwrap();
    assert_eq!(running.len(), 1);
    assert!(matches!(damaged.as_slice(), [InstanceError::Record { .. }]), "{damaged:?}");
    assert!(matches!(place.registry().find("bad"), Err(InstanceError::Record { .. })));
    assert!(place.registry().find("000000000001").is_ok());
    drop((good, bad));
    assert_eq!(place.entries(), 0);
}

/// Somebody who may write here is the user, but what lies around need not make sense.
#[test]
fn what_is_no_vm_is_passed_over() {
    let place = Place::new();
    let vm = place.claim(Some("web"), None).unwrap();
    let base = place.base();
    fs::create_dir(base.join("something")).unwrap();
    fs::write(base.join("0123456789ab"), "a file with the name of an ID").unwrap();
    symlink("/etc", base.join("0123456789ac")).unwrap();
    for (name, target) in [("loop", "loop"), ("etc", "/etc"), ("up", "../../x"), ("gone", "0123456789ff")] {
        symlink(target, base.join(NAMES).join(name)).unwrap();
        assert!(matches!(place.registry().find(name), Err(InstanceError::NotFound(_))), "{name}");
    }
    assert_eq!(place.running(), [vm.id().to_string()]);
    // A name without a VM is free, whatever its link points to.
    for name in ["loop", "etc", "up", "gone"] {
        place.claim(Some(name), None).unwrap();
    }
    assert!(Path::new("/etc/passwd").exists());
}

#[test]
fn a_path_too_long_for_a_socket_is_said() {
    let place = Place::new();
    let base = place.0.path().join("x".repeat(100));
    let Err(error) = claim_at(Registry::at(&base), None, None) else { panic!("it was made") };
    assert!(matches!(error, InstanceError::PathTooLong(_)) && error.is_the_hosts(), "{error}");
}

#[test]
fn where_nothing_can_be_made_that_is_said() {
    let Err(error) = claim_at(Registry::at(Path::new("/proc/mvm")), None, None) else {
        panic!("it was made")
    };
    assert!(error.is_the_hosts() && error.to_string().contains("/proc/mvm"), "{error}");
    let (running, _) = Registry::at(Path::new("/proc/mvm")).running().unwrap();
    assert!(running.is_empty(), "where no VM ever was there is none");
}

proptest! {
    #[test]
    fn no_word_leads_out_of_the_directory(word in ".{0,40}") {
        let place = Place::new();
        let _vm = place.claim(Some("web"), Some("0123456789ab")).unwrap();
        if let Ok(vm) = place.registry().find(&word) {
            prop_assert!(word == "web" || "0123456789ab".starts_with(&word));
            prop_assert_eq!(vm.directory, place.base().join("0123456789ab"));
        }
    }
}

/// As by logging out, after which the user logs in again.
#[rstest]
#[case::the_name(None)]
#[case::the_id_too(Some("111111111111"))]
fn a_vm_whose_directory_was_removed_leaves_its_name_and_id_to_those_that_have_them_now(
    #[case] id: Option<&str>,
) {
    let place = Place::new();
    let first = place.claim(Some("web"), id).unwrap();
    fs::remove_dir_all(place.base()).unwrap();
    let second = place.claim(Some("web"), id).unwrap();
    drop(first);
    let found = place.registry().find("web").unwrap();
    assert_eq!((&found.record.id, found.directory.as_path()), (second.id(), second.path()));
    assert!(second.path().join("vm.json").exists());
    drop(second);
    assert_eq!(place.entries(), 0, "nothing is left");
}

#[test]
fn a_vm_whose_directory_alone_was_removed_removes_its_name() {
    let place = Place::new();
    let instance = place.claim(Some("web"), None).unwrap();
    fs::remove_dir_all(instance.path()).unwrap();
    drop(instance);
    assert_eq!(place.entries(), 0, "nothing is left");
}
