use std::process::{Command, Stdio};

use super::*;

const LIMITS: CgroupLimits = CgroupLimits { memory: 64 << 20, tasks: 16, cpus: Some(2) };

/// A VM's directory, and its ID.
fn vm() -> (tempfile::TempDir, VmId) {
    (tempfile::tempdir().unwrap(), VmId::random().unwrap())
}

/// A group, where this host has them.
fn group(instance: &Path, id: &VmId) -> Option<Cgroup> {
    match Cgroup::make(instance, id, || LIMITS) {
        Ok(group) => Some(group),
        Err(error) => {
            eprintln!("skipped: {error}");
            None
        }
    }
}

/// A shell in `group`, which runs `script`.
fn shell(group: &Cgroup, script: &str) -> std::process::Child {
    let join = format!("echo 0 >{}/cgroup.procs; {script}", group.directory.display());
    Command::new("sh").args(["-c", &join]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
}

#[test]
fn numbers_are_found_by_their_keys() {
    let text = "low 0\noom 3\noom_kill 2\npopulated x\n";
    assert_eq!(
        (value(text, "oom_kill"), value(text, "oom"), value(text, "low")),
        (Some(2), Some(3), Some(0))
    );
    assert_eq!((value(text, "populated"), value(text, "max")), (None, None));
}

#[test]
fn a_group_limits_its_processes_and_leaves_nothing_behind() {
    let (instance, id) = vm();
    let Some(group) = group(instance.path(), &id) else { return };
    let read = |name: &str| fs::read_to_string(group.directory.join(name)).unwrap().trim().to_owned();
    assert_eq!((read("memory.max"), read("pids.max")), ((64 << 20).to_string(), "16".into()));
    assert!(group.summary().starts_with("64 MiB of memory, 16 threads"), "{}", group.summary());
    // More processes than it may have, of which none ends by itself. A shell ends where it cannot make one.
    let mut bomb = shell(&group, "for i in $(seq 40); do sleep 1000 >/dev/null 2>&1 & done 2>/dev/null");
    let mut output = [0; 1];
    let _ = bomb.stdout.take().unwrap().read(&mut output);
    assert!(matches!(read("pids.current").parse(), Ok(10..=16)));
    assert!(!group.is_out_of_memory());
    group.end();
    assert!(!group.directory.exists());
    bomb.wait().unwrap();
}

#[test]
fn what_a_group_uses_is_what_its_processes_have_used() {
    let (instance, id) = vm();
    assert_eq!(CgroupUsage::of(instance.path(), &id), None);
    let Some(group) = group(instance.path(), &id) else { return };
    let first = CgroupUsage::of(instance.path(), &id).unwrap();
    let script = "data=$(head -c 20000000 /dev/zero | tr '\\0' x); echo; read line";
    let mut busy = shell(&group, script);
    busy.stdout.take().unwrap().read_exact(&mut [0; 1]).unwrap();
    let then = CgroupUsage::of(instance.path(), &id).unwrap();
    assert!(then.memory_bytes > first.memory_bytes + 15_000_000, "{first:?} {then:?}");
    assert!(then.cpu_nanoseconds > first.cpu_nanoseconds, "{first:?} {then:?}");
    group.end();
    busy.wait().unwrap();
    assert_eq!(CgroupUsage::of(instance.path(), &id), None);
}

#[test]
fn one_that_takes_more_memory_is_killed() {
    let (instance, id) = vm();
    let Some(group) = group(instance.path(), &id) else { return };
    // tail keeps what has no line's end.
    let mut flood = shell(&group, "exec tail /dev/zero");
    assert!(!flood.wait().unwrap().success());
    assert!(group.is_out_of_memory());
    group.end();
    assert!(!group.directory.exists());
}

#[test]
fn what_a_killed_keeper_leaves_is_found_by_the_directory() {
    let (instance, id) = vm();
    let Some(group) = group(instance.path(), &id) else { return };
    let mut left = shell(&group, "echo; exec sleep 1000");
    let _ = left.stdout.take().unwrap().read(&mut [0; 1]);
    end_left(instance.path(), &VmId::random().unwrap());
    assert!(group.directory.exists(), "another VM's");
    end_left(instance.path(), &id);
    assert!(!group.directory.exists());
    assert!(!left.wait().unwrap().success());
}

#[test]
fn a_file_that_names_something_else_removes_nothing() {
    let (instance, id) = vm();
    let other = tempfile::tempdir().unwrap();
    let victim = other.path().join(name(instance.path(), &id).unwrap());
    fs::create_dir(&victim).unwrap();
    for text in [victim.to_str().unwrap(), "relative", "", "/sys/fs/cgroup", "\u{0}"] {
        fs::write(instance.path().join(FILE), text).unwrap();
        end_left(instance.path(), &id);
    }
    assert!(victim.exists());
}

#[test]
fn a_copy_begins_in_its_group() {
    use std::os::fd::AsFd;

    let (instance, id) = vm();
    let Some(group) = group(instance.path(), &id) else { return };
    let (mut waiting, release) = io::pipe().unwrap();
    let directory = group.open().unwrap();
    // SAFETY: the copy makes system calls and nothing else, and ends below.
    let copy = unsafe { crate::clone::clone_into(directory.as_fd()) };
    if copy == 0 {
        drop(release);
        let _ = waiting.read(&mut [0]);
        // SAFETY: it ends the process. It knows its own number, by which it could signal itself.
        unsafe { libc::_exit(if libc::raise(0) == 0 { 7 } else { 8 }) };
    }
    assert!(copy > 0, "{}", io::Error::last_os_error());
    let listed = fs::read_to_string(group.directory.join("cgroup.procs")).unwrap();
    assert_eq!(listed.trim(), copy.to_string());
    drop(release);
    let mut status = 0;
    // SAFETY: the call writes to `status`.
    assert_eq!(unsafe { libc::waitpid(copy, &raw mut status, 0) }, copy);
    assert_eq!(libc::WEXITSTATUS(status), 7);
    group.end();
}

#[test]
fn a_group_that_is_gone_is_no_failure() {
    for (code, expected) in
        [(libc::ENOENT, true), (libc::ENODEV, true), (libc::EBUSY, false), (libc::EACCES, false)]
    {
        assert_eq!(is_gone(&io::Error::from_raw_os_error(code)), expected, "{code}");
    }
}

#[test]
fn more_memory_lasts_as_long_as_it_is_needed() {
    let (instance, id) = vm();
    assert!(MoreMemory::allow(instance.path(), &id).is_none());
    let Some(group) = group(instance.path(), &id) else { return };
    let limit = || fs::read_to_string(group.directory.join("memory.max")).unwrap().trim().to_owned();
    let more = MoreMemory::allow(instance.path(), &id).unwrap();
    assert_eq!(limit(), (128 << 20).to_string());
    // Another one waits, and finds what the VM's own limit is.
    let (path, same) = (instance.path().to_owned(), id.clone());
    let other = std::thread::spawn(move || MoreMemory::allow(&path, &same));
    drop(more);
    let other = other.join().unwrap().unwrap();
    assert_eq!(limit(), (128 << 20).to_string());
    drop(other);
    assert_eq!(limit(), (64 << 20).to_string());
    // What an earlier one has left is not doubled.
    fs::write(group.directory.join("memory.max"), (128 << 20).to_string()).unwrap();
    let more = MoreMemory::allow(instance.path(), &id).unwrap();
    assert_eq!(limit(), (128 << 20).to_string());
    drop(more);
    assert_eq!(limit(), (64 << 20).to_string());
    group.end();
}
