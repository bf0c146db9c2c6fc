//! A device that a back end serves, as the driver sees it.

use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::{Deserialize, Serialize, Serializer};
use virtio_queue::QueueT;

use super::back_end::{BackEnd, START_DEADLINE, SuspendFailure};
use super::lost::{LostQueues, Refuse};
use super::watch::{Seen, Watch};
use super::{ShareTag, VhostUserError, fs};
use crate::metrics::Metrics;
use crate::virtio::{ActivateError, Activation, Queue, QueueState, StopError, VirtioDevice};

/// The state of a device that another process serves.
///
/// The rest of it is in that process, such as the files that a guest has open. So the device can go on from it where
/// that process still serves it, but it can't be saved while a driver works with the device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VhostUserState {
    /// The device ID (5).
    pub device_type: u32,
    /// The config space.
    pub config: Vec<u8>,
    /// Whether a driver works with the device.
    #[serde(serialize_with = "without_driver")]
    pub has_driver: bool,
}

fn without_driver<S: Serializer>(has_driver: &bool, serializer: S) -> Result<S::Ok, S::Error> {
    if *has_driver {
        return Err(serde::ser::Error::custom(
            "a share that the guest's driver uses can't be saved, since its state is in virtiofsd: unmount it and \
             unbind the driver in the guest, or pause the VM instead",
        ));
    }
    serializer.serialize_bool(*has_driver)
}

crate::metrics! {
    /// Requests, notifications and interrupts don't pass through mvm and are not counted.
    pub struct VhostUserMetrics {
        /// How often a driver started the device.
        activate_operations,
        /// Whether the back end was lost: 0 or 1.
        lost_back_ends,
        /// Requests refused since then.
        refused_operations,
    }
}

/// What is particular to a device type.
pub(super) struct Model {
    /// The device ID (5).
    pub(super) device_type: u32,
    /// The largest size of each queue.
    pub(super) queue_sizes: &'static [u16],
    /// The device type's own feature bits that mvm can pass on from the back end to the driver.
    pub(super) features: u64,
    /// The config space.
    pub(super) config: Vec<u8>,
    /// The device's name in the log.
    pub(super) name: String,
    /// Refuses a request once the back end is lost.
    pub(super) refuse: Refuse,
}

/// A device that another process serves.
pub struct VhostUser {
    model: Model,
    /// The device type's own feature bits that the back end has.
    features: u64,
    back_end: Option<BackEnd>,
    watch: Watch,
    /// What the driver activated, while the back end serves it.
    served: Option<Activation>,
    /// The queues, once the back end is lost.
    lost: Option<LostQueues>,
    /// Whether the queues were given back by [`suspend`](VirtioDevice::suspend).
    is_suspended: bool,
    metrics: Arc<VhostUserMetrics>,
}

impl VhostUser {
    /// Makes a file system device (5.11) with the tag `tag` of the back end at the other end of `socket`.
    ///
    /// # Errors
    ///
    /// [`VhostUserError`]: the back end doesn't answer or can't be used.
    pub fn fs(socket: UnixStream, tag: &ShareTag) -> Result<Self, VhostUserError> {
        Self::new(socket, fs::model(tag), START_DEADLINE)
    }

    pub(super) fn new(socket: UnixStream, model: Model, deadline: Duration) -> Result<Self, VhostUserError> {
        let back_end = BackEnd::negotiate(socket, model.queue_sizes.len(), deadline)?;
        Ok(Self {
            features: back_end.features() & model.features,
            watch: Watch::over(back_end.socket()).map_err(VhostUserError::Host)?,
            back_end: Some(back_end),
            served: None,
            lost: None,
            is_suspended: false,
            metrics: Arc::default(),
            model,
        })
    }

    /// Gives the back end another deadline from now on.
    #[cfg(any(test, fuzzing))]
    pub fn set_deadline(&mut self, deadline: Duration) {
        if let Some(back_end) = &mut self.back_end {
            back_end.set_deadline(deadline);
        }
    }

    /// Ends the connection to the back end.
    #[cfg(test)]
    pub(super) fn hang_up(&self) {
        let socket = self.back_end.as_ref().unwrap().socket();
        socket.shutdown(std::net::Shutdown::Both).unwrap();
    }

    /// Gives the back end up, because of `why`. Another one can't take its place: it had the state of what the guest
    /// has open.
    fn lose(&mut self, why: &VhostUserError) {
        let Some(back_end) = self.back_end.take() else { return };
        self.watch.forget(back_end.socket());
        self.metrics.lost_back_ends.increment();
        tracing::error!(
            device = self.model.name,
            error = why as &dyn std::error::Error,
            "the back end of the device is lost; requests fail from now on"
        );
        if let Some(activation) = self.served.take() {
            self.take_over(activation);
        }
    }

    fn take_over(&mut self, activation: Activation) {
        self.watch.add(&activation.notifiers);
        let (lost, refused) = LostQueues::take_over(activation, self.model.refuse);
        self.metrics.refused_operations.add(refused);
        self.lost = Some(lost);
    }

    fn refuse(&mut self, queue: u16) {
        if let Some(lost) = &mut self.lost {
            self.metrics.refused_operations.add(lost.turn(queue));
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
                self.take_over(activation);
            }
        }
        Ok(())
    }

    fn reset(&mut self) -> Result<(), StopError> {
        (self.served, self.lost, self.is_suspended) = (None, None, false);
        if let Some(back_end) = &mut self.back_end
            && let Err(error) = back_end.stop()
        {
            self.lose(&error);
        }
        Ok(())
    }

    fn suspend(&mut self) -> Result<Vec<Option<Queue>>, StopError> {
        let suspended = match (&self.served, &mut self.back_end) {
            (Some(_), Some(back_end)) => back_end.suspend(),
            _ => Ok(Vec::new()),
        };
        let positions = match suspended {
            Ok(positions) => positions,
            Err(SuspendFailure::Late(error)) => return Err(error.into()),
            Err(SuspendFailure::Lost(error)) => {
                self.lose(&error);
                Vec::new()
            }
        };
        let queues = match (self.served.take(), self.lost.take()) {
            (Some(activation), _) => left_at(activation, &positions),
            (None, Some(lost)) => lost.into_queues(),
            (None, None) => return Ok(Vec::new()),
        };
        self.is_suspended = true;
        Ok(queues)
    }

    fn resume(&mut self, activation: Option<Activation>, state: VhostUserState) -> Result<(), ActivateError> {
        let VhostUserState { device_type, config, .. } = &state;
        if *device_type != self.model.device_type || *config != self.model.config {
            return Err(ActivateError::State("it is the state of another share".to_owned()));
        }
        let Some(activation) = activation else { return Ok(()) };
        if !std::mem::take(&mut self.is_suspended) {
            // Another device had the driver, and another back end what that has open.
            return Err(ActivateError::State("a share goes on with its own back end only".to_owned()));
        }
        self.activate(activation)
    }

    /// Not called: the back end reads the notifiers, and once it is lost, the watch does.
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
        VhostUserState { device_type: *device_type, config: config.clone(), has_driver: self.is_suspended }
    }
}

/// The queues of `activation`, at the `positions` where a back end has left them: each index of the available ring is
/// the back end's word, and that of the used ring is in memory.
fn left_at(mut activation: Activation, positions: &[(usize, u16)]) -> Vec<Option<Queue>> {
    for (index, base) in positions {
        let Some(Some(queue)) = activation.queues.get_mut(*index) else { continue };
        // The transport has checked that the rings lie in memory.
        let used = queue.used_idx(&*activation.memory, Ordering::Acquire).map_or(*base, |index| index.0);
        queue.set_state(QueueState {
            next_available: *base,
            next_used: used,
            signalled: used,
            broken: false,
        });
    }
    activation.queues
}
