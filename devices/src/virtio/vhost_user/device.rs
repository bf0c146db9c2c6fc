//! The device: what the driver sees of a back end.

use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::super::{ActivateError, Activation, Queue, StopError, VirtioDevice};
use super::back_end::{BackEnd, PATIENCE};
use super::orphans::{Orphans, Refuse};
use super::watch::{Seen, Watch};
use super::{ShareTag, VhostUserError, fs};
use crate::metrics::Metrics;

/// What a snapshot has to know of a device that another process serves: what the driver was shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VhostUserState {
    /// The device ID (5).
    pub device_type: u32,
    /// The config space.
    pub config: Vec<u8>,
}

crate::metrics! {
    /// What the front end sees; requests, notifications and interrupts pass it by.
    pub struct VhostUserMetrics {
        /// How often a driver started the device.
        activate_operations,
        /// Whether the back end failed or went away: 0 or 1.
        lost_back_ends,
        /// Requests refused since then.
        refused_operations,
    }
}

/// What makes a device one of its type.
pub(super) struct Model {
    /// The device ID (5).
    pub(super) device_type: u32,
    /// The largest size of each queue.
    pub(super) queue_sizes: &'static [u16],
    /// The device type's own feature bits that mvm can pass on from the back end to the driver.
    pub(super) features: u64,
    /// The config space.
    pub(super) config: Vec<u8>,
    /// What the log calls the device.
    pub(super) name: String,
    /// Answers a request when there is no back end.
    pub(super) refuse: Refuse,
}

/// A device that another process serves.
pub struct VhostUser {
    model: Model,
    /// The device type's own feature bits that the back end has.
    features: u64,
    back_end: Option<BackEnd>,
    watch: Watch,
    /// The driver's side, while the back end serves it.
    served: Option<Activation>,
    /// The driver's side, while nobody does.
    orphans: Option<Orphans>,
    metrics: Arc<VhostUserMetrics>,
}

impl VhostUser {
    /// Makes a file system device (5.11) of the back end at the other end of `socket`, which the guest finds as `tag`.
    ///
    /// # Errors
    ///
    /// [`VhostUserError`]: the back end doesn't answer or can't be used.
    pub fn fs(socket: UnixStream, tag: &ShareTag) -> Result<Self, VhostUserError> {
        Self::new(socket, fs::model(tag), PATIENCE)
    }

    pub(super) fn new(socket: UnixStream, model: Model, patience: Duration) -> Result<Self, VhostUserError> {
        let back_end = BackEnd::negotiate(socket, model.queue_sizes.len(), patience)?;
        Ok(Self {
            features: back_end.features() & model.features,
            watch: Watch::over(back_end.socket()).map_err(VhostUserError::Host)?,
            back_end: Some(back_end),
            served: None,
            orphans: None,
            metrics: Arc::default(),
            model,
        })
    }

    #[cfg(test)]
    pub(super) fn set_patience(&mut self, patience: Duration) {
        self.back_end.as_mut().unwrap().set_patience(patience);
    }

    /// Gives the back end up, for `why`. There is no other for this VM: what the guest had open was its state.
    fn lose(&mut self, why: &VhostUserError) {
        let Some(back_end) = self.back_end.take() else { return };
        self.watch.forget(back_end.socket());
        self.metrics.lost_back_ends.increment();
        tracing::error!(
            device = self.model.name,
            error = why as &dyn std::error::Error,
            "nobody serves the device any more; requests fail from now on"
        );
        if let Some(activation) = self.served.take() {
            self.adopt(activation);
        }
    }

    fn adopt(&mut self, activation: Activation) {
        self.watch.add(&activation.notifiers);
        let (orphans, refused) = Orphans::adopt(activation, self.model.refuse);
        self.metrics.refused_operations.add(refused);
        self.orphans = Some(orphans);
    }

    fn refuse(&mut self, queue: u16) {
        if let Some(orphans) = &mut self.orphans {
            self.metrics.refused_operations.add(orphans.turn(queue));
        }
    }
}

impl VirtioDevice for VhostUser {
    type State = VhostUserState;

    fn device_type(&self) -> u32 {
        self.model.device_type
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> &[u16] {
        self.model.queue_sizes
    }

    fn config_space(&self) -> Vec<u8> {
        self.model.config.clone()
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.metrics.activate_operations.increment();
        let started = match &mut self.back_end {
            Some(back_end) => back_end.start(&activation),
            None => Err(VhostUserError::Gone),
        };
        match started {
            Ok(()) => self.served = Some(activation),
            Err(error) => {
                self.lose(&error);
                self.adopt(activation);
            }
        }
        Ok(())
    }

    fn reset(&mut self) -> Result<(), StopError> {
        (self.served, self.orphans) = (None, None);
        if let Some(back_end) = &mut self.back_end
            && let Err(error) = back_end.stop()
        {
            self.lose(&error);
        }
        Ok(())
    }

    fn suspend(&mut self) -> Result<Vec<Option<Queue>>, StopError> {
        if self.served.is_some() || self.orphans.is_some() {
            Err(StopError::Unsupported)
        } else {
            Ok(Vec::new())
        }
    }

    fn resume(
        &mut self,
        activation: Option<Activation>,
        _state: VhostUserState,
    ) -> Result<(), ActivateError> {
        activation.map_or(Ok(()), |activation| self.activate(activation))
    }

    /// Not called: the back end waits for the notifiers, and behind it, the watch.
    fn queue_notified(&mut self, _index: u16) {}

    fn reads_notifier(&self, _index: u16) -> bool {
        true
    }

    fn wake_fds(&self) -> Vec<RawFd> {
        vec![self.watch.as_raw_fd()]
    }

    fn woken(&mut self, _index: usize) {
        for seen in self.watch.seen() {
            match seen {
                Seen::HangUp => self.lose(&VhostUserError::Gone),
                Seen::Notification(queue) => self.refuse(queue),
            }
        }
    }

    fn metrics(&self) -> Arc<dyn Metrics> {
        self.metrics.clone()
    }

    fn state(&self) -> VhostUserState {
        let Model { device_type, config, .. } = &self.model;
        VhostUserState { device_type: *device_type, config: config.clone() }
    }
}
