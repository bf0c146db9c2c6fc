//! The virtual machine monitor of mvm.
//!
//! [`VmConfig`] says what to run, [`launch()`] runs it to its end and returns the [`ExitReason`]. docs/architecture.md
//! says how the parts work together.

mod arch;
mod background;
mod check;
mod config;
mod confinement;
mod console;
mod control;
mod descriptors;
mod device_manager;
mod error;
mod exit;
mod frontend;
mod gdb;
mod handle;
mod helper;
mod host;
mod kvm;
mod last_words;
mod launch;
mod loader;
mod memory;
mod metrics;
mod network;
mod passt;
mod pause;
mod power_button;
mod prefault;
mod process;
mod shares;
mod snapshot;
mod start;
mod supervisor;
mod teardown;
mod timing;
mod vcpu;
mod vm;
mod vsock;

pub use arch::current::layout;
pub use arch::current::processor_identity;
pub use arch::current::vcpu::ProcessorError;
pub use check::{Check, Remedy, Verdict};
pub use config::{
    Bandwidth, ConfigError, ConsoleConfig, DeviceConfig, DeviceKind, DiskConfig, GdbConfig, MAX_CPUS,
    MemorySize, NetBackend, NetConfig, PmemConfig, Protocol, PublishConfig, Rate, Sandbox, ShareConfig,
    SharedPart, TimeLimit, UserAddresses, VhostUserConfig, VmConfig, VsockConfig, disk_name, port_range,
};
pub use confinement::{JAIL, Outside};
pub use console::{AwaitedText, ConsoleKeeper, FileIdentity, LogFile, LogKeeper, OnText};
pub use devices::virtio::block::{
    BlockHandle, Disk, DiskError, ImageFormat, MAX_PARTS, Part, Piece, SlotError, WeakBlockHandle,
};
pub use devices::virtio::net::{InterfaceName, MacAddress};
pub use error::VmError;
pub use exit::{ExitReason, ExitSlot};
pub use frontend::Frontend;
pub use host::{examine, has_shared_folders, total_memory};
pub use kvm::{KvmError, open as open_kvm};
pub use launch::{LOG_NAME, Resources, launch, open, open_snapshot, seal};
pub use memory::SHARED_MEMORY;
pub use passt::is_usable as has_user_network;
pub use pause::{PauseError, Pauser};
pub use process::{
    Failure, Fault, FileFacts, Files as SlotFiles, FromVm, Keeping, Order, Outcome, Progress, Split, Started,
    User, VmEnd, VmProcess, end_without_a_word,
};
pub use snapshot::{Hold, SavedVm, Saver, Snapshot, SnapshotError, Touched};
pub use supervisor::{FORCED_END, Limits, Requests, Supervisor};
pub use timing::{Phase, Timeline, phases, timing_table};
pub use vcpu::{Gate, GateError, Holder};
pub use vm::{Vm, build};

/// The most virtio devices of a VM, which has so many interrupt lines for them.
pub const MAX_DEVICES: usize = layout::VIRTIO_GSIS.len();

/// Parts that are tried by themselves, with whatever a client or a file may say.
pub mod parts {
    pub use crate::background::Background;
    pub use crate::control::{ControlError, ControlServer};
    pub use crate::handle::VmHandle;
    pub use crate::loader::{BootFile, Kernel, LoadError, load_kernel};
    pub use crate::metrics::MetricsRegistry;
    pub use crate::power_button::PowerButton;
}
