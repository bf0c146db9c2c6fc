//! VMs that are saved and copied under load, and many that go on from one template.

use std::collections::HashSet;
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tests::{Boot, Guest, fio_rootfs, mvm, run_mvm, sparse_file};

use super::super::containers::{IMAGE, text};
use super::super::pause::Busy;
use super::super::warm::Warm;
use crate::counts::{count, report};

/// Longer than fio takes for a round.
const WATCHDOG: Duration = Duration::from_secs(120);

fn does(arguments: &[&str]) {
    let output = run_mvm(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
}

#[test]
fn a_busy_vm_that_is_saved_again_and_again_loses_nothing() {
    let (start, times) = (Instant::now(), count("SAVES", 3));
    let place = TempDir::new().unwrap();
    let busy = Busy::start("saving", "mvmsave");
    for number in 0..times {
        let directory = place.path().join(number.to_string());
        does(&["snapshot", "saving", directory.to_str().unwrap()]);
        std::fs::remove_dir_all(directory).unwrap();
        busy.goes_on();
    }
    busy.finish();
    report("snapshots of a busy VM", times, start, "");
}

/// Writes to its disk and checks what it reads again, and says so after each round.
const WORK: &str = "echo 1 >/proc/sys/vm/overcommit_memory
for d in /sys/block/vd*; do [ \"$(cat $d/serial)\" = data ] && data=/dev/${d##*/}; done
n=0; echo ready
while fio --name=v --filename=$data --size=4M --rw=randwrite --bs=4k --ioengine=io_uring --iodepth=8 --direct=1 \\
    --thread --verify=crc32c --verify_fatal=1 --do_verify=1 --verify_state_save=0 >/tmp/fio 2>&1; do
    n=$((n + 1)); echo round=$n.
done
cat /tmp/fio; echo fio failed";

#[test]
fn copies_of_a_busy_vm_find_on_their_disks_what_they_had_written() {
    let (start, times) = (Instant::now(), count("COPIES", 2));
    let place = TempDir::new().unwrap();
    let data = sparse_file(place.path(), "data", 4 << 20);
    let mut first = Boot::new()
        .flag("--name", "copied")
        .flag("--memory", "96M")
        .flag("--rootfs", format!("{},readonly", fio_rootfs().display()))
        .flag("--disk", format!("{},id=data", data.display()))
        .script(WORK)
        .watchdog(WATCHDOG)
        .start();
    first.wait_for("round=1.");
    for _ in 0..times {
        does(&["fork", "copied", "--name", "copy", "--rm"]);
        // What it prints is its own: a round that it has ended, and one that it has begun.
        let mut console = Command::new(mvm());
        console.args(["console", "copy"]);
        let mut shown = Guest::spawn(console, TempDir::new().unwrap(), WATCHDOG);
        shown.wait_for_times("round=", 2);
        does(&["rm", "-f", "copy"]);
        assert!(!shown.finish().output.contains("fio failed"));
    }
    first.wait_for(&format!("round={}.", times + 1));
    does(&["kill", "copied"]);
    assert!(!first.finish().output.contains("fio failed"));
    report("copies of a busy VM", times, start, "");
}

/// What must not be the same in two containers, on a line each.
const DRAWN: &str =
    "cat /proc/sys/kernel/random/uuid; head -c 32 /dev/urandom | md5sum; head -c 32 /dev/random | md5sum
    cat /proc/sys/kernel/random/boot_id; grep stack /proc/self/maps | cut -d' ' -f1
    grep vdso /proc/self/maps | cut -d' ' -f1; mktemp -u; hostname";

#[test]
fn many_containers_of_one_template_have_nothing_random_in_common() {
    let (start, times) = (Instant::now(), count("WARM", 3));
    let warm = Warm::new();
    warm.said(&["template", "build", "--network", "none"]);
    let mut seen = HashSet::new();
    for _ in 0..times {
        let output = warm.run(true, &[IMAGE, "sh", "-c", DRAWN]);
        let said = text(&output.stdout);
        let drawn: Vec<&str> = said.lines().collect();
        assert_eq!(drawn.len(), 8, "{output:?}");
        for line in drawn.into_iter().enumerate() {
            assert!(seen.insert((line.0, line.1.to_owned())), "{line:?} again");
        }
    }
    report("containers of one template", times, start, "");
}
