//! x86_64: the address map, processor state, boot protocols and ACPI tables.

pub mod acpi;
pub mod boot;
pub mod cpuid;
pub mod layout;
pub mod registers;
