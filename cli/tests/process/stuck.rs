//! Ends that come in time though a device does not.

use std::io::Write;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::stalled_files::StalledFiles;
use crate::tiny::stuck;
use crate::vm::{Place, Vm, WATCHDOG, text};

/// How long devices may take to end, all together, and some time for a machine that is busy.
const DEVICES: Duration = Duration::from_secs(5 + 4);

#[test]
fn a_guest_that_resets_a_device_without_end_is_ended_in_time() {
    let Some(place) = Place::new(stuck::resetting()) else { return };
    let vm = place.start(&["--stop-timeout", "0s"]);
    vm.signal(Signal::TERM);
    vm.finish_forced(&place);
}

fn wait_for_reads(files: &StalledFiles, count: usize) {
    let start = Instant::now();
    while files.reads() < count {
        assert!(start.elapsed() < WATCHDOG, "the guest does not read: {}", files.reads());
        std::thread::yield_now();
    }
}

#[test]
fn a_guest_that_resets_a_stalled_disk_without_end_is_ended_in_time() {
    let Some(place) = Place::new(stuck::reading_and_resetting()) else { return };
    let Some(files) = StalledFiles::mount(&place.path("stalled")) else { return };
    let disk = format!("{},format=raw", files.file("a").display());
    let mut vm = place.start(&["--stop-timeout", "1h", "--disk", &disk]);
    wait_for_reads(&files, 1);
    vm.signal_twice(Signal::TERM);
    vm.finish_forced(&place);
}

#[test]
fn any_number_of_stalled_disks_costs_the_end_of_a_vm_one_deadline() {
    let Some(place) = Place::new(stuck::reading_four_disks()) else { return };
    let Some(files) = StalledFiles::mount(&place.path("stalled")) else { return };
    let mut command = place.boot(&[]);
    for name in ["a", "b", "c", "d"] {
        command.arg("--disk").arg(format!("{},format=raw", files.file(name).display()));
    }
    let mut vm = Vm(command.stdin(Stdio::piped()).spawn().unwrap());
    wait_for_reads(&files, 4);
    vm.0.stdin.take().unwrap().write_all(b"e").unwrap();
    let start = Instant::now();
    let (code, errors) = vm.finish();
    assert_eq!(code, Some(0), "{errors}");
    assert!(start.elapsed() < DEVICES, "{:?}", start.elapsed());
    assert!(place.is_clean());
}

/// mvm ignores some signals, which a program that it starts would inherit without notice.
#[test]
fn helpers_get_the_default_action_of_signals_that_mvm_ignores() {
    use std::os::unix::fs::PermissionsExt;
    let Some(place) = Place::new(crate::vm::IDLE) else { return };
    let (script, said) = (place.path("virtiofsd"), place.path("said"));
    std::fs::write(&script, format!("#!/bin/sh\nexec grep SigIgn /proc/self/status >{}\n", said.display()))
        .unwrap();
    std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
    let mut command = place.boot(&["--share", "/tmp:/work"]);
    let output = command.env("MVM_VIRTIOFSD", &script).output().unwrap();
    assert!(!output.status.success(), "{}", text(&output));
    let said = std::fs::read_to_string(said).unwrap();
    let ignored = u64::from_str_radix(said.trim_start_matches("SigIgn:").trim(), 16).unwrap();
    let is_ignored = |signal: i32| ignored & 1 << (signal - 1) != 0;
    for signal in [libc::SIGPIPE, libc::SIGXFSZ, libc::SIGTTIN, libc::SIGTTOU, libc::SIGCHLD] {
        assert!(!is_ignored(signal), "signal {signal}: {said}");
    }
    assert!(is_ignored(libc::SIGTERM), "it outlives the signals that end a service: {said}");
}

#[test]
fn a_kernel_that_cannot_be_read_keeps_neither_the_process_nor_its_sockets() {
    let Some(place) = Place::new(crate::vm::IDLE) else { return };
    let Some(files) = StalledFiles::mount(&place.path("stalled")) else { return };
    let sockets = ["v", "g"].map(|name| place.path(name));
    let mut command = place.mvm();
    command.args(["boot", "--timeout", "100ms", "--kernel"]).arg(files.file("a"));
    command.arg("--vsock").arg(&sockets[0]).arg("--gdb").arg(&sockets[1]).stderr(Stdio::piped());
    let (code, errors) = Vm(command.spawn().unwrap()).finish();
    assert_eq!(code, Some(124), "{errors}");
    let left: Vec<_> = sockets.iter().filter(|path| path.exists()).collect();
    assert!(place.is_clean() && left.is_empty(), "{left:?}");
}
