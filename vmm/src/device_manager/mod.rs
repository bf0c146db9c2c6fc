//! The devices of a VM: their places, their interrupts, and whom they report to.

mod open;
mod pmem;
mod register_window;

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use devices::legacy::{BootMarker, Cmos, ExitCode, I8042, PowerRegisters, PvPanic, ResetControl, Serial};
use devices::virtio::VirtioDevice;
use devices::virtio::balloon::BalloonHandle;
use devices::virtio::block::BlockHandle;
use devices::virtio::mmio::{MMIO_LENGTH, MmioTransport, QUEUE_NOTIFY};
use devices::virtio::pmem::{Pmem, PmemFile};
use devices::{Bus, BusDevice, MachineEvent, MachineEvents, Suspend};
use event_manager::MutEventSubscriber;
use kvm_ioctls::{IoEventAddress, VmFd};
use vm_memory::{GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap};
use vmm_sys_util::eventfd::EventFd;

use crate::VmError;
use crate::arch::current::acpi::VirtioMmioNode;
use crate::arch::current::layout;
use crate::config::DeviceKind;
use crate::console::{Console, InputPort};
use crate::exit::{ExitReason, ExitSlot};
use crate::frontend::Frontend;
use crate::helper::Helper;
use crate::kvm::KvmError;
use crate::metrics::Registry;
use crate::power_button::{PowerButton, PowerButtonEvents};
use crate::timing::{Phase, Timeline};

pub use self::open::{OpenDevice, open_devices};
pub use self::pmem::{LengthWatcher, PersistentMemory, place};
pub use self::register_window::RegisterWindow;

/// What the event loop runs.
pub type Subscriber = Box<dyn MutEventSubscriber>;

/// An interrupt line of the in-kernel I/O APIC, raised by writing to an eventfd.
fn interrupt_line(vm: &VmFd, gsi: u32) -> Result<Arc<EventFd>, KvmError> {
    let line = EventFd::new(libc::EFD_NONBLOCK).map_err(|source| KvmError::Call {
        doing: "make an eventfd for an interrupt",
        source: errno(&source),
    })?;
    vm.register_irqfd(&line, gsi).map_err(KvmError::call("tie an eventfd to an interrupt"))?;
    Ok(Arc::new(line))
}

fn errno(error: &io::Error) -> kvm_ioctls::Error {
    kvm_ioctls::Error::new(error.raw_os_error().unwrap_or(libc::EIO))
}

/// Turns what devices report into the VM's end and marks on its timeline.
pub struct Reporter {
    exit: Arc<ExitSlot>,
    timeline: Arc<Timeline>,
}

impl Reporter {
    /// A reporter to `exit` and `timeline`.
    pub fn new(exit: Arc<ExitSlot>, timeline: Arc<Timeline>) -> Self {
        Self { exit, timeline }
    }
}

impl MachineEvents for Reporter {
    fn report(&self, event: MachineEvent) {
        match event {
            MachineEvent::PowerOff => self.exit.end(ExitReason::PowerOff),
            MachineEvent::Reset => self.exit.end(ExitReason::Reboot),
            MachineEvent::Panicked => self.exit.end(ExitReason::Panicked { message: None, hint: None }),
            MachineEvent::ExitCode(code) => self.exit.set_code(code),
            MachineEvent::ConsoleOutput => self.timeline.mark(Phase::FirstConsoleByte),
            MachineEvent::InitStarted => self.timeline.mark(Phase::Init),
        }
    }
}

/// Where the virtio device at `index` is; `None` where there is no interrupt left.
fn virtio_node(index: usize) -> Option<VirtioMmioNode> {
    let gsi = *layout::VIRTIO_GSIS.get(index)?;
    let offset = u64::try_from(index).ok()?.checked_mul(MMIO_LENGTH)?;
    let address = u32::try_from(layout::VIRTIO_MMIO.checked_add(offset)?).ok()?;
    Some(VirtioMmioNode { address, gsi })
}

/// The devices of a VM while it is built.
pub struct DeviceManager<'a> {
    vm: &'a VmFd,
    memory: &'a Arc<GuestMemoryMmap>,
    /// Where the data of a request to a virtio device may lie.
    dma: Arc<GuestMemoryMmap>,
    registers: RegisterWindow,
    reporter: Arc<Reporter>,
    /// The I/O ports.
    pub ports: Bus,
    /// The physical addresses outside RAM.
    pub mmio: Bus,
    /// What the ACPI tables have to say of virtio devices.
    pub virtio: Vec<VirtioMmioNode>,
    /// What the event loop has to run.
    pub subscribers: Vec<Subscriber>,
    /// The processes that serve devices: they have to outlive these.
    pub helpers: Vec<Arc<Mutex<Helper>>>,
    /// What the devices count.
    pub metrics: Registry,
    /// All that has to stop while the VM is paused, in the order of the guest.
    pub suspends: Vec<Arc<dyn Suspend>>,
    /// The disks, in their order.
    pub disks: Vec<BlockHandle>,
    /// The memory balloon, where there is one.
    pub balloon: Option<BalloonHandle>,
    /// What the consoles have in common.
    pub console: Console,
    /// The device that the console's input goes to.
    input: Option<InputPort>,
    /// Where the files of persistent memory are that have no device yet, in their order.
    pmem: std::vec::IntoIter<Arc<GuestRegionMmap>>,
}

impl<'a> DeviceManager<'a> {
    /// No devices yet, for `vm` with its `memory` and `pmem`, and with room in `registers` for all that will be added;
    /// `console` is what consoles write to.
    pub fn new(
        vm: &'a VmFd,
        memory: &'a Arc<GuestMemoryMmap>,
        pmem: PersistentMemory,
        registers: RegisterWindow,
        reporter: Arc<Reporter>,
        console: Console,
    ) -> Self {
        Self {
            vm,
            memory,
            dma: pmem.dma,
            registers,
            reporter,
            ports: Bus::default(),
            mmio: Bus::default(),
            virtio: Vec::new(),
            subscribers: Vec::new(),
            helpers: Vec::new(),
            metrics: Registry::default(),
            suspends: Vec::new(),
            disks: Vec::new(),
            balloon: None,
            console,
            input: None,
            pmem: pmem.regions.into_iter(),
        }
    }

    fn add_ports<D: BusDevice + Suspend + 'static>(
        &mut self,
        first: u16,
        count: u16,
        device: D,
    ) -> Result<(), VmError> {
        let device = Arc::new(device);
        self.suspends.push(device.clone());
        Ok(self.ports.insert(first.into(), count.into(), device)?)
    }

    /// Adds the devices that every VM has at its I/O ports.
    ///
    /// # Errors
    ///
    /// [`VmError`].
    pub fn add_legacy(&mut self) -> Result<(), VmError> {
        let reporter = self.reporter.clone();
        self.add_ports(I8042::PORT, I8042::PORTS, I8042::new(reporter.clone()))?;
        self.add_ports(Cmos::PORT, Cmos::PORTS, Cmos::default())?;
        self.add_ports(PvPanic::PORT, PvPanic::PORTS, PvPanic::new(reporter.clone()))?;
        self.add_ports(ResetControl::PORT, ResetControl::PORTS, ResetControl::new(reporter.clone()))?;
        self.add_ports(ExitCode::PORT, ExitCode::PORTS, ExitCode::new(reporter.clone()))?;
        self.add_ports(BootMarker::PORT, BootMarker::PORTS, BootMarker::new(reporter.clone()))?;
        let line = interrupt_line(self.vm, Serial::GSI)?;
        let serial = Serial::new(line, reporter, self.console.output())
            .map_err(VmError::host("make the serial port"))?;
        let input = serial.input().map_err(VmError::host("make the serial port"))?;
        self.input = Some(InputPort::Serial(input));
        self.metrics.add("serial", "ttyS0".into(), serial.metrics());
        self.add_ports(Serial::PORT, Serial::PORTS, serial)
    }

    /// Adds a virtio console, which takes the console's input from then on.
    fn add_virtio_console(&mut self) -> Result<(), VmError> {
        let device = self.console.virtio()?;
        let device = self.add_virtio(DeviceKind::Console, device)?;
        let (port, window) = self.console.connect(device)?;
        self.input = Some(port);
        self.subscribers.push(window);
        Ok(())
    }

    /// Adds the device of a file of persistent memory, which is the next of those that were placed.
    fn add_pmem(&mut self, file: PmemFile) -> Result<(), VmError> {
        // Each file was placed; one that was not would have no address to tell the guest.
        let Some(region) = self.pmem.next() else { return Ok(()) };
        let device = Pmem::new(file, region.start_addr()).map_err(VmError::host("make persistent memory"))?;
        self.add_virtio(DeviceKind::Pmem, device).map(drop)
    }

    /// Connects the consoles with their user and with those who attach by a socket in `directory`. All devices have
    /// been added.
    ///
    /// # Errors
    ///
    /// [`VmError::Console`].
    pub fn connect_console(
        &mut self,
        frontend: &Frontend,
        directory: Option<&Path>,
        exit: &Arc<ExitSlot>,
    ) -> Result<(), VmError> {
        // Behind the devices, which are numbered.
        self.metrics.add("console", "hub".into(), self.console.metrics());
        if let Some(input) = self.input.take() {
            let events = self.console.events(frontend, directory, input, exit)?;
            self.subscribers.push(Box::new(events));
        }
        Ok(())
    }

    /// Adds the power button and the registers by which the guest reads it, powers off and resets.
    ///
    /// # Errors
    ///
    /// [`VmError`].
    pub fn add_power(&mut self) -> Result<Arc<PowerButton>, VmError> {
        let pressed = devices::legacy::PowerButton::default();
        let registers = PowerRegisters::new(self.reporter.clone(), pressed.clone());
        self.add_ports(PowerRegisters::PORT, PowerRegisters::PORTS, registers)?;
        let line = interrupt_line(self.vm, layout::EVENT_DEVICE_GSI)?;
        let button = PowerButton::new(pressed, line).map_err(VmError::host("make a timer"))?;
        let button = Arc::new(button);
        self.subscribers.push(Box::new(PowerButtonEvents(button.clone())));
        Ok(button)
    }

    /// Has the event loop hear what the process that serves a device has to say, if there is one.
    pub fn add_helper(&mut self, helper: Option<Helper>) {
        if let Some(helper) = helper.map(Mutex::new).map(Arc::new) {
            self.subscribers.push(Box::new(helper.clone()));
            self.helpers.push(helper);
        }
    }

    /// Adds a virtio device at the next free place and interrupt, and gives it back for what has to be said to it
    /// while it runs.
    ///
    /// # Errors
    ///
    /// [`VmError`].
    fn add_virtio<D: VirtioDevice + 'static>(
        &mut self,
        kind: DeviceKind,
        device: D,
    ) -> Result<Arc<Mutex<D>>, VmError> {
        let index = self.virtio.len();
        let most = layout::VIRTIO_GSIS.len();
        let node = virtio_node(index).ok_or(VmError::TooManyDevices { asked: index + 1, most })?;
        let base = u64::from(node.address);
        let line = interrupt_line(self.vm, node.gsi)?;
        let name = self.metrics.add_device(kind, device.metrics());
        let page = self.registers.page(index).ok_or(VmError::TooManyDevices { asked: index + 1, most })?;
        let transport = MmioTransport::with_page(device, self.memory.clone(), line, page)
            .map_err(VmError::host("make a virtio device"))?
            .with_dma(self.dma.clone())
            .with_name(name);
        self.tie_notifiers(base, transport.queue_notifiers())?;
        self.registers.tie_acknowledgement(self.vm, base)?;
        self.subscribers.push(Box::new(transport.events()));
        let device = Arc::clone(transport.device());
        let transport = Arc::new(transport);
        self.suspends.push(transport.clone());
        self.mmio.insert(base, MMIO_LENGTH, transport)?;
        self.virtio.push(node);
        Ok(device)
    }

    /// Lets KVM turn a write of a queue's index to QueueNotify into an event, without an exit to user space.
    fn tie_notifiers(&self, base: u64, notifiers: &[EventFd]) -> Result<(), KvmError> {
        for (index, notifier) in (0_u32..).zip(notifiers) {
            let address = IoEventAddress::Mmio(base + QUEUE_NOTIFY);
            self.vm
                .register_ioevent(notifier, &address, index)
                .map_err(KvmError::call("tie a queue's notifications to an eventfd"))?;
        }
        Ok(())
    }
}
