//! x86_64: the address map, processor state, boot protocols and ACPI tables.

pub mod acpi;
pub mod boot;
mod cpuid;
pub(crate) mod gdb;
pub mod kernel;
pub mod layout;
pub mod mp_table;
pub mod registers;
pub mod vcpu;
pub mod vm;
