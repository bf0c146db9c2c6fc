//! What a VM needs from KVM before it has vCPUs.

use kvm_ioctls::{Cap, VmFd};

use super::layout;
use crate::kvm::KvmError;

/// What a VM cannot be built without on x86_64, besides what it needs on any processor.
pub(crate) const REQUIRED: &[(Cap, &str)] = &[
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::SetIdentityMapAddr, "KVM_CAP_SET_IDENTITY_MAP_ADDR"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
];

/// Makes the interrupt controllers, in the kernel. The VM has its memory already: KVM takes milliseconds to add a slot
/// to a VM that has them.
///
/// # Errors
///
/// [`KvmError::Call`].
pub fn create_interrupt_controllers(vm: &VmFd) -> Result<(), KvmError> {
    vm.set_identity_map_address(layout::KVM_IDENTITY_MAP)
        .map_err(KvmError::call("place KVM's identity map"))?;
    vm.set_tss_address(layout::KVM_TSS).map_err(KvmError::call("place KVM's task state"))?;
    vm.create_irq_chip().map_err(KvmError::call("make the interrupt controllers"))
}
