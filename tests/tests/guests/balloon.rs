//! Memory that a guest has no more use for is the host's again.

use std::time::{Duration, Instant};

use rustix::process::Pid;
use tests::Boot;

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
    let before = resident(guest.pid());
    guest.type_text("\n");
    guest.wait_for("taken");
    let taken = resident(guest.pid());
    assert!(taken >= before + TAKEN - 16 * MIB, "{before} bytes, then {taken}");

    guest.type_text("\n");
    guest.wait_for("freed");
    let freed = Instant::now();
    // Memory that was free before it was taken goes too, so that more may be left in the end than was there before.
    let goal = before + TAKEN / 20;
    while resident(guest.pid()) > goal {
        let left = resident(guest.pid()) / MIB;
        assert!(freed.elapsed() < PATIENCE, "{left} MiB are left of {} MiB", taken / MIB);
        std::thread::sleep(Duration::from_millis(100));
    }
    println!(
        "{} MiB before, {} MiB with the file, {} MiB {:.1} s after it was freed",
        before / MIB,
        taken / MIB,
        resident(guest.pid()) / MIB,
        freed.elapsed().as_secs_f64()
    );
    guest.type_text("\n");
    guest.finish().expect_code(0);
}
