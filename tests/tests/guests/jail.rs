//! The jail of the process that runs a VM, as the host's kernel shows it.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tests::Boot;

use super::containers::{IMAGE, text};
use super::life::{mvm, pids, said, start};

/// What inspect shows of the jail of a VM.
pub(super) fn shown(id: &str) -> Value {
    serde_json::from_str(&said(&["inspect", "-f", "{{json .Vm.Jail}}", id])).unwrap()
}

/// The threads of a process, by their names.
fn threads(pid: &str) -> Vec<(String, PathBuf)> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let name = |path: &Path| fs::read_to_string(path.join("comm")).unwrap().trim().to_owned();
    tasks.map(|task| task.unwrap().path()).map(|path| (name(&path), path)).collect()
}

/// A line of the status of a thread.
pub(super) fn status(thread: &Path, name: &str) -> String {
    let status = fs::read_to_string(thread.join("status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("{name}: {status}")).trim().to_owned()
}

fn is_same(pid: &str, namespace: &str) -> bool {
    let link = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{namespace}")).unwrap();
    link(pid) == link("self")
}

/// The process `vm` has threads of these `kinds`, and each thread of it no rights; it is in no namespace of the host's, and
/// its root is empty.
fn is_confined(vm: &str, kinds: &[&str]) {
    let all = threads(vm);
    for kind in kinds {
        assert!(all.iter().any(|(name, _)| name == kind), "{kind}: {all:?}");
    }
    for (name, thread) in &all {
        let lines = ["NoNewPrivs", "Seccomp", "CapEff", "CapPrm", "CapInh", "CapAmb"];
        let none = "0000000000000000";
        assert_eq!(lines.map(|line| status(thread, line)), ["1", "2", none, none, none, none], "{name}");
    }
    for namespace in ["user", "mnt", "net", "ipc", "uts", "cgroup"] {
        assert!(!is_same(vm, namespace), "{namespace}");
    }
    assert_eq!(fs::read_dir(format!("/proc/{vm}/root")).unwrap().count(), 0);
}

#[test]
fn each_thread_of_a_containers_vm_is_confined() {
    let id = start(&["--name", "jailed", IMAGE, "sleep", "1000"]);
    let (_keeper, vm) = pids("jailed");
    is_confined(&vm, &["mvm", "vcpu0", "block", "vsock", "supervisor", "keeper", "background", "log"]);
    let limits = fs::read_to_string(format!("/proc/{vm}/limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().skip(4).collect::<Vec<_>>(), ["0", "0", "bytes"]);

    let jail = shown("jailed");
    assert_eq!(jail["Mode"], "best-effort");
    for layer in
        ["cgroup", "ids", "no-new-privs", "dumps", "limits", "namespaces", "root", "landlock", "seccomp"]
    {
        assert!(
            jail["Layers"][layer].as_str().is_some_and(|state| state.starts_with("on")),
            "{layer}: {jail}"
        );
    }
    // What others do to it goes on.
    assert_eq!(text(&mvm(&["exec", "jailed", "echo", "here"]).stdout), "here\n");
    let usage: Value = serde_json::from_str(&said(&["stats", "--no-stream", "--json", "jailed"])).unwrap();
    let usage = usage.get(0).unwrap_or(&usage);
    assert!(usage["resident_bytes"].as_u64().is_some_and(|bytes| bytes > 8 << 20), "{usage}");
    // Another name changes the directory that the VM's process cannot see.
    said(&["rename", "jailed", "renamed"]);
    assert_eq!(text(&mvm(&["exec", "renamed", "echo", "still"]).stdout), "still\n");
    said(&["rm", "-f", &id]);
}

#[test]
fn each_thread_of_a_whole_guests_vm_is_confined() {
    let mut guest = Boot::new().flag("--name", "whole").flag("--cpus", "2").switch("--balloon").start();
    guest.wait_for("init: started");
    let vm = guest.vm_pid().to_string();
    is_confined(
        &vm,
        &["mvm", "vcpu0", "vcpu1", "block", "supervisor", "keeper", "background", "log", "console"],
    );
    let jail = shown("whole");
    assert_eq!(jail["Mode"], "best-effort");
    assert!(jail["Layers"]["seccomp"].as_str().is_some_and(|state| state.starts_with("on")), "{jail}");
    guest.type_text("poweroff -f\n");
    guest.finish().expect_code(0);
    Boot::new().flag("--jail", "strict").script("true").run().expect_code(0);
}

#[test]
fn without_a_jail_there_is_none_and_a_host_that_lacks_a_layer_is_told() {
    start(&["--name", "free", "--jail", "off", IMAGE, "sleep", "1000"]);
    let (_keeper, vm) = pids("free");
    for (name, thread) in threads(&vm) {
        assert_eq!(["NoNewPrivs", "Seccomp"].map(|line| status(&thread, line)), ["0", "0"], "{name}");
    }
    assert!(is_same(&vm, "net"));
    assert_eq!(shown("free"), serde_json::json!({ "Mode": "off", "Layers": {} }));
    said(&["rm", "-f", "free"]);

    let most = "/proc/sys/user/max_user_namespaces";
    let before = fs::read_to_string(most).unwrap();
    fs::write(most, "0").unwrap();
    let strict = mvm(&["run", "--rm", "--network", "none", "--jail", "strict", IMAGE, "true"]);
    let id = start(&["--name", "partly", IMAGE, "sleep", "1000"]);
    let jail = shown("partly");
    fs::write(most, before).unwrap();
    let errors = text(&strict.stderr);
    assert_eq!(strict.status.code(), Some(125), "{errors}");
    assert!(
        errors.contains("--jail strict: this host lacks namespaces (cannot make namespaces: "),
        "{errors}"
    );
    let layer = |name: &str| jail["Layers"][name].as_str().unwrap_or_default().to_owned();
    assert!(layer("namespaces").starts_with("missing: cannot make namespaces"), "{jail}");
    assert!(layer("seccomp").starts_with("on") && layer("landlock").starts_with("on"), "{jail}");
    said(&["rm", "-f", &id]);
    said(&["run", "--rm", "--network", "none", "--jail", "strict", IMAGE, "true"]);
}

#[test]
fn what_serves_folders_ends_with_a_vm_that_may_not_end_it() {
    let shared = tempfile::tempdir().unwrap();
    fs::write(shared.path().join("file"), "text").unwrap();
    let volume = format!("{}:/shared", shared.path().display());
    let args = [
        "run",
        "-d",
        "--network",
        "none",
        "--name",
        "served",
        "-v",
        &volume,
        IMAGE,
        "sh",
        "-c",
        "cat /shared/file; sleep 1000",
    ];
    said(&args);
    let (_keeper, vm) = pids("served");
    let children = fs::read_to_string(format!("/proc/{vm}/task/{vm}/children")).unwrap();
    let virtiofsd = super::life::process(children.trim());
    said(&["rm", "-f", "served"]);
    assert!(super::life::ends(&virtiofsd));
}
