//! Memory that a guest has no more use for is the host's again.

use std::time::{Duration, Instant};

use rustix::process::Pid;
use tempfile::TempDir;
use tests::{Boot, run_mvm, sparse_file};

const MIB: u64 = 1 << 20;
/// What the guest takes and gives back.
const TAKEN: u64 = 1 << 30;
/// Linux reports free memory in rounds of two seconds, some hundred MiB in each.
const PATIENCE: Duration = Duration::from_secs(10);

/// The memory of the host that a process has, in bytes.
fn resident(pid: Pid) -> u64 {
    let path = format!("/proc/{}/smaps_rollup", pid.as_raw_nonzero());
    let rollup = std::fs::read_to_string(path).unwrap();
    let line = rollup.lines().find_map(|line| line.strip_prefix("Rss:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() << 10
}

#[test]
fn memory_that_the_guest_frees_leaves_the_host() {
    let script = "mount -t tmpfs -o size=1100M big /mnt
        echo started; read line
        dd if=/dev/zero of=/mnt/file bs=1M count=1024 2>/dev/null && echo taken; read line
        rm /mnt/file; echo freed; read line";
    let mut guest = Boot::new().flag("--memory", "1536M").switch("--balloon").script(script).start();
    guest.wait_for("started");
    let before = resident(guest.vm_pid());
    guest.type_text("\n");
    guest.wait_for("taken");
    let taken = resident(guest.vm_pid());
    assert!(taken >= before + TAKEN - 16 * MIB, "{before} bytes, then {taken}");

    guest.type_text("\n");
    guest.wait_for("freed");
    let freed = Instant::now();
    // Memory that was free before it was taken goes too, so that more may be left in the end than was there before.
    let goal = before + TAKEN / 20;
    while resident(guest.vm_pid()) > goal {
        let left = resident(guest.vm_pid()) / MIB;
        assert!(freed.elapsed() < PATIENCE, "{left} MiB are left of {} MiB", taken / MIB);
        // Nothing tells when a process has shrunk, and to ask without a pause would take the lab's one processor from
        // it.
        std::thread::sleep(Duration::from_millis(100));
    }
    println!(
        "{} MiB before, {} MiB with the file, {} MiB {:.1} s after it was freed",
        before / MIB,
        taken / MIB,
        resident(guest.vm_pid()) / MIB,
        freed.elapsed().as_secs_f64()
    );
    guest.type_text("\n");
    guest.finish().expect_code(0);
}

/// What mvm prints; it has to succeed.
fn mvm_says(arguments: &[&str]) -> String {
    let output = run_mvm(arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {errors}");
    String::from_utf8(output.stdout).expect("mvm prints UTF-8")
}

/// Asks for a balloon of so many MiB, and waits until the guest has it.
fn inflate(name: &str, mib: u64) {
    assert_eq!(mvm_says(&["balloon", name, &format!("{mib}M")]), format!("{name}\n"));
    let (asked, has_it) = (Instant::now(), format!("\"actual_mib\": {mib},"));
    loop {
        // The guest answers each time.
        let balloon = mvm_says(&["balloon", "--json", name]);
        if balloon.contains(&has_it) {
            return;
        }
        assert!(asked.elapsed() < 12 * PATIENCE, "{balloon}");
    }
}

#[test]
fn a_balloon_takes_memory_that_the_guest_uses_for_caches_and_gives_it_back() {
    let directory = TempDir::new().unwrap();
    let disk = sparse_file(directory.path(), "disk", 192 * MIB);
    // Linux keeps what it has read of a device as long as somebody has it open.
    let script = "available() { echo $1=$(awk '/MemAvailable/ { print $2 }' /proc/meminfo); }
        exec 3</dev/vdb; dd of=/dev/null bs=1M <&3 2>/dev/null
        available before; echo cached; read line
        available inflated; echo small; read line
        available deflated";
    let boot = Boot::new().flag("--name", "inflated").flag("--memory", "384M").switch("--balloon");
    let mut guest = boot.flag("--disk", disk).script(script).start();
    guest.wait_for("cached");
    let before = resident(guest.vm_pid());
    assert!(before > 192 * MIB, "{before} bytes");

    let too_much = run_mvm(["balloon", "inflated", "321M"]);
    let errors = String::from_utf8_lossy(&too_much.stderr);
    assert!(too_much.status.code() == Some(1) && errors.contains("320 MiB at the most"), "{errors}");

    inflate("inflated", 256);
    let inflated = resident(guest.vm_pid());
    // What it has left, and mvm itself.
    assert!(inflated < 144 * MIB && inflated + 64 * MIB < before, "{before} bytes, then {inflated}");
    let table = mvm_says(&["balloon", "inflated"]);
    let row: Vec<_> = table.lines().nth(1).expect("a row").split_whitespace().collect();
    assert_eq!(row[1..4], ["inflated", "256.0MiB", "256.0MiB"], "{table}");
    assert!(row[4..].iter().all(|cell| cell.ends_with("iB")), "{table}");
    guest.type_text("\n");
    guest.wait_for("small");

    inflate("inflated", 0);
    guest.type_text("\n");
    let outcome = guest.finish().expect_code(0);
    let [before, inflated, deflated] =
        ["before", "inflated", "deflated"].map(|time| outcome.number(time) << 10);
    assert!(inflated + 224 * MIB < before, "{outcome}");
    assert!(deflated > inflated + 224 * MIB, "{outcome}");
}
