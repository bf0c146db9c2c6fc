//! The registers that ACPI gives a hardware-reduced machine for its end: sleep control, sleep status and reset
//! (ACPI 6.5, 4.8.3.6 and 4.8.3.7). The FADT tells the guest where they are.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::{BusDevice, MachineEvent, MachineEvents, Section, Suspend, SuspendError};

/// Registers by their offset from [`PowerRegisters::PORT`].
pub mod registers {
    /// SLEEP_CONTROL_REG (4.8.3.7.1), one byte.
    pub const SLEEP_CONTROL: u16 = 0;
    /// SLEEP_STATUS_REG (4.8.3.7.2), one byte.
    pub const SLEEP_STATUS: u16 = 1;
    /// RESET_REG (4.8.3.6), one byte.
    pub const RESET: u16 = 2;
    /// What the generic event device's interrupt is about, one byte of bits such as
    /// [`EVENT_POWER_BUTTON`](super::EVENT_POWER_BUTTON). Reading it clears it.
    pub const EVENT: u16 = 3;
}

/// In the event register: the power button was pressed.
pub const EVENT_POWER_BUTTON: u8 = 1 << 0;
/// In the event register: the VM goes on from where it was saved, with another generation ID.
pub const EVENT_GENERATION: u8 = 1 << 1;

/// The sleep type that stands for S5, soft off; the DSDT's `_S5` names it.
pub const S5_SLEEP_TYPE: u8 = 5;
/// The notification value of a power button that was pressed (ACPI 6.5, table 5.162).
pub const POWER_BUTTON_NOTIFY: u8 = 0x80;
/// The notification value of a generation ID that has changed.
pub const GENERATION_NOTIFY: u8 = 0x80;

const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_TYPE_MASK: u8 = 0b111 << SLEEP_TYPE_SHIFT;
const SLEEP_ENABLE: u8 = 1 << 5;

/// Power off and reset by ACPI, and events.
pub struct PowerRegisters {
    machine: Arc<dyn MachineEvents>,
    events: PowerEvents,
}

/// What has happened that the guest has not seen yet: bits such as [`EVENT_POWER_BUTTON`]. Clones share the state.
#[derive(Clone, Default)]
pub struct PowerEvents(Arc<AtomicU8>);

impl PowerEvents {
    /// The power button is pressed. The guest reads it when the generic event device's interrupt is raised.
    pub fn press(&self) {
        self.0.fetch_or(EVENT_POWER_BUTTON, Ordering::SeqCst);
    }

    /// The generation ID has changed, which the guest reads in the same way.
    pub fn change_generation(&self) {
        self.0.fetch_or(EVENT_GENERATION, Ordering::SeqCst);
    }

    /// Whether the guest still has to read something.
    pub fn is_pending(&self) -> bool {
        self.0.load(Ordering::SeqCst) != 0
    }

    /// Takes what the guest has not read.
    pub fn take(&self) -> u8 {
        self.0.swap(0, Ordering::SeqCst)
    }

    fn is_pressed(&self) -> bool {
        self.0.load(Ordering::SeqCst) & EVENT_POWER_BUTTON != 0
    }
}

impl PowerRegisters {
    /// First port.
    pub const PORT: u16 = 0x600;
    /// Number of ports.
    pub const PORTS: u16 = 4;
    /// What the guest writes to the reset register.
    pub const RESET_VALUE: u8 = 1;

    /// Registers that report to `machine` and from which the guest reads `events`.
    pub fn new(machine: Arc<dyn MachineEvents>, events: PowerEvents) -> Self {
        Self { machine, events }
    }
}

/// What restored states are recognized by.
const KIND: &str = "power";
const STATE_VERSION: u32 = 1;

impl Suspend for PowerRegisters {
    fn suspend(&self) -> Result<(), SuspendError> {
        Ok(())
    }

    /// A press of the button that the guest has not read is all the state: the generation is another one when the VM goes
    /// on.
    fn save(&self) -> Result<Section, SuspendError> {
        Section::new(KIND, STATE_VERSION, &self.events.is_pressed())
    }

    fn restore(&self, section: &Section) -> Result<(), SuspendError> {
        if section.state::<bool>(KIND, STATE_VERSION)? {
            self.events.press();
        }
        Ok(())
    }

    fn resume(&self) -> Result<(), SuspendError> {
        Ok(())
    }
}

impl BusDevice for PowerRegisters {
    fn read(&self, offset: u64, data: &mut [u8]) {
        // No wake event has happened and nothing is being reset.
        data.fill(0);
        if let ([byte], true) = (data, offset == u64::from(registers::EVENT)) {
            *byte = self.events.take();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let (Ok(offset), [value]) = (u16::try_from(offset), data) else { return };
        match offset {
            registers::SLEEP_CONTROL
                if value & SLEEP_ENABLE != 0
                    && (value & SLEEP_TYPE_MASK) >> SLEEP_TYPE_SHIFT == S5_SLEEP_TYPE =>
            {
                self.machine.report(MachineEvent::PowerOff);
            }
            registers::RESET if *value == Self::RESET_VALUE => self.machine.report(MachineEvent::Reset),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::recorder::Recorder;

    #[test]
    fn a_press_that_was_not_read_outlives_a_suspend() {
        let registers = || {
            let button = PowerEvents::default();
            (PowerRegisters::new(Arc::new(Recorder::default()), button.clone()), button)
        };
        for pressed in [false, true] {
            let ((power, button), (other, other_button)) = (registers(), registers());
            if pressed {
                button.press();
            }
            button.change_generation();
            power.suspend().unwrap();
            other.restore(&power.save().unwrap()).unwrap();
            other.resume().unwrap();
            assert_eq!(other_button.is_pending(), pressed);
        }
    }

    #[test]
    fn each_register_reports_its_own_end() {
        let events = Arc::new(Recorder::default());
        let power = PowerRegisters::new(events.clone(), PowerEvents::default());
        for (offset, value, expected) in [
            (0, S5_SLEEP_TYPE << 2 | SLEEP_ENABLE, Some(MachineEvent::PowerOff)),
            (0, S5_SLEEP_TYPE << 2, None),
            (0, 3 << 2 | SLEEP_ENABLE, None),
            (1, 0xff, None),
            (2, 1, Some(MachineEvent::Reset)),
            (2, 0, None),
            (3, 1, None),
        ] {
            power.write(offset, &[value]);
            assert_eq!(events.take(), Vec::from_iter(expected), "{value:#x} at {offset}");
        }
    }

    #[test]
    fn the_guest_reads_each_press_of_the_button_once() {
        let button = PowerEvents::default();
        let power = PowerRegisters::new(Arc::new(Recorder::default()), button.clone());
        let read = |offset: u16, length: usize| {
            let mut data = vec![0xff; length];
            power.read(offset.into(), &mut data);
            data
        };
        assert_eq!(read(registers::EVENT, 1), [0]);
        button.press();
        button.change_generation();
        assert_eq!(read(registers::EVENT, 1), [EVENT_POWER_BUTTON | EVENT_GENERATION]);
        button.press();
        button.press();
        assert!(button.is_pending());
        assert_eq!(read(registers::EVENT, 2), [0, 0], "the register has one byte");
        assert_eq!(read(registers::RESET, 1), [0]);
        assert_eq!(read(registers::EVENT, 1), [EVENT_POWER_BUTTON]);
        assert!(!button.is_pending());
        assert_eq!(read(registers::EVENT, 1), [0]);
    }
}
