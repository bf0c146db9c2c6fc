//! Suspending a serial port, and its state.

use std::io;
use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};
use vm_superio::Serial as Uart;
use vm_superio::serial::SerialState as UartState;

use super::{Port, Serial};
use crate::lock;
use crate::suspend::{Section, Suspend, SuspendError};

const KIND: &str = "serial";
const VERSION: u32 = 1;

/// Bits that interrupts have in both registers of them, for received data and for an empty transmitter: enabled (IER)
/// and pending, as `vm-superio` keeps them (IIR).
const RECEIVED_DATA: (u8, u8) = (1 << 0, 1 << 2);
const TRANSMITTER_EMPTY: (u8, u8) = (1 << 1, 1 << 1);

/// The registers and the FIFO.
#[derive(Serialize, Deserialize)]
#[serde(remote = "UartState")]
struct Registers {
    baud_divisor_low: u8,
    baud_divisor_high: u8,
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    line_status: u8,
    modem_control: u8,
    modem_status: u8,
    scratch: u8,
    in_buffer: Vec<u8>,
}

/// The UART, and what of the guest's doing is remembered.
#[derive(Serialize, Deserialize)]
struct SerialState {
    #[serde(flatten, with = "Registers")]
    uart: UartState,
    receiving: bool,
    has_written: bool,
}

impl Port {
    fn state(&self) -> SerialState {
        SerialState {
            uart: self.restored.clone().unwrap_or_else(|| self.uart.state()),
            receiving: self.receiving,
            has_written: self.uart.events().has_written.load(Ordering::Relaxed),
        }
    }

    /// Takes the registers over: only when the port is resumed, as the interrupts that they ask for are raised with it.
    fn take_over(&mut self, state: &UartState) -> io::Result<()> {
        let (line, events) = (self.uart.interrupt_evt().clone(), self.uart.events().clone());
        let empty = Uart::with_events(line.clone(), events.clone(), Box::new(io::sink()) as Box<_>);
        let out = std::mem::replace(&mut self.uart, empty).into_writer();
        self.uart = Uart::from_state(state, line, events, out).map_err(|error| match error {
            vm_superio::serial::Error::Trigger(error) | vm_superio::serial::Error::IOError(error) => error,
            other => io::Error::other(other.to_string()),
        })?;
        Ok(())
    }

    /// Raises the interrupt once more where one is pending: it may have got lost.
    fn raise_again(&self) -> io::Result<()> {
        let state = self.uart.state();
        let is_pending = |(enabled, pending): (u8, u8)| {
            state.interrupt_enable & enabled != 0 && state.interrupt_identification & pending != 0
        };
        if is_pending(RECEIVED_DATA) || is_pending(TRANSMITTER_EMPTY) {
            self.uart.interrupt_evt().0.trigger()?;
        }
        Ok(())
    }
}

impl Suspend for Serial {
    /// What is typed waits outside from here on.
    fn suspend(&self) -> Result<(), SuspendError> {
        lock(&self.0).suspended = true;
        Ok(())
    }

    fn save(&self) -> Result<Section, SuspendError> {
        let port = lock(&self.0);
        if !port.suspended {
            return Err(SuspendError::NotSuspended(KIND.to_owned()));
        }
        Section::new(KIND, VERSION, &port.state())
    }

    fn restore(&self, section: &Section) -> Result<(), SuspendError> {
        let state: SerialState = section.state(KIND, VERSION)?;
        let mut port = lock(&self.0);
        let length = state.uart.in_buffer.len();
        if length > port.uart.fifo_capacity() {
            return Err(SuspendError::Invalid(format!("{length} bytes in a serial port's FIFO")));
        }
        port.receiving = state.receiving;
        port.uart.events().has_written.store(state.has_written, Ordering::Relaxed);
        port.restored = Some(state.uart);
        port.suspended = true;
        Ok(())
    }

    fn resume(&self) -> Result<(), SuspendError> {
        let mut port = lock(&self.0);
        if !std::mem::take(&mut port.suspended) {
            return Ok(());
        }
        let resumed = match port.restored.take() {
            Some(state) => port.take_over(&state),
            None => port.raise_again(),
        };
        resumed.map_err(|error| SuspendError::Start { device: KIND.to_owned(), source: error.into() })?;
        // It may have room for what is typed again; its reader fails only where it is being woken already.
        let _ = port.uart.events().drained.write(1);
        Ok(())
    }
}
