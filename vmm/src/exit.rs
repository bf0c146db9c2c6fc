//! How a VM ended, and the slot through which its threads say so.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};

use instance::name_of;
use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

/// Why a VM ended. The process that has run it tells its keeper.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitReason {
    /// The guest switched its power off.
    PowerOff,
    /// The guest asked for a reset, which ends the VM: to run it again, start it again.
    Reboot,
    /// The guest powered off or reset after it had set this exit code, which is not 0.
    Code(u8),
    /// The guest's kernel panicked.
    Panicked {
        /// What the kernel's message on the console says behind `Kernel panic - not syncing: `, where it is known.
        message: Option<String>,
        /// What usually causes it, and what to do about it.
        hint: Option<Cow<'static, str>>,
    },
    /// A triple fault.
    TripleFault {
        /// Which vCPU.
        vcpu: u32,
        /// The instruction pointer, where the processor still has it: AMD's is reset by the fault.
        at: Option<u64>,
        /// What usually causes it, and what to do about it.
        hint: Option<Cow<'static, str>>,
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
        /// What usually causes it, and what to do about it.
        hint: Option<Cow<'static, str>>,
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
    /// A device of a saved VM did not start.
    NotResumed {
        /// Which device and why.
        detail: String,
    },
    /// The user ended the VM from its console.
    Stopped,
    /// A debugger ended the VM.
    Killed,
    /// A signal ended the VM: the guest did not power off in time, or there was a second one.
    Signal(i32),
    /// The VM has run as long as `--timeout` allows.
    TimedOut,
}

impl ExitReason {
    /// What usually causes it, and what to do about it, where that is known.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Panicked { hint, .. }
            | Self::TripleFault { hint, .. }
            | Self::InternalError { hint, .. } => hint.as_deref(),
            _ => None,
        }
    }

    /// Whether the VM was ended from outside, without the guest's doing.
    pub(crate) fn is_forced(&self) -> bool {
        matches!(self, Self::Stopped | Self::Killed | Self::Signal(_) | Self::TimedOut)
    }
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PowerOff => f.write_str("the guest powered off"),
            Self::Reboot => f.write_str("the guest rebooted"),
            Self::Code(code) => write!(f, "the guest ended with exit code {code}"),
            Self::Panicked { message: None, .. } => f.write_str("the guest's kernel panicked"),
            Self::Panicked { message: Some(message), .. } => {
                write!(f, "the guest's kernel panicked: {message}")
            }
            Self::TripleFault { vcpu, at: Some(at), .. } => {
                write!(f, "the guest crashed: triple fault on vCPU {vcpu} at {at:#x}")
            }
            Self::TripleFault { vcpu, at: None, .. } => {
                write!(f, "the guest crashed: triple fault on vCPU {vcpu}")
            }
            Self::FailEntry { vcpu, hardware_reason } => write!(
                f,
                "the guest cannot run: the processor refused to enter vCPU {vcpu}, hardware reason {hardware_reason:#x}"
            ),
            Self::InternalError { vcpu, detail, .. } => {
                write!(f, "the guest crashed: KVM internal error on vCPU {vcpu}: {detail}")
            }
            Self::RunFailed { vcpu, detail } => {
                write!(f, "the guest cannot continue: KVM_RUN of vCPU {vcpu} failed: {detail}")
            }
            Self::MemoryCutOff => f.write_str("the guest cannot continue: a file of --pmem was truncated"),
            Self::NotResumed { detail } => write!(f, "the saved VM cannot continue: {detail}"),
            Self::Stopped => f.write_str("stopped"),
            Self::Killed => f.write_str("stopped by the debugger"),
            Self::Signal(libc::SIGPIPE) => {
                f.write_str("stopped: the reader of standard output has gone (SIGPIPE)")
            }
            Self::Signal(signal) => write!(f, "stopped by {}", name_of(*signal)),
            Self::TimedOut => f.write_str("stopped: --timeout expired"),
        }
    }
}

/// Holds the first reason that any thread gives; later ones are consequences of the first.
pub struct ExitSlot {
    reason: Mutex<Option<ExitReason>>,
    /// The exit code that the guest has set.
    code: AtomicU8,
    /// The guest was asked to power off because `--timeout` expired.
    time_is_up: AtomicBool,
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
            code: AtomicU8::new(0),
            time_is_up: AtomicBool::new(false),
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

    /// Sets the exit code for when the guest powers off or resets.
    pub fn set_code(&self, code: u8) {
        self.code.store(code, Ordering::SeqCst);
    }

    /// Says that the guest is asked to power off because `--timeout` is over.
    pub(crate) fn time_is_up(&self) {
        self.time_is_up.store(true, Ordering::SeqCst);
    }

    /// Whether there is a reason; no vCPU enters the guest once there is.
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    /// The reason, once there is one.
    pub fn reason(&self) -> Option<ExitReason> {
        let reason = self.own_reason()?;
        Some(match (reason, self.code.load(Ordering::SeqCst)) {
            (ExitReason::PowerOff | ExitReason::Reboot, _) if self.time_is_up.load(Ordering::SeqCst) => {
                ExitReason::TimedOut
            }
            (ExitReason::PowerOff | ExitReason::Reboot, code @ 1..) => ExitReason::Code(code),
            (reason, _) => reason,
        })
    }

    /// The same event as a descriptor to wait for.
    pub(crate) fn ended(&self) -> BorrowedFd<'_> {
        // SAFETY: the slot owns the descriptor and lives as long as what borrows it.
        unsafe { BorrowedFd::borrow_raw(self.event.as_raw_fd()) }
    }

    /// The reason that was given, without what the exit code or `--timeout` makes of it.
    pub(crate) fn own_reason(&self) -> Option<ExitReason> {
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

    #[test]
    fn a_guest_that_has_set_a_code_ends_with_it_only_where_it_ends_by_itself() {
        for (reason, expected) in [
            (ExitReason::PowerOff, ExitReason::Code(7)),
            (ExitReason::Reboot, ExitReason::Code(7)),
            (ExitReason::Signal(9), ExitReason::Signal(9)),
            (
                ExitReason::Panicked { message: None, hint: None },
                ExitReason::Panicked { message: None, hint: None },
            ),
        ] {
            let slot = ExitSlot::new().unwrap();
            slot.set_code(7);
            slot.end(reason);
            assert_eq!(slot.reason(), Some(expected));
        }
        let slot = ExitSlot::new().unwrap();
        slot.set_code(7);
        slot.set_code(0);
        slot.end(ExitReason::PowerOff);
        assert_eq!(slot.reason(), Some(ExitReason::PowerOff));
    }

    #[test]
    fn a_guest_that_powers_off_after_the_timeout_has_timed_out() {
        let slot = ExitSlot::new().unwrap();
        slot.time_is_up();
        slot.end(ExitReason::PowerOff);
        assert_eq!(slot.reason(), Some(ExitReason::TimedOut));
    }
}
