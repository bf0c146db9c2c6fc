//! A VM, from its configuration to its end.

use std::sync::{Arc, Mutex};

use devices::virtio::pmem::{PmemFile, PmemMode};
use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use instance::CONTROL_SOCKET;
use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, VmFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap};

use crate::arch::current as arch;
use crate::arch::current::acpi::{self};
use crate::arch::current::boot::{self, BootInformation};
use crate::arch::current::layout;
use crate::arch::current::mp_table;
use crate::arch::current::registers::{self};
use crate::arch::current::vcpu::Processor;
use crate::background::Background;
use crate::console::Console;
use crate::control::ControlServer;
use crate::device_manager::{
    self, DeviceManager, LengthWatcher, OpenDevice, PersistentMemory, RegisterWindow, Reporter, Subscriber,
};
use crate::exit::ExitSlot;
use crate::frontend::Frontend;
use crate::gdb::{GdbServer, Listener, Stops};
use crate::handle::VmHandle;
use crate::helper::Helper;
use crate::kvm::{self, KvmError};
use crate::last_words::{self, Given};
use crate::launch::Resources;
use crate::loader;
use crate::memory::{self};
use crate::metrics::Registry;
use crate::pause::Pauser;
use crate::teardown::BackgroundTeardown;
use crate::vcpu::{DebugHook, ExitCounters, Gate, Holder, VcpuShared, Vcpus};
use crate::{ExitReason, Phase, Timeline, VmError};

/// A VM that is ready to run.
///
/// Its parts are dropped in this order: devices after the vCPUs that use them, and before the processes that serve
/// them; the terminal last.
pub struct Vm {
    vcpus: Vcpus,
    debugger: Option<GdbServer>,
    events: EventManager<Subscriber>,
    shared: Arc<VcpuShared>,
    helpers: Vec<Arc<Mutex<Helper>>>,
    console: Console,
    given: Given,
    pauser: Arc<Pauser>,
    memory: Arc<GuestMemoryMmap>,
    /// The VM's descriptor outlives its vCPUs: irqfds and ioeventfds end with it.
    vm: VmFd,
    /// Dropped after the descriptor, so that nothing waits here while the VM is freed.
    teardown: Option<BackgroundTeardown>,
}

/// Builds the VM that `resources` are for. Its vCPUs wait until it runs.
///
/// # Errors
///
/// [`VmError`] says what the host cannot do; nothing is left behind.
pub fn build(resources: Resources<'_>, frontend: Frontend, timeline: Arc<Timeline>) -> Result<Vm, VmError> {
    assemble(resources, frontend, timeline).map_err(|error| match error {
        VmError::Kvm(error) => VmError::Kvm(error.explained()),
        other => other,
    })
}

fn assemble(
    resources: Resources<'_>,
    mut frontend: Frontend,
    timeline: Arc<Timeline>,
) -> Result<Vm, VmError> {
    let Resources { config, identity, kvm, kernel, initrd, devices: opened, debugger } = resources;
    let vm = kvm::create_vm(&kvm)?;
    let teardown = BackgroundTeardown::prepare(&vm);
    timeline.mark(Phase::Kvm);

    let shared = config.devices().any(|device| device.kind().needs_shared_memory());
    let reserve = if shared { memory::reserve_shared } else { memory::reserve };
    let memory = reserve(&layout::ram_regions(config.memory.bytes()))?;
    let files: Vec<_> = opened.iter().filter_map(OpenDevice::pmem).collect();
    let pmem = device_manager::place(&files, &memory)?;
    register_memory(&vm, &memory)?;
    register_pmem(&vm, &memory, &files, &pmem)?;
    let slot = u32::try_from(memory.num_regions() + files.len()).unwrap_or(u32::MAX);
    let register_window = RegisterWindow::new(&vm, slot, opened.len())?;
    timeline.mark(Phase::Memory);
    arch::vm::create_interrupt_controllers(&vm)?;

    let kernel = loader::load_kernel(&memory, kernel)?;
    let initrd = initrd.map(|file| loader::load_initrd(&memory, &kernel, file)).transpose()?;
    let visible = identity.directory.is_some();
    let arguments = loader::kernel_arguments(config, visible, kernel.cmdline_max())?;
    timeline.mark(Phase::Kernel);

    let exit = Arc::new(ExitSlot::new().map_err(VmError::host("make an eventfd"))?);
    let reporter = Arc::new(Reporter::new(exit.clone(), timeline.clone()));
    let dma = pmem.dma.clone();
    let console = Console::new(frontend.output.take(), &exit)?;
    let mut devices = DeviceManager::new(&vm, &memory, pmem, register_window, reporter, console);
    devices.subscribers.push(Box::new(EndWatcher(exit.clone())));
    if !files.is_empty() {
        let watcher = LengthWatcher::new(&files, exit.clone());
        devices.subscribers.push(Box::new(watcher.map_err(VmError::host("watch a file of --pmem"))?));
    }
    devices.add_legacy()?;
    let power_button = devices.add_power()?;
    opened.into_iter().try_for_each(|device| device.add_to(&mut devices))?;
    let directory = identity.directory.as_deref();
    devices.connect_console(&frontend, directory, &exit)?;
    let DeviceManager {
        ports,
        mmio,
        virtio,
        mut subscribers,
        helpers,
        mut metrics,
        suspends,
        disks,
        balloon,
        console,
        ..
    } = devices;
    timeline.mark(Phase::Devices);

    let rsdp = acpi::write(&memory, config.cpus, &virtio)?;
    let memory_size = config.memory.bytes();
    boot::write(&memory, &kernel, &BootInformation { arguments: &arguments, initrd, memory_size, rsdp })?;
    mp_table::write(&memory, config.cpus)?;
    registers::write_boot_tables(&memory, kernel.entry)?;
    let processor = Processor { cpus: config.cpus, nested: config.nested, pmu: config.pmu };
    let vcpus = arch::vcpu::create_vcpus(&kvm, &vm, processor, kernel.entry, &dma)?;
    timeline.mark(Phase::Vcpus);

    let gate = Arc::new(Gate::new(config.cpus));
    let pauser = Arc::new(Pauser::new(gate.clone(), suspends));
    let background = Background::start().map_err(VmError::host("start a thread"))?;
    if let Some(supervisor) = &frontend.supervisor {
        supervisor.watch(exit.clone(), power_button.clone(), pauser.clone(), background.clone());
    }
    let stops = debugger.as_ref().map(|_| Stops::new(gate.clone())).transpose();
    let stops = stops.map_err(VmError::host("make an eventfd"))?.map(Arc::new);
    let counters = vcpu_counters(config.cpus, &mut metrics);
    if let Some(directory) = directory {
        let (identity, config) = (identity.clone(), config.clone());
        let pauser = pauser.clone();
        let handle = VmHandle::new(identity, config, exit.clone(), power_button, pauser, metrics);
        let handle = Arc::new(handle.with_balloon(balloon).with_disks(disks));
        subscribers.push(Box::new(ControlServer::new(&directory.join(CONTROL_SOCKET), handle, background)?));
    }
    let mut events = EventManager::<Subscriber>::new().map_err(VmError::EventLoop)?;
    for subscriber in subscribers {
        events.add_subscriber(subscriber);
    }
    gate.hold(Holder::Launch);
    if debugger.is_some() {
        // The vCPUs wait at the first instruction until a client lets them go.
        gate.hold(Holder::Debugger);
    }
    let given = Given::from(config);
    let hook = stops.clone().map(|stops| stops as Arc<dyn DebugHook>);
    let shared = Arc::new(VcpuShared { ports, mmio, exit, gate, debugger: hook, counters, timeline });
    let vcpus = Vcpus::start(vcpus, shared.clone())?;
    let debugger = start_debugger(debugger, stops, &shared, memory.clone())?;
    Ok(Vm { vcpus, debugger, events, shared, helpers, console, given, pauser, memory, vm, teardown })
}

impl Vm {
    /// The gate that keeps the VM's vCPUs out of the guest for a while, before it runs and while it does.
    pub fn gate(&self) -> &Arc<Gate> {
        &self.shared.gate
    }

    /// What pauses and resumes the VM with its devices.
    pub fn pauser(&self) -> &Arc<Pauser> {
        &self.pauser
    }

    /// Where the VM's end is said.
    pub fn exit(&self) -> &Arc<ExitSlot> {
        &self.shared.exit
    }

    /// The guest's RAM, for those who look into it from outside.
    pub fn memory(&self) -> &Arc<GuestMemoryMmap> {
        &self.memory
    }

    /// Runs the VM to its end.
    ///
    /// # Errors
    ///
    /// [`VmError::EventLoop`]; what the guest does to itself is an [`ExitReason`].
    pub fn run(self) -> Result<ExitReason, VmError> {
        let Self {
            vcpus,
            debugger,
            mut events,
            shared,
            helpers,
            console,
            given,
            pauser,
            memory: _,
            vm,
            teardown,
        } = self;
        shared.gate.resume(Holder::Launch);
        while !shared.exit.has_ended() {
            events.run().map_err(VmError::EventLoop)?;
        }
        // As the fields are ordered, but what the guest said last is passed on in between.
        drop(vcpus);
        drop(debugger);
        console.flush();
        let reason = end_of(&shared.exit, &console, given);
        let devices = pauser.end();
        devices::virtio::drop_together(|| drop((events, shared, devices)));
        drop(helpers);
        console.finish();
        drop(vm);
        drop(teardown);
        Ok(reason)
    }
}

/// Why the VM ended: Linux without a pvpanic driver panics on its console, and then resets.
fn end_of(exit: &ExitSlot, console: &Console, given: Given) -> ExitReason {
    let reason = exit.reason().unwrap_or(ExitReason::Stopped);
    let (ExitReason::Reboot | ExitReason::Panicked { .. }) = exit.own_reason().as_ref().unwrap_or(&reason)
    else {
        return reason;
    };
    let output = console.latest();
    match last_words::panic_message(&output) {
        Some(message) => {
            let hint = last_words::hint(&message, &output, given);
            ExitReason::Panicked { message: Some(message), hint }
        }
        None => reason,
    }
}

/// Serves debuggers where they are awaited.
fn start_debugger(
    listener: Option<Listener>,
    stops: Option<Arc<Stops>>,
    shared: &VcpuShared,
    memory: Arc<GuestMemoryMmap>,
) -> Result<Option<GdbServer>, VmError> {
    let (Some(listener), Some(stops)) = (listener, stops) else { return Ok(None) };
    let server = GdbServer::start(listener, stops, shared.gate.clone(), memory, shared.exit.clone());
    Ok(Some(server.map_err(VmError::host("start the debugger's thread"))?))
}

fn register_memory(vm: &VmFd, memory: &GuestMemoryMmap) -> Result<(), KvmError> {
    (0..).zip(memory.iter()).try_for_each(|(slot, region)| register_region(vm, slot, 0, region))
}

/// Gives KVM persistent memory, in the slots behind those of RAM.
fn register_pmem(
    vm: &VmFd,
    ram: &GuestMemoryMmap,
    files: &[&PmemFile],
    pmem: &PersistentMemory,
) -> Result<(), KvmError> {
    let slots = (0..).skip(ram.num_regions());
    slots.zip(files.iter().zip(&pmem.regions)).try_for_each(|(slot, (file, region))| {
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

/// What each vCPU counts, made known to `metrics`.
fn vcpu_counters(cpus: u32, metrics: &mut Registry) -> Box<[Arc<ExitCounters>]> {
    let counters: Box<[_]> = (0..cpus).map(|_| Arc::new(ExitCounters::default())).collect();
    for (id, counters) in counters.iter().enumerate() {
        metrics.add("vcpu", id.to_string(), counters.clone());
    }
    counters
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
