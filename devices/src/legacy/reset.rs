//! The reset control register of PC chipsets at port 0xcf9, which Linux writes with `reboot=pci`.

use std::sync::Arc;

use crate::{BusDevice, MachineEvent, MachineEvents};

/// RST_CPU: a write that sets it resets the machine (Intel ICH datasheets, RST_CNT).
const RESET_CPU: u8 = 1 << 2;

/// A reset control register. It reads as 0: no kind of reset is prepared.
pub struct ResetControl(Arc<dyn MachineEvents>);

impl ResetControl {
    /// The port.
    pub const PORT: u16 = 0xcf9;
    /// Number of ports.
    pub const PORTS: u16 = 1;

    /// A register that reports to `machine`.
    pub fn new(machine: Arc<dyn MachineEvents>) -> Self {
        Self(machine)
    }
}

super::stateless::stateless!(ResetControl, "reset-control");

impl BusDevice for ResetControl {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        if let [value] = data
            && value & RESET_CPU != 0
        {
            self.0.report(MachineEvent::Reset);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::recorder::Recorder;

    #[test]
    fn only_the_bit_that_resets_resets() {
        let events = Arc::new(Recorder::default());
        let register = ResetControl::new(events.clone());
        // Linux first writes the kind of reset, then the same with the bit.
        register.write(0, &[0x02]);
        register.write(0, &[0x06, 0x06]);
        assert_eq!(events.take(), []);
        register.write(0, &[0x06]);
        assert_eq!(events.take(), [MachineEvent::Reset]);
    }
}
