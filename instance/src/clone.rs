//! A copy of this process that is in another control group from its first instruction.

use std::os::fd::{AsRawFd, BorrowedFd};

/// `CLONE_INTO_CGROUP`, `CLONE_CHILD_SETTID` and `CLONE_CHILD_CLEARTID` (clone(2)).
const INTO_CGROUP: u64 = 0x2_0000_0000;
const SET_TID: u64 = 0x0100_0000;
const CLEAR_TID: u64 = 0x0020_0000;
/// `PR_GET_TID_ADDRESS` (prctl(2)).
const GET_TID_ADDRESS: libc::c_int = 40;

/// Makes a copy of this process, as fork(2) does, in the control group whose directory is `group`. To move it there
/// later would have the kernel wait until all processors have seen it, some 10 ms. Returns 0 in the copy; less than 0
/// where the host cannot do it (before Linux 5.7, or as a container's filter forbids it), and there is no copy.
///
/// # Safety
///
/// This process has one thread.
pub(super) unsafe fn clone_into(group: BorrowedFd<'_>) -> libc::pid_t {
    let mut tid: *mut libc::pid_t = std::ptr::null_mut();
    // SAFETY: the call writes an address to `tid`.
    let known = unsafe { libc::prctl(GET_TID_ADDRESS, &raw mut tid) } == 0 && !tid.is_null();
    // SAFETY: all of its fields are numbers, for which 0 is none.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = INTO_CGROUP;
    if known {
        // Where the C library has the thread's number, which is another one in the copy.
        arguments.flags |= SET_TID | CLEAR_TID;
        arguments.child_tid = tid.addr() as u64;
    }
    arguments.exit_signal = u64::from(libc::SIGCHLD.unsigned_abs());
    arguments.cgroup = u64::try_from(group.as_raw_fd()).unwrap_or(u64::MAX);
    // SAFETY: without CLONE_VM the copy has memory of its own, with this stack in it, and no thread that has a lock.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<libc::clone_args>()) };
    libc::pid_t::try_from(pid).unwrap_or(-1)
}
