//! What is particular to a processor architecture. The rest of the crate knows it as [`current`], which provides:
//!
//! | module | what |
//! | --- | --- |
//! | `layout` | the guest's address map: RAM, virtio's window and interrupts, persistent memory |
//! | `vm` | `create_interrupt_controllers` |
//! | `vcpu` | `Processor`, `create_vcpus`, `instruction_pointer`, `RESET_VECTOR` |
//! | `kernel` | `Kernel`, `EntryPoint`, `Initrd`: what the loader found |
//! | `boot`, `registers`, `acpi`, `mp_table` | what a kernel is started with |
//! | `gdb` | `GuestArch`, `GuestRegisters`, `registers::{read, write}`, `DebugRegisters` |
//!
//! Nothing in it depends on the loader, the devices' wiring, the debugger's server or the vCPU threads.

#[cfg(target_arch = "x86_64")]
pub mod x86_64;
#[cfg(target_arch = "x86_64")]
pub use x86_64 as current;

#[cfg(not(target_arch = "x86_64"))]
compile_error!("mvm runs on x86_64 only");
