use std::os::unix::fs::{PermissionsExt, symlink};

use rstest::rstest;

use super::*;

fn record(name: &str, driver: VolumeDriver) -> VolumeRecord {
    VolumeRecord {
        format: Format::default(),
        name: name.parse().unwrap(),
        driver,
        created: 7,
        is_anonymous: false,
        labels: BTreeMap::from([("a".into(), "b".into())]),
        options: BTreeMap::new(),
    }
}

fn fill(path: &Path) -> io::Result<()> {
    fs::write(path, [7; 100])
}

#[rstest]
#[case("ab", true)]
#[case("a.b-c_1", true)]
#[case(&"a".repeat(255), true)]
#[case(&"a".repeat(256), false)]
#[case(&"a".repeat(300), false)]
#[case("a", false)]
#[case("", false)]
#[case("../x", false)]
#[case("..", false)]
#[case(".ab", false)]
#[case("a/b", false)]
#[case("a b", false)]
#[case("a\0b", false)]
#[case("ä1", false)]
fn names_are_dockers(#[case] text: &str, #[case] is_good: bool) {
    let read = text.parse::<VolumeName>();
    assert_eq!(read.is_ok(), is_good, "{text:?}");
    if let Err(error) = read {
        let said = error.to_string();
        assert!(said.contains("invalid volume name") && said.len() < 500, "{said}");
    }
}

#[test]
fn random_names_are_long_and_differ() {
    let names = [VolumeName::random().unwrap(), VolumeName::random().unwrap()];
    assert!(names[0] != names[1] && names[0].as_str().len() == 64);
    assert_eq!(names[0].as_str().parse(), Ok(names[0].clone()));
}

#[test]
fn a_volume_is_made_once_and_found_again() {
    let data = tempfile::tempdir().unwrap();
    let volumes = Volumes::beside(data.path());
    assert!(volumes.all().unwrap().0.is_empty());
    let record = record("data", VolumeDriver::Local);
    let (volume, is_new) = volumes.create(&record, fill).unwrap();
    assert!(is_new && fs::read(volume.content()).unwrap() == [7; 100]);
    assert_eq!(volume.directory.metadata().unwrap().permissions().mode() & 0o777, 0o700);
    let fails = |_: &Path| Err(io::ErrorKind::Other.into());
    assert!(!volumes.create(&record, fails).unwrap().1);
    assert_eq!(volumes.find(&record.name).unwrap().record, record);
    assert_eq!(volumes.all().unwrap().0.len(), 1);
    let other = VolumeRecord { driver: VolumeDriver::Shared, ..record.clone() };
    let error = volumes.create(&other, fails).unwrap_err().to_string();
    assert!(error.contains("exists with the driver local"), "{error}");
    assert!(volumes.remove(&record.name, || false).unwrap());
    assert!(matches!(volumes.find(&record.name), Err(VolumeError::NotFound(_))));
    assert!(matches!(volumes.remove(&record.name, || false), Err(VolumeError::NotFound(_))));
}

#[test]
fn a_link_in_the_place_of_a_volume_is_refused_and_nothing_of_its_target_touched() {
    let data = tempfile::tempdir().unwrap();
    let volumes = Volumes::beside(data.path());
    let record = record("data", VolumeDriver::Local);
    volumes.create(&record, fill).unwrap();
    let (link, target) = (data.path().join("volumes/data"), data.path().join("elsewhere"));
    fs::rename(&link, &target).unwrap();
    for target in [&target, Path::new("nowhere")] {
        symlink(target, &link).unwrap();
        let name = &record.name;
        let lines = [
            volumes.find(name).err(),
            volumes.create(&record, fill).err(),
            volumes.hold(name).err(),
            volumes.remove(name, || false).err(),
            volumes.all().unwrap().1.pop(),
        ];
        for line in lines.map(|error| error.unwrap().to_string()) {
            assert!(
                line.contains("volume data is a symbolic link") && line.contains("volumes/data"),
                "{line}"
            );
        }
        fs::remove_file(&link).unwrap();
    }
    assert_eq!(fs::read_dir(&target).unwrap().count(), 2);
}

#[test]
fn what_a_killed_process_left_of_a_volume_is_removed() {
    let data = tempfile::tempdir().unwrap();
    let volumes = Volumes::beside(data.path());
    volumes.create(&record("kept", VolumeDriver::Local), fill).unwrap();
    let left = data.path().join("volumes/left");
    fs::create_dir(&left).unwrap();
    fill(&left.join(DISK)).unwrap();
    // While another process makes a volume, that is what it may be.
    let making = volumes.lock().unwrap();
    assert_eq!(volumes.all().unwrap().0.len(), 1);
    assert!(left.exists());
    drop(making);
    // One that is being removed goes by who removes it.
    let removing = DirectoryLock::wait(&left).unwrap();
    volumes.all().unwrap();
    assert!(left.exists());
    drop(removing);
    assert_eq!(volumes.all().unwrap().0.len(), 1);
    assert!(!left.exists() && data.path().join("volumes/kept").exists());
}

#[test]
fn nothing_is_left_of_a_volume_that_cannot_be_made() {
    let data = tempfile::tempdir().unwrap();
    let volumes = Volumes::beside(data.path());
    let record = record("data", VolumeDriver::Local);
    let fails = |path: &Path| {
        fs::write(path, "half")?;
        Err(io::ErrorKind::StorageFull.into())
    };
    assert!(volumes.create(&record, fails).is_err());
    assert!(!data.path().join("volumes/data").exists());
    // What a killed process leaves is no volume, and is replaced.
    fs::create_dir(data.path().join("volumes/data")).unwrap();
    fs::write(data.path().join("volumes/data/disk.ext4"), "half").unwrap();
    assert!(matches!(volumes.find(&record.name), Err(VolumeError::NotFound(_))));
    let (volume, is_new) = volumes.create(&record, fill).unwrap();
    assert!(is_new && fs::read(volume.content()).unwrap() == [7; 100]);
}

#[test]
fn a_disk_is_held_by_one_and_a_directory_by_many() {
    let data = tempfile::tempdir().unwrap();
    let volumes = Volumes::beside(data.path());
    let disk = record("disk", VolumeDriver::Local);
    volumes.create(&disk, fill).unwrap();
    let hold = volumes.hold(&disk.name).unwrap();
    let error = volumes.hold(&disk.name).err().unwrap().to_string();
    assert!(error.contains("volume disk is in use by another container"), "{error}");
    assert!(!volumes.remove(&disk.name, || false).unwrap());
    drop(hold);
    assert!(!volumes.remove(&disk.name, || true).unwrap());
    drop(volumes.hold(&disk.name).unwrap());
    let shared = record("shared", VolumeDriver::Shared);
    volumes.create(&shared, |path| fs::create_dir(path)).unwrap();
    let holds = [volumes.hold(&shared.name).unwrap(), volumes.hold(&shared.name).unwrap()];
    assert!(!volumes.remove(&shared.name, || false).unwrap());
    drop(holds);
    assert!(volumes.remove(&shared.name, || false).unwrap());
    let missing = volumes.hold(&shared.name).err().unwrap();
    assert!(matches!(missing, VolumeError::NotFound(_)));
}

#[rstest]
#[case::not_json(b"{", "damaged")]
#[case::of_another(br#"{"name":"other","created":1}"#, "damaged")]
#[case::newer(br#"{"format":99,"name":"data","created":1}"#, "damaged")]
fn damaged_records_are_said_and_can_be_removed(#[case] content: &[u8], #[case] says: &str) {
    let data = tempfile::tempdir().unwrap();
    let volumes = Volumes::beside(data.path());
    let name: VolumeName = "data".parse().unwrap();
    fs::create_dir_all(data.path().join("volumes/data")).unwrap();
    fs::write(data.path().join("volumes/data/volume.json"), content).unwrap();
    let error = volumes.find(&name).unwrap_err().to_string();
    assert!(error.contains(says), "{error}");
    assert_eq!(volumes.all().unwrap().1.len(), 1);
    assert!(volumes.remove(&name, || false).unwrap());
}

#[test]
fn what_lies_there_in_place_of_a_record_is_not_followed_and_ends_soon() {
    let data = tempfile::tempdir().unwrap();
    let volumes = Volumes::beside(data.path());
    let name: VolumeName = "data".parse().unwrap();
    let directory = data.path().join("volumes/data");
    fs::create_dir_all(&directory).unwrap();
    symlink("/dev/zero", directory.join("volume.json")).unwrap();
    assert!(volumes.find(&name).is_err());
    fs::remove_file(directory.join("volume.json")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        directory.join("volume.json"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    assert!(volumes.find(&name).is_err());
}

/// A guest makes directories one in the other, each from the one before, so that no path reaches the last.
#[test]
fn what_a_guest_has_made_is_removed_however_deep_it_is() {
    use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
    let data = tempfile::tempdir().unwrap();
    let volumes = Volumes::beside(data.path());
    let record = record("data", VolumeDriver::Shared);
    let (volume, _) = volumes.create(&record, |path| fs::create_dir(path)).unwrap();
    let outside = data.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("file"), "").unwrap();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let mut directory = openat(CWD, volume.content(), flags, Mode::empty()).unwrap();
    for number in 0..5000 {
        mkdirat(&directory, "d", Mode::RWXU).unwrap();
        if number % 500 == 0 {
            rustix::fs::symlinkat(&outside, &directory, "link").unwrap();
            mkdirat(&directory, format!(".removed-{number}"), Mode::empty()).unwrap();
        }
        directory = openat(&directory, "d", flags, Mode::empty()).unwrap();
    }
    drop(directory);
    let locked = volume.content().join("d/locked/full");
    fs::create_dir_all(&locked).unwrap();
    fs::write(locked.join("file"), "").unwrap();
    for path in [&locked, locked.parent().unwrap(), &volume.content().join("d")] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o0)).unwrap();
    }
    assert!(volumes.remove(&record.name, || false).unwrap());
    assert!(!volume.directory.exists() && outside.join("file").exists());
    volumes.create(&record, |path| fs::create_dir(path)).unwrap();
    fs::remove_file(volume.directory.join(RECORD)).unwrap();
    fs::create_dir_all(volume.directory.join(RECORD).join("full")).unwrap();
    assert!(matches!(volumes.find(&record.name), Err(VolumeError::Record { .. })));
    assert!(volumes.remove(&record.name, || false).unwrap() && !volume.directory.exists());
}

#[test]
fn no_more_files_are_looked_at_than_were_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    for number in 0..100 {
        fs::write(directory.path().join(number.to_string()), [1; 5000]).unwrap();
    }
    let of = |mut left| (usage(directory.path(), &mut left), left);
    let (all, left) = of(200);
    assert_eq!(left, 99);
    let (some, left) = of(11);
    assert!(some > 0 && some < all && left <= 1, "{some} of {all}, {left} left");
}
