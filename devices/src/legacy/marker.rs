//! The boot marker, a port on which a guest's init says that it has started.

use std::sync::Arc;

use crate::{BusDevice, MachineEvent, MachineEvents};

/// What init writes: `printf '\1' | dd of=/dev/port bs=1 seek=$((0x520)) conv=notrunc`, or one `outb`.
pub const INIT_STARTED: u8 = 1;

/// A write-only port for the table of `--timing`; it reads as all ones, as a port without a device.
pub struct BootMarker(Arc<dyn MachineEvents>);

impl BootMarker {
    /// The port.
    pub const PORT: u16 = 0x520;
    /// Number of ports.
    pub const PORTS: u16 = 1;

    /// A marker that reports to `events`.
    pub fn new(events: Arc<dyn MachineEvents>) -> Self {
        Self(events)
    }
}

super::stateless::stateless!(BootMarker, "boot-marker");

impl BusDevice for BootMarker {
    fn read(&self, _offset: u64, _data: &mut [u8]) {}

    fn write(&self, _offset: u64, data: &[u8]) {
        if data == [INIT_STARTED] {
            self.0.report(MachineEvent::InitStarted);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::recorder::Recorder;

    #[test]
    fn only_the_agreed_value_counts() {
        let events = Arc::new(Recorder::default());
        let marker = BootMarker::new(events.clone());
        marker.write(0, &[0]);
        marker.write(0, &[1, 1]);
        assert_eq!(events.take(), []);
        marker.write(0, &[INIT_STARTED]);
        assert_eq!(events.take(), [MachineEvent::InitStarted]);
    }
}
