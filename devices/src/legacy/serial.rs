//! A 16550A serial port: the console that every kernel has from its first line on.

mod state;
#[cfg(test)]
mod tests;

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use vm_superio::serial::SerialEvents;
use vm_superio::{Serial as Uart, Trigger};
use vmm_sys_util::eventfd::EventFd;

use crate::metrics::Metrics;
use crate::{BusDevice, Interrupt, MachineEvent, MachineEvents, lock};

#[derive(Clone)]
struct Line(Arc<dyn Interrupt>);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.trigger()
    }
}

crate::metrics! {
    /// What a serial port counts.
    pub struct SerialMetrics {
        /// Bytes that the guest was given.
        input_bytes,
        /// Bytes that the guest output.
        output_bytes,
    }
}

#[derive(Clone)]
struct Events {
    metrics: Arc<SerialMetrics>,
    machine: Arc<dyn MachineEvents>,
    has_written: Arc<AtomicBool>,
    drained: Arc<EventFd>,
}

impl SerialEvents for Events {
    fn buffer_read(&self) {}

    fn out_byte(&self) {
        self.metrics.output_bytes.increment();
        if !self.has_written.swap(true, Ordering::Relaxed) {
            self.machine.report(MachineEvent::ConsoleOutput);
        }
    }

    fn tx_lost_byte(&self) {}

    fn in_buffer_empty(&self) {
        // It fails only where the counter is full, and then the reader is being woken already.
        let _ = self.drained.write(1);
    }
}

/// Registers by their offset from the first port, and the bits of them that matter here.
const INTERRUPT_ENABLE: u8 = 1;
const MODEM_CONTROL: u8 = 4;
const RECEIVED_DATA_INTERRUPT: u8 = 1 << 0;
const DATA_TERMINAL_READY: u8 = 1 << 0;
const LOOPBACK: u8 = 1 << 4;

struct Port {
    uart: Uart<Line, Events, Box<dyn Write + Send>>,
    /// The guest has opened the port. Before that, a driver that probes or clears the port would throw input away.
    receiving: bool,
    /// It takes no input, and raises no interrupt.
    suspended: bool,
    /// The state that it goes on from when it is resumed.
    restored: Option<vm_superio::serial::SerialState>,
}

impl Port {
    fn read(&mut self, offset: u8) -> u8 {
        self.look_for_opening(offset);
        self.uart.read(offset)
    }

    fn write(&mut self, offset: u8, value: u8) {
        // A byte that can't be written is lost, as on a line without a cable; the guest goes on.
        let _ = self.uart.write(offset, value);
        if offset == MODEM_CONTROL && !is_ready(value) {
            self.receiving = false;
        }
        self.look_for_opening(offset);
    }

    /// The guest has opened the port when it says that its terminal is ready, takes interrupts for received data,
    /// and goes on to another register: one that probes the port takes the interrupt back at once. A console that
    /// masks interrupts while it writes does not close the port.
    fn look_for_opening(&mut self, offset: u8) {
        if self.receiving || offset == INTERRUPT_ENABLE {
            return;
        }
        let state = self.uart.state();
        if state.interrupt_enable & RECEIVED_DATA_INTERRUPT != 0 && is_ready(state.modem_control) {
            self.receiving = true;
            self.uart.events().in_buffer_empty();
        }
    }

    fn capacity(&self) -> usize {
        if self.receiving && !self.suspended { self.uart.fifo_capacity() } else { 0 }
    }
}

fn is_ready(modem_control: u8) -> bool {
    modem_control & (DATA_TERMINAL_READY | LOOPBACK) == DATA_TERMINAL_READY
}

/// A serial port that writes to whatever it was given, and takes input as fast as the guest reads it.
pub struct Serial(Arc<Mutex<Port>>);

impl Serial {
    /// First port of COM1.
    pub const PORT: u16 = 0x3f8;
    /// Number of ports.
    pub const PORTS: u16 = 8;
    /// The interrupt of COM1.
    pub const GSI: u32 = 4;

    /// A port that interrupts by `line`, writes to `out`, and reports its first byte to `machine`.
    ///
    /// # Errors
    ///
    /// Those of making an eventfd.
    pub fn new(
        line: Arc<dyn Interrupt>,
        machine: Arc<dyn MachineEvents>,
        out: Box<dyn Write + Send>,
    ) -> io::Result<Self> {
        let events = Events {
            metrics: Arc::default(),
            machine,
            has_written: Arc::default(),
            drained: Arc::new(EventFd::new(libc::EFD_NONBLOCK)?),
        };
        let uart = Uart::with_events(Line(line), events, out);
        Ok(Self(Arc::new(Mutex::new(Port { uart, receiving: false, suspended: false, restored: None }))))
    }

    /// The end of the port that takes what the user types.
    ///
    /// # Errors
    ///
    /// Those of duplicating an eventfd.
    pub fn input(&self) -> io::Result<SerialInput> {
        let drained = lock(&self.0).uart.events().drained.clone();
        Ok(SerialInput { port: self.0.clone(), drained })
    }

    /// What the port counts; the same counters for its life.
    pub fn metrics(&self) -> Arc<dyn Metrics> {
        lock(&self.0).uart.events().metrics.clone()
    }
}

impl BusDevice for Serial {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let ([byte], Ok(offset)) = (data, u8::try_from(offset)) {
            *byte = lock(&self.0).read(offset);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let ([byte], Ok(offset)) = (data, u8::try_from(offset)) {
            lock(&self.0).write(offset, *byte);
        }
    }
}

/// Feeds a serial port's receive FIFO.
pub struct SerialInput {
    port: Arc<Mutex<Port>>,
    drained: Arc<EventFd>,
}

impl SerialInput {
    /// How many bytes the port can take now: none while the guest has not opened it, or while it is suspended.
    pub fn capacity(&self) -> usize {
        lock(&self.port).capacity()
    }

    /// Puts `bytes` in the receive FIFO and returns how many fitted.
    ///
    /// # Errors
    ///
    /// Those of raising the interrupt.
    pub fn enqueue(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut port = lock(&self.port);
        let room = port.capacity().min(bytes.len());
        let (fitting, _) = bytes.split_at(room);
        let taken = port.uart.enqueue_raw_bytes(fitting).map_err(|error| match error {
            vm_superio::serial::Error::Trigger(error) | vm_superio::serial::Error::IOError(error) => error,
            other => io::Error::other(other.to_string()),
        })?;
        port.uart.events().metrics.input_bytes.add(taken as u64);
        Ok(taken)
    }

    /// Becomes readable when the guest has read the FIFO empty, when it has opened the port, and when it is resumed.
    pub fn drained(&self) -> &EventFd {
        &self.drained
    }
}
