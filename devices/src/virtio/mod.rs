//! Virtio devices (VIRTIO 1.2) and the transport that shows them to the guest.
//!
//! A device implements [`VirtioDevice`] and knows neither its transport nor what drives it. [`transport`] has what all
//! transports share: negotiation, status, queues, interrupts, suspending and resuming; [`mmio`] is the map of its
//! registers. [`events::DeviceEvents`] brings the driver's notifications and the device's own file descriptors to the
//! device through event-manager.

use std::os::fd::RawFd;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use crate::metrics::Metrics;

pub mod balloon;
pub mod block;
pub mod console;
pub mod events;
mod iovecs;
mod mailbox;
pub mod mmio;
pub mod net;
pub mod pmem;
mod queue;
pub mod rate_limit;
pub mod rng;
#[cfg(test)]
pub(crate) mod testing;
pub mod transport;
pub mod vhost_user;
pub mod vsock;

pub use mailbox::{CallError, drop_together};
pub use queue::{Budget, Head, MAX_CHAIN, Meter, Queue, QueueState, Spent};

/// Raises a device's interrupts in whatever way its transport has.
pub trait VirtioInterrupt: Send + Sync {
    /// Signals that buffers of queue `index` were used (used buffer notification, 2.3).
    fn queue_used(&self, index: u16);
    /// Signals that buffers of two queues were used, with one interrupt where the transport has one for both.
    fn queues_used(&self, one: u16, other: u16) {
        self.queue_used(one);
        self.queue_used(other);
    }
    /// An eventfd by which another process does what [`queue_used`](Self::queue_used) does, without mvm on the way;
    /// `None`, where the queue's interrupt is not an eventfd. From now to the next reset, the driver looks for used
    /// buffers at every interrupt of the device, since mvm does not know what an interrupt is for.
    fn queue_eventfd(&self, _index: u16) -> Option<&EventFd> {
        None
    }
    /// Makes the config space `space`, and signals that it changed (configuration change notification, 2.3). The driver
    /// reads it without the device: a device that changes its config space says so by this, or where the driver need
    /// not be interrupted, by [`config_updated`](Self::config_updated).
    fn config_changed(&self, space: &[u8]);
    /// Makes the config space `space` without a notification.
    fn config_updated(&self, space: &[u8]);
    /// Sets DEVICE_NEEDS_RESET (2.1.1): the driver broke a rule that the device can't go on from.
    fn needs_reset(&self);
    /// Notifies the device of queue `index` once more, after other devices had their turn.
    fn notify_again(&self, index: u16);
    /// The device's name in log lines, each of which is limited by it ([`log`](crate::log)).
    fn device_name(&self) -> &str {
        "virtio"
    }
}

/// What a device is given when the driver sets DRIVER_OK, and when it is resumed.
pub struct Activation {
    /// The guest's RAM. Rings lie in it, and all that a device reads and writes itself.
    pub memory: Arc<GuestMemoryMmap>,
    /// RAM, and the files that the guest has as memory ([`pmem`]): the data of a request may lie there too. It is for
    /// system calls only, which fail where a page is missing or read-only; any other access would end mvm with SIGBUS.
    pub dma: Arc<GuestMemoryMmap>,
    /// A queue for each of [`VirtioDevice::queue_sizes`], checked by the transport: the driver enabled it and
    /// its rings lie in guest memory. Queues that the driver left disabled are `None`.
    pub queues: Vec<Option<Queue>>,
    /// The notifier of each queue, for those that the device reads itself (see
    /// [`VirtioDevice::reads_notifier`]). The same for the device's life.
    pub notifiers: Arc<[EventFd]>,
    /// The feature bits that driver and device agreed on.
    pub features: u64,
    /// Raises the device's interrupts.
    pub interrupt: Arc<dyn VirtioInterrupt>,
    /// Counts what turns cost.
    pub meter: Arc<Meter>,
}

/// Why a device could not start to work. The transport answers it with DEVICE_NEEDS_RESET.
#[derive(Debug, Error)]
pub enum ActivateError {
    /// A queue that the device can't do without was not enabled.
    #[error("queue {0} was not enabled by the driver")]
    QueueMissing(u16),
    /// The host refused something that the device needs.
    #[error("cannot set up the device")]
    Host(#[source] std::io::Error),
    /// The device's thread did not answer.
    #[error(transparent)]
    Thread(#[from] CallError),
    /// The saved state is not one that this device can be in.
    #[error("invalid saved state: {0}")]
    State(String),
}

/// Why a device could not stop to work.
#[derive(Debug, Error)]
pub enum StopError {
    /// The device's thread, or the process that serves the device, did not stop.
    #[error(transparent)]
    Thread(#[from] CallError),
    /// The host refused something that it takes to stop.
    #[error("cannot stop the device")]
    Host(#[source] std::io::Error),
    /// The device has no suspend.
    #[error("it cannot be suspended yet")]
    Unsupported,
}

/// A virtio device, whatever its transport (VIRTIO 1.2, section 2).
///
/// All calls are made under one lock: those for the negotiation from vCPU threads, those for queues and file
/// descriptors from the event loop.
pub trait VirtioDevice: Send {
    /// The device's state beyond its transport's and its queues' positions: complete, without any descriptor or file.
    type State: Serialize + DeserializeOwned + Send;

    /// The device ID (section 5).
    fn device_type(&self) -> u32;
    /// The device-specific feature bits offered (bits 0 to 23 and 50 up); the transport adds its own.
    fn features(&self) -> u64;
    /// The largest size of each queue, each a power of two.
    fn queue_sizes(&self) -> &[u16];
    /// The config space as it is now; empty where the device type has none. The transport asks for it when the driver
    /// writes the device status or the config space; whatever else changes it is for the device to report
    /// ([`VirtioInterrupt::config_changed`]).
    fn config_space(&self) -> Vec<u8>;
    /// Fills `data` with the config space from `offset` on; what lies past its end is left alone.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let space = self.config_space();
        let rest = usize::try_from(offset).ok().and_then(|offset| space.get(offset..));
        for (byte, value) in data.iter_mut().zip(rest.unwrap_or_default()) {
            *byte = *value;
        }
    }
    /// Takes a write to the config space. Most devices have no field that a driver may write.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}
    /// Starts to work on the queues. A device that has a thread sends them to it; threads, timers and whatever else
    /// has a descriptor are made with the device, before the guest runs.
    ///
    /// # Errors
    ///
    /// [`ActivateError`]: the device can't work with what it was given.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;
    /// Stops and gives up the queues. When it returns, the device touches guest memory no more.
    ///
    /// # Errors
    ///
    /// [`StopError`]: the device has not stopped in time. The transport then keeps DEVICE_NEEDS_RESET set and does not
    /// activate the device until a later reset succeeds.
    fn reset(&mut self) -> Result<(), StopError>;
    /// Stops and gives all queues back, each at its index: what is in flight is finished and answered, the rest stays
    /// in the queues. When it returns, the device touches guest memory no more, raises no interrupt, and leaves what
    /// comes from the host where it is. A device that is not active has no queues to give back, and has to be quiet all
    /// the same; the list may be shorter than the device has queues.
    ///
    /// # Errors
    ///
    /// [`StopError`]: the device continues, as if it had not been asked.
    fn suspend(&mut self) -> Result<Vec<Option<Queue>>, StopError>;
    /// Goes on from `state` after [`suspend`](Self::suspend), or begins with it where the device is new. `activation`
    /// is
    /// `None` where no driver works with the device.
    ///
    /// The queues are where they were when the device was suspended. The transport notifies the device of each of them
    /// afterwards, and interrupts the driver.
    ///
    /// # Errors
    ///
    /// [`ActivateError`]: the device can't go on.
    fn resume(&mut self, activation: Option<Activation>, state: Self::State) -> Result<(), ActivateError>;
    /// The VM ends: a device with threads tells them to finish what is in flight and to end, and does not wait for
    /// them.
    fn end(&mut self) {}
    /// The state now; it is complete while the device is suspended.
    fn state(&self) -> Self::State;
    /// The driver made buffers available on queue `index`. Called for an inactive device too.
    fn queue_notified(&mut self, index: u16);
    /// Whether a thread of the device's own or another process waits for the notifier of queue `index`. Then the event
    /// loop leaves the notifier alone and does not call [`queue_notified`](Self::queue_notified) for it. The same for
    /// the device's life.
    fn reads_notifier(&self, _index: u16) -> bool {
        false
    }
    /// File descriptors of the device's own that wake it when they become readable; they stay the same for
    /// the device's life.
    fn wake_fds(&self) -> Vec<RawFd> {
        Vec::new()
    }
    /// The descriptor at `index` of [`wake_fds`](Self::wake_fds) is readable; the device reads it empty.
    fn woken(&mut self, _index: usize) {}
    /// What the device counts; the same counters for the device's life.
    fn metrics(&self) -> Arc<dyn Metrics>;
}
