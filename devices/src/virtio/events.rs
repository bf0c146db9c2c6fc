//! Brings a device's wake-ups to it from the event loop.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::eventfd::EventFd;

use super::VirtioDevice;
use crate::lock;

/// Reads a non-blocking eventfd empty.
pub(crate) fn drain(eventfd: &EventFd) {
    // It fails only where there is nothing to read.
    let _ = eventfd.read();
}

/// Hands a device what the event loop sees: notifications of its queues, and its own descriptors.
pub struct DeviceEvents<D: VirtioDevice> {
    device: Arc<Mutex<D>>,
    notifiers: Arc<[EventFd]>,
}

impl<D: VirtioDevice> DeviceEvents<D> {
    pub(super) fn new(device: Arc<Mutex<D>>, notifiers: Arc<[EventFd]>) -> Self {
        Self { device, notifiers }
    }

    /// The descriptors to watch, with the numbers they are registered with: the queues' notifiers from 0 on, but
    /// for those that the device reads itself, then what the device itself waits for.
    fn descriptors(&self) -> Vec<(u32, RawFd)> {
        let device = lock(&self.device);
        let watched = (0..).zip(self.notifiers.iter()).filter(|(index, _)| !device.reads_notifier(*index));
        let notifiers = watched.map(|(index, notifier)| (u32::from(index), notifier.as_raw_fd()));
        let first_own = u32::try_from(self.notifiers.len()).unwrap_or(u32::MAX);
        notifiers.chain((first_own..).zip(device.wake_fds())).collect()
    }
}

impl<D: VirtioDevice> MutEventSubscriber for DeviceEvents<D> {
    fn init(&mut self, ops: &mut EventOps) {
        for (number, descriptor) in self.descriptors() {
            if let Err(error) = ops.add(Events::with_data_raw(descriptor, number, EventSet::IN)) {
                tracing::error!(%error, "cannot watch a descriptor of a virtio device");
            }
        }
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps) {
        let Ok(number) = usize::try_from(events.data()) else { return };
        match self.notifiers.get(number) {
            Some(notifier) => {
                // Before the queue is looked at: a notification that comes in between is kept for the next turn.
                drain(notifier);
                if let Ok(index) = u16::try_from(number) {
                    lock(&self.device).queue_notified(index);
                }
            }
            None => lock(&self.device).woken(number - self.notifiers.len()),
        }
    }
}
