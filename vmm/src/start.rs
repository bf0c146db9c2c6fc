//! What a VM starts from: a kernel that boots, or the state of another VM.

use std::ffi::CString;
use std::sync::Arc;

use devices::Suspend;
use kvm_ioctls::{VcpuFd, VmFd};
use vm_memory::GuestMemoryMmap;

use crate::arch::current::boot::{self, BootInformation};
use crate::arch::current::kernel::{EntryPoint, Initrd, Kernel};
use crate::arch::current::layout::VirtioPlace;
use crate::arch::current::state::Facts;
use crate::config::ConfigError;
use crate::launch::Source;
use crate::power_button::PowerButton;
use crate::prefault::prefault;
use crate::snapshot::{SavedVm, Snapshot, SnapshotError, Touched};
use crate::{VmConfig, VmError, loader};

/// What a VM starts from, as far as it is in its memory.
pub enum Start {
    /// A kernel.
    Boot {
        kernel: Kernel,
        initrd: Option<Initrd>,
        /// Its command line.
        arguments: CString,
    },
    /// The state of a VM, whose memory this one has, and what it uses of that at once.
    Saved(Box<SavedVm>, Vec<Touched>),
}

impl Start {
    /// Brings what `source` has into `memory`, for a VM of `config`, with a directory if it `has_directory`.
    pub fn of(
        source: Source,
        config: &VmConfig,
        has_directory: bool,
        memory: &GuestMemoryMmap,
    ) -> Result<Self, VmError> {
        let (kernel, initrd) = match source {
            Source::Boot { kernel, initrd } => (kernel, initrd),
            Source::Saved(snapshot) => {
                let Snapshot { state, touched, .. } = *snapshot;
                return Ok(Self::Saved(Box::new(state), touched));
            }
        };
        let kernel = loader::load_kernel(memory, kernel)?;
        let initrd = initrd.map(|file| loader::load_initrd(memory, &kernel, file)).transpose()?;
        let arguments = loader::kernel_arguments(config, has_directory, kernel.cmdline_max())?;
        Ok(Self::Boot { kernel, initrd, arguments })
    }

    /// Whether the guest has run before.
    pub fn is_saved(&self) -> bool {
        matches!(self, Self::Saved(..))
    }

    /// Writes what the kernel finds when it starts, and returns where it does, if it does.
    pub fn entry(
        &self,
        config: &VmConfig,
        memory: &GuestMemoryMmap,
        virtio: &[VirtioPlace],
    ) -> Result<Option<EntryPoint>, VmError> {
        let Self::Boot { kernel, initrd, arguments } = self else { return Ok(None) };
        let cpus = u8::try_from(config.cpus).map_err(|_| ConfigError::Cpus(config.cpus))?;
        let memory_size = config.memory.bytes();
        let information = BootInformation { arguments, initrd: *initrd, memory_size, cpus, virtio };
        boot::write(memory, kernel, &information)?;
        Ok(Some(kernel.entry))
    }

    /// Has the guest continue where it was saved, if it was: `vcpus`, `vm` and `devices` are new, and `memory` has its
    /// content.
    pub fn restore(
        &self,
        (vm, vcpus): (&VmFd, &[VcpuFd]),
        facts: &Facts,
        devices: &[Arc<dyn Suspend>],
        memory: &GuestMemoryMmap,
    ) -> Result<(), SnapshotError> {
        let Self::Saved(saved, touched) = self else { return Ok(()) };
        for (vcpu, state) in vcpus.iter().zip(&saved.machine.processors) {
            state.restore(vcpu, facts)?;
        }
        if let Some(vcpu) = vcpus.first() {
            prefault(vcpu, memory, touched);
        }
        saved.machine.interrupts.restore(vm)?;
        saved.restore_devices(devices)
    }

    /// Has a guest that goes on know that it does, when it runs: others may go on from the same, with the same random
    /// numbers in store. Its interrupt controllers have their state.
    pub fn announce(&self, memory: &GuestMemoryMmap, power_button: &PowerButton) -> Result<(), VmError> {
        if self.is_saved() {
            boot::write_generation(memory)?;
            power_button.change_generation().map_err(VmError::host("raise an interrupt"))?;
        }
        Ok(())
    }
}
