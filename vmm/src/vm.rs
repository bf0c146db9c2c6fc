//! A VM, from its configuration to its end.

use std::sync::{Arc, Mutex};

use devices::socket::ListeningSocket;
use devices::virtio::balloon::BalloonHandle;
use devices::virtio::block::BlockHandle;
use devices::virtio::pmem::{PmemFile, PmemMode};
use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use instance::{Identity, ProcessMeter};
use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, VcpuFd, VmFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap};

use crate::arch::current as arch;
use crate::arch::current::layout;
use crate::arch::current::state::Facts;
use crate::arch::current::vcpu::Processor;
use crate::background::Background;
use crate::console::{Console, ConsoleFiles};
use crate::control::ControlServer;
use crate::device_manager::{
    self, DeviceManager, LengthWatch, OpenDevice, PersistentMemory, RegisterWindow, Reporter, Subscriber,
};
use crate::exit::ExitSlot;
use crate::frontend::Frontend;
use crate::gdb::{GdbServer, Listener, Stops};
use crate::handle::VmHandle;
use crate::helper::Helper;
use crate::kvm::{self, KvmError};
use crate::last_words::{self, Given};
use crate::launch::{Resources, Source};
use crate::memory;
use crate::metrics::MetricsRegistry;
use crate::pause::Pauser;
use crate::power_button::PowerButton;
use crate::snapshot::{Saver, Snapshot};
use crate::start::Start;
use crate::supervisor::Target;
use crate::teardown::BackgroundTeardown;
use crate::vcpu::{DebugHook, ExitCounters, Gate, Holder, VcpuShared, Vcpus};
use crate::{ExitReason, Phase, Timeline, VmConfig, VmError};

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
    slots: Vec<BlockHandle>,
    memory: Arc<GuestMemoryMmap>,
    saver: Arc<Saver>,
    /// What the guest goes on from was restored: its devices are resumed by this thread.
    resumes: Option<Background>,
    /// What is called when the guest is about to run.
    on_running: Box<dyn FnOnce() + Send>,
    /// The VM's descriptor outlives its vCPUs: irqfds and ioeventfds end with it.
    vm: Arc<VmFd>,
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

fn assemble(resources: Resources<'_>, frontend: Frontend, timeline: Arc<Timeline>) -> Result<Vm, VmError> {
    let Resources { config, identity, kvm, source, devices: opened, lengths, debugger, .. } = resources;
    let (listener, console, meter) = (resources.control, resources.console, resources.meter);
    let described = config.in_directory(&resources.working_directory);
    let vm = Arc::new(kvm::create_vm(&kvm)?);
    let teardown = BackgroundTeardown::prepare(&vm);
    timeline.mark(Phase::Kvm);
    let saved = match &source {
        Source::Boot { .. } => None,
        Source::Saved(snapshot) => Some(snapshot.as_ref()),
    };
    let space = AddressSpace::new(&vm, config, &opened, saved)?;
    let memory = space.memory.clone();
    timeline.mark(Phase::Memory);
    arch::vm::create_interrupt_controllers(&vm)?;

    let has_directory = identity.directory.is_some();
    let start = Start::of(source, config, has_directory, &memory)?;
    timeline.mark(Phase::Kernel);

    let exit = Arc::new(ExitSlot::new().map_err(VmError::host("make an eventfd"))?);
    let dma = space.pmem.dma.clone();
    let mut outside = Outside { identity, frontend, exit, timeline };
    let (mut devices, power_button) = add_devices(&vm, space, (opened, lengths, console), &mut outside)?;
    outside.timeline.mark(Phase::Devices);

    let cpus = config.cpus;
    let entry = start.entry(config, &memory, &devices.virtio)?;
    let processor = Processor { cpus, nested: config.nested, pmu: config.pmu };
    let vcpus = arch::vcpu::create_vcpus(&kvm, &vm, processor, entry, &dma)?;
    let facts = Facts::of(&kvm, &vm)?;
    start.restore((&vm, &vcpus), &facts, &devices.suspends, &memory)?;
    start.announce(&memory, &power_button)?;
    outside.timeline.mark(Phase::Vcpus);

    let gate = Arc::new(Gate::new(cpus));
    let vcpus = with_counters(vcpus, &mut devices.metrics);
    let pauser = Arc::new(Pauser::new(gate.clone(), devices.suspends));
    if start.is_saved() {
        pauser.begin_paused();
    }
    let unbuilt = Unbuilt(Some(pauser.clone()));
    let saver = Arc::new(Saver::new(config, (vm.clone(), facts), pauser.clone(), memory.clone()));
    let background = Background::start().map_err(VmError::host("start a thread"))?;
    let resumes = start.is_saved().then(|| background.clone());
    let metrics = devices.metrics;
    let control =
        Control { power_button, pauser: pauser.clone(), metrics, listener, meter, saver: saver.clone() };
    let server = control.start(described, background, &mut outside, (devices.balloon, devices.disks))?;
    devices.subscribers.extend(server);
    let mut events = EventManager::<Subscriber>::new().map_err(VmError::EventLoop)?;
    for subscriber in devices.subscribers {
        events.add_subscriber(subscriber);
    }
    let Outside { exit, timeline, .. } = outside;
    let stops = debugger.as_ref().map(|_| Stops::new(gate.clone())).transpose();
    let stops = stops.map_err(VmError::host("make an eventfd"))?.map(Arc::new);
    let hook = stops.clone().map(|stops| stops as Arc<dyn DebugHook>);
    let (ports, mmio) = (devices.ports, devices.mmio);
    let shared = Arc::new(VcpuShared { ports, mmio, exit, gate, debugger: hook, timeline });
    let vcpus = start_vcpus(vcpus, &shared)?;
    let debugger = start_debugger(debugger, stops, &shared, memory.clone())?;
    let (helpers, console, slots) = (devices.helpers, devices.console, devices.slots);
    let given = Given::from(config);
    unbuilt.done();
    Ok(Vm {
        vcpus,
        debugger,
        events,
        shared,
        helpers,
        console,
        given,
        pauser,
        slots,
        memory,
        saver,
        resumes,
        on_running: Box::new(|| {}),
        vm,
        teardown,
    })
}

/// A VM whose building may still fail, when its devices have to let go of what they hold, such as sockets: the
/// supervisor has the pauser from before the last steps, and so the devices.
struct Unbuilt(Option<Arc<Pauser>>);

impl Unbuilt {
    fn done(mut self) {
        self.0 = None;
    }
}

impl Drop for Unbuilt {
    fn drop(&mut self) {
        drop(self.0.take().map(|pauser| pauser.end()));
    }
}

/// Who is to know of the VM, and of its end.
struct Outside<'a> {
    identity: &'a Identity,
    frontend: Frontend,
    exit: Arc<ExitSlot>,
    timeline: Arc<Timeline>,
}

/// The guest's physical addresses that are memory, as KVM knows them.
struct AddressSpace {
    memory: Arc<GuestMemoryMmap>,
    pmem: PersistentMemory,
    registers: RegisterWindow,
}

impl AddressSpace {
    /// RAM, the persistent memory of those of `devices` that are it, and the registers of them all.
    fn new(
        vm: &VmFd,
        config: &VmConfig,
        devices: &[OpenDevice],
        saved: Option<&Snapshot>,
    ) -> Result<Self, VmError> {
        let memory = ram(config, saved)?;
        let files: Vec<_> = devices.iter().filter_map(OpenDevice::pmem).collect();
        let pmem = device_manager::place(&files, &memory)?;
        register_memory(vm, &memory)?;
        register_pmem(vm, &memory, &files, &pmem)?;
        let slot = u32::try_from(memory.num_regions() + files.len()).unwrap_or(u32::MAX);
        let registers = RegisterWindow::new(vm, slot, devices.len())?;
        Ok(Self { memory, pmem, registers })
    }
}

/// The RAM of the VM, with what `saved` has in it.
fn ram(config: &VmConfig, saved: Option<&Snapshot>) -> Result<Arc<GuestMemoryMmap>, VmError> {
    let regions = layout::ram_regions(config.memory.bytes());
    let shared = config.devices().any(|device| device.kind().needs_shared_memory());
    if let Some(Snapshot { state, memory: file, touched }) = saved {
        let places: Vec<_> = regions.iter().map(|(address, length)| (address.0, *length)).collect();
        state.check(config.cpus, &places)?;
        state.check_memory(file)?;
        return Ok(if shared {
            memory::reserve_shared_copy(&regions, file, touched)?
        } else {
            memory::reserve_copy(&regions, file, touched)?
        });
    }
    Ok(if shared { memory::reserve_shared(&regions)? } else { memory::reserve(&regions)? })
}

/// Makes all devices of the VM, with a console that is connected to its user, and its power button.
fn add_devices<'a>(
    vm: &'a VmFd,
    space: AddressSpace,
    (opened, lengths, console_files): (Vec<OpenDevice>, Option<LengthWatch>, ConsoleFiles),
    outside: &mut Outside<'_>,
) -> Result<(DeviceManager<'a>, Arc<PowerButton>), VmError> {
    let Outside { frontend, exit, timeline, .. } = outside;
    let reporter = Arc::new(Reporter::new(exit.clone(), timeline.clone()));
    let console = Console::new(frontend.output.take(), exit)?;
    let mut devices = DeviceManager::new(vm, space.memory, space.pmem, space.registers, reporter, console);
    devices.subscribers.push(Box::new(EndWatcher(exit.clone())));
    devices.subscribers.extend(lengths.map(|lengths| Box::new(lengths.end_by(exit.clone())) as Subscriber));
    let power_button = devices.add_platform()?;
    if let Some(on_press) = frontend.on_press.take() {
        power_button.call(on_press);
    }
    opened.into_iter().try_for_each(|device| device.add_to(&mut devices))?;
    devices.connect_console(frontend, console_files, exit)?;
    Ok((devices, power_button))
}

/// What the VM is controlled by while it runs.
struct Control {
    power_button: Arc<PowerButton>,
    pauser: Arc<Pauser>,
    metrics: MetricsRegistry,
    /// The control socket, where the VM has a directory.
    listener: Option<ListeningSocket>,
    meter: ProcessMeter,
    saver: Arc<Saver>,
}

impl Control {
    /// Has the supervisor watch the VM, and serves its control socket.
    fn start(
        self,
        config: VmConfig,
        background: Background,
        outside: &mut Outside<'_>,
        (balloon, disks): (Option<BalloonHandle>, Vec<BlockHandle>),
    ) -> Result<Option<Subscriber>, VmError> {
        let Self { power_button, pauser, metrics, listener, meter, saver } = self;
        let Outside { identity, frontend, exit, .. } = outside;
        if let Some(supervisor) = &frontend.supervisor {
            let target = Target::new(exit.clone(), power_button.clone(), pauser.clone(), background.clone());
            supervisor.watch(target);
        }
        let Some(listener) = listener else { return Ok(None) };
        let identity = (*identity).clone();
        let handle = VmHandle::new(identity, config, exit.clone(), power_button, pauser, metrics);
        let handle = handle.with_balloon(balloon).with_disks(disks).measured_by(meter).saved_by(saver);
        let handle = Arc::new(handle);
        let server = ControlServer::new(listener, handle, background)?;
        Ok(Some(Box::new(server)))
    }
}

/// Starts the threads of `vcpus`, which wait until the VM runs, or with a debugger until its client lets them go.
fn start_vcpus(vcpus: Vec<(VcpuFd, Arc<ExitCounters>)>, shared: &Arc<VcpuShared>) -> Result<Vcpus, VmError> {
    shared.gate.hold(Holder::Launch);
    if shared.debugger.is_some() {
        shared.gate.hold(Holder::Debugger);
    }
    Ok(Vcpus::start(vcpus, shared.clone())?)
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

    /// The disks without a file, of `VmConfig::slots`: what they get while the VM runs comes as open files.
    pub fn slots(&self) -> &[BlockHandle] {
        &self.slots
    }

    /// Where the VM's end is said.
    pub fn exit(&self) -> &Arc<ExitSlot> {
        &self.shared.exit
    }

    /// The guest's RAM, for those who look into it from outside.
    pub fn memory(&self) -> &Arc<GuestMemoryMmap> {
        &self.memory
    }

    /// What saves the VM while it runs.
    pub fn saver(&self) -> &Arc<Saver> {
        &self.saver
    }

    /// Has `then` called when the guest is about to run, with its devices at work: from then on disks can be put into
    /// its slots.
    pub fn on_running(self, then: Box<dyn FnOnce() + Send>) -> Self {
        Self { on_running: then, ..self }
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
            slots,
            memory: _,
            saver,
            resumes,
            on_running,
            vm,
            teardown,
        } = self;
        drop(saver);
        match resumes {
            Some(background) => {
                let pauser = pauser.clone();
                let shared = Arc::clone(&shared);
                // Nothing else waits for the thread yet.
                background.run(Box::new(move || {
                    if pauser.begin(&shared.exit) {
                        on_running();
                    }
                }));
            }
            None => on_running(),
        }
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
        devices::virtio::drop_together(|| drop((events, shared, slots, devices)));
        drop(helpers);
        console.finish();
        drop(vm);
        drop(teardown);
        Ok(reason)
    }
}

/// Why the VM ended, with what the console says of it: Linux without a pvpanic driver panics there, and then resets.
fn end_of(exit: &ExitSlot, console: &Console, given: Given) -> ExitReason {
    let mut reason = exit.reason().unwrap_or(ExitReason::Stopped);
    match &mut reason {
        ExitReason::TripleFault { hint, .. } if console.latest().is_empty() => {
            *hint = Some(last_words::SILENT_CRASH.into());
        }
        ExitReason::InternalError { hint, .. } => *hint = Some(last_words::INTERNAL_ERROR.into()),
        _ => {}
    }
    let (ExitReason::Reboot | ExitReason::Panicked { .. }) = exit.own_reason().as_ref().unwrap_or(&reason)
    else {
        return reason;
    };
    let output = console.latest();
    match last_words::panic_message(&output) {
        Some(message) => {
            let hint = last_words::hint(&message, &output, given).map(Into::into);
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
    unsafe { vm.set_user_memory_region(region) }.map_err(KvmError::call(
        "give KVM the guest's memory (give a smaller --memory, or a smaller file with --pmem)",
    ))
}

/// Each vCPU with what it counts, made known to `metrics`.
fn with_counters(vcpus: Vec<VcpuFd>, metrics: &mut MetricsRegistry) -> Vec<(VcpuFd, Arc<ExitCounters>)> {
    let with_counters = |(id, vcpu): (usize, _)| {
        let counters = Arc::new(ExitCounters::default());
        metrics.add("vcpu", id.to_string(), counters.clone());
        (vcpu, counters)
    };
    vcpus.into_iter().enumerate().map(with_counters).collect()
}

/// Wakes the event loop when the VM has ended.
struct EndWatcher(Arc<ExitSlot>);

impl MutEventSubscriber for EndWatcher {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(Events::new(self.0.event(), EventSet::IN)) {
            tracing::error!(%error, "cannot watch for the end of the VM");
        }
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {}
}
