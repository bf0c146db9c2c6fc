//! What every VM has besides its virtio devices: the few devices of a PC at I/O ports.

use std::io::{self, Write};
use std::sync::Arc;

use devices::legacy::{
    BootMarker, Cmos, ExitCode, I8042, PowerEvents, PowerRegisters, PvPanic, ResetControl, Serial,
    SerialInput,
};
use devices::metrics::Metrics;
use devices::{Bus, BusDevice, BusError, MachineEvents, Suspend};
use kvm_ioctls::VmFd;
use thiserror::Error;
use vmm_sys_util::eventfd::EventFd;

use super::layout;
use crate::kvm::{KvmError, interrupt_line};

/// What Linux calls the serial port.
pub(crate) const SERIAL_CONSOLE: &str = "ttyS0";
/// What Linux calls it before its driver is there.
pub(crate) const EARLY_CONSOLE: &str = "uart8250,io,0x3f8";

/// Why the platform's devices could not be made.
#[derive(Debug, Error)]
pub enum PlatformError {
    /// KVM has no interrupt for one of them.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// Two devices at one place; a mistake of ours.
    #[error("cannot place a device")]
    Bus(#[from] BusError),
    /// The host has no descriptor left.
    #[error("cannot make the serial port")]
    Serial(#[source] io::Error),
}

/// The platform's devices, and what the rest of the VM has to do with them.
pub struct Platform {
    /// The I/O ports, with all of them.
    pub ports: Bus,
    /// The same devices, in the order in which they are suspended.
    pub suspends: Vec<Arc<dyn Suspend>>,
    /// Where what is typed for the serial port goes.
    pub input: SerialInput,
    /// What the serial port counts.
    pub serial: Arc<dyn Metrics>,
    /// Presses of the power button and other events, and the interrupt by which the guest learns of them.
    pub power_button: (PowerEvents, Arc<EventFd>),
}

impl Platform {
    /// The devices of `vm`, which report to `events`; what the guest says on its serial port goes to `output`.
    ///
    /// # Errors
    ///
    /// [`PlatformError`].
    pub fn new<E: MachineEvents + 'static>(
        vm: &VmFd,
        events: &Arc<E>,
        output: Box<dyn Write + Send>,
    ) -> Result<Self, PlatformError> {
        let mut ports = Ports::default();
        ports.add(I8042::PORT, I8042::PORTS, I8042::new(events.clone()))?;
        ports.add(Cmos::PORT, Cmos::PORTS, Cmos::default())?;
        ports.add(PvPanic::PORT, PvPanic::PORTS, PvPanic::new(events.clone()))?;
        ports.add(ResetControl::PORT, ResetControl::PORTS, ResetControl::new(events.clone()))?;
        ports.add(ExitCode::PORT, ExitCode::PORTS, ExitCode::new(events.clone()))?;
        ports.add(BootMarker::PORT, BootMarker::PORTS, BootMarker::new(events.clone()))?;
        let line = interrupt_line(vm, Serial::GSI)?;
        let serial = Serial::new(line, events.clone(), output).map_err(PlatformError::Serial)?;
        let input = serial.input().map_err(PlatformError::Serial)?;
        let metrics = serial.metrics();
        ports.add(Serial::PORT, Serial::PORTS, serial)?;
        let power = PowerEvents::default();
        let registers = PowerRegisters::new(events.clone(), power.clone());
        ports.add(PowerRegisters::PORT, PowerRegisters::PORTS, registers)?;
        let pressed = interrupt_line(vm, layout::EVENT_DEVICE_GSI)?;
        let Ports { bus: ports, suspends } = ports;
        Ok(Self { ports, suspends, input, serial: metrics, power_button: (power, pressed) })
    }
}

#[derive(Default)]
struct Ports {
    bus: Bus,
    suspends: Vec<Arc<dyn Suspend>>,
}

impl Ports {
    fn add<D: BusDevice + Suspend + 'static>(
        &mut self,
        first: u16,
        count: u16,
        device: D,
    ) -> Result<(), BusError> {
        let device = Arc::new(device);
        self.suspends.push(device.clone());
        self.bus.insert(first.into(), count.into(), device)
    }
}
