//! VMs that are saved in a directory and go on from there.

use std::fs::{self, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use instance::Client;
use instance::api::Drive;

use crate::vm::{Place, TALKS, Vm, text};

/// Runs mvm with what is kept in `place`; its exit code and all that it says.
pub fn mvm(place: &Place, arguments: &[&str]) -> (Option<i32>, String) {
    let mut mvm = place.mvm();
    let output = mvm.env("MVM_DATA_DIR", place.path("data")).args(arguments).output().unwrap();
    (output.status.code(), text(&output))
}

/// Ends all VMs of a place, whatever becomes of the test.
pub struct Ends<'a>(pub &'a Place);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        for name in ["one", "two", "three", "four", "copy-1", "copy-2", "copy-3"] {
            mvm(self.0, &["kill", name]);
        }
    }
}

/// A VM `one` that runs, saved in the directory that is returned.
fn saved(place: &Place, more: &[&str]) -> PathBuf {
    let kernel = place.path("kernel");
    let boot = ["boot", "-d", "--kernel", kernel.to_str().unwrap(), "--memory", "32M", "--name", "one"];
    let (code, said) = mvm(place, &[&boot[..], &["--ready", "rrrr"], more].concat());
    assert_eq!(code, Some(0), "{said}");
    let directory = place.path("one.snap");
    let (code, said) = mvm(place, &["snapshot", "one", directory.to_str().unwrap()]);
    assert_eq!((code, &*said), (Some(0), ""));
    directory
}

#[test]
fn a_vm_runs_on_and_others_go_on_from_where_it_was_saved() {
    let Some(place) = Place::new(TALKS) else { return };
    let _ends = Ends(&place);
    let disk = place.path("disk");
    fs::write(&disk, [7; 4096]).unwrap();
    let directory = saved(&place, &["--disk", &format!("{},readonly", disk.display())]);
    let mode = |name: &str| fs::metadata(directory.join(name)).unwrap().permissions().mode() & 0o7777;
    assert_eq!(fs::metadata(&directory).unwrap().permissions().mode() & 0o7777, 0o700);
    assert_eq!(["manifest.json", "state", "memory"].map(mode), [0o400; 3]);
    // The kernel is in its memory.
    fs::remove_file(place.path("kernel")).unwrap();
    let snapshot = directory.to_str().unwrap();
    let restored = ["two", "three"].map(|name| {
        let mut mvm = place.mvm();
        mvm.env("MVM_DATA_DIR", place.path("data")).args(["restore", "--name", name, snapshot]);
        let mut vm =
            Vm(mvm.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
        let mut said = [0; 100];
        vm.0.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
        assert_eq!(said, [b'r'; 100]);
        vm
    });
    let (code, said) = mvm(&place, &["restore", "-d", "--name", "four", snapshot]);
    assert_eq!(code, Some(0), "{said}");
    let (_, listed) = mvm(&place, &["ps", "--format", "{{.Names}} {{.State}}"]);
    for name in ["one", "two", "three", "four"] {
        assert!(listed.contains(&format!("{name} running")), "{listed}");
        assert_eq!(mvm(&place, &["kill", name]).0, Some(0));
    }
    for vm in restored {
        assert_eq!(vm.finish().0, Some(137));
    }
    for name in ["one", "four"] {
        assert_eq!(mvm(&place, &["wait", name]), (Some(0), "137\n".into()));
    }
    assert!(place.is_clean());
}

/// Where a VM has its first disk, and what is on it.
pub fn disk_of(place: &Place, vm: &str) -> (PathBuf, Vec<u8>) {
    let (code, socket) = mvm(place, &["ps", "--filter", &format!("name={vm}"), "--json"]);
    assert_eq!(code, Some(0), "{socket}");
    let listed: serde_json::Value = serde_json::from_str(&socket).unwrap();
    let socket = PathBuf::from(listed[0]["control_socket"].as_str().unwrap());
    let drive: Drive = Client::connect(&socket).unwrap().get("/drives/vda").unwrap();
    let content = fs::read(&drive.path_on_host).unwrap();
    (drive.path_on_host.into(), content)
}

#[test]
fn each_vm_that_goes_on_has_a_writable_disk_of_its_own() {
    let Some(place) = Place::new(TALKS) else { return };
    let _ends = Ends(&place);
    let disk = place.path("disk");
    fs::write(&disk, [7; 8192]).unwrap();
    let directory = saved(&place, &["--agent", "--disk", disk.to_str().unwrap()]);
    // As the first VM would.
    OpenOptions::new().write(true).open(&disk).unwrap().write_all_at(&[8; 100], 0).unwrap();
    assert_eq!(fs::read(directory.join("vda")).unwrap(), [7; 8192]);
    assert_eq!(fs::metadata(directory.join("vda")).unwrap().permissions().mode() & 0o7777, 0o400);
    let snapshot = directory.to_str().unwrap();
    assert_eq!(mvm(&place, &["restore", "-d", "--name", "two", snapshot]).0, Some(0));
    let named = place.path("disks");
    let restored = |name, directory: &str| {
        mvm(&place, &["restore", "-d", "--name", name, "--disks", named.to_str().unwrap(), directory])
    };
    let (code, said) = restored("three", snapshot);
    assert_eq!(code, Some(0), "{said}");
    let ((two, of_two), (three, of_three)) = (disk_of(&place, "two"), disk_of(&place, "three"));
    assert_eq!((of_two, of_three), (vec![7; 8192], vec![7; 8192]));
    assert_eq!(three, named.join("vda.img"));
    assert!(two.starts_with("/proc"), "{two:?}");
    // What leads to the agent is each VM's own.
    let (_, directories) = mvm(&place, &["ps", "--json"]);
    let directories: serde_json::Value = serde_json::from_str(&directories).unwrap();
    let directories = directories.as_array().unwrap().iter();
    let sockets = directories.filter(|vm| {
        let control = PathBuf::from(vm["control_socket"].as_str().unwrap());
        UnixStream::connect(control.with_file_name("agent.sock")).is_ok()
    });
    assert_eq!(sockets.count(), 3);
    OpenOptions::new().write(true).open(&two).unwrap().write_all_at(&[9; 100], 0).unwrap();
    assert_eq!(disk_of(&place, "three").1, [7; 8192]);
    assert_eq!(fs::read(directory.join("vda")).unwrap(), [7; 8192]);
    // One that goes on can be saved in its turn.
    let again = place.path("again.snap");
    let (code, said) = mvm(&place, &["snapshot", "two", again.to_str().unwrap()]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(fs::read(again.join("vda")).unwrap(), [&[9; 100][..], &[7; 8092]].concat());
    let (code, said) = restored("four", again.to_str().unwrap());
    assert!(code == Some(3) && said.contains("is there already") && said.lines().count() == 1, "{said}");
    for name in ["one", "two", "three"] {
        assert_eq!(mvm(&place, &["kill", name]).0, Some(0));
    }
    assert_eq!(fs::read(&three).unwrap(), [7; 8192]);
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 4, "no copy has a name in the snapshot");
    // It would be one that no VM has seen.
    let copy = OpenOptions::new().write(true).open(directory.join("vda"));
    if let Ok(copy) = copy {
        copy.set_len(4096).unwrap();
        let (code, said) = mvm(&place, &["restore", snapshot]);
        assert!(code == Some(2) && said.contains("vda has 4096 bytes, and not 8192"), "{said}");
    }
}

#[test]
fn a_restore_that_fails_leaves_no_disk() {
    let Some(place) = Place::new(TALKS) else { return };
    let _ends = Ends(&place);
    let disk = place.path("disk");
    fs::write(&disk, [7; 4096]).unwrap();
    let directory = saved(&place, &["--disk", disk.to_str().unwrap()]);
    let memory = OpenOptions::new().write(true).open(directory.join("memory"));
    // The VM can't be built of it.
    let Ok(memory) = memory else { return };
    memory.set_len(4096).unwrap();
    let named = place.path("disks");
    let (code, said) =
        mvm(&place, &["restore", "--disks", named.to_str().unwrap(), directory.to_str().unwrap()]);
    assert!(code == Some(2) && said.contains("cut off"), "{said}");
    assert_eq!(fs::read_dir(&named).unwrap().count(), 0);
}

/// Saves a VM where there is room for neither of its disks, and where there is room for one.
const NO_ROOM: &str = r#"
    mkdir room
    for size in 8m 20m; do
        mount -t tmpfs -o size=$size none room || exit 77
        "$mvm" snapshot one room/new 2>err; echo "$? $(wc -l <err) $(ls room | wc -l) $(sed 's/.*\/disk/disk/' err)"
        umount room
    done
"#;

#[test]
fn where_there_is_no_room_for_disks_nothing_is_left_and_the_vm_runs_on() {
    let Some(place) = Place::new(TALKS) else { return };
    let _ends = Ends(&place);
    let disks = ["disk1", "disk2"].map(|name| {
        fs::write(place.path(name), vec![7; 16 << 20]).unwrap();
        place.path(name).display().to_string()
    });
    let kernel = place.path("kernel");
    let boot = ["boot", "-d", "--kernel", kernel.to_str().unwrap(), "--memory", "32M", "--name", "one"];
    let (code, said) = mvm(&place, &[&boot[..], &["--disk", &disks[0], "--disk", &disks[1]]].concat());
    assert_eq!(code, Some(0), "{said}");
    // A file system of its own, in a namespace of its own.
    let mvm_command = place.mvm();
    let mut shell = Command::new("unshare");
    shell.args(["--mount", "--map-root-user", "sh", "-c", NO_ROOM]).current_dir(place.path(""));
    for (name, value) in mvm_command.get_envs() {
        value.map(|value| shell.env(name, value));
    }
    let output = shell.env("mvm", mvm_command.get_program()).env("LC_ALL", "C").output().unwrap();
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if errors.contains("unshare failed") || output.status.code() == Some(77) {
        println!("skipped: there are no namespaces here: {errors}");
        return;
    }
    let early =
        "1 1 0 disk1 has 16 MiB, and there are 8 MiB free in room: name a directory on another file system";
    let late = "1 1 0 disk2: No space left on device (os error 28)";
    assert_eq!(said.lines().collect::<Vec<_>>(), [early, late], "{errors}");
    let (_, listed) = mvm(&place, &["ps", "--format", "{{.Names}} {{.State}}"]);
    assert!(listed.contains("one running"), "{listed}");
    assert_eq!(mvm(&place, &["kill", "one"]).0, Some(0));
}

#[test]
fn what_can_t_be_saved_leaves_nothing() {
    let Some(place) = Place::new(TALKS) else { return };
    let _ends = Ends(&place);
    let disk = place.path("disk");
    fs::write(&disk, [7; 4096]).unwrap();
    let kernel = place.path("kernel");
    let boot = ["boot", "-d", "--kernel", kernel.to_str().unwrap(), "--memory", "32M", "--name", "one"];
    let (code, said) = mvm(&place, &[&boot[..], &["--disk", disk.to_str().unwrap()]].concat());
    assert_eq!(code, Some(0), "{said}");
    // What the VM writes to is not what has this name now.
    fs::rename(&disk, place.path("away")).unwrap();
    fs::write(&disk, [8; 4096]).unwrap();
    let target = place.path("new");
    let target = target.to_str().unwrap();
    for (vm, directory, expected) in [
        ("one", target, "the file was replaced"),
        ("none", target, "there is no VM or container \"none\""),
        ("one", disk.to_str().unwrap(), "is there already"),
    ] {
        let (code, said) = mvm(&place, &["snapshot", vm, directory]);
        assert!(code == Some(1) && said.contains(expected) && said.lines().count() == 1, "{said}");
    }
    assert!(!place.path("new").exists());
    assert_eq!(mvm(&place, &["kill", "one"]).0, Some(0));
}

#[test]
fn what_is_not_a_whole_snapshot_is_refused_with_one_line() {
    let Some(place) = Place::new(TALKS) else { return };
    let _ends = Ends(&place);
    let disk = place.path("disk");
    fs::write(&disk, [7; 4096]).unwrap();
    let directory = saved(&place, &["--disk", &format!("{},readonly", disk.display())]);
    assert_eq!(mvm(&place, &["kill", "one"]).0, Some(0));
    let file = |name: &str| directory.join(name);
    let manifest = fs::read_to_string(file("manifest.json")).unwrap();
    let replaced = |from: &str, to: &str| {
        assert!(manifest.contains(from), "{manifest}");
        manifest.replace(from, to).into_bytes()
    };
    let state = fs::read(file("state")).unwrap();
    let state_of = |state: &[u8]| {
        let digest = manifest.find("\"state\": \"").unwrap() + 10;
        let (before, after) = (&manifest[..digest], &manifest[digest + 71..]);
        (format!("{before}{}{after}", image::Digest::of(state)).into_bytes(), state.to_vec())
    };
    let said = |manifest: Vec<u8>, expected| ((manifest, state.clone()), expected);
    let newer = [&state[..8], &9_u32.to_le_bytes(), &state[12..]].concat();
    let rows = [
        said(b"{}".to_vec(), "manifest.json is damaged (line 1, column 2): take a new snapshot"),
        said(replaced("\"format\": 1", "\"format\": 2"), "manifest.json has version 2 of its format"),
        said(replaced("32M", "64M"), "64 MiB"),
        said(replaced("32M", "1K"), "too small"),
        said(replaced("readonly", "x"), "is damaged (invalid options: "),
        said(replaced(",readonly", ""), "says of vda is contradictory"),
        said(replaced("\"disks\": [", "\"disks\": [], \"others\": ["), "describes 0 disks"),
        ((manifest.clone().into_bytes(), newer.clone()), "state was altered"),
        // With the digest that it has, what is in it counts.
        (state_of(&state[..state.len() / 2]), "ends too early: take a new snapshot"),
        (state_of(b""), "does not begin as one of mvm's"),
        (state_of(&newer), "version 9"),
        (state_of(&[&*state, b"x"].concat()), "follows its end"),
    ];
    let refused = |expected: &str| {
        let (code, said) = mvm(&place, &["restore", directory.to_str().unwrap()]);
        assert!(code == Some(2) && said.lines().count() == 1 && said.contains(expected), "{code:?} {said}");
    };
    let write = |name: &str, content: &[u8]| {
        fs::remove_file(file(name)).unwrap();
        fs::write(file(name), content).unwrap();
    };
    for ((manifest, state), expected) in rows {
        write("manifest.json", &manifest);
        write("state", &state);
        refused(expected);
    }
    write("manifest.json", manifest.as_bytes());
    write("state", &state);
    let check = || mvm(&place, &["restore", "--check", directory.to_str().unwrap()]);
    assert_eq!(check(), (Some(0), String::new()));
    let memory = OpenOptions::new().write(true).open(file("memory"));
    // Root may write to it all the same.
    if let Ok(memory) = memory {
        memory.set_len(4096).unwrap();
        refused("cut off");
        assert!(check().1.contains("cut off"));
        memory.set_len(32 << 20).unwrap();
    }
    // What its file has lost is zeros now, which only a check finds.
    let (code, said) = check();
    assert!(code == Some(2) && said.contains("memory was altered"), "{said}");
    OpenOptions::new().write(true).open(&disk).unwrap().write_all_at(&[8], 0).unwrap();
    refused("has changed since the snapshot: put the old file back, or take a new snapshot");
    fs::remove_file(&disk).unwrap();
    refused("No such file");
    let empty = place.path("empty");
    fs::create_dir(&empty).unwrap();
    for (arguments, expected) in [
        (&["/nonexistent"][..], "cannot restore /nonexistent: there is no such directory"),
        (&["--check", "/nonexistent"], "cannot check /nonexistent: there is no such directory"),
        (&[empty.to_str().unwrap()], "it is not a snapshot (it has no manifest.json)"),
        (&[disk.parent().unwrap().join("kernel").to_str().unwrap()], "it is not a snapshot"),
        (&[""], "DIR is empty: write a value"),
    ] {
        let (code, said) = mvm(&place, &[&["restore"], arguments].concat());
        assert!(code == Some(2) && said.contains(expected), "{arguments:?}: {said}");
    }
}
