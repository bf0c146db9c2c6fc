//! The process of a VM, which is a copy of the one that keeps it: that one has the user's terminal, signals, files and
//! records, this one KVM, the guest's memory and the devices.

mod keeper_side;
mod messages;
mod slots;
mod vm_side;

pub use keeper_side::{Files, JAIL, Split, VmProcess};
pub use messages::{FromVm, VmEnd};
