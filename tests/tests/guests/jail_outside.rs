//! What bounds the processes of a container's VM from outside: a user of the VM's own, a control group, and what serves its
//! devices in it. These tests change control groups of the host, and run in the lab alone.

use std::ffi::CStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::containers::{IMAGE, output, text};
use super::jail::{shown, status};
use super::life::{command, ends, mvm, pids, process, said, start};
use super::passt::Uplink;

/// Where control groups are.
const CGROUPS: &str = "/sys/fs/cgroup";
/// Longer than anything here takes.
const DEADLINE: Duration = Duration::from_secs(60);

fn is_lab() -> bool {
    let is_lab = std::env::var_os("MVM_KVM_LAB").is_some();
    if !is_lab {
        eprintln!("skipped: the control groups of this host stay as they are");
    }
    is_lab
}

/// The control group of a process.
fn group(pid: &str) -> PathBuf {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/")).unwrap();
    Path::new(CGROUPS).join(own)
}

fn value(group: &Path, name: &str) -> String {
    fs::read_to_string(group.join(name)).unwrap().trim().to_owned()
}

/// The processes that serve the devices of a VM.
fn helpers(vm: &str) -> Vec<String> {
    let children = fs::read_to_string(format!("/proc/{vm}/task/{vm}/children")).unwrap();
    children.split_whitespace().map(str::to_owned).collect()
}

fn user(pid: &str) -> Vec<String> {
    let task = PathBuf::from(format!("/proc/{pid}/task/{pid}"));
    status(&task, "Uid").split_whitespace().map(str::to_owned).collect()
}

fn kill(signal: &str, pid: &str) {
    assert!(Command::new("kill").args([signal, pid]).status().unwrap().success());
}

fn layer(jail: &Value, name: &str) -> String {
    let state = jail.pointer(&format!("/Layers/{name}")).and_then(Value::as_str);
    state.unwrap_or_default().to_owned()
}

fn wait_until_gone(group: &Path) {
    let deadline = Instant::now() + DEADLINE;
    while group.exists() {
        assert!(Instant::now() < deadline, "{} is left", group.display());
        std::thread::yield_now();
    }
}

#[test]
fn each_vm_has_a_user_and_a_group_of_its_own_with_what_serves_it() {
    if !is_lab() {
        return;
    }
    let _uplink = Uplink::new(false).unwrap();
    let shared = tempfile::tempdir().unwrap();
    fs::write(shared.path().join("file"), "text").unwrap();
    let volume = format!("{}:/shared", shared.path().display());
    let run = |name: &str| {
        let options = ["run", "-d", "--cpus", "1", "-m", "64m", "--network", "user", "-v", &volume];
        said(&[&options[..], &["--jail", "strict", "--name", name, IMAGE, "sleep", "1000"]].concat());
        pids(name)
    };
    let ((keeper, one), (_, other)) = (run("one"), run("other"));
    for vm in [&one, &other] {
        let user = user(vm);
        let id: u32 = user[0].parse().unwrap();
        assert!((2_000_000_001..=2_000_065_535).contains(&id) && user.iter().all(|other| *other == user[0]));
        let task = PathBuf::from(format!("/proc/{vm}/task/{vm}"));
        assert_eq!((status(&task, "Gid"), status(&task, "Groups")), (status(&task, "Uid"), String::new()));
    }
    assert_ne!(user(&one), user(&other));

    let (of_one, of_other) = (group(&one), group(&other));
    assert!(of_one != of_other && of_one.starts_with(format!("{CGROUPS}/mvm")), "{}", of_one.display());
    assert_ne!(group(&keeper), of_one);
    let memory: u64 = value(&of_one, "memory.max").parse().unwrap();
    assert!(memory > 160 << 20, "{memory}");
    assert!(value(&of_one, "pids.max").parse::<u32>().unwrap() < 1000);
    assert_eq!(value(&of_one, "cpu.max"), "400000 100000", "a vCPU, its devices, and two processes");
    let serving = helpers(&one);
    assert_eq!(serving.len(), 2, "{serving:?}");
    for helper in &serving {
        assert_eq!(group(helper), of_one);
        let task = PathBuf::from(format!("/proc/{helper}/task/{helper}"));
        assert_eq!(status(&task, "NoNewPrivs"), "1");
        let limits = fs::read_to_string(format!("/proc/{helper}/limits")).unwrap();
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        assert_eq!(core.split_whitespace().skip(4).collect::<Vec<_>>(), ["0", "0", "bytes"]);
        // As systemd ends a service.
        kill("-TERM", helper);
    }
    assert_eq!(text(&mvm(&["exec", "one", "cat", "/shared/file"]).stdout), "text");
    let jail = shown("one");
    for name in ["cgroup", "ids", "helpers"] {
        assert!(layer(&jail, name).starts_with("on"), "{name}: {jail}");
    }
    assert!(layer(&jail, "cgroup").contains(&format!("{} MiB of memory", memory >> 20)), "{jail}");

    let mut serving: Vec<_> = serving.iter().map(|helper| process(helper)).collect();
    said(&["stop", "-t", "1", "one"]);
    wait_until_gone(&of_one);
    serving.extend(helpers(&other).iter().map(|helper| process(helper)));
    // The group goes with a VM that is killed, too.
    kill("-KILL", &other);
    assert_eq!(said(&["wait", "other"]), "137", "{}", said(&["inspect", "-f", "{{.State.Error}}", "other"]));
    wait_until_gone(&of_other);
    assert!(serving.iter().all(ends));
    said(&["rm", "one", "other"]);
}

#[test]
fn what_a_killed_keeper_leaves_is_swept_and_what_serves_its_vm_ends() {
    if !is_lab() {
        return;
    }
    let shared = tempfile::tempdir().unwrap();
    let volume = format!("{}:/shared", shared.path().display());
    let id = start(&["-v", &volume, IMAGE, "sleep", "1000"]);
    let (keeper, vm) = pids(&id);
    let group = group(&vm);
    let mut left: Vec<_> = helpers(&vm).iter().map(|helper| process(helper)).collect();
    assert_eq!(left.len(), 1);
    left.push(process(&vm));
    kill("-KILL", &keeper);
    // By themselves, before anybody comes by.
    assert!(left.iter().all(ends));
    assert!(group.exists());
    said(&["ps"]);
    assert!(!group.exists());
    said(&["rm", "-f", &id]);
}

#[test]
fn a_flood_of_a_vms_processes_is_held() {
    if !is_lab() {
        return;
    }
    let id = start(&["--name", "flooded", "-m", "64m", IMAGE, "sleep", "1000"]);
    let (_, vm) = pids("flooded");
    let group = group(&vm);
    // As one that a guest has taken over, but for the filter of system calls.
    let shell = |script: &str| {
        let script = format!("echo 0 >{}/cgroup.procs; {script}", group.display());
        Command::new("sh").args(["-c", &script]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    let limit: u32 = value(&group, "pids.max").parse().unwrap();
    let mut bomb = shell(&format!("for i in $(seq {limit}); do sleep 1000 & done"));
    // It ends when it can start no more.
    bomb.wait().unwrap();
    assert!(value(&group, "pids.events").split_whitespace().nth(1).unwrap().parse::<u32>().unwrap() > 0);
    assert!(value(&group, "pids.current").parse::<u32>().unwrap() <= limit);
    // Less than a disk of the lab takes, as that is in memory, and counts.
    fs::write(group.join("memory.max"), (256 << 20).to_string()).unwrap();
    shell("exec tail /dev/zero").wait().unwrap();
    assert_eq!(said(&["wait", "flooded"]), "137");
    let error = said(&["inspect", "-f", "{{.State.Error}}", "flooded"]);
    assert!(error.contains("it used more memory than its control group has"), "{error}");
    wait_until_gone(&group);
    said(&["rm", &id]);
}

#[test]
fn ids_that_are_used_up_are_shared_or_refused() {
    if !is_lab() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    fs::create_dir(place.path().join("mvm")).unwrap();
    let file = place.path().join("mvm/config.toml");
    fs::write(&file, "jail-ids = '70000-70001'").unwrap();
    let run = |options: &[&str]| {
        let mut command = command(&[&["run", "--network", "none"], options].concat());
        command.env("XDG_CONFIG_HOME", place.path());
        output(command)
    };
    let started = |name: &str| {
        let output = run(&["-d", "--name", name, IMAGE, "sleep", "1000"]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        (user(&pids(name).1)[0].clone(), layer(&shown(name), "ids"))
    };
    let lack = "missing: other VMs have all IDs of jail-ids = \"70000-70001\", so that this one shares 70000 with others";
    assert_eq!(started("first"), ("70001".into(), "on: user and group 70001".into()));
    assert_eq!(started("second"), ("70000".into(), lack.into()));
    let refused = run(&["--rm", "--jail", "strict", IMAGE, "true"]);
    let errors = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(125), "{errors}");
    assert!(
        errors.contains("--jail strict: this host lacks ids (other VMs have all IDs of jail-ids"),
        "{errors}"
    );
    // A VM's ID is another one's when the VM was killed.
    kill("-KILL", &pids("first").1);
    said(&["wait", "first"]);
    let strict = run(&["--rm", "--jail", "strict", IMAGE, "true"]);
    assert!(strict.status.success(), "{}", text(&strict.stderr));
    said(&["rm", "-f", "first", "second"]);

    fs::write(&file, "\njail-ids = '0-70001'").unwrap();
    let refused = run(&["--rm", IMAGE, "true"]);
    let errors = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(125), "{errors}");
    assert!(
        errors.contains("line 2: jail-ids: invalid range of IDs 0-70001: 0 is the ID of root"),
        "{errors}"
    );
}

/// Runs mvm in the control group `group`, with these arguments.
fn in_group(group: &Path, arguments: &[&str]) -> Output {
    let mvm = command(arguments);
    let mut command = Command::new("sh");
    let script = format!("echo 0 >{}/cgroup.procs; exec \"$0\" \"$@\"", group.display());
    command.args(["-c", &script]).arg(mvm.get_program()).args(mvm.get_args()).stdin(Stdio::null());
    command.envs(mvm.get_envs().filter_map(|(name, value)| Some((name, value?))));
    output(command)
}

#[test]
fn a_service_keeps_its_vms_and_one_that_has_its_group_delegated_bounds_each() {
    if !is_lab() {
        return;
    }
    let service = Path::new(CGROUPS).join("web.service");
    fs::create_dir(&service).unwrap();
    let run = ["run", "--rm", "--network", "none", "--jail"];
    let with = |mode: &str, script: &str| {
        in_group(&service, &[&run[..], &[mode, IMAGE, "sh", "-c", script]].concat())
    };
    let refused = with("strict", "true");
    let errors = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(125), "{errors}");
    assert!(errors.contains("lacks cgroup (no control group is delegated to mvm)"), "{errors}");
    let ran = with("best-effort", "echo there");
    assert_eq!(text(&ran.stdout), "there\n", "{}", text(&ran.stderr));
    assert_eq!(value(&service, "cgroup.subtree_control"), "");
    let doctor = in_group(&service, &["doctor"]);
    let checks = text(&doctor.stdout).split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(
        checks.contains("no cgroup: no control group is delegated") && checks.contains("Delegate=yes"),
        "{checks}"
    );

    let name: &CStr = c"trusted.delegate";
    rustix::fs::setxattr(&service, name, b"1", rustix::fs::XattrFlags::empty()).unwrap();
    let ran = with("strict", "echo strict");
    assert_eq!(text(&ran.stdout), "strict\n", "{}", text(&ran.stderr));
    let keepers = service.join("mvm-keepers");
    let id = text(&in_group(&keepers, &["run", "-d", "--network", "none", IMAGE, "sleep", "1000"]).stdout);
    let (keeper, vm) = pids(id.trim());
    assert_eq!(group(&keeper), keepers);
    let own = group(&vm);
    assert!(own.parent() == Some(&service) && value(&own, "memory.max") != "max", "{}", own.display());
    // Others that come into the service are not moved.
    let mut other = Command::new("sleep").arg("1000").spawn().unwrap();
    let entered = fs::write(service.join("cgroup.procs"), other.id().to_string());
    assert!(entered.is_err(), "a group whose children have controllers has no process");
    other.kill().unwrap();
    other.wait().unwrap();
    said(&["rm", "-f", id.trim()]);
    assert!(!own.exists());
    wait_until_empty(&keepers);
    fs::remove_dir(keepers).unwrap();
    fs::remove_dir(&service).unwrap();
}

fn wait_until_empty(group: &Path) {
    let deadline = Instant::now() + DEADLINE;
    while !value(group, "cgroup.procs").is_empty() {
        assert!(Instant::now() < deadline, "{} has processes", group.display());
        std::thread::yield_now();
    }
}
