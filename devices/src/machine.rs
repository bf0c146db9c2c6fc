//! What a device can ask of the whole machine.

/// An end, or a sign of life, that a guest reaches through a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MachineEvent {
    /// The guest asked for its power to be cut (ACPI sleep state S5).
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// The guest's kernel panicked and said so through pvpanic.
    Panicked,
    /// The guest has set the exit code for its end.
    ExitCode(u8),
    /// The guest wrote its first byte to the console.
    ConsoleOutput,
    /// The guest's init has started and said so on the boot-marker port.
    InitStarted,
}

/// Takes what devices report. It is called on a vCPU's thread and has to return at once.
pub trait MachineEvents: Send + Sync {
    /// Takes `event`.
    fn report(&self, event: MachineEvent);
}

impl<F: Fn(MachineEvent) + Send + Sync> MachineEvents for F {
    fn report(&self, event: MachineEvent) {
        self(event);
    }
}

#[cfg(test)]
pub(crate) mod recorder {
    use std::sync::Mutex;

    use super::{MachineEvent, MachineEvents};

    /// Keeps what was reported.
    #[derive(Default)]
    pub(crate) struct Recorder(Mutex<Vec<MachineEvent>>);

    impl Recorder {
        pub(crate) fn take(&self) -> Vec<MachineEvent> {
            std::mem::take(&mut *self.0.lock().unwrap())
        }
    }

    impl MachineEvents for Recorder {
        fn report(&self, event: MachineEvent) {
            self.0.lock().unwrap().push(event);
        }
    }
}
