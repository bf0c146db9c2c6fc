//! Why a VM could not be built.

use std::io;

use devices::BusError;
use devices::virtio::block::DiskError;
use devices::virtio::pmem::PmemError;
use devices::virtio::vsock::VsockPathError;
use thiserror::Error;
use vm_memory::GuestMemoryError;

use crate::MemorySize;
use crate::arch::current::acpi::AcpiError;
use crate::arch::current::registers::RegisterError;
use crate::config::ConfigError;
use crate::console::ConsoleError;
use crate::control::ControlError;
use crate::gdb::GdbError;
use crate::kvm::KvmError;
use crate::loader::{CmdlineError, LoadError};
use crate::memory::MemoryError;
use crate::network::NetworkError;
use crate::shares::ShareError;
use crate::vcpu::VcpuError;

/// Why a VM could not be built or run.
#[derive(Debug, Error)]
pub enum VmError {
    /// The configuration can't work anywhere.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// KVM is missing or refused something.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// More vCPUs than this host's KVM can have.
    #[error("{asked} CPUs are more than this host's KVM supports: use 1 to {most}")]
    TooManyCpus {
        /// What was asked for.
        asked: u32,
        /// The most that KVM gives.
        most: usize,
    },
    /// The guest shall run VMs, and can't.
    #[error(
        "nested VMs are not available: load kvm_amd or kvm_intel with nested=1, or leave --nested out; \
         `mvm doctor` looks further"
    )]
    NoNesting,
    /// More memory than this host's processor can address for a guest.
    #[error(
        "{asked} of memory (--memory and --pmem) is too large: this processor's guest-physical addresses have {bits} bits"
    )]
    TooMuchMemory {
        /// What was asked for.
        asked: MemorySize,
        /// Bits of a guest physical address.
        bits: u32,
    },
    /// Guest RAM.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The kernel or the initrd.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The kernel's arguments.
    #[error(transparent)]
    Cmdline(#[from] CmdlineError),
    /// A disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The host's socket for vsock.
    #[error(transparent)]
    Vsock(#[from] VsockPathError),
    /// Persistent memory.
    #[error(transparent)]
    Pmem(#[from] PmemError),
    /// A shared folder.
    #[error(transparent)]
    Share(#[from] ShareError),
    /// A network.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// More devices than there are interrupts for.
    #[error("too many virtio devices: {asked} (disks and all others together), a VM has at most {most}")]
    TooManyDevices {
        /// What was asked for.
        asked: usize,
        /// The most that a VM can have.
        most: usize,
    },
    /// The console.
    #[error(transparent)]
    Console(#[from] ConsoleError),
    /// The debugger's socket.
    #[error(transparent)]
    Gdb(#[from] GdbError),
    /// The ACPI tables.
    #[error(transparent)]
    Acpi(#[from] AcpiError),
    /// The boot structures.
    #[error("cannot write the boot structures to guest memory")]
    Boot(#[from] GuestMemoryError),
    /// A vCPU's state.
    #[error(transparent)]
    Registers(#[from] RegisterError),
    /// A vCPU's thread.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    /// Two devices at one place; a mistake of ours.
    #[error("cannot place a device")]
    Bus(#[from] BusError),
    /// The control socket.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// An eventfd, a signalfd or a duplicate of a descriptor.
    #[error("cannot {doing}")]
    Host {
        /// What was being done.
        doing: &'static str,
        /// The host's refusal.
        #[source]
        source: io::Error,
    },
    /// The event loop.
    #[error("the event loop failed")]
    EventLoop(#[source] event_manager::Error),
}

impl VmError {
    /// Whether the host is at fault, and not what it was asked for.
    pub fn is_the_hosts(&self) -> bool {
        match self {
            Self::Share(error) => error.is_the_hosts(),
            Self::Kvm(_)
            | Self::TooManyCpus { .. }
            | Self::NoNesting
            | Self::TooMuchMemory { .. }
            | Self::Memory(_)
            | Self::Boot(_)
            | Self::Registers(_)
            | Self::Vcpu(_)
            | Self::Bus(_)
            | Self::Control(_)
            | Self::Host { .. }
            | Self::EventLoop(_) => true,
            Self::Network(error) => error.is_the_hosts(),
            Self::Config(_)
            | Self::Load(_)
            | Self::Cmdline(_)
            | Self::Disk(_)
            | Self::Vsock(_)
            | Self::Pmem(_)
            | Self::TooManyDevices { .. }
            | Self::Console(_)
            | Self::Gdb(_)
            | Self::Acpi(_) => false,
        }
    }

    pub(crate) fn host(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Host { doing, source }
    }
}
