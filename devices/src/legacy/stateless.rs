//! Devices that a driver can't leave in one state or another.

/// Makes devices of type `$device` ones that can be suspended, and have nothing to save: they act on a write at once.
macro_rules! stateless {
    ($device:ty, $kind:literal) => {
        impl $crate::Suspend for $device {
            fn suspend(&self) -> Result<(), $crate::SuspendError> {
                Ok(())
            }

            fn save(&self) -> Result<$crate::Section, $crate::SuspendError> {
                $crate::Section::new($kind, 1, &())
            }

            fn restore(&self, section: &$crate::Section) -> Result<(), $crate::SuspendError> {
                section.state::<()>($kind, 1)
            }

            fn resume(&self) -> Result<(), $crate::SuspendError> {
                Ok(())
            }
        }
    };
}

pub(super) use stateless;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crate::legacy::{BootMarker, ExitCode, I8042, PvPanic, ResetControl};
    use crate::machine::recorder::Recorder;
    use crate::{MachineEvents, Suspend};

    #[test]
    fn each_takes_its_own_state_and_no_other_and_reports_nothing() {
        let events = Arc::new(Recorder::default());
        let reporter = || -> Arc<dyn MachineEvents> { events.clone() };
        let devices: [Box<dyn Suspend>; 5] = [
            Box::new(BootMarker::new(reporter())),
            Box::new(I8042::new(reporter())),
            Box::new(PvPanic::new(reporter())),
            Box::new(ExitCode::new(reporter())),
            Box::new(ResetControl::new(reporter())),
        ];
        let saved: Vec<_> = devices
            .iter()
            .map(|device| {
                device.suspend().unwrap();
                device.save().unwrap()
            })
            .collect();
        for (index, device) in devices.iter().enumerate() {
            for (other, section) in saved.iter().enumerate() {
                assert_eq!(device.restore(section).is_ok(), index == other);
            }
            device.resume().unwrap();
        }
        assert_eq!(events.take(), []);
    }
}
