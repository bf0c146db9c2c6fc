//! Places for images and records that are full, read-only, or another user's.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::Command;

use rstest::rstest;
use tempfile::TempDir;

/// What each command but those that only look says of a place that can't be used, in one line.
const COMMANDS: [(&str, i32); 10] = [
    ("images", 1),
    ("import a.tar other", 1),
    ("load -i a.tar", 1),
    ("rmi tools:1", 1),
    ("image prune -f", 1),
    ("system df", 1),
    ("run --network none tools:1 true", 125),
    ("run -d --network none tools:1 true", 125),
    ("pull localhost:1/x", 1),
    ("history tools:1", 1),
];

fn assets(directory: &Path) {
    for name in ["vmlinux", "agent.erofs", "changes.templates"] {
        fs::write(directory.join(name), [0; 4096]).unwrap();
    }
}

#[rstest]
#[case::file(|data: &Path| fs::write(data, "").unwrap(), "Not a directory")]
#[case::link_to_nothing(|data: &Path| symlink("nowhere", data).unwrap(), "File exists")]
#[case::open_to_others(
    |data: &Path| {
        fs::create_dir_all(data.join("images")).unwrap();
        fs::set_permissions(data.join("images"), Permissions::from_mode(0o777)).unwrap();
    },
    "chmod 700 it"
)]
#[case::of_another(
    |data: &Path| {
        fs::create_dir_all(data.join("images")).unwrap();
        // Only root can do so.
        let _ = chown(data.join("images"), Some(12345), None);
    },
    "it belongs to another"
)]
#[case::newer(
    |data: &Path| {
        fs::create_dir_all(data.join("images")).unwrap();
        fs::write(data.join("images/version"), "99\n").unwrap();
    },
    "layout"
)]
fn a_place_that_cannot_be_used_is_said_in_a_line(#[case] make: fn(&Path), #[case] expected: &str) {
    if expected.contains("another") && !rustix::process::geteuid().is_root() {
        return;
    }
    let directory = TempDir::new().unwrap();
    let data = directory.path().join("data");
    make(&data);
    assets(directory.path());
    fs::write(directory.path().join("a.tar"), [0; 1024]).unwrap();
    for (command, code) in COMMANDS {
        let mut mvm = Command::new(env!("CARGO_BIN_EXE_mvm"));
        mvm.args(command.split(' ')).current_dir(directory.path()).env("XDG_RUNTIME_DIR", directory.path());
        // A relative path is taken from here.
        let output = mvm.env("MVM_DATA_DIR", "data").env("MVM_ASSETS", directory.path()).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{command}: {errors}");
        assert!(errors.lines().count() == 1 && errors.contains(expected), "{command}: {errors}");
    }
}

/// Runs mvm as a shell's `try`, which says the exit code and one line.
const SCRIPT: &str = r#"
    cd "$1"; export MVM_DATA_DIR="$1/data" MVM_ASSETS="$1" XDG_RUNTIME_DIR="$1"
    mkdir data; mount -t tmpfs -o size=2m none data || exit 77
    try() { "$mvm" "$@" >out 2>err; echo "$1 $? $(wc -l <err) $(sed 's/.*: //' err)"; }
    try import a.tar tools:1
    try import large.tar large
    ls data/images/tmp data/images/partial
    mkdir data/more; dd if=/dev/zero of=data/more/fill bs=4k 2>dd; rm dd
    try run --network none tools:1 true
    try run -d --network none tools:1 true
    try import a.tar other
    try load -i a.tar
    ls data/instances data/images/tmp
    try ps -aq
    try images
    try rmi tools:1
    "$mvm" images -q
    ls data/images/layers data/images/tmp
    rm data/more/fill
    try import a.tar tools:1
    mount -o remount,ro data
    try images
    try ps -a
    try import a.tar other
    try rmi tools:1
    try run --network none tools:1 true
    try rm other
"#;

/// What the script prints. Some lines of errors are of a file's name, which is left out.
const EXPECTED: &str = "\
import 0 0 
import 1 1 No space left on device (os error 28)
data/images/partial:

data/images/tmp:
run 125 1 No space left on device (os error 28)
run 125 1 No space left on device (os error 28)
import 1 1 No space left on device (os error 28)
load 1 1 No space left on device (os error 28)
data/images/tmp:

data/instances:
ps 0 0 
images 0 0 
rmi 0 0 
data/images/layers:

data/images/tmp:
import 0 0 
images 0 0 
ps 0 0 
import 1 1 Read-only file system (os error 30)
rmi 1 1 Read-only file system (os error 30)
run 125 1 Read-only file system (os error 30)
rm 1 1 `mvm ps -a` lists them
";

#[test]
fn a_full_disk_and_one_that_is_read_only_are_said_in_a_line_and_images_can_be_removed() {
    let directory = TempDir::new().unwrap();
    assets(directory.path());
    let tar = |name: &str, file: &str| {
        let made = Command::new("tar").arg("-cf").arg(name).arg(file).current_dir(directory.path()).status();
        assert!(made.unwrap().success());
    };
    fs::write(directory.path().join("small"), "small").unwrap();
    let noise = |number: u32| number.wrapping_mul(2_654_435_761).to_le_bytes();
    fs::write(directory.path().join("large"), (0..1 << 20).flat_map(noise).collect::<Vec<_>>()).unwrap();
    tar("a.tar", "small");
    tar("large.tar", "large");
    // A file system of its own, in a namespace of its own.
    let mut shell = Command::new("unshare");
    shell.args(["--mount", "--map-root-user", "sh", "-c", SCRIPT, "sh"]).arg(directory.path());
    let output = shell.env("mvm", env!("CARGO_BIN_EXE_mvm")).env("LC_ALL", "C").output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    if errors.contains("unshare failed") || output.status.code() == Some(77) {
        println!("skipped: there are no namespaces here: {errors}");
        return;
    }
    assert_eq!(String::from_utf8_lossy(&output.stdout), EXPECTED, "{errors}");
}
