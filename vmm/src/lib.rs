//! The virtual machine monitor of mvm.
//!
//! [`VmConfig`] says what to run, [`launch()`] runs it to its end and returns the [`ExitReason`].

pub mod arch;
pub mod config;
pub mod console;
pub mod control;
mod descriptors;
pub mod device_manager;
pub mod error;
pub mod exit;
pub mod frontend;
pub mod gdb;
pub mod handle;
pub mod helper;
pub mod host;
pub mod kvm;
mod last_words;
pub mod launch;
pub mod loader;
pub mod memory;
pub mod metrics;
pub mod network;
pub mod passt;
pub mod pause;
pub mod power_button;
pub mod shares;
pub mod supervisor;
mod teardown;
pub mod timing;
pub mod vcpu;
pub mod vm;
pub mod vsock;

pub use config::{
    ConfigError, ConsoleConfig, DiskConfig, GdbConfig, MAX_CPUS, MemorySize, NetConfig, PmemConfig,
    PublishConfig, Sandbox, ShareConfig, TimeLimit, VhostUserConfig, VmConfig, VsockConfig,
};
pub use error::VmError;
pub use exit::ExitReason;
pub use frontend::Frontend;
pub use launch::{launch, open, seal};
pub use supervisor::{Limits, Requests, Supervisor};
pub use timing::{Phase, Timeline};
pub use vm::{Vm, build};
