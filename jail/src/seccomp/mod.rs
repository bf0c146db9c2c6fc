//! The system calls that a thread may make.
//!
//! A table says for each kind of thread which calls it makes, with which arguments, and why. What is not in it traps:
//! the process tells who keeps it which call of which thread it was, and ends. A thread cannot change that, as it may not
//! call rt_sigaction(2).

mod trap;

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};
use thiserror::Error;

pub use trap::{Violation, report_to};

/// One system call that a thread may make.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// Its name, as in syscalls(2).
    pub name: &'static str,
    /// Its number.
    pub call: i64,
    /// What its arguments must be; one of several rules of a call has to hold.
    pub arguments: &'static [Argument],
    /// What it is needed for.
    pub why: &'static str,
}

/// What an argument must be.
#[derive(Clone, Copy, Debug)]
pub enum Argument {
    /// The argument of this number is this value; 32 bits are compared.
    Is(u8, u32),
    /// None of these bits is set in it.
    Lacks(u8, u32),
    /// It is the ID of this process.
    IsThisProcess(u8),
}

/// A rule: `rule!(futex: "locks")`, or `rule!(ioctl, [Argument::Is(1, 0xae80)]: "runs the vCPU")`.
#[macro_export]
macro_rules! rule {
    ($name:ident: $why:literal) => {
        $crate::rule!($name, []: $why)
    };
    ($name:ident, [$($argument:expr),*]: $why:literal) => {
        $crate::seccomp::Rule {
            name: stringify!($name),
            call: $crate::seccomp::numbers::$name,
            arguments: &[$($argument),*],
            why: $why,
        }
    };
}

/// The numbers of system calls by their names.
pub mod numbers {
    macro_rules! numbers {
        ($($name:ident = $number:ident),* $(,)?) => {
            $(
                #[doc = concat!("`", stringify!($number), "`")]
                #[allow(non_upper_case_globals)]
                pub const $name: i64 = libc::$number;
            )*
        };
    }
    numbers! {
        accept4 = SYS_accept4, brk = SYS_brk, clock_gettime = SYS_clock_gettime,
        clock_nanosleep = SYS_clock_nanosleep, close = SYS_close, epoll_ctl = SYS_epoll_ctl,
        epoll_pwait = SYS_epoll_pwait, epoll_wait = SYS_epoll_wait, exit = SYS_exit,
        exit_group = SYS_exit_group, fallocate = SYS_fallocate, fcntl = SYS_fcntl, fdatasync = SYS_fdatasync,
        fstat = SYS_fstat, fsync = SYS_fsync, ftruncate = SYS_ftruncate, futex = SYS_futex,
        getpid = SYS_getpid, msync = SYS_msync, setsockopt = SYS_setsockopt, wait4 = SYS_wait4, getrandom = SYS_getrandom, gettid = SYS_gettid, ioctl = SYS_ioctl,
        io_uring_enter = SYS_io_uring_enter, io_uring_register = SYS_io_uring_register, lseek = SYS_lseek, madvise = SYS_madvise, mmap = SYS_mmap,
        mprotect = SYS_mprotect, mremap = SYS_mremap, munmap = SYS_munmap,
        pidfd_send_signal = SYS_pidfd_send_signal, poll = SYS_poll, ppoll = SYS_ppoll,
        pread64 = SYS_pread64, preadv = SYS_preadv, pwrite64 = SYS_pwrite64, pwritev = SYS_pwritev,
        read = SYS_read, readv = SYS_readv, recvfrom = SYS_recvfrom, recvmsg = SYS_recvmsg,
        restart_syscall = SYS_restart_syscall, rt_sigprocmask = SYS_rt_sigprocmask,
        rt_sigreturn = SYS_rt_sigreturn, sched_yield = SYS_sched_yield, sendmsg = SYS_sendmsg,
        sendto = SYS_sendto, shutdown = SYS_shutdown, sigaltstack = SYS_sigaltstack, statx = SYS_statx,
        tgkill = SYS_tgkill, timerfd_settime = SYS_timerfd_settime, waitid = SYS_waitid, write = SYS_write,
        writev = SYS_writev,
    }
}

/// A filter could not be made or installed.
#[derive(Debug, Error)]
pub enum SeccompError {
    /// The table has an error.
    #[error("the table of system calls of {0} is wrong")]
    Table(&'static str, #[source] BackendError),
    /// The kernel refuses the filter.
    #[error("the kernel refuses a filter of system calls")]
    Install(#[source] io::Error),
    /// The handler of violations.
    #[error("cannot handle the signal SIGSYS")]
    Handler(#[source] io::Error),
}

/// The filter of a kind of thread.
#[derive(Clone, Debug)]
pub struct Filter {
    kind: &'static str,
    program: BpfProgram,
}

impl Filter {
    /// Makes the filter of threads of the kind `kind`, from what they may do.
    ///
    /// # Errors
    ///
    /// [`SeccompError::Table`].
    pub fn new<'a>(
        kind: &'static str,
        rules: impl IntoIterator<Item = &'a Rule>,
    ) -> Result<Self, SeccompError> {
        let table = |error| SeccompError::Table(kind, error);
        let mut calls: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
        let mut always = Vec::new();
        for rule in rules {
            let of_call = calls.entry(rule.call).or_default();
            if rule.arguments.is_empty() {
                always.push(rule.call);
                continue;
            }
            let conditions = rule.arguments.iter().map(Argument::condition).collect::<Result<_, _>>();
            of_call.push(conditions.and_then(SeccompRule::new).map_err(table)?);
        }
        for call in always {
            calls.insert(call, Vec::new());
        }
        let filter = SeccompFilter::new(calls, SeccompAction::Trap, SeccompAction::Allow, TargetArch::x86_64);
        let program = filter.and_then(TryInto::try_into).map_err(table)?;
        Ok(Self { kind, program })
    }

    /// Confines the calling thread, for good.
    ///
    /// # Errors
    ///
    /// [`SeccompError`].
    pub fn install(&self) -> Result<(), SeccompError> {
        trap::prepare_thread(self.kind).map_err(SeccompError::Handler)?;
        seccompiler::apply_filter(&self.program).map_err(|error| {
            SeccompError::Install(match error {
                seccompiler::Error::Prctl(error) | seccompiler::Error::Seccomp(error) => error,
                error => io::Error::other(error.to_string()),
            })
        })
    }
}

impl Argument {
    fn condition(&self) -> Result<SeccompCondition, BackendError> {
        let (index, operator, value) = match *self {
            Self::Is(index, value) => (index, SeccompCmpOp::Eq, value),
            Self::Lacks(index, bits) => (index, SeccompCmpOp::MaskedEq(bits.into()), 0),
            Self::IsThisProcess(index) => (index, SeccompCmpOp::Eq, std::process::id()),
        };
        SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, value.into())
    }
}

/// Whether this host filters system calls.
///
/// # Errors
///
/// Why not.
pub fn available() -> Result<(), String> {
    const GET_ACTION: libc::c_uint = 2;
    let trap: u32 = 0x0003_0000;
    // SAFETY: the call reads the action, which lives until it returns.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, GET_ACTION, 0, &raw const trap) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error().to_string()) }
}

#[cfg(test)]
mod tests;
