//! vCPUs that met something which is a debugger's business.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::kvm_debug_exit_arch;
use vmm_sys_util::eventfd::EventFd;

use crate::arch::current::gdb::{DEBUG_VECTOR, SINGLE_STEP};
use crate::vcpu::{DebugHook, Gate, Holder};

/// A vCPU that stopped, and why.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stop {
    /// Which vCPU.
    pub(super) vcpu: usize,
    /// What KVM says of it.
    pub(super) cause: kvm_debug_exit_arch,
}

/// Where vCPUs report what stopped them, and the debugger's thread finds it.
pub struct Stops {
    /// One for each vCPU at most: it goes on only when its stop was taken.
    waiting: Mutex<Vec<Stop>>,
    event: EventFd,
    /// Which vCPUs go for one instruction.
    stepping: Box<[AtomicBool]>,
    gate: Arc<Gate>,
}

impl DebugHook for Stops {
    /// Reports that the calling vCPU stopped. All others are stopped with it.
    fn report(&self, vcpu: usize, cause: kvm_debug_exit_arch) {
        self.gate.hold(Holder::Debugger);
        let mut waiting = self.lock();
        if waiting.iter().all(|stop| stop.vcpu != vcpu) {
            waiting.push(Stop { vcpu, cause });
        }
        drop(waiting);
        self.wake();
    }

    /// Reports the end of a step of the calling vCPU, if it is on one, because of an access to a device: KVM says
    /// nothing of a step whose instruction it had to leave the guest for.
    fn accessed(&self, vcpu: usize) {
        if self.stepping.get(vcpu).is_some_and(|stepping| stepping.load(Ordering::SeqCst)) {
            let pc = u64::MAX;
            self.report(
                vcpu,
                kvm_debug_exit_arch { exception: DEBUG_VECTOR, pad: 0, pc, dr6: SINGLE_STEP, dr7: 0 },
            );
        }
    }
}

impl Stops {
    /// No stops yet, of the vCPUs of `gate`.
    ///
    /// # Errors
    ///
    /// Those of making an eventfd.
    pub fn new(gate: Arc<Gate>) -> io::Result<Self> {
        let stepping = (0..gate.cpus()).map(|_| AtomicBool::new(false)).collect();
        Ok(Self { waiting: Mutex::default(), event: EventFd::new(libc::EFD_NONBLOCK)?, stepping, gate })
    }

    /// Sets whether a stopped vCPU runs for one instruction when it is resumed.
    pub(super) fn set_stepping(&self, vcpu: usize, steps: bool) {
        if let Some(stepping) = self.stepping.get(vcpu) {
            stepping.store(steps, Ordering::SeqCst);
        }
    }

    /// Makes the event readable.
    pub(super) fn wake(&self) {
        // It fails only where the counter is full, and then it is readable.
        let _ = self.event.write(1);
    }

    /// Takes what was reported, and clears the event.
    pub(super) fn take(&self) -> Vec<Stop> {
        // It fails where nothing was reported.
        let _ = self.event.read();
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Stop>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Becomes readable when there is a stop.
    pub(super) fn event(&self) -> &EventFd {
        &self.event
    }
}
