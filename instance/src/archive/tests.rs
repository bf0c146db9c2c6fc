use std::collections::BTreeMap;
use std::fs;

use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::Process;
use crate::VolumeRecord;
use crate::record::Format;

fn entry(digits: u8, name: Option<&str>) -> Entry {
    Entry {
        format: Format::default(),
        id: VmId::from_bytes([digits; 6]),
        name: name.map(|name| name.parse().unwrap()),
        kind: Kind::Container,
        created: digits.into(),
        started: None,
        phase: Phase::Started,
        restarts: 0,
        pod: None,
        process: Process::own().unwrap(),
        removes: false,
        image: "busybox".into(),
        image_id: None,
        command: vec!["true".into()],
        ports: Vec::new(),
        labels: BTreeMap::new(),
        volumes: Vec::new(),
        details: json!({}),
    }
}

fn archive() -> (TempDir, Archive) {
    let directory = TempDir::new().unwrap();
    let archive = Archive::at(directory.path().join("a/instances"));
    (directory, archive)
}

fn end(code: u8) -> End {
    End { code, out_of_memory: false, error: String::new(), finished: 9 }
}

#[test]
fn one_is_found_while_it_runs_and_after_its_end_and_not_when_it_was_removed() {
    let (_directory, archive) = archive();
    assert!(archive.all().unwrap().0.is_empty());
    let mut keep = archive.add(entry(0x11, Some("web"))).unwrap();
    let running = archive.find("web").unwrap();
    assert!(running.is_running && running.end().is_none());
    keep.started().unwrap();
    keep.ended(&end(7)).unwrap();
    drop(keep);
    for word in ["web", "111111111111", "11"] {
        let kept = archive.find(word).unwrap();
        assert_eq!(kept.end(), Some(end(7)), "{word}");
        assert!(kept.entry.started.is_some());
    }
    // One that was looked at earlier has the end too.
    assert_eq!(running.last_end(), end(7));
    assert!(archive.remove(&running.entry.id, true).unwrap());
    assert!(matches!(archive.find("web"), Err(InstanceError::NotFound(_))));
    assert_eq!(running.last_end(), end(7));
    assert_eq!(archive.owner_of(&"web".parse().unwrap()), None);
}

#[test]
fn one_that_was_created_has_not_ended_and_can_be_started_again_and_again() {
    let (_directory, archive) = archive();
    let created = Entry { phase: Phase::Created, removes: true, ..entry(0x11, Some("web")) };
    let keep = archive.add(created).unwrap();
    keep.set_order(&json!({"image": "busybox"})).unwrap();
    assert!(archive.take(&keep.entry.id).unwrap().is_none());
    let id = keep.entry.id.clone();
    drop(keep);
    // One that is removed at its end is no remains before it was started.
    assert_eq!(archive.all().unwrap().0.len(), 1);
    let kept = archive.find("web").unwrap();
    assert!(kept.is_created() && kept.end().is_none());
    assert_eq!(kept.order::<serde_json::Value>().unwrap(), json!({"image": "busybox"}));
    let mut earlier = kept;
    for code in [1, 2] {
        let mut keep = archive.take(&id).unwrap().unwrap();
        keep.begin(|entry| (entry.phase, entry.removes) = (Phase::Started, false)).unwrap();
        let running = archive.find("web").unwrap();
        assert!(running.is_running && !running.is_created());
        assert_eq!(running.last_end(), End::unknown());
        keep.ended(&end(code)).unwrap();
        drop(keep);
        assert_eq!(archive.find("web").unwrap().end(), Some(end(code)));
        // Who has looked at an earlier life has its end.
        assert_eq!(earlier.last_end().code, if code == 1 { 255 } else { 1 });
        earlier = running;
    }
    assert!(archive.remove(&id, true).unwrap());
    assert!(matches!(archive.take(&id), Err(InstanceError::NotFound(_))));
}

#[test]
fn one_without_an_order_or_with_a_damaged_one_says_so() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let (_directory, archive) = archive();
    let keep = archive.add(entry(1, None)).unwrap();
    let order = |archive: &Archive| {
        let kept = archive.find("010101010101").unwrap();
        kept.order::<BTreeMap<String, u8>>().map_err(|error| error.to_string())
    };
    assert!(order(&archive).unwrap_err().contains("has no order.json"));
    keep.set_order(&BTreeMap::from([("a", 1)])).unwrap();
    let path = keep.directory().join("order.json");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(order(&archive).unwrap()["a"], 1);
    fs::write(&path, "{").unwrap();
    assert!(order(&archive).unwrap_err().contains("order.json"));
    fs::remove_file(&path).unwrap();
    symlink("/dev/zero", &path).unwrap();
    assert!(order(&archive).is_err(), "a link is not followed");
    assert!(keep.set_order(&"x".repeat(5 << 20)).unwrap_err().to_string().contains("MiB"));
}

#[test]
fn a_name_belongs_to_one_whether_it_runs_or_not() {
    let (_directory, archive) = archive();
    let keep = archive.add(entry(1, Some("web"))).unwrap();
    let taken = || archive.add(entry(2, Some("web"))).err().unwrap().to_string();
    assert!(taken().contains("the name web is in use by 010101010101"), "{}", taken());
    drop(keep);
    assert!(taken().contains("`mvm rm -f web`"));
    assert!(archive.remove(&VmId::from_bytes([1; 6]), true).unwrap());
    drop(archive.add(Entry { kind: Kind::Pod, ..entry(3, Some("web")) }).unwrap());
    assert!(taken().contains("`mvm pod rm -f web`"), "{}", taken());
}

#[test]
fn the_name_of_one_that_was_to_be_removed_is_free_when_its_keeper_was_killed() {
    let (_directory, archive) = archive();
    let keep = archive.add(Entry { removes: true, ..entry(1, Some("web")) }).unwrap();
    let name = "web".parse().unwrap();
    assert!(archive.owner_of(&name).is_some());
    drop(keep);
    assert_eq!(archive.owner_of(&name), None);
    // However many there are beside it.
    for digits in 3..30 {
        drop(archive.add(entry(digits, None)).unwrap());
    }
    let keep = archive.add(entry(2, Some("web"))).unwrap();
    assert_eq!(archive.find("web").unwrap().entry.id, keep.entry().id);
    archive.all().unwrap();
    assert_eq!(archive.owner_of(&name).as_ref(), Some(&keep.entry().id));
}

#[test]
fn what_runs_is_not_removed() {
    let (_directory, archive) = archive();
    let keep = archive.add(entry(1, None)).unwrap();
    let id = keep.entry().id.clone();
    assert!(!archive.remove(&id, true).unwrap());
    archive.remove_own(&keep).unwrap();
    assert!(archive.remove(&id, true).unwrap(), "one that is gone counts as removed");
    assert!(archive.all().unwrap().0.is_empty());
}

#[test]
fn what_a_killed_keeper_left_has_an_unknown_end_and_goes_where_it_was_to_go() {
    let (_directory, archive) = archive();
    drop(archive.add(entry(1, None)).unwrap());
    drop(archive.add(Entry { removes: true, ..entry(2, Some("gone")) }).unwrap());
    fs::create_dir(archive.directory(&VmId::from_bytes([3; 6]))).unwrap();
    let (all, damaged) = archive.all().unwrap();
    let ids: Vec<_> = all.iter().map(|kept| kept.entry.id.to_string()).collect();
    assert_eq!((ids, damaged.len()), (vec!["010101010101".to_owned()], 0));
    assert_eq!(all[0].end(), Some(End::unknown()));
    assert_eq!(archive.ids().unwrap().len(), 1);
}

#[test]
fn a_record_of_a_newer_version_and_a_damaged_one_are_named_and_hide_no_other() {
    let (_directory, archive) = archive();
    for digits in 1..4 {
        drop(archive.add(entry(digits, None)).unwrap());
    }
    let record = |digits: u8| archive.directory(&VmId::from_bytes([digits; 6])).join("record.json");
    let newer = fs::read_to_string(record(1)).unwrap().replacen("\"format\":1", "\"format\":99", 1);
    fs::write(record(1), newer).unwrap();
    fs::write(record(2), "{").unwrap();
    // One of the first version, with what a later one adds.
    let first = fs::read_to_string(record(3)).unwrap().replacen("\"format\":1", "\"later\":{\"a\":[1]}", 1);
    let minimal = ["details", "labels", "ports", "command", "image_id", "removes", "started"];
    let mut first: serde_json::Value = serde_json::from_str(&first).unwrap();
    minimal.iter().for_each(|key| drop(first.as_object_mut().unwrap().remove(*key).unwrap()));
    fs::write(record(3), first.to_string()).unwrap();
    let (all, damaged) = archive.all().unwrap();
    assert_eq!(all.len(), 1);
    let texts: Vec<_> = damaged
        .iter()
        .map(|error| format!("{error}: {}", std::error::Error::source(error).unwrap().source().unwrap()))
        .collect();
    let of = |id: &str| texts.iter().find(|text| text.contains(id)).unwrap();
    assert!(of("010101010101").contains("format 99 is newer than 1"), "{texts:?}");
    assert!(of("020202020202").contains("damaged"), "{texts:?}");
}

#[test]
fn one_that_cannot_be_read_can_be_removed() {
    let (_directory, archive) = archive();
    for (damaged, content) in [("record.json", "{"), ("end.json", "")] {
        let keep = archive.add(entry(0x22, Some("web"))).unwrap();
        let file = keep.directory().join(damaged);
        drop(keep);
        fs::remove_file(&file).unwrap();
        if !content.is_empty() {
            fs::write(&file, content).unwrap();
        }
        let Err(InstanceError::Kept { id, .. }) = archive.find("22") else { panic!("{damaged}") };
        assert!(archive.remove(&id, true).unwrap());
        assert!(matches!(archive.find("22"), Err(InstanceError::NotFound(_))));
    }
    archive.add(entry(0x33, Some("web"))).unwrap();
}

#[test]
fn one_that_is_removed_while_it_is_looked_for_does_not_exist() {
    let (_directory, archive) = archive();
    std::thread::scope(|scope| {
        let looking = scope.spawn(|| {
            for number in 0..2000 {
                match archive.find(if number % 2 == 0 { "web" } else { "22" }) {
                    Ok(_) | Err(InstanceError::NotFound(_)) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        });
        while !looking.is_finished() {
            drop(archive.add(entry(0x22, Some("web"))).unwrap());
            assert!(archive.remove(&VmId::from_bytes([0x22; 6]), true).unwrap());
        }
        looking.join().unwrap().unwrap();
    });
}

#[test]
fn whatever_went_wrong_the_exit_code_is_kept() {
    let (_directory, archive) = archive();
    let mut keep = archive.add(entry(0x22, None)).unwrap();
    // As JSON, each of the first has six bytes.
    let error = "\u{1}".repeat(4095) + &"ä".repeat(100_000);
    keep.ended(&End { error, ..end(7) }).unwrap();
    let last = archive.find("22").unwrap().last_end();
    assert_eq!(last.code, 7);
    assert!(last.error.len() < 5000 && last.error.ends_with('…'));
}

#[test]
fn a_record_that_no_process_could_read_again_is_refused_and_leaves_nothing() {
    let (_directory, archive) = archive();
    let large = Entry { details: json!({ "Env": "x".repeat(5 << 20) }), ..entry(0x22, Some("web")) };
    let Err(error) = archive.add(large) else { panic!("it has more than 4 MiB") };
    let text = format!("{error}: {}", std::error::Error::source(&error).unwrap());
    assert!(text.contains("its record would have 5 MiB, more than 4: give fewer ports"), "{text}");
    assert!(!archive.directory(&VmId::from_bytes([0x22; 6])).exists());
    let mut keep = archive.add(entry(0x22, Some("web"))).unwrap();
    keep.started().unwrap();
    assert!(archive.find("web").unwrap().entry.started.is_some());
}

#[test]
fn one_that_runs_gets_another_name_and_keeps_it() {
    let (_directory, archive) = archive();
    let (new, other): (VmName, VmName) = ("new".parse().unwrap(), "other".parse().unwrap());
    let mut keep = archive.add(entry(1, Some("web"))).unwrap();
    let _other = archive.add(entry(2, Some("other"))).unwrap();
    let id = keep.entry.id.clone();
    assert!(matches!(archive.rename(&id, &other), Err(InstanceError::NameKept { .. })));
    archive.rename(&id, &new).unwrap();
    // What its keeper writes does not change it back.
    keep.started().unwrap();
    assert_eq!(archive.find("new").unwrap().entry.name, Some(new.clone()));
    assert!(matches!(archive.find("web"), Err(InstanceError::NotFound(_))));
    drop(keep);
    assert_eq!(archive.take(&id).unwrap().unwrap().entry.name, Some(new.clone()));
    assert!(archive.remove(&id, false).unwrap());
    assert_eq!(archive.owner_of(&new), None);
}

/// The links of names, in their order.
fn links(archive: &Archive) -> Vec<String> {
    let links = fs::read_dir(archive.base.join(NAMES)).unwrap();
    let mut links: Vec<_> = links.map(|link| link.unwrap().file_name().into_string().unwrap()).collect();
    links.sort();
    links
}

#[test]
fn one_that_was_being_renamed_by_a_killed_process_has_one_name() {
    let (_directory, archive) = archive();
    let [web, new] = ["web", "new"].map(|name| name.parse::<VmName>().unwrap());
    let keep = archive.add(entry(1, Some("web"))).unwrap();
    let id = keep.entry.id.clone();
    drop(keep);
    // The link was made, and nothing else yet.
    archive.link(Some(&new), &id).unwrap();
    assert_eq!((archive.owner_of(&web), archive.owner_of(&new)), (Some(id.clone()), None));
    assert!(matches!(archive.find("new"), Err(InstanceError::NotFound(_))));
    // It got the name, and the earlier link is still there.
    fs::write(archive.directory(&id).join(NAME), "new").unwrap();
    assert_eq!((archive.owner_of(&web), archive.owner_of(&new)), (None, Some(id.clone())));
    assert!(matches!(archive.find("web"), Err(InstanceError::NotFound(_))));
    // Another one may have that name, and keeps it.
    let other = archive.add(entry(2, Some("web"))).unwrap();
    assert!(archive.remove(&id, false).unwrap());
    assert_eq!((links(&archive), archive.owner_of(&web)), (vec!["web".into()], Some(other.entry.id.clone())));
}

#[test]
fn one_that_was_being_removed_by_a_killed_process_leaves_no_name() {
    let (_directory, archive) = archive();
    let keep = archive.add(entry(1, Some("web"))).unwrap();
    let id = keep.entry.id.clone();
    drop(keep);
    remove_record(&archive.directory(&id)).unwrap();
    assert_eq!(links(&archive), ["web"]);
    assert!(archive.all().unwrap().0.is_empty());
    assert!(links(&archive).is_empty() && !archive.directory(&id).exists());
}

#[test]
fn one_that_was_being_added_by_a_killed_process_leaves_its_name_free() {
    let (_directory, archive) = archive();
    drop(archive.add(entry(1, None)).unwrap());
    let [killed, web] = [VmId::from_bytes([2; 6]), VmId::from_bytes([3; 6])];
    fs::create_dir(archive.directory(&killed)).unwrap();
    archive.link(Some(&"web".parse().unwrap()), &killed).unwrap();
    assert!(matches!(archive.find("web"), Err(InstanceError::NotFound(_))));
    let keep = archive.add(entry(3, Some("web"))).unwrap();
    assert_eq!(archive.find("web").unwrap().entry.id, web);
    assert!(!archive.directory(&killed).exists());
    drop(keep);
}

#[test]
fn one_that_is_listed_is_found_by_its_name_at_any_time() {
    let (_directory, archive) = archive();
    std::thread::scope(|scope| {
        for number in 0..200 {
            let (archive, name) = (&archive, format!("n{number}"));
            let entry = entry(number, Some(&name));
            let adding = scope.spawn(move || drop(archive.add(entry).unwrap()));
            let id = VmId::from_bytes([number; 6]);
            while archive.read(&id).is_err() && !adding.is_finished() {}
            assert_eq!(archive.owner_of(&name.parse().unwrap()), Some(id));
            adding.join().unwrap();
        }
    });
}

#[test]
fn a_name_that_finds_no_space_is_not_taken() {
    let (_directory, archive) = archive();
    let keep = archive.add(entry(1, Some("web"))).unwrap();
    // What lies there keeps it from being written, as a full disk does.
    fs::create_dir(archive.directory(&keep.entry.id).join("name.new")).unwrap();
    assert!(archive.rename(&keep.entry.id, &"new".parse().unwrap()).is_err());
    assert_eq!(
        (links(&archive), archive.find("web").unwrap().entry.id),
        (vec!["web".into()], keep.entry.id.clone())
    );
}

#[test]
fn anonymous_volumes_go_with_the_one_that_used_them_last() {
    let data = tempfile::tempdir().unwrap();
    let archive = Archive::at(data.path().join("instances"));
    let volumes = Volumes::beside(data.path());
    let make = |name: &str, is_anonymous| {
        let name: VolumeName = name.parse().unwrap();
        let record = VolumeRecord {
            format: Default::default(),
            name: name.clone(),
            driver: Default::default(),
            created: 1,
            is_anonymous,
            labels: BTreeMap::new(),
            options: BTreeMap::new(),
        };
        volumes.create(&record, |path| fs::write(path, "")).unwrap();
        name
    };
    let (named, anonymous, held) = (make("named", false), make("anonymous", true), make("held", true));
    let names = vec![named.clone(), anonymous.clone(), held.clone()];
    let entry = |id| Entry { volumes: names.clone(), ..entry(id, None) };
    let (one, other) = (archive.add(entry(1)).unwrap(), archive.add(entry(2)).unwrap());
    assert_eq!(archive.users_of(&anonymous).unwrap().len(), 2);
    archive.remove_own(&one).unwrap();
    assert!(volumes.find(&anonymous).is_ok());
    let id = other.entry().id.clone();
    drop(other);
    // What one that cannot be read uses is not known.
    let whole = fs::read(archive.directory(&id).join("record.json")).unwrap();
    let third = archive.add(entry(4)).unwrap();
    fs::write(archive.directory(&id).join("record.json"), "{\"format\":99}").unwrap();
    assert!(archive.users_of(&anonymous).is_err() && archive.all_readable().is_err());
    archive.remove_own(&third).unwrap();
    assert!(volumes.find(&anonymous).is_ok());
    fs::write(archive.directory(&id).join("record.json"), whole).unwrap();
    let hold = volumes.hold(&held).unwrap();
    assert!(archive.remove(&id, true).unwrap());
    assert!(volumes.find(&named).is_ok() && volumes.find(&anonymous).is_err());
    assert!(volumes.find(&held).is_ok());
    drop(hold);
    let kept = archive.add(entry(3)).unwrap();
    let id = kept.entry().id.clone();
    drop(kept);
    assert!(archive.remove(&id, false).unwrap() && volumes.find(&held).is_ok());
}
