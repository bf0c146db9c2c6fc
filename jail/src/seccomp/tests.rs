//! Filters in processes of their own: what is installed stays.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;

use super::*;

const BASE: &[Rule] = &[
    rule!(write: "reports"),
    rule!(exit_group: "ends the process"),
    rule!(rt_sigreturn: "returns from signals"),
    rule!(getpid: "is asked for"),
    rule!(fcntl, [Argument::Is(1, 1)]: "F_GETFD"),
    rule!(fcntl, [Argument::Is(1, 3)]: "F_GETFL"),
    rule!(mmap, [Argument::Lacks(2, 4)]: "memory without PROT_EXEC"),
    rule!(tgkill, [Argument::IsThisProcess(0)]: "signals to this process"),
];

/// Makes a system call in a process that has a filter; returns its exit code and what was reported.
fn try_call(call: impl FnOnce() -> i64) -> (i32, Option<Violation>) {
    try_with(None, call)
}

/// The same with another filter beside it.
fn try_with(other: Option<&Filter>, call: impl FnOnce() -> i64) -> (i32, Option<Violation>) {
    let (mut reports, writer) = io::pipe().unwrap();
    // Made before the fork, as this process has threads.
    let filter = Filter::new("tester", BASE).unwrap();
    // SAFETY: the new process makes system calls alone, and ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let done = rustix::thread::set_no_new_privs(true).is_ok()
            && report_to(OwnedFd::from(writer)).is_ok()
            && other.is_none_or(|other| other.install().is_ok())
            && filter.install().is_ok();
        let result = if done { call() } else { -100 };
        let code = if result == -100 { 100 } else { i32::from(result < 0) };
        // SAFETY: it ends the process.
        unsafe { libc::_exit(code) };
    }
    drop(writer);
    let mut status = 0;
    // SAFETY: the status lives until the call returns.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    let mut report = Vec::new();
    reports.read_to_end(&mut report).unwrap();
    let status = std::process::ExitStatus::from_raw(status);
    (status.code().unwrap_or(-1), Violation::parse(&report))
}

fn violation(call: i64) -> (i32, Option<Violation>) {
    (trap::EXIT_CODE, Some(Violation { thread: "tester".into(), call }))
}

#[test]
fn a_call_of_the_table_is_made_and_another_ends_the_process() {
    // SAFETY: the calls take numbers alone, or fail.
    unsafe {
        assert_eq!(try_call(|| libc::syscall(libc::SYS_getpid)), (0, None));
        assert_eq!(try_call(|| libc::syscall(libc::SYS_getppid)), violation(libc::SYS_getppid));
        let socket = || libc::syscall(libc::SYS_socket, libc::AF_UNIX, libc::SOCK_STREAM, 0);
        assert_eq!(try_call(socket), violation(libc::SYS_socket));
        // A thread that was taken over cannot replace the handler.
        let ignore = || libc::syscall(libc::SYS_rt_sigaction, libc::SIGSYS, 0, 0, 8);
        assert_eq!(try_call(ignore), violation(libc::SYS_rt_sigaction));
    }
}

#[test]
fn arguments_are_looked_at() {
    // SAFETY: the calls take numbers alone, or fail.
    unsafe {
        for command in [libc::F_GETFD, libc::F_GETFL] {
            assert_eq!(try_call(|| libc::syscall(libc::SYS_fcntl, 1, command, 0)), (0, None));
        }
        let duplicate = || libc::syscall(libc::SYS_fcntl, 1, libc::F_DUPFD, 0);
        assert_eq!(try_call(duplicate), violation(libc::SYS_fcntl));
        let map = |protection: i32| {
            move || {
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
                libc::syscall(libc::SYS_mmap, 0, 4096, protection, flags, -1, 0)
            }
        };
        assert_eq!(try_call(map(libc::PROT_READ | libc::PROT_WRITE)), (0, None));
        let executable = libc::PROT_READ | libc::PROT_EXEC;
        assert_eq!(try_call(map(executable)), violation(libc::SYS_mmap));
        let parent = std::process::id();
        let signal_parent = move || libc::syscall(libc::SYS_tgkill, parent, parent, 0);
        assert_eq!(try_call(signal_parent).0, 0, "made before the fork, the filter knows this process");
    }
}

#[test]
fn a_call_may_fail_as_where_the_kernel_has_it_not() {
    const FAILING: &[Rule] = &[
        rule!(getpid: "is asked for"),
        rule!(fcntl, [Argument::Is(1, 3)]: "F_GETFL"),
        rule!(uname: "a name"),
    ];
    let failing = Filter::failing("tester", FAILING, rustix::io::Errno::NOSYS).unwrap();
    let attempt = |call: i64, argument: i64| {
        try_with(Some(&failing), || {
            // SAFETY: the calls take numbers alone, or fail.
            let result = unsafe { libc::syscall(call, 1, argument, 0) };
            let error = io::Error::last_os_error().raw_os_error();
            if result < 0 && error == Some(libc::ENOSYS) { -1 } else { 0 }
        })
    };
    assert_eq!(attempt(libc::SYS_getpid, 0), (1, None));
    assert_eq!(attempt(libc::SYS_fcntl, 3), (1, None));
    assert_eq!(attempt(libc::SYS_fcntl, 1), (0, None));
    // What is not allowed traps.
    assert_eq!(attempt(libc::SYS_uname, 0), violation(libc::SYS_uname));
}

#[test]
fn all_threads_of_a_process_have_its_filter() {
    const THREADS: &[Rule] = &[
        rule!(clone, [Argument::Has(0, 0x1_0900)]: "a thread"),
        rule!(clone3: "is left out, as where it is not known"),
        rule!(mmap: "a stack"),
        rule!(mprotect: "a stack"),
        rule!(munmap: "a stack"),
        rule!(madvise: "a stack"),
        rule!(brk: "malloc"),
        rule!(futex: "waiting for a thread"),
        rule!(rseq: "a thread"),
        rule!(set_robust_list: "a thread"),
        rule!(rt_sigprocmask: "a thread"),
        rule!(rt_sigaction, [Argument::Is(0, 33)]: "a thread"),
        rule!(sigaltstack: "a thread"),
        rule!(sched_getaffinity: "a thread"),
        rule!(gettid: "a thread"),
        rule!(exit: "a thread"),
    ];
    const UNKNOWN: &[Rule] = &[rule!(clone3: "is not known")];
    let (mut reports, writer) = io::pipe().unwrap();
    let unknown = Filter::failing("process", UNKNOWN, rustix::io::Errno::NOSYS).unwrap();
    let filter = Filter::new("process", BASE.iter().chain(THREADS)).unwrap();
    // SAFETY: the new process has one thread; it takes memory, which glibc makes possible after a fork.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let done = rustix::thread::set_no_new_privs(true).is_ok()
            && report_to(OwnedFd::from(writer)).is_ok()
            && unknown.install().is_ok()
            && filter.install_for_all().is_ok();
        if done {
            // SAFETY: the call takes nothing.
            let _ = std::thread::spawn(|| unsafe { libc::syscall(libc::SYS_getppid) }).join();
        }
        // SAFETY: it ends the process.
        unsafe { libc::_exit(1) };
    }
    drop(writer);
    let mut report = Vec::new();
    reports.read_to_end(&mut report).unwrap();
    // SAFETY: no status is asked for.
    unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
    let expected = Violation { thread: "process".into(), call: libc::SYS_getppid };
    assert_eq!(Violation::parse(&report), Some(expected));
}

#[test]
fn the_host_filters_system_calls() {
    available().unwrap();
}

#[test]
fn names_and_numbers_belong_together() {
    for rule in BASE {
        let number = std::fs::read_to_string("/usr/include/x86_64-linux-gnu/asm/unistd_64.h").ok();
        let Some(header) = number else {
            return eprintln!("skipped: the header of system calls is not there");
        };
        let line = format!("#define __NR_{} {}\n", rule.name, rule.call);
        assert!(header.contains(&line), "{line}");
    }
}

#[test]
fn calls_have_names() {
    assert_eq!(name(libc::SYS_openat), Some("openat"));
    assert_eq!(name(libc::SYS_socket), Some("socket"));
    assert_eq!(name(100_000), None);
}
