//! A VM, from its configuration to its end.

use std::io;
use std::sync::Arc;

use devices::BusError;
use devices::virtio::balloon::{Balloon, BalloonHandle};
use devices::virtio::block::{Block, Disk, DiskError, DiskId};
use devices::virtio::pmem::{Pmem, PmemError, PmemFile, PmemMode};
use devices::virtio::rate_limit::RateLimits;
use devices::virtio::rng::Rng;
use devices::virtio::vsock::VsockPathError;
use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use thiserror::Error;
use vm_memory::{GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap};

use crate::arch::current::acpi::{self, AcpiError};
use crate::arch::current::boot::{self, BootInformation};
use crate::arch::current::cpuid::CpuidTemplate;
use crate::arch::current::layout;
use crate::arch::current::registers::{self, RegisterError};
use crate::config::ConfigError;
use crate::console::{Console, ConsoleError, Sink};
use crate::control::{ControlError, ControlServer};
use crate::exit::ExitSlot;
use crate::gdb::{GdbError, GdbServer, Listener, Stops};
use crate::handle::VmHandle;
use crate::instance::CONTROL_SOCKET;
use crate::kvm::{self, KvmError};
use crate::loader::{self, CmdlineError, Kernel, LoadError};
use crate::machine::{Devices, Reporter, Subscriber};
use crate::memory::{self, MemoryError};
use crate::metrics::Registry;
use crate::network::{self, NetworkError};
use crate::pmem::{self, LengthWatcher, PersistentMemory};
use crate::shares::{self, ShareError};
use crate::vcpu::{ExitCounters, Gate, Holder, VcpuError, VcpuShared, Vcpus};
use crate::{ConsoleConfig, ExitReason, MemorySize, Phase, Timeline, VmConfig, vsock};

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
    /// The guest shall run VMs, and can't.
    #[error(
        "VMs in the guest cannot be had: load kvm_amd or kvm_intel with nested=1, or leave --nested away; \
         `mvm doctor` looks further"
    )]
    NoNesting,
    /// More memory than this host's processor can address for a guest.
    #[error(
        "{asked} of memory (--memory and --pmem) cannot be had: this processor addresses {bits} bits of a guest's memory"
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

/// A VM that is ready to run.
pub struct Vm {
    vcpus: Vec<VcpuFd>,
    shared: Arc<VcpuShared>,
    subscribers: Vec<Subscriber>,
    exit: Arc<ExitSlot>,
    /// It restores the terminal when the VM is gone.
    console: Console,
    memory: Arc<GuestMemoryMmap>,
    debugger: Option<Listener>,
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
        let nets = network::open(config)?;
        let vsock = config.vsock.as_ref().map(vsock::open).transpose()?;
        let (disks, pmem) = (open_disks(config)?, pmem::open(config)?);
        let sink = Sink::open(&config.console)?;
        let debugger = config.gdb.as_ref().map(Listener::bind).transpose()?;
        let shares = shares::start(config)?;

        let kvm = kvm::open()?;
        let vm = kvm::create_vm(&kvm)?;
        timeline.mark(Phase::Kvm);

        // Others can serve a device only in memory that they can map.
        let reserve = if shares.is_empty() { memory::reserve } else { memory::reserve_shared };
        let memory = reserve(&layout::ram_regions(config.memory.bytes()))?;
        let PersistentMemory { files: pmem, dma } = pmem::place(pmem, &memory)?;
        register_memory(&vm, &memory)?;
        register_pmem(&vm, &memory, &pmem)?;
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
        devices.dma = dma.clone();
        devices.subscribers.push(Box::new(EndWatcher(exit.clone())));
        devices.add_legacy()?;
        let console = devices.add_console(config, sink, &exit)?;
        let power_button = devices.add_power_button(&exit)?;
        for (disk, id, limits) in disks {
            devices.add_virtio(Block::new(disk, id, limits).map_err(VmError::host("make a disk"))?)?;
        }
        for net in nets {
            let (device, process) = net.into_device()?;
            devices.add_virtio(device)?;
            devices.subscribers.extend(process.map(|process| Box::new(process) as Subscriber));
        }
        if let Some(vsock) = vsock {
            devices.add_virtio(vsock)?;
        }
        for share in shares {
            let (device, process) = share.into_device()?;
            devices.add_virtio(device)?;
            devices.subscribers.extend(process.map(|process| Box::new(process) as Subscriber));
        }
        if !pmem.is_empty() {
            let watcher = LengthWatcher::new(pmem.iter().map(|(file, _)| file), exit.clone());
            devices.subscribers.push(Box::new(watcher.map_err(VmError::host("watch a file of --pmem"))?));
        }
        for (file, region) in pmem {
            devices.add_virtio(Pmem::new(file, region.start_addr()))?;
        }
        let balloon = config.balloon.then(|| add_balloon(&mut devices, config)).transpose()?;
        devices.add_virtio(Rng::new())?;
        let Devices { ports, mmio, virtio, mut subscribers, mut metrics, .. } = devices;
        timeline.mark(Phase::Devices);

        let rsdp = acpi::write(&memory, config.cpus, &virtio)?;
        let memory_size = config.memory.bytes();
        boot::write(&memory, &kernel, &BootInformation { arguments: &arguments, initrd, memory_size, rsdp })?;
        registers::write_boot_tables(&memory, kernel.entry)?;
        let vcpus = create_vcpus(&kvm, &vm, config, (&kernel, &dma))?;
        timeline.mark(Phase::Vcpus);

        let gate = Arc::new(Gate::new(config.cpus));
        let stops = debugger.as_ref().map(|_| Stops::new(gate.clone())).transpose();
        let stops = stops.map_err(VmError::host("make an eventfd"))?.map(Arc::new);
        let counters = vcpu_counters(config.cpus, &mut metrics);
        if let Some(directory) = &config.runtime_dir {
            let handle = VmHandle::new(config.clone(), exit.clone(), power_button, gate.clone(), metrics);
            let handle = Arc::new(handle.with_balloon(balloon));
            let server = ControlServer::new(&directory.join(CONTROL_SOCKET), handle)?;
            subscribers.push(Box::new(server));
        }
        let shared =
            Arc::new(VcpuShared { ports, mmio, exit: exit.clone(), gate, stops, counters, timeline });
        Ok(Self { vcpus, shared, subscribers, exit, console, memory, debugger, _vm: vm })
    }

    /// The gate that keeps the VM's vCPUs out of the guest for a while, before it runs and while it does.
    pub fn gate(&self) -> &Arc<Gate> {
        &self.shared.gate
    }

    /// The guest's RAM, for those who look into it from outside.
    pub fn memory(&self) -> &Arc<GuestMemoryMmap> {
        &self.memory
    }

    /// Runs the VM to its end.
    ///
    /// # Errors
    ///
    /// [`VmError`] where threads or the event loop fail; what the guest does to itself is an [`ExitReason`].
    pub fn run(self) -> Result<ExitReason, VmError> {
        let Self { vcpus, shared, subscribers, exit, console, memory, debugger, _vm } = self;
        let mut events = EventManager::<Subscriber>::new().map_err(VmError::EventLoop)?;
        for subscriber in subscribers {
            events.add_subscriber(subscriber);
        }
        if debugger.is_some() {
            // They wait at the first instruction until a client lets them go.
            shared.gate.hold(Holder::Debugger);
        }
        let vcpus = Vcpus::start(vcpus, shared.clone())?;
        let debugger = start_debugger(debugger, &shared, memory)?;
        let reason = loop {
            if let Some(reason) = exit.reason() {
                break reason;
            }
            events.run().map_err(VmError::EventLoop)?;
        };
        // Devices end after the vCPUs that use them, the terminal last.
        drop(vcpus);
        drop(debugger);
        console.flush();
        drop(events);
        console.finish();
        Ok(reason)
    }
}

/// Serves debuggers where they are awaited.
fn start_debugger(
    listener: Option<Listener>,
    shared: &VcpuShared,
    memory: Arc<GuestMemoryMmap>,
) -> Result<Option<GdbServer>, VmError> {
    let (Some(listener), Some(stops)) = (listener, &shared.stops) else { return Ok(None) };
    let server = GdbServer::start(listener, stops.clone(), shared.gate.clone(), memory, shared.exit.clone());
    Ok(Some(server.map_err(VmError::host("start the debugger's thread"))?))
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
    let asked = [
        usize::from(config.console == ConsoleConfig::Virtio),
        config.rootfs.iter().count(),
        config.disks.len(),
        config.nets.len(),
        config.vsock.iter().count(),
        config.share_tags().count(),
        config.pmem.len(),
        usize::from(config.balloon),
        1, // The entropy device.
    ];
    let asked = asked.into_iter().sum();
    let most = layout::VIRTIO_GSIS.len();
    if asked > most { Err(VmError::TooManyDevices { asked, most }) } else { Ok(()) }
}

fn add_balloon(devices: &mut Devices<'_>, config: &VmConfig) -> Result<BalloonHandle, VmError> {
    let balloon = Balloon::new(config.memory.bytes()).map_err(VmError::host("make a timer"))?;
    devices.add_virtio(balloon).map(BalloonHandle::new)
}

fn create_interrupt_controllers(vm: &VmFd) -> Result<(), KvmError> {
    vm.set_identity_map_address(layout::KVM_IDENTITY_MAP)
        .map_err(KvmError::call("place KVM's identity map"))?;
    vm.set_tss_address(layout::KVM_TSS).map_err(KvmError::call("place KVM's task state"))?;
    vm.create_irq_chip().map_err(KvmError::call("make the interrupt controllers"))
}

fn register_memory(vm: &VmFd, memory: &GuestMemoryMmap) -> Result<(), KvmError> {
    (0..).zip(memory.iter()).try_for_each(|(slot, region)| register_region(vm, slot, 0, region))
}

/// Gives KVM persistent memory, in the slots behind those of RAM.
fn register_pmem(
    vm: &VmFd,
    ram: &GuestMemoryMmap,
    pmem: &[(PmemFile, Arc<GuestRegionMmap>)],
) -> Result<(), KvmError> {
    let slots = (0..).skip(ram.num_regions());
    slots.zip(pmem).try_for_each(|(slot, (file, region))| {
        let read_only = file.mode() == PmemMode::ReadOnly;
        if read_only && !vm.check_extension(Cap::ReadonlyMem) {
            return Err(KvmError::Capability("KVM_CAP_READONLY_MEM"));
        }
        register_region(vm, slot, if read_only { KVM_MEM_READONLY } else { 0 }, region)
    })
}

fn register_region(vm: &VmFd, slot: u32, flags: u32, region: &GuestRegionMmap) -> Result<(), KvmError> {
    let region = kvm_userspace_memory_region {
        slot,
        flags,
        guest_phys_addr: region.start_addr().0,
        memory_size: region.len(),
        userspace_addr: region.as_ptr() as u64,
    };
    // SAFETY: the region is a mapping of this process of that size, lives as long as the process, and
    // overlaps no other slot, since the regions of guest memory don't.
    unsafe { vm.set_user_memory_region(region) }.map_err(KvmError::call("give KVM the guest's memory"))
}

fn create_vcpus(
    kvm: &Kvm,
    vm: &VmFd,
    config: &VmConfig,
    (kernel, memory): (&Kernel, &GuestMemoryMmap),
) -> Result<Vec<VcpuFd>, VmError> {
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
            none => none.insert(cpuid_template(kvm, &vcpu, config, memory)?),
        };
        vcpu.set_cpuid2(&template.of(id)?).map_err(KvmError::call("set the CPUID of a vCPU"))?;
        registers::set_up(&vcpu, template.has_vmx())?;
        if id == 0 {
            registers::set_entry(&vcpu, kernel.entry)?;
        }
        vcpus.push(vcpu);
    }
    Ok(vcpus)
}

/// What each vCPU counts, made known to `metrics`.
fn vcpu_counters(cpus: u32, metrics: &mut Registry) -> Box<[Arc<ExitCounters>]> {
    let counters: Box<[_]> = (0..cpus).map(|_| Arc::new(ExitCounters::default())).collect();
    for (id, counters) in counters.iter().enumerate() {
        metrics.add("vcpu", id.to_string(), counters.clone());
    }
    counters
}

/// The CPUID of all vCPUs, where the guest can address all of `memory`.
fn cpuid_template(
    kvm: &Kvm,
    vcpu: &VcpuFd,
    config: &VmConfig,
    memory: &GuestMemoryMmap,
) -> Result<CpuidTemplate, VmError> {
    let template = CpuidTemplate::new(kvm, config.cpus, vcpu.get_tsc_khz().ok(), config.nested)?;
    if config.nested && !template.has_vmx() && !template.has_svm() {
        return Err(VmError::NoNesting);
    }
    let bits = template.physical_bits();
    if memory.last_addr().0 < 1_u64.checked_shl(bits).unwrap_or(u64::MAX) {
        Ok(template)
    } else {
        let asked = memory.iter().map(GuestMemoryRegion::len).fold(0, u64::saturating_add);
        Err(VmError::TooMuchMemory { asked: MemorySize::from_bytes(asked), bits })
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
