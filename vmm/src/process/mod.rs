//! The process of a VM, which is a copy of the one that keeps it: that one has the user's terminal, signals, files and
//! records, this one KVM, the guest's memory and the devices.

mod foreground;
mod keeper_side;
#[cfg(test)]
mod keeper_tests;
mod messages;
mod ready;
mod slots;
mod started;
mod vm_side;

pub use foreground::{Keeping, Outcome, Progress};
pub use keeper_side::{Files, Order, Split, User, VmProcess};
pub use messages::{Failure, Fault, FromVm, VmEnd, end_without_a_word};
pub use started::{FileFacts, Started};
