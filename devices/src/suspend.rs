//! Suspending devices, saving their state and going on from it.

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

/// A device that can be stopped and go on, here or in another process.
///
/// A VM keeps one list of its devices. To pause, it parks its vCPUs and suspends every device; to go on, it resumes
/// every device and then its vCPUs. In between it may [`save`](Self::save) them. A new VM builds the same devices,
/// [`restore`](Self::restore)s each before its guest runs, and resumes them in the same way.
pub trait Suspend: Send + Sync {
    /// Stops the device: requests in flight are finished and answered, and no new ones are taken. After it returns, the
    /// device touches no guest memory and raises no interrupt, whatever the host does. It does nothing to a suspended
    /// device.
    ///
    /// # Errors
    ///
    /// [`SuspendError`]: the device continues, as if it had not been asked.
    fn suspend(&self) -> Result<(), SuspendError>;

    /// The state of a suspended device.
    ///
    /// # Errors
    ///
    /// [`SuspendError::NotSuspended`].
    fn save(&self) -> Result<Section, SuspendError>;

    /// Takes over a state that [`save`](Self::save) gave, in a device that no driver has touched yet. The device is
    /// suspended then.
    ///
    /// # Errors
    ///
    /// [`SuspendError`]: the state is not one of such a device. The device is of no use afterwards.
    fn restore(&self, section: &Section) -> Result<(), SuspendError>;

    /// Goes on. Every queue is looked at once and every active interrupt is raised once, since notifications may have
    /// got lost. It does nothing to a device that is not suspended.
    ///
    /// # Errors
    ///
    /// [`SuspendError`]: the device can't go on, and DEVICE_NEEDS_RESET is set.
    fn resume(&self) -> Result<(), SuspendError>;

    /// The VM ends: the device takes no more requests and begins to finish those in flight. It does not wait, so that
    /// all devices of a VM finish at the same time; dropping the device waits. Nothing else is asked of the device
    /// afterwards.
    fn end(&self) {}
}

/// The saved state of one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// The kind of device, with which a state is only restored into a device of its kind.
    pub kind: String,
    /// The version of the state's format.
    pub version: u32,
    /// The state, as JSON.
    pub bytes: Vec<u8>,
}

impl Section {
    /// The longest state that is restored, in bytes.
    pub const MAX_BYTES: usize = 16 << 20;

    /// The section of a device of `kind` in `state`.
    ///
    /// # Errors
    ///
    /// [`SuspendError::Invalid`] for a state that JSON can't express.
    pub fn new(kind: impl Into<String>, version: u32, state: &impl Serialize) -> Result<Self, SuspendError> {
        let bytes = serde_json::to_vec(state).map_err(|error| SuspendError::Invalid(error.to_string()))?;
        Ok(Self { kind: kind.into(), version, bytes })
    }

    /// The state of a device of `kind` in format `version`.
    ///
    /// # Errors
    ///
    /// [`SuspendError::Invalid`] where it is not of that kind and version, or too long, or not what it should be.
    pub fn state<S: DeserializeOwned>(&self, kind: &str, version: u32) -> Result<S, SuspendError> {
        let invalid = |why: String| Err(SuspendError::Invalid(why));
        if self.kind != kind {
            return invalid(format!(
                "it is the state of \"{}\", not of \"{kind}\"",
                self.kind.escape_debug()
            ));
        }
        if self.version != version {
            return invalid(format!("its format has version {}, not {version}", self.version));
        }
        if self.bytes.len() > Self::MAX_BYTES {
            return invalid(format!(
                "it has {} bytes; at most {} are read",
                self.bytes.len(),
                Self::MAX_BYTES
            ));
        }
        serde_json::from_slice(&self.bytes).or_else(|error| invalid(error.to_string()))
    }
}

/// Why a device could not be suspended, saved, restored or resumed.
#[derive(Debug, Error)]
pub enum SuspendError {
    /// This kind of device can't do it.
    #[error("{0} cannot be suspended yet")]
    Unsupported(String),
    /// The device did not stop.
    #[error("cannot stop {device}")]
    Stop {
        /// The kind of device.
        device: String,
        /// Why it did not stop.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The device did not start again.
    #[error("cannot start {device} again")]
    Start {
        /// The kind of device.
        device: String,
        /// Why it did not start.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The device has to be suspended for this.
    #[error("{0} is not suspended")]
    NotSuspended(String),
    /// A driver works with the device already.
    #[error("{0} is in use; its state can only be restored before the guest runs")]
    InUse(String),
    /// The state is not one that such a device can be in.
    #[error("invalid saved state: {0}")]
    Invalid(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_read_by_the_kind_and_version_that_wrote_it() {
        let section = Section::new("clock", 3, &(7, "x")).unwrap();
        assert_eq!(section.state::<(u8, String)>("clock", 3).unwrap(), (7, "x".into()));
        for (kind, version) in [("clocks", 3), ("clock", 2)] {
            assert!(matches!(section.state::<(u8, String)>(kind, version), Err(SuspendError::Invalid(_))));
        }
        let cut = Section { bytes: section.bytes[..3].to_vec(), ..section.clone() };
        assert!(cut.state::<(u8, String)>("clock", 3).is_err());
        let long = Section { bytes: vec![b' '; Section::MAX_BYTES + 1], ..section };
        assert!(long.state::<(u8, String)>("clock", 3).unwrap_err().to_string().contains("bytes"));
    }
}
