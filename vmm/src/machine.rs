//! What the vmm gives its devices: interrupts, buses, and a place to report to.

use std::io;
use std::sync::Arc;

use devices::{MachineEvent, MachineEvents};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::EventFd;

use crate::exit::{ExitReason, ExitSlot};
use crate::kvm::KvmError;
use crate::timing::{Phase, Timeline};

/// An interrupt line of the in-kernel I/O APIC, raised by writing to an eventfd.
///
/// # Errors
///
/// Those of making the eventfd, and KVM's refusal to tie it to `gsi`.
pub fn interrupt_line(vm: &VmFd, gsi: u32) -> Result<Arc<EventFd>, KvmError> {
    let line = EventFd::new(libc::EFD_NONBLOCK).map_err(|source| KvmError::Call {
        doing: "make an eventfd for an interrupt",
        source: errno(&source),
    })?;
    vm.register_irqfd(&line, gsi).map_err(KvmError::call("tie an eventfd to an interrupt"))?;
    Ok(Arc::new(line))
}

fn errno(error: &io::Error) -> kvm_ioctls::Error {
    kvm_ioctls::Error::new(error.raw_os_error().unwrap_or(libc::EIO))
}

/// Turns what devices report into the VM's end and marks on its timeline.
pub struct Reporter {
    exit: Arc<ExitSlot>,
    timeline: Arc<Timeline>,
}

impl Reporter {
    /// A reporter to `exit` and `timeline`.
    pub fn new(exit: Arc<ExitSlot>, timeline: Arc<Timeline>) -> Self {
        Self { exit, timeline }
    }
}

impl MachineEvents for Reporter {
    fn report(&self, event: MachineEvent) {
        match event {
            MachineEvent::PowerOff => self.exit.end(ExitReason::PowerOff),
            MachineEvent::Reset => self.exit.end(ExitReason::Reboot),
            MachineEvent::Panicked => self.exit.end(ExitReason::Panicked),
            MachineEvent::ConsoleOutput => self.timeline.mark(Phase::FirstConsoleByte),
            MachineEvent::InitStarted => self.timeline.mark(Phase::Init),
        }
    }
}
