//! What a VM needs from KVM before it has vCPUs.

use kvm_ioctls::VmFd;

use super::layout;
use crate::kvm::KvmError;

/// Makes the interrupt controllers, in the kernel. The VM has its memory already: KVM takes milliseconds to add a slot to
/// a VM that has them.
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
