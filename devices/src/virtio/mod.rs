//! Virtio devices (VIRTIO 1.2) and the transport that shows them to the guest.
//!
//! A device implements [`VirtioDevice`] and knows neither its transport nor what drives it. The transport
//! ([`mmio::MmioTransport`]) owns the register file and the negotiation; [`events::DeviceEvents`] brings the
//! driver's notifications and the device's own file descriptors to it through event-manager.

use std::os::fd::RawFd;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;
use virtio_queue::Queue;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use crate::metrics::Metrics;

pub mod balloon;
pub mod block;
pub mod console;
pub mod events;
mod iovecs;
pub mod mmio;
pub mod net;
pub mod pmem;
mod queue;
pub mod rate_limit;
pub mod rng;
#[cfg(test)]
pub(crate) mod testing;
pub mod vhost_user;
pub mod vsock;

/// Raises a device's interrupts in whatever way its transport has.
pub trait VirtioInterrupt: Send + Sync {
    /// Tells the driver that buffers of queue `index` were used (used buffer notification, 2.3).
    fn queue_used(&self, index: u16);
    /// Tells the driver that buffers of two queues were used, with one interrupt where the transport has one for both.
    fn both_used(&self, one: u16, other: u16) {
        self.queue_used(one);
        self.queue_used(other);
    }
    /// An eventfd for somebody else to do with what [`queue_used`](Self::queue_used) does, for any queue and without
    /// mvm on the way; `None`, where the interrupt is no eventfd. From now to the next reset, the driver looks for used
    /// buffers at every interrupt, since nobody here knows what it is for.
    fn queue_used_eventfd(&self) -> Option<&EventFd> {
        None
    }
    /// Tells the driver that the config space changed (configuration change notification, 2.3).
    fn config_changed(&self);
    /// Sets DEVICE_NEEDS_RESET (2.1.1): the driver broke a rule that the device can't go on from.
    fn needs_reset(&self);
    /// Has the device notified of queue `index` again, after others had their turn: a device stops with
    /// chains left over where the driver makes them available as fast as they are used.
    fn notify_again(&self, index: u16);
}

/// What a device is given when the driver sets DRIVER_OK.
pub struct Activation {
    /// The guest's RAM. Rings lie in it, and all that a device reads and writes itself.
    pub memory: Arc<GuestMemoryMmap>,
    /// RAM, and the files that the guest has as memory ([`pmem`]): the data of a request may lie there too. It is for
    /// system calls only, which fail where a page can't be had or not be written. Whoever touched it otherwise would
    /// be killed by a signal.
    pub dma: Arc<GuestMemoryMmap>,
    /// A queue for each of [`VirtioDevice::queue_sizes`], checked by the transport: the driver enabled it and
    /// its rings lie in guest memory. Queues that the driver left disabled are `None`.
    pub queues: Vec<Option<Queue>>,
    /// The notifier of each queue, for those that the device serves itself (see
    /// [`VirtioDevice::serves_itself`]). The same for the device's life.
    pub notifiers: Arc<[EventFd]>,
    /// The feature bits that driver and device agreed on.
    pub features: u64,
    /// Raises the device's interrupts.
    pub interrupt: Arc<dyn VirtioInterrupt>,
}

/// Why a device could not start to work. The transport answers it with DEVICE_NEEDS_RESET.
#[derive(Debug, Error)]
pub enum ActivateError {
    /// A queue that the device can't do without was not enabled.
    #[error("queue {0} was not enabled by the driver")]
    QueueMissing(u16),
    /// Something that the device needs from the host could not be had.
    #[error("cannot set up the device")]
    Host(#[source] std::io::Error),
}

/// A virtio device, whatever its transport (VIRTIO 1.2, section 2).
///
/// All calls are made under one lock: those for the negotiation from vCPU threads, those for queues and file
/// descriptors from the event loop.
pub trait VirtioDevice: Send {
    /// What a snapshot has to know of the device beyond its transport's state; no descriptor, no file.
    type State: Serialize + DeserializeOwned;

    /// The device ID (section 5).
    fn device_type(&self) -> u32;
    /// The device-specific feature bits offered (bits 0 to 23 and 50 up); the transport adds its own.
    fn features(&self) -> u64;
    /// The largest size of each queue, each a power of two.
    fn queue_sizes(&self) -> &[u16];
    /// Fills `data` with the config space from `offset` on; what lies past its end is left alone.
    fn read_config(&self, offset: u64, data: &mut [u8]);
    /// Takes a write to the config space. Most devices have no field that a driver may write.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}
    /// Starts to work on the queues.
    ///
    /// # Errors
    ///
    /// [`ActivateError`]: the device can't work with what it was given.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;
    /// Stops and gives up the queues. When it returns, the device touches guest memory no more.
    fn reset(&mut self);
    /// The driver made buffers available on queue `index`. Called for an inactive device too.
    fn queue_notified(&mut self, index: u16);
    /// Whether queue `index` is served by a thread of the device's own or by another process, which waits for the
    /// queue's notifier. Then the event loop leaves the notifier alone, and
    /// [`queue_notified`](Self::queue_notified) is not called for it. The same for the device's life.
    fn serves_itself(&self, _index: u16) -> bool {
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
    /// What a snapshot has to know.
    fn state(&self) -> Self::State;
}
