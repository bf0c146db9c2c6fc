//! The keyboard controller, of which only the reset line is there.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use vm_superio::{I8042Device, Trigger};

use crate::{BusDevice, MachineEvent, MachineEvents, lock};

struct ResetLine(Arc<dyn MachineEvents>);

impl Trigger for ResetLine {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.report(MachineEvent::Reset);
        Ok(())
    }
}

/// An i8042 that resets the machine when the guest sends command 0xfe, and has no keyboard.
pub struct I8042(Mutex<I8042Device<ResetLine>>);

impl I8042 {
    /// First port.
    pub const PORT: u16 = 0x60;
    /// Number of ports, from data (0x60) to command (0x64).
    pub const PORTS: u16 = 5;

    /// A controller that reports a reset to `events`.
    pub fn new(events: Arc<dyn MachineEvents>) -> Self {
        Self(Mutex::new(I8042Device::new(ResetLine(events))))
    }
}

super::stateless::stateless!(I8042, "i8042");

impl BusDevice for I8042 {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let ([byte], Ok(offset)) = (data, u8::try_from(offset)) {
            *byte = lock(&self.0).read(offset);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let ([byte], Ok(offset)) = (data, u8::try_from(offset)) {
            match lock(&self.0).write(offset, *byte) {
                Ok(()) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::recorder::Recorder;

    #[test]
    fn only_the_reset_command_on_the_command_port_resets() {
        let events = Arc::new(Recorder::default());
        let i8042 = I8042::new(events.clone());
        i8042.write(0, &[0xfe]);
        i8042.write(4, &[0xd1]);
        i8042.write(4, &[0xfe, 0xfe]);
        assert_eq!(events.take(), []);
        i8042.write(4, &[0xfe]);
        assert_eq!(events.take(), [MachineEvent::Reset]);
    }

    #[test]
    fn the_status_says_that_no_byte_waits() {
        let i8042 = I8042::new(Arc::new(Recorder::default()));
        let mut data = [0xff];
        i8042.read(4, &mut data);
        assert_eq!(data, [0]);
    }
}
