//! The two processes of a VM: the sealed one that its guest runs in, and the one that keeps it.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use serde_json::Value;

use crate::terminal::Shell;
use crate::vm::{IDLE, Place, Vm, WATCHDOG, text};

/// The process that the guest of the VM called vm runs in.
fn vm_process(place: &Place) -> Pid {
    let record = fs::read(place.control_socket("vm").with_file_name("vm.json")).unwrap();
    let record: Value = serde_json::from_slice(&record).unwrap();
    let pid = |key: &str| i32::try_from(record[key]["pid"].as_i64().unwrap()).unwrap();
    assert_ne!(pid("process"), pid("vm_process"));
    Pid::from_raw(pid("vm_process")).unwrap()
}

/// A line of the status of a thread.
fn status(thread: &fs::DirEntry, name: &str) -> String {
    let status = fs::read_to_string(thread.path().join("status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("{name}: {status}")).trim().to_owned()
}

fn is_over(process: Pid) -> bool {
    let Ok(process) = pidfd_open(process, PidfdFlags::empty()) else { return true };
    let limit = Timespec::try_from(WATCHDOG).unwrap();
    poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&limit)).unwrap() == 1
}

fn jail_of(place: &Place) -> Value {
    let shown = place.mvm().args(["inspect", "-f", "{{json .Vm.Jail}}", "vm"]).output().unwrap();
    serde_json::from_slice(&shown.stdout).unwrap_or_else(|error| panic!("{error}: {}", text(&shown)))
}

#[test]
fn each_thread_that_a_guest_can_reach_is_confined_and_the_keeper_is_not() {
    let Some(place) = Place::new(IDLE) else { return };
    let vm = place.start(&[]);
    let process = vm_process(&place);
    let jail = jail_of(&place);
    assert_eq!(jail["Mode"], "best-effort");
    let is_on = |layer: &str| jail["Layers"][layer].as_str().is_some_and(|state| state.starts_with("on"));
    assert!(is_on("no-new-privs") && is_on("dumps") && is_on("limits"), "{jail}");
    let threads = fs::read_dir(format!("/proc/{}/task", process.as_raw_nonzero())).unwrap();
    for thread in threads.map(Result::unwrap) {
        let lines = ["NoNewPrivs", "Seccomp", "CapEff", "CapPrm", "CapInh", "CapAmb"];
        let held = lines.map(|line| status(&thread, line));
        let filter = if is_on("seccomp") { "2" } else { "0" };
        let none = "0000000000000000";
        assert_eq!(held, ["1", filter, none, none, none, none], "{:?}", status(&thread, "Name"));
    }
    // Only root may look there.
    if is_on("root") && rustix::process::geteuid().is_root() {
        let root = format!("/proc/{}/root", process.as_raw_nonzero());
        assert_eq!(fs::read_dir(root).unwrap().count(), 0);
    }
    let keeper = fs::read_to_string(format!("/proc/{}/status", vm.0.id())).unwrap();
    assert!(keeper.contains("NoNewPrivs:\t0"), "{keeper}");
    vm.signal(Signal::KILL);
}

#[test]
fn a_vm_that_is_not_to_be_confined_is_not() {
    let Some(place) = Place::new(IDLE) else { return };
    let vm = place.start(&["--jail", "off", "--stop-timeout", "0s"]);
    let process = vm_process(&place);
    assert_eq!(jail_of(&place)["Mode"], "off");
    let status = fs::read_to_string(format!("/proc/{}/status", process.as_raw_nonzero())).unwrap();
    assert!(status.contains("Seccomp:\t0") && status.contains("NoNewPrivs:\t0"), "{status}");
    vm.signal(Signal::TERM);
    assert_eq!(vm.finish().0, Some(143));
    assert!(place.is_clean());
}

#[test]
fn a_killed_vm_is_said_and_leaves_nothing() {
    let Some(place) = Place::new(IDLE) else { return };
    let socket = place.path("v");
    let mut boot = place.boot(&[]);
    boot.arg("--vsock").arg(&socket);
    let mut vm = Vm(boot.spawn().unwrap());
    vm.wait_until_ready();
    assert!(socket.exists());
    kill_process(vm_process(&place), Signal::KILL).unwrap();
    let (code, errors) = vm.finish();
    assert_eq!((code, errors.as_str()), (Some(137), "mvm: the VM ended: its process ended with 137\n"));
    assert!(place.is_clean() && !socket.exists());
}

#[test]
fn a_vm_ends_with_its_keeper() {
    let Some(place) = Place::new(IDLE) else { return };
    let mut vm = place.start(&[]);
    let process = vm_process(&place);
    vm.signal(Signal::KILL);
    assert_eq!(vm.wait().signal(), Some(libc::SIGKILL));
    assert!(is_over(process));
}

#[test]
fn a_vm_whose_process_is_stopped_ends_at_the_second_request() {
    let Some(place) = Place::new(IDLE) else { return };
    let vm = place.start(&["--stop-timeout", "1h"]);
    let process = vm_process(&place);
    kill_process(process, Signal::STOP).unwrap();
    vm.signal(Signal::TERM);
    // Time is what makes a request the second one.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    vm.signal(Signal::INT);
    let (code, errors) = vm.finish();
    assert_eq!(code, Some(130), "{errors}");
    assert!(place.is_clean() && is_over(process));
}

#[test]
fn the_terminal_is_restored_where_the_vm_is_killed() {
    let Some(place) = Place::new(IDLE) else { return };
    let mut shell = Shell::new(&place);
    shell.run("$M boot --kernel $K --memory 32M --name vm; echo \"code=$?\"; stty -a", "\n");
    shell.wait_until_raw();
    kill_process(vm_process(&place), Signal::KILL).unwrap();
    shell.wait_for("code=137");
    shell.wait_for("isig icanon");
    assert!(place.is_clean());
}

#[test]
fn the_configuration_file_says_whom_a_vm_of_root_becomes() {
    let Some(place) = Place::new(IDLE) else { return };
    if !rustix::process::geteuid().is_root() {
        return eprintln!("skipped: only root's VMs have users of their own");
    }
    let directory = place.path("configuration");
    let file = directory.join("mvm/config.toml");
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(&file, "jail-ids = '1999999000-1999999001'").unwrap();
    let mut boot = place.boot(&[]);
    let mut vm = Vm(boot.env("XDG_CONFIG_HOME", &directory).spawn().unwrap());
    vm.wait_until_ready();
    let ids = jail_of(&place)["Layers"]["ids"].as_str().unwrap().to_owned();
    if ids.starts_with("on") {
        let status = fs::read_to_string(format!("/proc/{}/status", vm_process(&place).as_raw_nonzero()));
        let status = status.unwrap();
        assert!(status.contains("\nUid:\t199999900"), "{status}");
    } else {
        eprintln!("not looked at: {ids}");
    }
    vm.signal(Signal::KILL);
    vm.wait();
    fs::write(&file, "jail-ids = '7-7'").unwrap();
    let refused = place.boot(&[]).env("XDG_CONFIG_HOME", &directory).output().unwrap();
    let line = text(&refused);
    assert_eq!(refused.status.code(), Some(2), "{line}");
    assert!(line.contains("config.toml, line 1: jail-ids: invalid range of IDs 7-7"), "{line}");
}

#[test]
fn a_forbidden_system_call_ends_the_vm_and_is_named() {
    let Some(place) = Place::new(IDLE) else { return };
    if Command::new("strace").arg("true").stderr(Stdio::null()).status().is_err() {
        return eprintln!("skipped: there is no strace (Debian package strace)");
    }
    let vm = place.start(&[]);
    let process = vm_process(&place);
    let seccomp = jail_of(&place)["Layers"]["seccomp"].as_str().unwrap().to_owned();
    if !seccomp.starts_with("on") || !rustix::process::geteuid().is_root() {
        return eprintln!(
            "skipped: another process of the user may not trace a VM's; system calls: {seccomp}"
        );
    }
    // In place of its next wait the process makes a call that no VM makes.
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-e", "inject=epoll_wait:error=EINTR:syscall=getuid", "-o", "/dev/null", "-p"]);
    let mut strace = strace.arg(process.as_raw_nonzero().to_string()).spawn().unwrap();
    let (code, errors) = vm.finish();
    strace.wait().unwrap();
    assert_eq!((code, errors.lines().count()), (Some(4), 1), "{errors}");
    let says = "its process was ended, as its thread main made the system call getuid, which no VM needs";
    assert!(errors.contains(says), "{errors}");
    assert!(place.is_clean());
}
