//! The system calls of the process, by its job. Each rule says what it is for; a rule that no test needs is to be
//! removed.
//!
//! Nothing is executed or mapped executable, no process is made, traced or signalled, no socket accepts connections,
//! and only jobs with registries have sockets of their own.

use jail::rule;
use jail::seccomp::Argument::{Has, Is, IsThisProcess, Lacks};
use jail::seccomp::Rule;
use rustix::io::Errno;

use super::Job;

/// The name of the process's threads in reports.
pub const KIND: &str = "worker";

/// `PROT_EXEC` (mmap(2)).
const EXECUTE: u32 = 4;
/// `CLONE_VM | CLONE_SIGHAND | CLONE_THREAD` (clone(2)).
const THREAD: u32 = 0x1_0900;
/// Of fcntl(2): `F_GETFD`, `F_SETFD`, `F_GETFL`, `F_SETFL`, `F_DUPFD_CLOEXEC`.
const GET_FD: u32 = 1;
const SET_FD: u32 = 2;
const GET_FL: u32 = 3;
const SET_FL: u32 = 4;
const DUPLICATE: u32 = 1030;
/// `FIONBIO` and `FIONREAD` (ioctl(2)).
const NON_BLOCKING: u32 = 0x5421;
const READABLE: u32 = 0x541b;
/// `PR_SET_NAME` (prctl(2)).
const SET_NAME: u32 = 15;
/// The signal by which glibc has all threads change their user (nptl(7)).
const CHANGE_USER: u32 = 33;
/// Of socket(2): `AF_UNIX`, `AF_INET`, `AF_INET6`, `AF_NETLINK`.
const UNIX: u32 = 1;
const INET: u32 = 2;
const INET6: u32 = 10;
const NETLINK: u32 = 16;

/// What every job does.
const COMMON: &[Rule] = &[
    rule!(futex: "locks, and waiting for another thread"),
    rule!(read: "the input, and files"),
    rule!(write: "files, and the report of a violation"),
    rule!(recvfrom: "answers of the process that has started this one, and of registries"),
    rule!(sendto: "messages to it, and requests to registries"),
    rule!(shutdown: "the end of a connection"),
    rule!(close: "what is not used any more"),
    rule!(brk: "malloc"),
    rule!(mmap, [Lacks(2, EXECUTE)]: "malloc, and the stacks of threads"),
    rule!(mprotect, [Lacks(2, EXECUTE)]: "malloc, and the stacks of threads"),
    rule!(mremap: "realloc of much"),
    rule!(munmap: "free, and a thread's end"),
    rule!(madvise: "free, and a thread's end"),
    rule!(clone, [Has(0, THREAD)]: "threads"),
    rule!(set_robust_list: "a thread's beginning"),
    rule!(rseq: "a thread's beginning"),
    rule!(rt_sigaction, [Is(0, CHANGE_USER)]: "the first thread's beginning"),
    rule!(prctl, [Is(0, SET_NAME)]: "a thread's name"),
    rule!(sched_getaffinity: "a thread's beginning: the bounds of its stack"),
    rule!(sigaltstack: "a thread's beginning and end"),
    rule!(rt_sigprocmask: "a thread's beginning and end"),
    rule!(rt_sigreturn: "the end of a signal handler"),
    rule!(sched_yield: "channels whose other end is at work"),
    rule!(clock_gettime: "a host whose vDSO has no clock"),
    rule!(clock_nanosleep: "locks of the store that another process has"),
    rule!(restart_syscall: "a wait that SIGSTOP interrupted"),
    rule!(getrandom: "hash tables, and keys of connections"),
    rule!(getpid: "names of temporary files, and abort"),
    rule!(gettid: "abort"),
    rule!(tgkill, [IsThisProcess(0)]: "abort"),
    rule!(fcntl, [Is(1, DUPLICATE)]: "the input and the socket, once more"),
    rule!(fcntl, [Is(1, GET_FL)]: "directories, and deadlines of connections"),
    rule!(fcntl, [Is(1, SET_FD)]: "directories"),
    rule!(exit: "a thread's end"),
    rule!(exit_group: "the process's end"),
];

/// What every job does where mvm is built with debug assertions.
const DEBUG: &[Rule] = &[rule!(fcntl, [Is(1, GET_FD)]: "whether what is closed was open")];

/// What is done with the files of the store, which Landlock limits to it.
const STORE: &[Rule] = &[
    rule!(openat: "files and directories"),
    rule!(statx: "sizes, and what is there"),
    rule!(fstat: "sizes"),
    rule!(newfstatat: "what is there"),
    rule!(lseek: "parts of files"),
    rule!(pread64: "parts of layers"),
    rule!(pwrite64: "parts of layers"),
    rule!(ftruncate: "the length of a layer, a download that begins anew"),
    rule!(fallocate: "the reserve"),
    rule!(fsync: "what is complete is on the disk"),
    rule!(fdatasync: "what is complete is on the disk"),
    rule!(flock: "locks of the store"),
    rule!(mkdir: "directories of layers and temporary files"),
    rule!(rename: "what is complete gets its name"),
    rule!(linkat: "what is complete gets its name, unless it is there"),
    rule!(unlink: "temporary files"),
    rule!(unlinkat: "temporary directories"),
    rule!(rmdir: "temporary directories"),
    rule!(getdents64: "what is to be removed"),
    rule!(geteuid: "whose the store is"),
];

/// What is done with registries.
const NETWORK: &[Rule] = &[
    rule!(socket, [Is(0, INET)]: "connections, and questions to name servers"),
    rule!(socket, [Is(0, INET6)]: "connections, and questions to name servers"),
    rule!(connect: "connections, and questions to name servers"),
    rule!(getsockname: "the order of addresses"),
    rule!(getpeername: "the other end of a connection"),
    rule!(setsockopt: "deadlines"),
    rule!(getsockopt: "whether a connection was made"),
    rule!(ioctl, [Is(1, NON_BLOCKING)]: "deadlines"),
    rule!(ioctl, [Is(1, READABLE)]: "the length of an answer of a name server"),
    rule!(fcntl, [Is(1, SET_FL)]: "deadlines"),
    rule!(poll: "deadlines"),
    rule!(recvmsg: "answers of name servers"),
    rule!(sendmmsg: "questions to name servers"),
    rule!(writev: "requests"),
    rule!(uname: "the domain of this host"),
];

/// The files that name certificates and name servers, where there is no store.
const CLIENT_FILES: &[Rule] = &[
    rule!(openat: "certificates, and files that name servers"),
    rule!(statx: "whether there are certificates"),
    rule!(fstat: "sizes"),
    rule!(newfstatat: "whether files have changed"),
    rule!(lseek: "files that name servers"),
    rule!(getdents64: "certificates of registries"),
];

/// What makes files of a stream, which Landlock limits to the directory, and for root its root.
const UNPACK: &[Rule] = &[
    rule!(openat: "files and directories"),
    rule!(mkdirat: "directories"),
    rule!(symlinkat: "links"),
    rule!(linkat: "links"),
    rule!(mknodat: "pipes, and devices where root unpacks"),
    rule!(unlinkat: "what is replaced"),
    rule!(newfstatat: "what is there"),
    rule!(fstat: "sizes"),
    rule!(statx: "sizes"),
    rule!(lseek: "holes"),
    rule!(ftruncate: "a hole at the end"),
    rule!(fchmod: "modes"),
    rule!(utimensat: "times"),
    rule!(fsetxattr: "attributes"),
    rule!(geteuid: "whether this is root"),
];

/// What gives files to their owners.
const OWNERS: &[Rule] = &[rule!(fchown: "owners"), rule!(fchownat: "owners of links and devices")];

/// What fails as where Linux does not know it.
const UNKNOWN: &[Rule] = &[rule!(clone3: "threads: its flags can't be seen, and clone is used instead")];
/// What fails as where there are no such sockets.
const NO_SOCKETS: &[Rule] = &[
    rule!(socket, [Is(0, UNIX)]: "a cache of names, which is done without"),
    rule!(socket, [Is(0, NETLINK)]: "addresses of this host, without which those of a name keep their order"),
];

/// The rules of a job.
pub fn of(job: &Job) -> Vec<&'static [Rule]> {
    let debug = if cfg!(debug_assertions) { DEBUG } else { &[] };
    let mut rules = vec![COMMON, debug];
    match job {
        Job::Pull(_) | Job::Push(_) => rules.extend([STORE, NETWORK]),
        Job::Login { .. } => rules.extend([CLIENT_FILES, NETWORK]),
        Job::Load | Job::LoadDirectory | Job::Import { .. } | Job::Commit { .. } => rules.push(STORE),
        Job::Unpack { keeps_owners: false, .. } => rules.push(UNPACK),
        Job::Unpack { keeps_owners: true, .. } => rules.extend([UNPACK, OWNERS]),
    }
    rules
}

/// Rules of calls that fail, and with which error.
pub fn failing(job: &Job) -> Vec<(&'static [Rule], Errno)> {
    let mut rules = vec![(UNKNOWN, Errno::NOSYS)];
    if matches!(job, Job::Pull(_) | Job::Push(_) | Job::Login { .. }) {
        rules.push((NO_SOCKETS, Errno::AFNOSUPPORT));
    }
    rules
}

#[cfg(test)]
mod tests {
    use image::Credentials;
    use jail::seccomp::Filter;

    use super::*;

    fn jobs() -> Vec<Job> {
        let credentials = Credentials { user: String::new(), secret: String::new() };
        vec![
            Job::Pull(String::new()),
            Job::Push(String::new()),
            Job::Load,
            Job::LoadDirectory,
            Job::Unpack { only: None, keeps_owners: false },
            Job::Unpack { only: None, keeps_owners: true },
            Job::Login { registry: String::new(), credentials },
        ]
    }

    #[test]
    fn each_job_has_a_filter_without_needless_rules() {
        for job in jobs() {
            let rules: Vec<&Rule> = of(&job).into_iter().flatten().collect();
            Filter::new(KIND, rules.iter().copied()).unwrap();
            for (failing, error) in failing(&job) {
                Filter::failing(KIND, failing, error).unwrap();
            }
            for (number, rule) in rules.iter().enumerate() {
                // One without arguments covers the others of its call.
                let others = rules.iter().skip(number + 1).filter(|other| other.call == rule.call);
                let mut others = others.map(|other| format!("{:?}", other.arguments));
                let own = format!("{:?}", rule.arguments);
                assert!(
                    others.all(|other| other != "[]" && own != "[]" && other != own),
                    "{} twice",
                    rule.name
                );
            }
        }
    }
}
