//! The system calls that a thread may make.
//!
//! A table says for each kind of thread which calls it makes, with which arguments, and why. What is not in it traps:
//! the process tells who keeps it which call of which thread it was, and ends. A thread cannot change that, as it may
//! not call rt_sigaction(2).

mod names;
mod program;
mod trap;

use std::io;

use thiserror::Error;

use self::program::{Action, make};
pub use names::name;
pub use trap::{EXIT_CODE, Violation, may_trap, report_to};

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
    /// All of these bits are set in it.
    Has(u8, u32),
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
        accept4 = SYS_accept4, bind = SYS_bind, brk = SYS_brk, chdir = SYS_chdir,
        clock_gettime = SYS_clock_gettime, clock_nanosleep = SYS_clock_nanosleep, clone = SYS_clone,
        clone3 = SYS_clone3, close = SYS_close, close_range = SYS_close_range, connect = SYS_connect, copy_file_range = SYS_copy_file_range,
        epoll_ctl = SYS_epoll_ctl, epoll_pwait = SYS_epoll_pwait, epoll_wait = SYS_epoll_wait,
        exit = SYS_exit, exit_group = SYS_exit_group, fadvise64 = SYS_fadvise64, fallocate = SYS_fallocate,
        fchmod = SYS_fchmod, fchown = SYS_fchown, fchownat = SYS_fchownat, fcntl = SYS_fcntl,
        fdatasync = SYS_fdatasync, fgetxattr = SYS_fgetxattr, flistxattr = SYS_flistxattr, flock = SYS_flock,
        fsetxattr = SYS_fsetxattr, fstat = SYS_fstat, fstatfs = SYS_fstatfs, fsync = SYS_fsync,
        ftruncate = SYS_ftruncate, futex = SYS_futex, getcwd = SYS_getcwd, getdents64 = SYS_getdents64,
        getpeername = SYS_getpeername, getpgrp = SYS_getpgrp, geteuid = SYS_geteuid, getpid = SYS_getpid, getppid = SYS_getppid, getrandom = SYS_getrandom,
        getsockname = SYS_getsockname, getsockopt = SYS_getsockopt, gettid = SYS_gettid,
        io_uring_enter = SYS_io_uring_enter, io_uring_register = SYS_io_uring_register, ioctl = SYS_ioctl,
        link = SYS_link, linkat = SYS_linkat, lseek = SYS_lseek, madvise = SYS_madvise, mkdir = SYS_mkdir,
        mkdirat = SYS_mkdirat, mknodat = SYS_mknodat, mmap = SYS_mmap, mprotect = SYS_mprotect,
        mremap = SYS_mremap, msync = SYS_msync, munmap = SYS_munmap, newfstatat = SYS_newfstatat,
        open = SYS_open, openat = SYS_openat, pidfd_send_signal = SYS_pidfd_send_signal, poll = SYS_poll,
        ppoll = SYS_ppoll, prctl = SYS_prctl, pread64 = SYS_pread64, preadv = SYS_preadv,
        pwrite64 = SYS_pwrite64, pwritev = SYS_pwritev, read = SYS_read, readlink = SYS_readlink,
        readlinkat = SYS_readlinkat, readv = SYS_readv, recvfrom = SYS_recvfrom, recvmmsg = SYS_recvmmsg,
        recvmsg = SYS_recvmsg, rename = SYS_rename, renameat = SYS_renameat,
        restart_syscall = SYS_restart_syscall, rmdir = SYS_rmdir, rseq = SYS_rseq,
        rt_sigaction = SYS_rt_sigaction, rt_sigprocmask = SYS_rt_sigprocmask, rt_sigreturn = SYS_rt_sigreturn,
        sched_getaffinity = SYS_sched_getaffinity, sched_yield = SYS_sched_yield, select = SYS_select,
        sendfile = SYS_sendfile, sendmmsg = SYS_sendmmsg, sendmsg = SYS_sendmsg, sendto = SYS_sendto,
        set_robust_list = SYS_set_robust_list, setsockopt = SYS_setsockopt, shutdown = SYS_shutdown,
        sigaltstack = SYS_sigaltstack, socket = SYS_socket, splice = SYS_splice, stat = SYS_stat,
        statx = SYS_statx, symlinkat = SYS_symlinkat, tgkill = SYS_tgkill,
        timerfd_settime = SYS_timerfd_settime, umask = SYS_umask, uname = SYS_uname, unlink = SYS_unlink,
        unlinkat = SYS_unlinkat, utimensat = SYS_utimensat, wait4 = SYS_wait4, waitid = SYS_waitid,
        write = SYS_write, writev = SYS_writev,
    }
}

/// A filter could not be made or installed.
#[derive(Debug, Error)]
pub enum SeccompError {
    /// The table has an error.
    #[error("the table of system calls of {0} is wrong: {1}")]
    Table(&'static str, &'static str),
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
    program: Vec<libc::sock_filter>,
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
        Self::new_in(kind, std::process::id(), rules)
    }

    /// The same for the process with the ID `process`.
    ///
    /// # Errors
    ///
    /// [`SeccompError::Table`].
    pub fn new_in<'a>(
        kind: &'static str,
        process: u32,
        rules: impl IntoIterator<Item = &'a Rule>,
    ) -> Result<Self, SeccompError> {
        Self::with((kind, process), rules, (Action::Allow, Action::Trap))
    }

    /// Makes a filter by which the calls of `rules` fail with this error, as where the kernel does not have them, and
    /// all others are made. It is installed beside one of [`Filter::new`] that allows these calls, or traps where it
    /// does not.
    ///
    /// # Errors
    ///
    /// [`SeccompError::Table`].
    pub fn failing<'a>(
        kind: &'static str,
        rules: impl IntoIterator<Item = &'a Rule>,
        error: rustix::io::Errno,
    ) -> Result<Self, SeccompError> {
        let error = Action::Fail(u16::try_from(error.raw_os_error()).unwrap_or_default());
        Self::with((kind, std::process::id()), rules, (error, Action::Allow))
    }

    fn with<'a>(
        (kind, process): (&'static str, u32),
        rules: impl IntoIterator<Item = &'a Rule>,
        (matching, other): (Action, Action),
    ) -> Result<Self, SeccompError> {
        let program = make(rules, process, (matching, other));
        Ok(Self { kind, program: program.map_err(|why| SeccompError::Table(kind, why))? })
    }

    /// The kind of threads that it is for.
    pub fn kind(&self) -> &'static str {
        self.kind
    }

    /// Confines the calling thread, for good. It takes one system call and no memory. This process has no_new_privs
    /// set, and the thread does not block SIGSYS, which [`report_to`] and [`may_trap`] see to.
    ///
    /// # Errors
    ///
    /// [`SeccompError`].
    pub fn install(&self) -> Result<(), SeccompError> {
        trap::name_thread(self.kind);
        let too_long = |_| SeccompError::Install(io::ErrorKind::InvalidInput.into());
        let length = u16::try_from(self.program.len()).map_err(too_long)?;
        let program = libc::sock_fprog { len: length, filter: self.program.as_ptr().cast_mut() };
        // SAFETY: the kernel copies the program, which lives until the call returns, and does not write to it.
        let result =
            unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) };
        if result == 0 { Ok(()) } else { Err(SeccompError::Install(io::Error::last_os_error())) }
    }
}

impl Filter {
    /// Confines the calling thread, which is the only one, and those that are started later, for good. Reports have the
    /// kind for all of them.
    ///
    /// # Errors
    ///
    /// [`SeccompError`].
    pub fn install_for_all(&self) -> Result<(), SeccompError> {
        trap::name_process(self.kind);
        self.install()
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
