//! vCPUs, from their creation to the state in which the kernel starts.

use kvm_bindings::{KVM_CAP_PMU_CAPABILITY, KVM_PMU_CAP_DISABLE, kvm_enable_cap};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use thiserror::Error;
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use super::cpuid::CpuidTemplate;
use super::kernel::EntryPoint;
use super::registers::{self, RegisterError};
use crate::MemorySize;
use crate::kvm::KvmError;

/// Where a processor starts after a reset.
pub(crate) const RESET_VECTOR: u64 = 0xfff0;

/// The most vCPUs of a VM: an APIC ID has 8 bits, 255 means all of them, and the I/O APIC takes one.
pub(crate) const MAX_CPUS: u32 = 254;

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

/// Why the vCPUs could not be made.
#[derive(Debug, Error)]
pub enum ProcessorError {
    /// KVM refused a part of them.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// A vCPU's state.
    #[error(transparent)]
    Registers(#[from] RegisterError),
    /// More vCPUs than this host's KVM can have.
    #[error("{asked} CPUs are more than this host's KVM supports: use 1 to {most}")]
    TooManyCpus {
        /// What was asked for.
        asked: u32,
        /// The most that KVM gives.
        most: usize,
    },
    /// The guest is to run VMs, and can't.
    #[error(
        "nested VMs are not available: load kvm_amd or kvm_intel with nested=1, or leave --nested out; \
         `mvm doctor` looks further"
    )]
    NoNesting,
    /// More memory than this host's processor can address for a guest.
    #[error(
        "{asked} of memory (--memory and --pmem) is too large: this processor's guest-physical addresses have {bits} bits"
    )]
    TooMuchMemory {
        /// What was asked for.
        asked: MemorySize,
        /// Bits of a guest physical address.
        bits: u32,
    },
}

/// Where a vCPU is; 0 where KVM does not say.
pub(crate) fn instruction_pointer(fd: &VcpuFd) -> u64 {
    fd.get_regs().map_or(0, |registers| registers.rip)
}

/// Makes the vCPUs of `processor`. The first of them begins at `entry`, the others wait until it starts them; without
/// `entry`, they are to be given the state of others. `memory` is all that the guest can address.
///
/// # Errors
///
/// [`ProcessorError`]: KVM or the host's processor can't do it.
pub fn create_vcpus(
    kvm: &Kvm,
    vm: &VmFd,
    processor: Processor,
    entry: Option<EntryPoint>,
    memory: &GuestMemoryMmap,
) -> Result<Vec<VcpuFd>, ProcessorError> {
    let refused = |error| match kvm.get_max_vcpus() {
        most if processor.cpus as usize > most => ProcessorError::TooManyCpus { asked: processor.cpus, most },
        _ => KvmError::call("make a vCPU")(error).into(),
    };
    if !processor.pmu {
        disable_counters(vm);
    }
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
        if let Some(entry) = entry.filter(|_| id == 0) {
            registers::set_entry(&vcpu, entry)?;
        }
        vcpus.push(vcpu);
    }
    Ok(vcpus)
}

/// Keeps performance counters from a guest that would try their MSRs though its CPUID has none: AMD's need no CPUID. A
/// host without virtual counters, or with a kernel before Linux 5.18, refuses, and the CPUID has to do.
fn disable_counters(vm: &VmFd) {
    let disable = u64::from(KVM_PMU_CAP_DISABLE);
    let capability =
        kvm_enable_cap { cap: KVM_CAP_PMU_CAPABILITY, args: [disable, 0, 0, 0], ..Default::default() };
    if let Err(error) = vm.enable_cap(&capability) {
        tracing::debug!(%error, "KVM has no performance counters to disable");
    }
}

/// The CPUID of all vCPUs, where the guest can address all of `memory`.
fn cpuid_template(
    kvm: &Kvm,
    vcpu: &VcpuFd,
    processor: Processor,
    memory: &GuestMemoryMmap,
) -> Result<CpuidTemplate, ProcessorError> {
    let template = CpuidTemplate::new(kvm, processor, vcpu.get_tsc_khz().ok())?;
    if processor.nested && !template.has_vmx() && !template.has_svm() {
        return Err(ProcessorError::NoNesting);
    }
    let bits = template.physical_bits();
    if memory.last_addr().0 < 1_u64.checked_shl(bits).unwrap_or(u64::MAX) {
        Ok(template)
    } else {
        let asked = memory.iter().map(GuestMemoryRegion::len).fold(0, u64::saturating_add);
        Err(ProcessorError::TooMuchMemory { asked: MemorySize::from_bytes(asked), bits })
    }
}
