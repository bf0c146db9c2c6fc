//! Copies of containers and VMs that run.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::SystemTime;

use tempfile::TempDir;

use super::containers::{IMAGE, Stores, stores, text};
use tests::{Boot, rootfs, run_mvm};

/// Runs mvm with these arguments, and returns what it prints.
pub fn said(stores: &Stores, arguments: &[&str]) -> String {
    let output = stores.mvm().args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// Ends and removes these, whatever becomes of the test.
pub struct Ends<'a>(pub &'a Stores, pub &'a [&'a str]);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        drop(self.0.mvm().args(["rm", "-f"]).args(self.1).output());
    }
}

/// Counts in its memory, and says so when it is asked by a file.
pub const COUNTS: &str = "n=0; echo begun; trap 'echo $n >/count; exit 7' TERM
    while :; do n=$((n + 1)); [ -e /say ] && { rm /say; echo $n >/said; echo said $n; }; usleep 20000; done";

/// Waits until `container` has done what it is asked to, and returns how far it has counted.
pub fn count(stores: &Stores, container: &str) -> u64 {
    let script = "rm -f /said; touch /say; while ! [ -s /said ]; do usleep 10000; done; cat /said";
    said(stores, &["exec", container, "sh", "-c", script]).trim().parse().unwrap()
}

/// Fails where the clock of `container`, of which `mvm` runs commands, is surely off by more than 50 ms: what passes between
/// a question and its answer is on neither side. In the KVM lab a guest's clock loses 10 to 20 ms each second, however the
/// guest has started, so that it is 3 s there.
pub fn check_clock(mut mvm: Command, container: &str) {
    let script = "while read -r line; do : >/time; stat -c '%Y %y' /time; done";
    mvm.args(["exec", "-i", container, "sh", "-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut asks = mvm.spawn().unwrap();
    let (mut input, mut output) = (asks.stdin.take().unwrap(), BufReader::new(asks.stdout.take().unwrap()));
    let now = || {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        i64::try_from(now.as_nanos()).unwrap()
    };
    let (mut ahead, mut behind) = (i64::MIN, i64::MIN);
    for _ in 0..20 {
        let asked = now();
        input.write_all(b"\n").unwrap();
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        let answered = now();
        // As in "1795873384 2026-11-28 13:43:04.835560825 +0000".
        let (seconds, rest) = line.split_once(' ').unwrap();
        let (_, fraction) = rest.split_once('.').unwrap();
        let fraction: i64 = fraction.split(' ').next().unwrap().parse().unwrap();
        let said = seconds.parse::<i64>().unwrap() * 1_000_000_000 + fraction;
        (ahead, behind) = (ahead.max(said - answered), behind.max(asked - said));
    }
    drop(input);
    assert!(asks.wait().unwrap().success());
    let most = if std::env::var_os("MVM_KVM_LAB").is_some() { 3_000_000_000 } else { 50_000_000 };
    assert!(ahead <= most && behind <= most, "{container}: {ahead} ns ahead, {behind} ns behind");
}

#[test]
fn a_copy_of_a_container_goes_on_beside_it_with_its_memory_and_files() {
    let stores = stores();
    let _ends = Ends(stores, &["original", "copy", "third"]);
    let run = ["run", "-d", "--name", "original", IMAGE, "sh", "-c", COUNTS];
    said(stores, &run);
    said(stores, &["exec", "original", "sh", "-c", "echo before >/file; until [ -s /file ]; do :; done"]);
    let before = count(stores, "original");
    let copied = said(stores, &["fork", "original", "--name", "copy"]);
    let id = copied.trim();
    assert_eq!(id.len(), 12, "{copied}");
    // Both have counted on from there.
    for container in ["original", "copy"] {
        let now = count(stores, container);
        assert!(now > before, "{container}: {now} after {before}");
    }
    for container in ["original", "copy"] {
        check_clock(stores.mvm(), container);
    }
    // Its files are a copy, and its names its own.
    said(stores, &["exec", "copy", "sh", "-c", "echo after >/file"]);
    assert_eq!(said(stores, &["exec", "original", "cat", "/file"]), "before\n");
    let named = said(stores, &["exec", "copy", "sh", "-c", "hostname; cat /etc/hostname /etc/hosts"]);
    let first = said(stores, &["inspect", "--format", "{{.Config.Hostname}}", "original"]);
    assert!(named.starts_with(&format!("{id}\n{id}\n")) && !named.contains(first.trim()), "{id}: {named}");
    let boots = ["original", "copy"]
        .map(|container| said(stores, &["exec", container, "cat", "/proc/sys/kernel/random/uuid"]));
    assert_ne!(boots[0], boots[1]);
    // A copy of the copy, when the first one is gone.
    said(stores, &["rm", "-f", "original"]);
    said(stores, &["fork", "copy", "--name", "third", "--rm"]);
    assert!(count(stores, "third") > before);
    assert_eq!(said(stores, &["exec", "third", "cat", "/file"]), "after\n");
    // What they print from then on is theirs, and they end as any other.
    let logs = said(stores, &["logs", "copy"]);
    assert!(!logs.contains("begun") && logs.contains("said "), "{logs}");
    said(stores, &["stop", "-t", "20", "copy"]);
    assert_eq!(said(stores, &["wait", "copy"]), "7\n");
    said(stores, &["start", "copy"]);
    assert_eq!(said(stores, &["exec", "copy", "cat", "/file"]), "after\n");
    said(stores, &["kill", "third"]);
}

#[test]
fn volumes_of_a_copy_are_copies_and_go_with_it() {
    let stores = stores();
    let _ends = Ends(stores, &["first", "second"]);
    let run = ["run", "-d", "--network", "none", "--name", "first", "-v", "named:/a", "-v", "/b", IMAGE];
    said(stores, &[&run[..], &["sh", "-c", COUNTS]].concat());
    said(stores, &["exec", "first", "sh", "-c", "echo a >/a/file; echo b >/b/file"]);
    let names = || said(stores, &["volume", "ls", "-q"]).lines().count();
    let before = names();
    said(stores, &["fork", "first", "--name", "second"]);
    assert_eq!(names(), before + 2);
    assert_eq!(said(stores, &["exec", "second", "cat", "/a/file", "/b/file"]), "a\nb\n");
    said(stores, &["exec", "second", "sh", "-c", "echo other >/a/file"]);
    assert_eq!(said(stores, &["exec", "first", "cat", "/a/file"]), "a\n");
    // Others can use the volumes of either.
    said(stores, &["stop", "-t", "20", "second"]);
    said(stores, &["start", "second"]);
    assert_eq!(said(stores, &["exec", "second", "cat", "/a/file"]), "other\n");
    said(stores, &["rm", "-f", "-v", "second"]);
    assert_eq!(names(), before);
}

#[test]
fn several_copies_are_made_of_one_moment() {
    let stores = stores();
    let names = ["several", "several-1", "several-2", "several-3"];
    let _ends = Ends(stores, &names);
    said(stores, &["run", "-d", "--network", "none", "--name", "several", IMAGE, "sh", "-c", COUNTS]);
    said(stores, &["exec", "several", "sh", "-c", "echo here >/file"]);
    assert_eq!(said(stores, &["fork", "several", "--count", "3", "--name", "several"]).lines().count(), 3);
    for name in names {
        assert_eq!(said(stores, &["exec", name, "cat", "/file"]), "here\n");
        count(stores, name);
    }
}

#[test]
fn what_one_container_alone_can_have_is_refused() {
    let stores = stores();
    let _ends = Ends(stores, &["held"]);
    let place = TempDir::new().unwrap();
    let folder = format!("{}:/host", place.path().display());
    said(stores, &["volume", "create", "--driver", "shared", "common"]);
    for (options, expected) in [
        (["-v", "common:/data"], "it has a shared volume at /data"),
        (["-v", &folder], "it has a folder, file or socket of the host at /host"),
    ] {
        said(stores, &[&["run", "-d", "--name", "held"][..], &options, &[IMAGE, "sleep", "1000"]].concat());
        let output = stores.mvm().args(["fork", "held"]).output().unwrap();
        let line = text(&output.stderr);
        assert!(output.status.code() == Some(1) && line.contains(expected), "{line}");
        assert_eq!(line.lines().count(), 1, "{line}");
        assert_eq!(said(stores, &["exec", "held", "echo", "on"]), "on\n");
        said(stores, &["rm", "-f", "held"]);
    }
}

/// Answers each line that is typed by what is in its memory, and what is on its disk.
const ANSWERS: &str =
    "for disk in /sys/block/vd*; do [ \"$(cat $disk/serial)\" = data ] && data=/dev/${disk##*/}; done
    n=0; echo waiting
    while :; do
        n=$((n + 1)); echo $n | dd of=$data bs=512 count=1 conv=sync 2>/dev/null
        [ \"$(head -c 512 $data | tr -d '\\000')\" = $n ] || echo differs
        usleep 10000
    done";

#[test]
fn copies_of_a_vm_go_on_with_several_processors_and_a_disk() {
    let place = TempDir::new().unwrap();
    let disk = place.path().join("disk");
    std::fs::write(&disk, vec![0; 8 << 20]).unwrap();
    let rootfs = format!("{},readonly", rootfs().display());
    let boot = Boot::new().flag("--name", "machine").flag("--rootfs", rootfs).flag("--cpus", "2");
    let boot = boot.flag("--disk", format!("{},id=data", disk.display())).switch("--balloon");
    let mut first = boot.script(ANSWERS).start();
    first.wait_for("waiting");
    let output = run_mvm(["fork", "machine", "--name", "machine", "--count", "2"]);
    let (printed, complaint) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success() && printed.lines().count() == 2, "{printed}{complaint}");
    drop(first);
    for name in ["machine-1", "machine-2"] {
        let log = || text(&run_mvm(["logs", name]).stdout);
        // It runs, and finds on its disk what it writes there.
        let state =
            text(&run_mvm(["ps", "--filter", &format!("name={name}"), "--format", "{{.State}}"]).stdout);
        assert_eq!(state, "running\n");
        assert!(!log().contains("differs"), "{}", log());
        assert!(run_mvm(["kill", name]).status.success());
        run_mvm(["rm", "-f", name]);
    }
}
