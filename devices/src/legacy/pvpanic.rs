//! The paravirtual panic device, by which a guest tells a panic apart from a reboot.
//!
//! The interface is QEMU's (docs/specs/pvpanic): one port, read for the events that the device knows, written
//! with the event that happened.

use std::sync::Arc;

use crate::{BusDevice, MachineEvent, MachineEvents};

/// The guest panicked and nothing in it will handle that.
const PANICKED: u8 = 1 << 0;

/// A pvpanic device that knows the event of a panic. A guest that loaded a crash kernel reports that in another
/// bit and lives on in the crash kernel, so that bit is not offered.
pub struct PvPanic(Arc<dyn MachineEvents>);

impl PvPanic {
    /// The port, where QEMU has it.
    pub const PORT: u16 = 0x505;
    /// Number of ports.
    pub const PORTS: u16 = 1;

    /// A device that reports a panic to `events`.
    pub fn new(events: Arc<dyn MachineEvents>) -> Self {
        Self(events)
    }
}

super::stateless::stateless!(PvPanic, "pvpanic");

impl BusDevice for PvPanic {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(PANICKED);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        if matches!(data, [event] if event & PANICKED != 0) {
            self.0.report(MachineEvent::Panicked);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::recorder::Recorder;

    #[test]
    fn only_the_panic_event_is_offered_and_reported() {
        let events = Arc::new(Recorder::default());
        let device = PvPanic::new(events.clone());
        let mut data = [0xff];
        device.read(0, &mut data);
        assert_eq!(data, [1]);
        for byte in [0, 2, 0x80] {
            device.write(0, &[byte]);
        }
        assert_eq!(events.take(), []);
        device.write(0, &[1]);
        assert_eq!(events.take(), [MachineEvent::Panicked]);
    }
}
