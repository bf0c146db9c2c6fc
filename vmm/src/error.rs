//! Why a VM could not be built.

use std::error::Error as StdError;
use std::io;

use devices::BusError;
use devices::socket::SocketError;
use devices::virtio::block::DiskError;
use devices::virtio::pmem::PmemError;
use devices::virtio::vsock::VsockPathError;
use jail::JailError;
use jail::seccomp::SeccompError;
use thiserror::Error;

use crate::arch::current::boot::BootError;
use crate::arch::current::platform::PlatformError;
use crate::arch::current::vcpu::ProcessorError;
use crate::config::ConfigError;
use crate::console::ConsoleError;
use crate::control::ControlError;
use crate::gdb::GdbError;
use crate::kvm::KvmError;
use crate::loader::{CmdlineError, LoadError};
use crate::memory::MemoryError;
use crate::network::NetworkError;
use crate::shares::ShareError;
use crate::snapshot::SnapshotError;
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
    /// The vCPUs.
    #[error(transparent)]
    Processor(ProcessorError),
    /// The devices that every VM has.
    #[error(transparent)]
    Platform(PlatformError),
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
    /// What the kernel finds in memory.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// A vCPU's thread.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    /// Two devices at one place; a mistake of ours.
    #[error("cannot place a device")]
    Bus(#[from] BusError),
    /// The process cannot be confined.
    #[error(transparent)]
    Jail(#[from] JailError),
    /// System calls cannot be filtered.
    #[error(transparent)]
    Seccomp(#[from] SeccompError),
    /// The state of a VM that was saved.
    #[error("cannot continue the VM")]
    Snapshot(#[from] SnapshotError),
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
    /// Whether the host is at fault, and not what it was asked for: always so where the process has reached a limit of
    /// the host, whatever it was opening or starting.
    pub fn is_the_hosts(&self) -> bool {
        if has_reached_a_limit(self) {
            return true;
        }
        match self {
            Self::Share(error) => error.is_the_hosts(),
            Self::Snapshot(error) => error.is_the_hosts(),
            Self::Kvm(_)
            | Self::Processor(_)
            | Self::Platform(_)
            | Self::Memory(_)
            | Self::Vcpu(_)
            | Self::Bus(_)
            | Self::Control(_)
            | Self::Jail(_)
            | Self::Seccomp(_)
            | Self::Host { .. }
            | Self::EventLoop(_) => true,
            Self::Network(error) => error.is_the_hosts(),
            Self::Boot(error) => error.is_the_hosts(),
            Self::Config(_)
            | Self::Load(_)
            | Self::Cmdline(_)
            | Self::Disk(_)
            | Self::Vsock(_)
            | Self::Pmem(_)
            | Self::TooManyDevices { .. }
            | Self::Console(_)
            | Self::Gdb(_) => false,
        }
    }

    pub(crate) fn host(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Host { doing, source }
    }
}

impl From<ProcessorError> for VmError {
    fn from(error: ProcessorError) -> Self {
        match error {
            ProcessorError::Kvm(error) => Self::Kvm(error),
            error => Self::Processor(error),
        }
    }
}

impl From<PlatformError> for VmError {
    fn from(error: PlatformError) -> Self {
        match error {
            PlatformError::Kvm(error) => Self::Kvm(error),
            error => Self::Platform(error),
        }
    }
}

const LIMITS: [i32; 6] = [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::EAGAIN, libc::ENOSPC, libc::EDQUOT];

/// Whether `error` comes from a limit of descriptors, processes, memory, or space in a file system.
fn has_reached_a_limit(error: &VmError) -> bool {
    let mut next: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = next {
        let host = match error.downcast_ref() {
            // It stands for the host's error, which is not among its sources.
            Some(SocketError::Host(host)) => Some(host),
            _ => error.downcast_ref(),
        };
        let code = host.and_then(io::Error::raw_os_error);
        if code.is_some_and(|code| LIMITS.contains(&code)) {
            return true;
        }
        next = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    /// Not every error says it by its variant: the console's file can be a mistake, or the descriptor too many.
    #[rstest]
    #[case(libc::EMFILE, true)]
    #[case(libc::ENFILE, true)]
    #[case(libc::ENOMEM, true)]
    #[case(libc::EAGAIN, true)]
    #[case(libc::ENOSPC, true)]
    #[case(libc::EDQUOT, true)]
    #[case(libc::ENOENT, false)]
    #[case(libc::EACCES, false)]
    fn a_limit_of_the_host_is_no_mistake_in_the_configuration(#[case] code: i32, #[case] expected: bool) {
        let source = || io::Error::from_raw_os_error(code);
        let errors = [
            ConsoleError::Open { path: "log".into(), source: source() }.into(),
            VmError::from(ConsoleError::Host(source())),
            ConsoleError::Socket { path: "console.sock".into(), source: source().into() }.into(),
        ];
        for error in errors {
            assert_eq!(error.is_the_hosts(), expected, "{error}");
        }
    }
}
