//! The virtual machine monitor of mvm.
//!
//! [`VmConfig`] says what to run, [`Vm::new`] builds it in one visible order, [`Vm::run`] runs it to its end
//! and returns the [`ExitReason`].

pub mod arch;
pub mod config;
pub mod console;
pub mod exit;
pub mod host;
pub mod kvm;
pub mod loader;
pub mod machine;
pub mod memory;
pub mod network;
pub mod signals;
pub mod timing;
pub mod vcpu;
pub mod vm;

pub use config::{ConsoleConfig, DiskConfig, MemorySize, NetConfig, VmConfig};
pub use exit::ExitReason;
pub use timing::{Phase, Timeline};
pub use vm::{Vm, VmError};
