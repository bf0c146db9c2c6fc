//! The devices of a VM: their places, their interrupts, and whom they report to.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use devices::legacy::{BootMarker, Cmos, I8042, PowerRegisters, PvPanic, Serial};
use devices::virtio::VirtioDevice;
use devices::virtio::mmio::{MMIO_LENGTH, MmioTransport, QUEUE_NOTIFY};
use devices::{Bus, BusDevice, MachineEvent, MachineEvents};
use event_manager::MutEventSubscriber;
use kvm_ioctls::{IoEventAddress, VmFd};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use crate::ConsoleConfig;
use crate::VmError;
use crate::arch::current::acpi::VirtioMmioNode;
use crate::arch::current::layout;
use crate::console::{Console, InputPort};
use crate::exit::{ExitReason, ExitSlot};
use crate::frontend::Frontend;
use crate::helper::Helper;
use crate::kvm::KvmError;
use crate::metrics::Registry;
use crate::timing::{Phase, Timeline};

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
            MachineEvent::Panicked => self.exit.end(ExitReason::Panicked),
            MachineEvent::ConsoleOutput => self.timeline.mark(Phase::FirstConsoleByte),
            MachineEvent::InitStarted => self.timeline.mark(Phase::Init),
        }
    }
}

/// The devices of a VM while it is built.
pub struct Devices<'a> {
    vm: &'a VmFd,
    memory: &'a Arc<GuestMemoryMmap>,
    /// Where the data of a request to a virtio device may lie: RAM, if nothing else is said.
    pub dma: Arc<GuestMemoryMmap>,
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
}

impl<'a> Devices<'a> {
    /// No devices yet, for `vm` with its `memory`.
    pub fn new(vm: &'a VmFd, memory: &'a Arc<GuestMemoryMmap>, reporter: Arc<Reporter>) -> Self {
        Self {
            vm,
            memory,
            dma: memory.clone(),
            reporter,
            ports: Bus::default(),
            mmio: Bus::default(),
            virtio: Vec::new(),
            subscribers: Vec::new(),
            helpers: Vec::new(),
            metrics: Registry::default(),
        }
    }

    fn add_ports(&mut self, first: u16, count: u16, device: impl BusDevice + 'static) -> Result<(), VmError> {
        Ok(self.ports.insert(first.into(), count.into(), Arc::new(device))?)
    }

    /// Adds the devices that have neither a file nor an option.
    ///
    /// # Errors
    ///
    /// [`VmError::Bus`].
    pub fn add_legacy(&mut self) -> Result<(), VmError> {
        let reporter = self.reporter.clone();
        self.add_ports(I8042::PORT, I8042::PORTS, I8042::new(reporter.clone()))?;
        self.add_ports(Cmos::PORT, Cmos::PORTS, Cmos::default())?;
        self.add_ports(PvPanic::PORT, PvPanic::PORTS, PvPanic::new(reporter.clone()))?;
        self.add_ports(PowerRegisters::PORT, PowerRegisters::PORTS, PowerRegisters::new(reporter.clone()))?;
        self.add_ports(BootMarker::PORT, BootMarker::PORTS, BootMarker::new(reporter))
    }

    /// Adds the serial port, and a virtio console where `kind` is one, both of which write to `frontend` and to those
    /// who attach by a socket in `directory`.
    ///
    /// # Errors
    ///
    /// [`VmError`].
    pub fn add_console(
        &mut self,
        kind: &ConsoleConfig,
        frontend: &mut Frontend,
        directory: Option<&Path>,
        exit: &Arc<ExitSlot>,
    ) -> Result<Console, VmError> {
        let mut console = Console::new(frontend.output.take())?;
        let line = interrupt_line(self.vm, Serial::GSI)?;
        let serial = Serial::new(line, self.reporter.clone(), console.output())
            .map_err(VmError::host("make the serial port"))?;
        let mut port = InputPort::Serial(serial.input().map_err(VmError::host("make the serial port"))?);
        self.metrics.add("serial", "ttyS0".into(), serial.metrics());
        self.add_ports(Serial::PORT, Serial::PORTS, serial)?;
        if *kind == ConsoleConfig::Virtio {
            let device = self.add_virtio(console.virtio()?)?;
            let (virtio, window) = console.connect(device)?;
            port = virtio;
            self.subscribers.push(window);
        }
        // Behind the devices, which are numbered.
        self.metrics.add("console", "hub".into(), console.metrics());
        self.subscribers.push(Box::new(console.events(frontend, directory, port, exit)?));
        Ok(console)
    }

    /// Adds the power button, and gives it back for those who press it.
    ///
    /// # Errors
    ///
    /// [`VmError`].
    pub fn add_power_button(&mut self) -> Result<Arc<EventFd>, VmError> {
        Ok(interrupt_line(self.vm, layout::EVENT_DEVICE_GSI)?)
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
    pub fn add_virtio<D: VirtioDevice + 'static>(&mut self, device: D) -> Result<Arc<Mutex<D>>, VmError> {
        let index = self.virtio.len();
        let most = layout::VIRTIO_GSIS.len();
        let gsi =
            *layout::VIRTIO_GSIS.get(index).ok_or(VmError::TooManyDevices { asked: index + 1, most })?;
        let base = layout::VIRTIO_MMIO + index as u64 * MMIO_LENGTH;
        let line = interrupt_line(self.vm, gsi)?;
        self.metrics.add_virtio(device.device_type(), device.metrics());
        let transport = MmioTransport::new(device, self.memory.clone(), line)
            .map_err(VmError::host("make a virtio device"))?
            .with_dma(self.dma.clone());
        self.tie_notifiers(base, transport.queue_notifiers())?;
        self.subscribers.push(Box::new(transport.events()));
        let device = Arc::clone(transport.device());
        self.mmio.insert(base, MMIO_LENGTH, Arc::new(transport))?;
        let address = u32::try_from(base).unwrap_or(u32::MAX);
        self.virtio.push(VirtioMmioNode { address, gsi });
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
