//! x86_64: the address map, processor state, boot protocols, ACPI tables and the devices of a PC.

mod acpi;
pub mod boot;
mod cpuid;
pub(crate) mod gdb;
pub(crate) mod host;
pub mod kernel;
pub mod layout;
mod mp_table;
pub mod platform;
mod registers;
pub mod state;
pub mod vcpu;
pub mod vm;

pub use cpuid::identity as processor_identity;
