//! The interrupt controllers and the clock.

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip,
};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};

use super::StateError;
use crate::kvm::KvmError;

/// The I/O APIC and both 8259s, in the order in which they are restored.
const CHIPS: [u32; 3] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];

/// The state of the interrupt controllers and of the guest's clock.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InterruptState {
    chips: [kvm_irqchip; CHIPS.len()],
    clock: kvm_clock_data,
}

impl InterruptState {
    /// Saves that of `vm`.
    ///
    /// # Errors
    ///
    /// [`StateError::Kvm`].
    pub fn save(vm: &VmFd) -> Result<Self, StateError> {
        let mut chips = CHIPS.map(|chip_id| kvm_irqchip { chip_id, ..Default::default() });
        for chip in &mut chips {
            vm.get_irqchip(chip).map_err(KvmError::call("read an interrupt controller"))?;
        }
        let clock = vm.get_clock().map_err(KvmError::call("read the guest's clock"))?;
        Ok(Self { chips, clock })
    }

    /// Restores it in `vm`, whose vCPUs have theirs. The clock goes on from when it was saved.
    ///
    /// # Errors
    ///
    /// [`StateError::Kvm`].
    pub fn restore(&self, vm: &VmFd) -> Result<(), StateError> {
        // Its flags say what KVM knew of the host's clocks then.
        let clock = kvm_clock_data { clock: self.clock.clock, ..Default::default() };
        vm.set_clock(&clock).map_err(KvmError::call("set the guest's clock"))?;
        for (chip, chip_id) in self.chips.iter().zip(CHIPS) {
            let chip = kvm_irqchip { chip_id, ..*chip };
            vm.set_irqchip(&chip).map_err(KvmError::call("restore an interrupt controller"))?;
        }
        Ok(())
    }
}
