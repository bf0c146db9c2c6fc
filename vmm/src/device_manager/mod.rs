//! The devices of a VM: their places, their interrupts, and whom they report to.

mod open;
mod pmem;
mod register_window;

use std::sync::{Arc, Mutex};

use devices::virtio::VirtioDevice;
use devices::virtio::balloon::BalloonHandle;
use devices::virtio::block::BlockHandle;
use devices::virtio::mmio::{MMIO_LENGTH, MmioTransport, QUEUE_NOTIFY};
use devices::virtio::pmem::{Pmem, PmemFile};
use devices::{Bus, MachineEvent, MachineEvents, Suspend};
use event_manager::MutEventSubscriber;
use kvm_ioctls::{IoEventAddress, VmFd};
use vm_memory::{GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap};
use vmm_sys_util::eventfd::EventFd;

use crate::VmError;
use crate::arch::current::layout::{self, VirtioPlace};
use crate::arch::current::platform::{Platform, SERIAL_CONSOLE};
use crate::config::DeviceKind;
use crate::console::{Console, ConsoleFiles, InputPort};
use crate::exit::{ExitReason, ExitSlot};
use crate::frontend::Frontend;
use crate::helper::Helper;
use crate::kvm::{KvmError, interrupt_line};
use crate::metrics::MetricsRegistry;
use crate::power_button::{PowerButton, PowerButtonEvents};
use crate::timing::{Phase, Timeline};

pub use self::open::{OpenDevice, open_devices};
pub use self::pmem::{LengthWatch, PersistentMemory, place};
pub use self::register_window::RegisterWindow;

/// What the event loop runs.
pub type Subscriber = Box<dyn MutEventSubscriber>;

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

/// The devices of a VM while it is built.
pub struct DeviceManager<'a> {
    vm: &'a VmFd,
    memory: Arc<GuestMemoryMmap>,
    /// Where the data of a request to a virtio device may lie.
    dma: Arc<GuestMemoryMmap>,
    registers: RegisterWindow,
    reporter: Arc<Reporter>,
    /// The I/O ports.
    pub ports: Bus,
    /// The physical addresses outside RAM.
    pub mmio: Bus,
    /// What the ACPI tables have to say of virtio devices.
    pub virtio: Vec<VirtioPlace>,
    /// What the event loop has to run.
    pub subscribers: Vec<Subscriber>,
    /// The processes that serve devices: they have to outlive these.
    pub helpers: Vec<Arc<Mutex<Helper>>>,
    /// What the devices count.
    pub metrics: MetricsRegistry,
    /// All that has to stop while the VM is paused, in the order of the guest.
    pub suspends: Vec<Arc<dyn Suspend>>,
    /// The disks, in their order.
    pub disks: Vec<BlockHandle>,
    /// Those that disks can be put into, in their order.
    pub slots: Vec<BlockHandle>,
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
        memory: Arc<GuestMemoryMmap>,
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
            metrics: MetricsRegistry::default(),
            suspends: Vec::new(),
            disks: Vec::new(),
            slots: Vec::new(),
            balloon: None,
            console,
            input: None,
            pmem: pmem.regions.into_iter(),
        }
    }

    /// Adds the devices that every VM has, and gives back its power button. The console's input goes to the serial
    /// port.
    ///
    /// # Errors
    ///
    /// [`VmError`].
    pub fn add_platform(&mut self) -> Result<Arc<PowerButton>, VmError> {
        let platform = Platform::new(self.vm, &self.reporter, self.console.output())?;
        self.ports = platform.ports;
        self.suspends.extend(platform.suspends);
        self.input = Some(InputPort::Serial(platform.input));
        self.metrics.add("serial", SERIAL_CONSOLE.into(), platform.serial);
        let (pressed, line) = platform.power_button;
        let button = Arc::new(PowerButton::new(pressed, line).map_err(VmError::host("make a timer"))?);
        self.subscribers.push(Box::new(PowerButtonEvents(button.clone())));
        Ok(button)
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

    /// Connects the consoles with their user and with those who attach by the socket of `files`. All devices have been
    /// added.
    ///
    /// # Errors
    ///
    /// [`VmError::Console`].
    pub fn connect_console(
        &mut self,
        frontend: &mut Frontend,
        files: ConsoleFiles,
        exit: &Arc<ExitSlot>,
    ) -> Result<(), VmError> {
        // Behind the devices, which are numbered.
        self.metrics.add("console", "hub".into(), self.console.metrics());
        if let Some(input) = self.input.take() {
            let events = self.console.events(frontend, files, input, exit)?;
            self.subscribers.push(Box::new(events));
        }
        Ok(())
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
        let node = layout::virtio_place(index).ok_or(VmError::TooManyDevices { asked: index + 1, most })?;
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
