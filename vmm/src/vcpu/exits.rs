//! What KVM_RUN returns with.

use kvm_ioctls::{VcpuExit, VcpuFd};

use super::VcpuShared;
use crate::arch::current::vcpu::{RESET_VECTOR, instruction_pointer};
use crate::exit::ExitReason;

/// What to do after an exit.
pub(super) enum Next {
    /// Enter the guest again.
    Enter,
    /// The guest can't go on.
    End(End),
}

/// Why the guest can't go on, before the vCPU's registers are looked at.
pub(super) enum End {
    TripleFault,
    FailEntry(u64),
    InternalError,
    Unexpected(String),
}

/// Hands an access to its device and a stop to the debugger, and finds the exits that end the VM.
///
/// `io_size` gives the bytes of one access of a port exit: a string instruction (REP INS) brings several at once.
pub(super) fn handle(
    exit: VcpuExit<'_>,
    vcpu: usize,
    io_size: impl Fn() -> usize,
    shared: &VcpuShared,
) -> Next {
    let is_access = matches!(
        exit,
        VcpuExit::IoIn(..) | VcpuExit::IoOut(..) | VcpuExit::MmioRead(..) | VcpuExit::MmioWrite(..)
    );
    match exit {
        VcpuExit::IoIn(port, data) => {
            data.chunks_mut(io_size().max(1)).for_each(|access| shared.ports.read(port.into(), access));
        }
        VcpuExit::IoOut(port, data) => {
            data.chunks(io_size().max(1)).for_each(|access| shared.ports.write(port.into(), access));
        }
        VcpuExit::MmioRead(address, data) => shared.mmio.read(address, data),
        VcpuExit::MmioWrite(address, data) => shared.mmio.write(address, data),
        // KVM handles HLT itself while it has the local APIC; a signal may show here.
        VcpuExit::Intr | VcpuExit::Hlt | VcpuExit::IrqWindowOpen => {}
        // Only a debugger makes KVM exit for this.
        VcpuExit::Debug(cause) => match &shared.debugger {
            Some(debugger) => debugger.report(vcpu, cause),
            None => return Next::End(End::Unexpected(format!("{cause:?}"))),
        },
        VcpuExit::Shutdown => return Next::End(End::TripleFault),
        VcpuExit::FailEntry(reason, _cpu) => return Next::End(End::FailEntry(reason)),
        VcpuExit::InternalError => return Next::End(End::InternalError),
        other => return Next::End(End::Unexpected(format!("{other:?}"))),
    }
    if let Some(debugger) = shared.debugger.as_ref().filter(|_| is_access) {
        debugger.accessed(vcpu);
    }
    Next::Enter
}

/// The reason for the VM's end, with the vCPU's state.
pub(super) fn reason(end: End, vcpu: u32, fd: &mut VcpuFd) -> ExitReason {
    match end {
        End::TripleFault => ExitReason::TripleFault {
            vcpu,
            at: Some(instruction_pointer(fd)).filter(|at| *at != RESET_VECTOR),
            hint: None,
        },
        End::FailEntry(hardware_reason) => ExitReason::FailEntry { vcpu, hardware_reason },
        End::InternalError => ExitReason::InternalError { vcpu, detail: internal_error(fd), hint: None },
        End::Unexpected(exit) => ExitReason::RunFailed { vcpu, detail: format!("unexpected exit {exit}") },
    }
}

/// KVM's word for the error, its data, and where the vCPU stood.
fn internal_error(fd: &mut VcpuFd) -> String {
    // SAFETY: KVM filled this member of the union, since the exit reason is KVM_EXIT_INTERNAL_ERROR.
    let internal = unsafe { fd.get_kvm_run().__bindgen_anon_1.internal };
    let suberror = match internal.suberror {
        kvm_bindings::KVM_INTERNAL_ERROR_EMULATION => "an instruction that KVM cannot emulate",
        kvm_bindings::KVM_INTERNAL_ERROR_SIMUL_EX => "two exceptions at once",
        kvm_bindings::KVM_INTERNAL_ERROR_DELIVERY_EV => "a fault while an event was delivered",
        kvm_bindings::KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => "an exit that KVM does not know",
        _ => "unknown",
    };
    let data: Vec<String> =
        internal.data.iter().take(internal.ndata as usize).map(|word| format!("{word:#x}")).collect();
    format!(
        "{suberror} (suberror {}, data [{}]) at {:#x}",
        internal.suberror,
        data.join(", "),
        instruction_pointer(fd)
    )
}
