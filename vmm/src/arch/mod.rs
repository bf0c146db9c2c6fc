//! What is particular to a processor architecture. The rest of the crate knows it as [`current`], which provides:
//!
//! | module | what |
//! | --- | --- |
//! | `layout` | the guest's address map: `ram_regions`, `virtio_place`, `pmem_addresses`, where a kernel may be |
//! | `vm` | `create_interrupt_controllers`, and the capabilities of KVM that it takes (`REQUIRED`) |
//! | `platform` | `Platform`: the devices that every VM has besides its virtio devices |
//! | `kernel` | `Kernel`, `EntryPoint`, `Initrd`: what the loader found; what a kernel's ELF file has to say |
//! | `boot` | `write`: all that a kernel finds in memory when it starts; `write_generation`: what tells it that it goes
//! on |
//! | `vcpu` | `Processor`, `create_vcpus`, `instruction_pointer`, `RESET_VECTOR` |
//! | `state` | `VmState` of `ProcessorState`s and `InterruptState`: what KVM knows, saved and restored; `Facts` |
//! | `gdb` | `GuestArch`, `GuestRegisters`, `registers::{read, write}`, `DebugRegisters` |
//! | `host` | what `mvm doctor` says of the processor and of its KVM |
//!
//! The formats of kernels other than ELF are in `loader/`, each for its architecture. Nothing in here depends on the
//! loader, the devices' wiring, the debugger's server or the vCPU threads, and no name of an architecture's registers
//! or devices is in any other module (`vmm/tests/architecture.rs`).

#[cfg(target_arch = "x86_64")]
pub mod x86_64;
#[cfg(target_arch = "x86_64")]
pub use x86_64 as current;

#[cfg(not(target_arch = "x86_64"))]
compile_error!("mvm runs on x86_64 only");

/// What the compiler checks of the contract: an architecture without one of these, or with another type, does not
/// build.
mod contract {
    use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
    use vm_memory::{GuestAddress, GuestMemoryMmap};

    use super::current::kernel::{EntryPoint, Kernel};
    use super::current::vcpu::{Processor, ProcessorError};
    use super::current::{boot, host, layout, platform, vcpu, vm};
    use crate::check::Check;
    use crate::kvm::KvmError;

    type Places = Option<Vec<GuestAddress>>;
    type Vcpus = Result<Vec<VcpuFd>, ProcessorError>;

    const _: fn(u64) -> Vec<(GuestAddress, u64)> = layout::ram_regions;
    const _: fn(usize) -> Option<layout::VirtioPlace> = layout::virtio_place;
    const _: fn(u64, Vec<u64>) -> Places = layout::pmem_addresses;
    const _: &[(Cap, &str)] = vm::REQUIRED;
    const _: fn(&VmFd) -> Result<(), KvmError> = vm::create_interrupt_controllers;
    const _: [&str; 2] = [platform::SERIAL_CONSOLE, platform::EARLY_CONSOLE];
    const _: fn(&GuestMemoryMmap, &Kernel, &boot::BootInformation<'_>) -> Result<(), boot::BootError> =
        boot::write;
    const _: fn(&GuestMemoryMmap) -> Result<(), boot::BootError> = boot::write_generation;
    const _: fn(&Kvm, &VmFd, Processor, Option<EntryPoint>, &GuestMemoryMmap) -> Vcpus = vcpu::create_vcpus;
    const _: fn(&VcpuFd) -> u64 = vcpu::instruction_pointer;
    const _: [fn() -> Check; 2] = [host::nested_paging, host::nesting];
    const _: () = assert!(crate::config::MAX_CPUS <= vcpu::MAX_CPUS);
}
