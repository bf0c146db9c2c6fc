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
    let (mut reports, writer) = io::pipe().unwrap();
    // Made before the fork, as this process has threads.
    let filter = Filter::new("tester", BASE).unwrap();
    // SAFETY: the new process makes system calls alone, and ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let done = rustix::thread::set_no_new_privs(true).is_ok()
            && report_to(OwnedFd::from(writer)).is_ok()
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
