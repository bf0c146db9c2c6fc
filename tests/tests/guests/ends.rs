//! Every way in which a VM can end, and its exit code.

use std::time::Duration;

use rstest::rstest;
use rustix::process::Signal;
use tempfile::TempDir;
use tests::{Boot, sparse_file};

#[rstest]
#[case::power_off("poweroff -f", "", 0, "Power down")]
#[case::reboot("reboot -f", "", 0, "Restarting system")]
#[case::reboot_by_keyboard_controller("reboot -f", "reboot=k", 0, "Restarting system")]
#[case::sysrq("echo 1 >/proc/sys/kernel/sysrq; echo b >/proc/sysrq-trigger; sleep 60", "", 0, "Resetting")]
#[case::panic("echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger", "", 4, "panicked")]
#[case::no_init("true", "init=/missing", 4, "--append init=PATH")]
#[case::init_ends("exit 0", "init=/bin/true", 4, "poweroff -f")]
#[case::reboot_by_the_chipset("reboot -f", "reboot=p", 0, "Restarting system")]
#[case::reboot_by_the_reset_vector("reboot -f", "reboot=b", 0, "Restarting system")]
#[case::its_exit_code("exit 7", "", 7, "exit code 7")]
#[case::triple_fault("reboot -f", "reboot=t", 4, "triple fault")]
fn each_end_has_its_exit_code(
    #[case] script: &str,
    #[case] argument: &str,
    #[case] code: i32,
    #[case] said: &str,
) {
    Boot::new().append("loglevel=4").append(argument).script(script).run().expect_code(code).expect(said);
}

/// Waits for the power button as acpid does, and powers off.
const BUTTON: &str =
    "exec 3</dev/input/event0; echo waiting; dd bs=24 count=1 <&3 >/dev/null 2>&1; echo pressed; poweroff -f";

#[test]
fn sigterm_presses_the_power_button() {
    let mut guest = Boot::new().script(BUTTON).start();
    guest.wait_for("waiting");
    guest.signal(Signal::TERM);
    guest.finish().expect_code(0).expect_line("pressed");
}

#[test]
fn a_second_signal_stops_a_guest_that_does_not_listen() {
    let mut guest = Boot::new().flag("--log-level", "info").start();
    guest.wait_for("init: started");
    guest.signal(Signal::INT);
    guest.wait_for_error("SIGINT: pressed the power button");
    // Less than a second apart they would be one request.
    std::thread::sleep(Duration::from_millis(1100));
    guest.signal(Signal::TERM);
    guest.finish().expect_code(143);
}

#[test]
fn a_press_during_boot_is_not_lost() {
    // It may take long to boot, on a host with much else to do.
    let mut guest = Boot::new().flag("--stop-timeout", "10m").append("loglevel=7").script(BUTTON).start();
    // Long before there is a driver for the button, let alone somebody who waits for it.
    guest.wait_for("Linux version");
    guest.signal(Signal::TERM);
    guest.finish().expect_code(0).expect_line("pressed");
}

#[test]
fn a_timeout_presses_the_power_button_and_has_a_code_of_its_own() {
    let mut guest = Boot::new().flag("--timeout", "30s").flag("--stop-timeout", "10m").script(BUTTON).start();
    guest.wait_for("waiting");
    guest.finish().expect_code(124).expect_line("pressed");
}

#[test]
fn sigkill_leaves_nothing_behind() {
    let directory = TempDir::new().unwrap();
    let disk = sparse_file(directory.path(), "disk", 1 << 20);
    let before = host_state();
    let mut guest = Boot::new().flag("--disk", &disk).start();
    guest.wait_for("init: started");
    guest.signal(Signal::KILL);
    drop(guest.finish());
    assert_eq!(host_state(), before, "a process or a mount is left");
    // The disk is free again.
    Boot::new().flag("--disk", &disk).script("true").run().expect_code(0);
}

/// Processes of mvm without a parent, and mounts.
fn host_state() -> (usize, String) {
    let orphans = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok).filter(|entry| {
        let status = std::fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        status.contains("Name:\tmvm\n") && status.contains("PPid:\t1\n")
    });
    (orphans.count(), std::fs::read_to_string("/proc/mounts").unwrap())
}
