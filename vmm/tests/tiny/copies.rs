//! Copies that a VM's process which was taken over makes of itself, by the call with which it is to save its memory:
//! they end with it.

use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsFd;
use std::ptr::null_mut;
use std::time::Duration;

use instance::Identity;
use instance::keeper::{Child, Tie, adopt_orphans, end_orphans};
use jail::Mode;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmm::{VmConfig, VmProcess};

use super::attacks::{is_alone, machine};

/// The thread whose filter allows the call.
const THREAD: &str = "background";
const LIMIT: Duration = Duration::from_secs(20);

/// Copies this process as what saves a VM does. Returns whether this is the copy.
fn copy() -> bool {
    let (flags, mut descriptor) = (libc::CLONE_PIDFD | libc::SIGCHLD, -1);
    let descriptor = &raw mut descriptor;
    // SAFETY: the copy makes system calls alone.
    let copy =
        unsafe { libc::syscall(libc::SYS_clone, libc::c_long::from(flags), 0_usize, descriptor, 0, 0) };
    copy == 0
}

/// Makes a copy that makes another one; both say that they are there, and stay.
fn attack(mut said: PipeWriter) {
    if copy() {
        copy();
        said.write_all(b"c").unwrap();
        loop {
            // SAFETY: it waits for nothing.
            unsafe { libc::poll(null_mut(), 0, -1) };
        }
    }
}

/// A confined process of a VM of `config` that has left two copies, which have the other end of the pipe.
fn taken_over(config: &VmConfig, leads_group: bool) -> (libc::pid_t, PipeReader) {
    let (_reports, reports_writer) = io::pipe().unwrap();
    let (mut said, said_writer) = io::pipe().unwrap();
    // SAFETY: the copy has one thread, and ends below. It takes memory, which glibc makes possible after a fork.
    let process = unsafe { libc::fork() };
    if process == 0 {
        if leads_group {
            rustix::process::setpgid(None, None).unwrap();
        }
        let identity = Identity::default();
        let mut resources = vmm::open(config, &identity, None).unwrap();
        resources.confine(Mode::BestEffort, super::machine::alone(), reports_writer.into()).unwrap();
        let attack = || attack(said_writer);
        drop(devices::thread(THREAD).spawn(attack).unwrap().join());
        // SAFETY: it ends the process.
        unsafe { libc::_exit(0) };
    }
    drop(said_writer);
    let mut bytes = [0; 2];
    said.read_exact(&mut bytes).unwrap();
    (process, said)
}

/// Expects that no process has the other end of `pipe`.
fn expect_closed(pipe: &PipeReader) {
    let limit = Timespec::try_from(LIMIT).unwrap();
    let closed = poll(&mut [PollFd::new(pipe, PollFlags::empty())], Some(&limit));
    assert_eq!(closed, Ok(1), "a copy lives");
}

#[test]
fn they_end_with_the_group_that_a_vm_leads() {
    if !is_alone("copies::they_end_with_the_group_that_a_vm_leads") {
        return;
    }
    let Some((_machine, config)) = machine() else { return };
    let (ours, theirs) = Tie::pair().unwrap();
    let (process, pipe) = taken_over(&config, true);
    drop(theirs);
    let vm = VmProcess::of(ours, Child::of_group(process).unwrap());
    assert!(vm.receive().is_none(), "the socket is open, and the process has ended");
    assert_eq!(vm.wait(LIMIT), Some(0));
    expect_closed(&pipe);
}

#[test]
fn they_end_where_a_vm_shares_the_group_of_who_keeps_it() {
    if !is_alone("copies::they_end_where_a_vm_shares_the_group_of_who_keeps_it") {
        return;
    }
    let Some((_machine, config)) = machine() else { return };
    adopt_orphans().unwrap();
    let mut other = std::process::Command::new("sleep").arg("infinity").spawn().unwrap();
    let (process, pipe) = taken_over(&config, false);
    // SAFETY: no status is asked for.
    unsafe { libc::waitpid(process, null_mut(), 0) };
    let alive =
        poll(&mut [PollFd::from_borrowed_fd(pipe.as_fd(), PollFlags::empty())], Some(&Timespec::default()));
    assert_eq!(alive, Ok(0), "there is no copy");
    assert!(end_orphans(THREAD, LIMIT));
    expect_closed(&pipe);
    assert!(other.try_wait().unwrap().is_none(), "another process was ended");
    other.kill().unwrap();
    other.wait().unwrap();
}
