//! A VM, from its configuration to its end.

use std::io;
use std::sync::Arc;

use devices::BusError;
use devices::virtio::block::{Block, Disk, DiskError, DiskId};
use devices::virtio::rate_limit::RateLimits;
use devices::virtio::rng::Rng;
use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use thiserror::Error;
use vm_memory::{GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap, GuestMemoryRegion};

use crate::arch::current::acpi::{self, AcpiError};
use crate::arch::current::boot::{self, BootInformation};
use crate::arch::current::cpuid::CpuidTemplate;
use crate::arch::current::layout;
use crate::arch::current::registers::{self, RegisterError};
use crate::config::ConfigError;
use crate::console::{self, ConsoleError, RawTerminal};
use crate::exit::ExitSlot;
use crate::kvm::{self, KvmError};
use crate::loader::{self, CmdlineError, Kernel, LoadError};
use crate::machine::{Devices, Reporter, Subscriber};
use crate::memory::{self, MemoryError};
use crate::network::{self, NetworkError};
use crate::vcpu::{VcpuError, VcpuShared, Vcpus};
use crate::{ExitReason, MemorySize, Phase, Timeline, VmConfig};

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
    #[error("{asked} CPUs cannot be had: this host's KVM gives 1 to {most}")]
    TooManyCpus {
        /// What was asked for.
        asked: u32,
        /// The most that KVM gives.
        most: usize,
    },
    /// More memory than this host's processor can address for a guest.
    #[error("{asked} of memory cannot be had: this processor addresses {bits} bits of a guest's memory")]
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
    /// A network.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// More devices than there are interrupts for.
    #[error("{asked} virtio devices cannot be had, disks and all others together: a VM has at most {most}")]
    TooManyDevices {
        /// What was asked for.
        asked: usize,
        /// The most that a VM can have.
        most: usize,
    },
    /// The console.
    #[error(transparent)]
    Console(#[from] ConsoleError),
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
            Self::Kvm(_)
            | Self::TooManyCpus { .. }
            | Self::TooMuchMemory { .. }
            | Self::Memory(_)
            | Self::Boot(_)
            | Self::Registers(_)
            | Self::Vcpu(_)
            | Self::Bus(_)
            | Self::Host { .. }
            | Self::EventLoop(_) => true,
            Self::Network(error) => error.is_the_hosts(),
            Self::Config(_)
            | Self::Load(_)
            | Self::Cmdline(_)
            | Self::Disk(_)
            | Self::TooManyDevices { .. }
            | Self::Console(_)
            | Self::Acpi(_) => false,
        }
    }

    pub(crate) fn host(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Host { doing, source }
    }
}

/// A VM that is ready to run.
pub struct Vm {
    vcpus: Vec<VcpuFd>,
    shared: Arc<VcpuShared>,
    subscribers: Vec<Subscriber>,
    exit: Arc<ExitSlot>,
    /// It restores the terminal when the VM is gone.
    terminal: Option<RawTerminal>,
    /// The VM's descriptor outlives its vCPUs: irqfds and ioeventfds end with it.
    _vm: VmFd,
}

impl Vm {
    /// Builds the VM of `config`. From here on the process's ending signals are taken for the guest.
    ///
    /// # Errors
    ///
    /// [`VmError`] says what can't be had and how to mend it; nothing is left behind.
    pub fn new(config: &VmConfig, timeline: Arc<Timeline>) -> Result<Self, VmError> {
        config.validate()?;
        let (disks, sink) = (open_disks(config)?, console::open_sink(&config.console)?);
        let nets = config.nets.iter().map(network::open).collect::<Result<Vec<_>, _>>()?;

        let kvm = kvm::open()?;
        let vm = kvm::create_vm(&kvm)?;
        timeline.mark(Phase::Kvm);

        let memory = memory::reserve(&layout::ram_regions(config.memory.bytes()))?;
        register_memory(&vm, &memory)?;
        timeline.mark(Phase::Memory);
        // After the memory: KVM waits some milliseconds to add a memory slot to a VM that has them.
        create_interrupt_controllers(&vm)?;

        let kernel = loader::load_kernel(&memory, &config.kernel)?;
        let initrd = config.initrd.as_deref();
        let initrd = initrd.map(|path| loader::load_initrd(&memory, &kernel, path)).transpose()?;
        let arguments = loader::kernel_arguments(config, kernel.cmdline_max())?;
        timeline.mark(Phase::Kernel);

        let exit = Arc::new(ExitSlot::new().map_err(VmError::host("make an eventfd"))?);
        let reporter = Arc::new(Reporter::new(exit.clone(), timeline.clone()));
        let mut devices = Devices::new(&vm, &memory, reporter);
        devices.subscribers.push(Box::new(EndWatcher(exit.clone())));
        devices.add_legacy()?;
        let terminal = devices.add_console(config, sink, &exit)?;
        devices.add_power_button(&exit)?;
        for (disk, id, limits) in disks {
            devices.add_virtio(Block::new(disk, id, limits).map_err(VmError::host("make a disk"))?)?;
        }
        for net in nets {
            devices.add_virtio(net)?;
        }
        devices.add_virtio(Rng::new())?;
        let Devices { ports, mmio, virtio, subscribers, .. } = devices;
        timeline.mark(Phase::Devices);

        let rsdp = acpi::write(&memory, config.cpus, &virtio)?;
        let memory_size = config.memory.bytes();
        boot::write(&memory, &kernel, &BootInformation { arguments: &arguments, initrd, memory_size, rsdp })?;
        registers::write_boot_tables(&memory, kernel.entry)?;
        let vcpus = create_vcpus(&kvm, &vm, config, &kernel)?;
        timeline.mark(Phase::Vcpus);

        let shared = Arc::new(VcpuShared { ports, mmio, exit: exit.clone(), timeline });
        Ok(Self { vcpus, shared, subscribers, exit, terminal, _vm: vm })
    }

    /// Runs the VM to its end.
    ///
    /// # Errors
    ///
    /// [`VmError`] where threads or the event loop fail; what the guest does to itself is an [`ExitReason`].
    pub fn run(self) -> Result<ExitReason, VmError> {
        let Self { vcpus, shared, subscribers, exit, terminal, _vm } = self;
        let mut events = EventManager::<Subscriber>::new().map_err(VmError::EventLoop)?;
        for subscriber in subscribers {
            events.add_subscriber(subscriber);
        }
        let vcpus = Vcpus::start(vcpus, shared)?;
        let reason = loop {
            if let Some(reason) = exit.reason() {
                break reason;
            }
            events.run().map_err(VmError::EventLoop)?;
        };
        // Devices end after the vCPUs that use them, the terminal last.
        drop(vcpus);
        drop(events);
        drop(terminal);
        Ok(reason)
    }
}

fn open_disks(config: &VmConfig) -> Result<Vec<(Disk, DiskId, RateLimits)>, VmError> {
    check_device_count(config)?;
    let all = config.rootfs.iter().chain(&config.disks);
    all.map(|disk| {
        let id = disk.id.as_deref().map(DiskId::new).transpose().map_err(ConfigError::from)?;
        Ok((Disk::open(&disk.path, disk.read_only)?, id.unwrap_or_default(), disk.limits))
    })
    .collect()
}

/// Checks that there is an interrupt for each device, before any of them is opened.
fn check_device_count(config: &VmConfig) -> Result<(), VmError> {
    // One is for the entropy device.
    let asked = config.rootfs.iter().count() + config.disks.len() + config.nets.len() + 1;
    let most = layout::VIRTIO_GSIS.len();
    if asked > most { Err(VmError::TooManyDevices { asked, most }) } else { Ok(()) }
}

fn create_interrupt_controllers(vm: &VmFd) -> Result<(), KvmError> {
    vm.set_identity_map_address(layout::KVM_IDENTITY_MAP)
        .map_err(KvmError::call("place KVM's identity map"))?;
    vm.set_tss_address(layout::KVM_TSS).map_err(KvmError::call("place KVM's task state"))?;
    vm.create_irq_chip().map_err(KvmError::call("make the interrupt controllers"))
}

fn register_memory(vm: &VmFd, memory: &GuestMemoryMmap) -> Result<(), KvmError> {
    for (slot, region) in (0..).zip(memory.iter()) {
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the region is a mapping of this process of that size, lives as long as the process, and
        // overlaps no other slot, since the regions of guest memory don't.
        unsafe { vm.set_user_memory_region(region) }
            .map_err(KvmError::call("give KVM the guest's memory"))?;
    }
    Ok(())
}

fn create_vcpus(kvm: &Kvm, vm: &VmFd, config: &VmConfig, kernel: &Kernel) -> Result<Vec<VcpuFd>, VmError> {
    let most = kvm.get_max_vcpus();
    if config.cpus as usize > most {
        return Err(VmError::TooManyCpus { asked: config.cpus, most });
    }
    let mut vcpus = Vec::new();
    let mut cpuid = None;
    for id in 0..config.cpus {
        let vcpu = vm.create_vcpu(id.into()).map_err(KvmError::call("make a vCPU"))?;
        let template = match &mut cpuid {
            Some(template) => template,
            none => none.insert(cpuid_template(kvm, &vcpu, config)?),
        };
        vcpu.set_cpuid2(&template.of(id)?).map_err(KvmError::call("set the CPUID of a vCPU"))?;
        registers::set_up(&vcpu)?;
        if id == 0 {
            registers::set_entry(&vcpu, kernel.entry)?;
        }
        vcpus.push(vcpu);
    }
    Ok(vcpus)
}

fn cpuid_template(kvm: &Kvm, vcpu: &VcpuFd, config: &VmConfig) -> Result<CpuidTemplate, VmError> {
    let template = CpuidTemplate::new(kvm, config.cpus, vcpu.get_tsc_khz().ok())?;
    let bits = template.physical_bits();
    let end = layout::ram_regions(config.memory.bytes())
        .last()
        .and_then(|(start, length)| start.0.checked_add(*length));
    match end {
        Some(end) if end <= 1_u64.checked_shl(bits).unwrap_or(u64::MAX) => Ok(template),
        _ => Err(VmError::TooMuchMemory { asked: config.memory, bits }),
    }
}

/// Wakes the event loop when the VM has ended.
struct EndWatcher(Arc<ExitSlot>);

impl MutEventSubscriber for EndWatcher {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(Events::new(self.0.event(), EventSet::IN)) {
            tracing::error!(%error, "the end of the VM will not be seen");
        }
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {}
}
