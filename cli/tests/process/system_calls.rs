//! What a run asks of the kernel: counts, as they are the same on any machine, however busy.

use std::process::{Command, Stdio};

use crate::vm::{Place, text};

/// Says `r` on its serial port and resets the machine.
const SPEAKS_AND_ENDS: &[u8] = &[0x66, 0xba, 0xf8, 0x03, 0xb0, b'r', 0xee, 0xb0, 0xfe, 0xe6, 0x64, 0xf4];

/// Calls whose number depends on how busy the machine is, and on strace's slowness: waiting for another thread's lock,
/// and the signal that ends KVM_RUN, which is sent until it has its effect.
const UNCOUNTED: &str = "trace=!futex,tgkill,rt_sigreturn,sched_yield,restart_syscall";

/// The most system calls of both processes and all their threads but [`UNCOUNTED`], from the program's start to its
/// end: some 470 as root, of which a few depend on which thread waits for which. Some 100 of them are those of a
/// process of its own: its making, messages and end. This program has glibc and its dynamic loader, and a check of each
/// descriptor that is closed, which the one that is released has not.
const MOST_CALLS: u64 = 490;
/// The most of them that confine the VM's process: some 50 as root, and 30 as another user.
const MOST_OF_JAIL: u64 = 60;
/// How often each is counted; what counts is the median: threads that wait for each other add calls, and one that comes
/// late takes two messages at once, which leaves some out.
const RUNS: usize = 15;

/// `mvm boot` of that guest with `arguments`, under strace with `options`; `None`, with the reason printed, where that
/// can't be.
fn traced(place: &Place, options: &[&str], arguments: &[&str]) -> Option<Command> {
    if Command::new("strace").args(["-f", "true"]).stderr(Stdio::null()).status().is_err() {
        eprintln!("skipped: there is no strace (Debian package strace)");
        return None;
    }
    let boot = place.boot(arguments);
    let mut command = Command::new("strace");
    command.args(["-f", "-qq"]).args(options).arg("-o").arg(place.path("trace"));
    command.arg("--").arg(boot.get_program()).args(boot.get_args());
    for (name, value) in boot.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    // Cargo's, in each of whose directories the dynamic loader would look for the C library.
    command.env_remove("LD_LIBRARY_PATH");
    command.stdin(Stdio::null());
    Some(command)
}

/// How many calls a run with `arguments` makes, and strace's summary of the last one.
fn count(place: &Place, arguments: &[&str]) -> Option<(u64, String)> {
    let mut counted = Vec::new();
    let mut summary = String::new();
    for _ in 0..RUNS {
        let output = traced(place, &["-c", "-e", UNCOUNTED], arguments)?.output().unwrap();
        assert!(output.status.success() && output.stdout == b"r", "{}", text(&output));
        summary = std::fs::read_to_string(place.path("trace")).unwrap();
        let total = summary.lines().rfind(|line| line.trim_end().ends_with("total")).unwrap();
        // Share of time, seconds, microseconds a call, calls.
        counted.push(total.split_whitespace().nth(3).unwrap().parse().unwrap());
    }
    counted.sort_unstable();
    Some((counted[RUNS / 2], summary))
}

#[test]
fn a_tiny_guests_run_makes_few_system_calls() {
    let Some(place) = Place::new(SPEAKS_AND_ENDS) else { return };
    let Some((calls, summary)) = count(&place, &[]) else { return };
    assert!((50..=MOST_CALLS).contains(&calls), "{calls} system calls:\n{summary}");
    let (free, summary_of_free) = count(&place, &["--jail", "off"]).unwrap();
    assert!(
        (free + 10..=free + MOST_OF_JAIL).contains(&calls),
        "{calls} system calls, {free} without a jail:\n{summary}\n{summary_of_free}"
    );
}

#[test]
fn the_vm_is_freed_by_the_kernel_where_io_uring_is_there_and_by_mvm_where_it_is_refused() {
    let Some(place) = Place::new(SPEAKS_AND_ENDS) else { return };
    for (refusal, expected) in [(None, None), (Some("inject=io_uring_setup:error=EPERM"), Some("EPERM"))] {
        let mut options = vec!["-e", "trace=io_uring_setup,io_uring_register"];
        options.extend(refusal.iter().flat_map(|refusal| ["-e", *refusal]));
        let Some(mut command) = traced(&place, &options, &[]) else { return };
        let output = command.output().unwrap();
        assert!(output.status.success() && output.stdout == b"r", "{}", text(&output));
        assert!(place.is_clean());
        let trace = std::fs::read_to_string(place.path("trace")).unwrap();
        match expected {
            Some(error) => assert!(trace.contains(error) && !trace.contains("REGISTER_FILES"), "{trace}"),
            // A host may refuse it by itself.
            None if trace.contains("io_uring_setup(1, ") && !trace.contains("= -1") => {
                assert!(trace.contains("IORING_REGISTER_FILES, ["), "{trace}");
            }
            None => eprintln!("skipped: this host refuses io_uring"),
        }
    }
}

/// What an old host, or one that forbids it, answers; and the layer that a VM lacks then.
const OLD_HOSTS: &[(&str, Option<&str>)] = &[
    ("inject=landlock_create_ruleset:error=ENOSYS", Some("landlock")),
    ("inject=landlock_create_ruleset:error=EOPNOTSUPP", Some("landlock")),
    ("inject=unshare:error=EPERM", Some("namespaces")),
    ("inject=unshare:error=ENOSPC", Some("namespaces")),
    ("inject=mount,move_mount,pivot_root:error=EPERM", Some("root")),
    ("inject=seccomp:error=EINVAL", Some("seccomp")),
    ("inject=seccomp:error=ENOSYS", Some("seccomp")),
    ("inject=io_uring_setup:error=EPERM", None),
    ("inject=io_uring_setup:error=ENOSYS", None),
    ("inject=clone3:error=ENOSYS", None),
];

#[test]
fn a_host_that_lacks_a_layer_says_so_once_and_with_all_asked_for_starts_nothing() {
    let Some(place) = Place::new(SPEAKS_AND_ENDS) else { return };
    for (refusal, layer) in OLD_HOSTS {
        let Some(mut command) = traced(&place, &["-e", refusal], &[]) else { return };
        let output = command.args(["--log-level", "info"]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && output.stdout == b"r", "{refusal}: {}", text(&output));
        let Some(layer) = layer else { continue };
        let without = format!("the VM is confined without {layer}: ");
        assert_eq!(said.matches(&without).count(), 1, "{refusal}: {said}");
        let Some(mut command) = traced(&place, &["-e", refusal], &[]) else { return };
        let output = command.args(["--jail", "strict"]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), said.lines().count()), (Some(3), 1), "{refusal}: {said}");
        assert!(said.contains(layer) && output.stdout.is_empty(), "{refusal}: {said}");
        assert!(place.is_clean());
    }
}
