//! What a vCPU counts: its exits to this process, by what they were for.

use kvm_ioctls::VcpuExit;

devices::metrics! {
    /// Each vCPU's thread writes to a cache line of its own, so that counting costs an exit nothing.
    #[repr(align(64))]
    pub struct ExitCounters {
        /// Reads of a port.
        port_read_exits,
        /// Writes to a port.
        port_write_exits,
        /// Reads of a device's memory.
        mmio_read_exits,
        /// Writes to a device's memory.
        mmio_write_exits,
        /// HLT, where KVM does not handle it itself.
        halt_exits,
        /// KVM_RUN was interrupted by a signal.
        interrupted_exits,
        /// All others.
        other_exits,
    }
}

impl ExitCounters {
    /// Counts `exit`.
    pub(super) fn count(&self, exit: &VcpuExit<'_>) {
        let counter = match exit {
            VcpuExit::IoIn(..) => &self.port_read_exits,
            VcpuExit::IoOut(..) => &self.port_write_exits,
            VcpuExit::MmioRead(..) => &self.mmio_read_exits,
            VcpuExit::MmioWrite(..) => &self.mmio_write_exits,
            VcpuExit::Hlt => &self.halt_exits,
            VcpuExit::Intr => &self.interrupted_exits,
            _ => &self.other_exits,
        };
        counter.increment();
    }
}
