//! Getting a thread out of KVM_RUN.
//!
//! A signal ends KVM_RUN, but one that arrives just before the call would be lost. So its handler sets
//! `immediate_exit` in the vCPU's own `kvm_run`, which makes the next KVM_RUN return at once (KVM API, 5).

use std::cell::Cell;
use std::ffi::c_int;
use std::io;
use std::ptr;

use kvm_bindings::kvm_run;
use kvm_ioctls::VcpuFd;

thread_local! {
    /// The `kvm_run` of the vCPU that this thread runs; null on other threads.
    static RUN: Cell<*mut kvm_run> = const { Cell::new(ptr::null_mut()) };
}

fn signal() -> c_int {
    libc::SIGRTMIN()
}

extern "C" fn on_signal(_signal: c_int) {
    let run = RUN.get();
    if !run.is_null() {
        // SAFETY: the pointer is valid while it is not null (see `Registration`), and the handler runs on the
        // thread that owns the vCPU. KVM reads the byte with READ_ONCE.
        unsafe { ptr::write_volatile(&raw mut (*run).immediate_exit, 1) };
    }
}

/// Makes the signal known, once for the process; installing it again changes nothing.
pub(super) fn install() -> io::Result<()> {
    // SAFETY: all-zero bytes are a valid `sigaction`; the handler only reads a thread-local without a
    // destructor and writes one byte, both of which are safe in a signal handler.
    let result = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_signal as extern "C" fn(c_int) as usize;
        libc::sigaction(signal(), &raw const action, ptr::null_mut())
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Ties the calling thread to its vCPU for as long as it lives.
pub(super) struct Registration;

impl Registration {
    pub(super) fn new(vcpu: &mut VcpuFd) -> Self {
        // The mapping belongs to the `VcpuFd`, which lives as long as the thread's run loop, and so longer
        // than the registration that the loop's function holds.
        RUN.set(ptr::from_mut(vcpu.get_kvm_run()));
        Self
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        RUN.set(ptr::null_mut());
    }
}

/// A vCPU's thread, for sending it the signal.
#[derive(Clone, Copy)]
pub(super) struct Thread(libc::pthread_t);

// SAFETY: an ID names the same thread on every thread. With some C libraries it is a pointer.
unsafe impl Send for Thread {}

impl Thread {
    /// The calling thread.
    pub(super) fn current() -> Self {
        // SAFETY: the call has no preconditions.
        Self(unsafe { libc::pthread_self() })
    }

    /// Makes the thread leave KVM_RUN, or return from its next one at once.
    ///
    /// # Safety
    ///
    /// The thread has not ended.
    pub(super) unsafe fn kick(self) {
        // SAFETY: the thread lives, so its ID is valid.
        unsafe { libc::pthread_kill(self.0, signal()) };
    }
}
