//! The exit code, a port by which a guest says with which code mvm is to end.

use std::sync::Arc;

use crate::{BusDevice, MachineEvent, MachineEvents};

/// A write-only port: the byte that was written last is the exit code of `mvm boot` when the guest powers off or
/// resets. It reads as all ones, as a port without a device.
pub struct ExitCode(Arc<dyn MachineEvents>);

impl ExitCode {
    /// The port, behind that of the boot marker.
    pub const PORT: u16 = 0x521;
    /// Number of ports.
    pub const PORTS: u16 = 1;

    /// A port that reports to `machine`.
    pub fn new(machine: Arc<dyn MachineEvents>) -> Self {
        Self(machine)
    }
}

// The code itself is kept with the reason of the VM's end.
super::stateless::stateless!(ExitCode, "exit-code");

impl BusDevice for ExitCode {
    fn read(&self, _offset: u64, _data: &mut [u8]) {}

    fn write(&self, _offset: u64, data: &[u8]) {
        if let [code] = data {
            self.0.report(MachineEvent::ExitCode(*code));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::recorder::Recorder;

    #[test]
    fn a_byte_is_a_code_and_anything_wider_is_not() {
        let events = Arc::new(Recorder::default());
        let port = ExitCode::new(events.clone());
        port.write(0, &[7, 0]);
        assert_eq!(events.take(), []);
        for code in [7, 0] {
            port.write(0, &[code]);
            assert_eq!(events.take(), [MachineEvent::ExitCode(code)]);
        }
        let mut data = [0xff];
        port.read(0, &mut data);
        assert_eq!(data, [0xff]);
    }
}
