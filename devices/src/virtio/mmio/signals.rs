//! The registers that the hot path reads and writes without a lock.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use virtio_bindings::virtio_config::{VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_NEEDS_RESET};
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};
use vmm_sys_util::eventfd::EventFd;

use super::super::VirtioInterrupt;
use crate::Interrupt;

/// What a device tells its driver: the device status, the interrupt status and the config generation, with
/// the interrupt line that goes with them.
pub(super) struct Signals {
    status: AtomicU32,
    interrupt_status: AtomicU32,
    config_generation: AtomicU32,
    /// Whether others raise the interrupt, too, for used buffers.
    is_shared: AtomicBool,
    line: Arc<dyn Interrupt>,
    notifiers: Arc<[EventFd]>,
}

impl Signals {
    pub(super) fn new(line: Arc<dyn Interrupt>, notifiers: Arc<[EventFd]>) -> Self {
        Self {
            status: AtomicU32::new(0),
            interrupt_status: AtomicU32::new(0),
            config_generation: AtomicU32::new(0),
            is_shared: AtomicBool::new(false),
            line,
            notifiers,
        }
    }

    pub(super) fn status(&self) -> u32 {
        self.status.load(Ordering::Acquire)
    }

    pub(super) fn add_status(&self, bits: u32) {
        self.status.fetch_or(bits, Ordering::AcqRel);
    }

    pub(super) fn interrupt_status(&self) -> u32 {
        // Whoever else raises the interrupt can't set the bit. To look for used buffers in vain does no harm, and a driver
        // has to bear it (2.7.7.2).
        let others = if self.is_shared.load(Ordering::Acquire) { VIRTIO_MMIO_INT_VRING } else { 0 };
        self.interrupt_status.load(Ordering::Acquire) | others
    }

    pub(super) fn acknowledge(&self, bits: u32) {
        self.interrupt_status.fetch_and(!bits, Ordering::AcqRel);
    }

    pub(super) fn config_generation(&self) -> u32 {
        self.config_generation.load(Ordering::Acquire)
    }

    /// Clears what a device reset clears. The config generation goes on: to begin again would make an old
    /// config space look like a new one.
    pub(super) fn reset(&self) {
        self.is_shared.store(false, Ordering::Release);
        self.interrupt_status.store(0, Ordering::Release);
        self.status.store(0, Ordering::Release);
    }

    fn raise(&self, cause: u32) {
        self.interrupt_status.fetch_or(cause, Ordering::AcqRel);
        if let Err(error) = self.line.trigger() {
            tracing::error!(%error, "cannot raise a virtio device's interrupt");
        }
    }
}

impl VirtioInterrupt for Signals {
    fn queue_used(&self, _index: u16) {
        self.raise(VIRTIO_MMIO_INT_VRING);
    }

    /// One interrupt is for all queues: at each, the driver looks for used buffers in all of them.
    fn both_used(&self, _one: u16, _other: u16) {
        self.raise(VIRTIO_MMIO_INT_VRING);
    }

    fn queue_used_eventfd(&self) -> Option<&EventFd> {
        let eventfd = self.line.eventfd()?;
        self.is_shared.store(true, Ordering::Release);
        Some(eventfd)
    }

    fn config_changed(&self) {
        self.config_generation.fetch_add(1, Ordering::AcqRel);
        self.raise(VIRTIO_MMIO_INT_CONFIG);
    }

    fn needs_reset(&self) {
        let before = self.status.fetch_or(VIRTIO_CONFIG_S_NEEDS_RESET, Ordering::AcqRel);
        // 2.1.2: the notification is due once, and only to a driver that has set DRIVER_OK.
        if before & VIRTIO_CONFIG_S_NEEDS_RESET == 0 && before & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
            self.raise(VIRTIO_MMIO_INT_CONFIG);
        }
    }

    fn notify_again(&self, index: u16) {
        if let Some(notifier) = self.notifiers.get(usize::from(index)) {
            // It fails only where the counter is full, and then the device is woken all the same.
            let _ = notifier.write(1);
        }
    }
}
