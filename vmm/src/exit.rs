//! How a VM ended, and the slot through which its threads say so.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use vmm_sys_util::eventfd::EventFd;

/// Why a VM ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExitReason {
    /// The guest switched its power off.
    PowerOff,
    /// The guest asked for a reset, which ends the VM: whoever wants it again starts it again.
    Reboot,
    /// The guest's kernel panicked.
    Panicked,
    /// A vCPU met a fault while it handled a fault while it handled a fault.
    TripleFault {
        /// Which vCPU.
        vcpu: u32,
        /// Where it stood, if the processor still knows: AMD's is reset by the fault.
        rip: Option<u64>,
    },
    /// The processor refused to enter the guest.
    FailEntry {
        /// Which vCPU.
        vcpu: u32,
        /// The processor's reason, as KVM passes it on.
        hardware_reason: u64,
    },
    /// KVM gave up on the guest.
    InternalError {
        /// Which vCPU.
        vcpu: u32,
        /// What KVM says of it.
        detail: String,
    },
    /// KVM_RUN itself failed.
    RunFailed {
        /// Which vCPU.
        vcpu: u32,
        /// What it was doing.
        detail: String,
    },
    /// A file that the guest has as memory was made shorter.
    MemoryCutOff,
    /// The user ended the VM from its console.
    Stopped,
    /// A debugger ended the VM.
    Killed,
    /// A signal ended the VM.
    Signal(i32),
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PowerOff => f.write_str("the guest powered off"),
            Self::Reboot => f.write_str("the guest rebooted"),
            Self::Panicked => f.write_str("the guest's kernel panicked"),
            Self::TripleFault { vcpu, rip: Some(rip) } => {
                write!(f, "the guest crashed: triple fault on vCPU {vcpu} at {rip:#x}")
            }
            Self::TripleFault { vcpu, rip: None } => {
                write!(f, "the guest crashed: triple fault on vCPU {vcpu}")
            }
            Self::FailEntry { vcpu, hardware_reason } => write!(
                f,
                "the guest cannot run: the processor refused to enter vCPU {vcpu}, hardware reason {hardware_reason:#x}"
            ),
            Self::InternalError { vcpu, detail } => {
                write!(f, "the guest crashed: KVM internal error on vCPU {vcpu}: {detail}")
            }
            Self::RunFailed { vcpu, detail } => {
                write!(f, "the guest cannot go on: KVM_RUN of vCPU {vcpu} failed: {detail}")
            }
            Self::MemoryCutOff => f.write_str("the guest cannot go on: a file of --pmem was cut off"),
            Self::Stopped => f.write_str("stopped from the console"),
            Self::Killed => f.write_str("stopped by the debugger"),
            Self::Signal(signal) => write!(f, "stopped by signal {signal}"),
        }
    }
}

/// Holds the first reason that any thread gives; later ones are consequences of the first.
pub struct ExitSlot {
    reason: Mutex<Option<ExitReason>>,
    /// There is a reason; vCPU threads ask before each entry, and so without the lock.
    ended: AtomicBool,
    event: EventFd,
}

impl ExitSlot {
    /// An empty slot.
    ///
    /// # Errors
    ///
    /// Those of making an eventfd.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            reason: Mutex::new(None),
            ended: AtomicBool::new(false),
            event: EventFd::new(libc::EFD_NONBLOCK)?,
        })
    }

    /// Ends the VM for `reason`, unless it has ended already.
    pub fn end(&self, reason: ExitReason) {
        self.lock().get_or_insert(reason);
        self.ended.store(true, Ordering::SeqCst);
        // It fails only where the counter is full, and then the event loop is being woken already.
        let _ = self.event.write(1);
    }

    /// Whether there is a reason; no vCPU enters the guest once there is.
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    /// The reason, once there is one.
    pub fn reason(&self) -> Option<ExitReason> {
        self.lock().clone()
    }

    /// Becomes readable once there is a reason.
    pub fn event(&self) -> &EventFd {
        &self.event
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<ExitReason>> {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_stays() {
        let slot = ExitSlot::new().unwrap();
        assert_eq!(slot.reason(), None);
        slot.end(ExitReason::PowerOff);
        slot.end(ExitReason::Signal(15));
        assert_eq!(slot.reason(), Some(ExitReason::PowerOff));
        slot.event().read().expect("the event loop is woken");
    }
}
