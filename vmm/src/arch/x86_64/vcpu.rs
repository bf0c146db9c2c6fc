//! vCPUs, from their creation to the state in which the kernel starts.

use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use super::cpuid::CpuidTemplate;
use super::kernel::EntryPoint;
use super::registers;
use crate::kvm::KvmError;
use crate::{MemorySize, VmError};

/// Where a processor starts after a reset.
pub(crate) const RESET_VECTOR: u64 = 0xfff0;

/// What the guest sees of its processor.
#[derive(Clone, Copy, Debug)]
pub struct Processor {
    /// Number of vCPUs.
    pub cpus: u32,
    /// Whether the guest can run VMs of its own.
    pub nested: bool,
    /// Whether the guest sees the processor's performance counters.
    pub pmu: bool,
}

/// Where a vCPU is; 0 where KVM does not say.
pub(crate) fn instruction_pointer(fd: &VcpuFd) -> u64 {
    fd.get_regs().map_or(0, |registers| registers.rip)
}

/// Makes the vCPUs of `processor`. The first of them begins at `entry`, the others wait until it starts them. `memory` is
/// all that the guest can address.
///
/// # Errors
///
/// [`VmError`]: KVM or the host's processor can't do it.
pub fn create_vcpus(
    kvm: &Kvm,
    vm: &VmFd,
    processor: Processor,
    entry: EntryPoint,
    memory: &GuestMemoryMmap,
) -> Result<Vec<VcpuFd>, VmError> {
    let refused = |error| match kvm.get_max_vcpus() {
        most if processor.cpus as usize > most => VmError::TooManyCpus { asked: processor.cpus, most },
        _ => KvmError::call("make a vCPU")(error).into(),
    };
    let mut vcpus = Vec::new();
    let mut cpuid = None;
    for id in 0..processor.cpus {
        let vcpu = vm.create_vcpu(id.into()).map_err(refused)?;
        let template = match &mut cpuid {
            Some(template) => template,
            none => none.insert(cpuid_template(kvm, &vcpu, processor, memory)?),
        };
        vcpu.set_cpuid2(&template.of(id)?).map_err(KvmError::call("set the CPUID of a vCPU"))?;
        registers::set_up(&vcpu, template.has_vmx())?;
        if id == 0 {
            registers::set_entry(&vcpu, entry)?;
        }
        vcpus.push(vcpu);
    }
    Ok(vcpus)
}

/// The CPUID of all vCPUs, where the guest can address all of `memory`.
fn cpuid_template(
    kvm: &Kvm,
    vcpu: &VcpuFd,
    processor: Processor,
    memory: &GuestMemoryMmap,
) -> Result<CpuidTemplate, VmError> {
    let template = CpuidTemplate::new(kvm, processor, vcpu.get_tsc_khz().ok())?;
    if processor.nested && !template.has_vmx() && !template.has_svm() {
        return Err(VmError::NoNesting);
    }
    let bits = template.physical_bits();
    if memory.last_addr().0 < 1_u64.checked_shl(bits).unwrap_or(u64::MAX) {
        Ok(template)
    } else {
        let asked = memory.iter().map(GuestMemoryRegion::len).fold(0, u64::saturating_add);
        Err(VmError::TooMuchMemory { asked: MemorySize::from_bytes(asked), bits })
    }
}
