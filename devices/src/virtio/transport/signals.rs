//! The registers that the hot path reads and writes without a lock.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use virtio_bindings::virtio_config::{VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_NEEDS_RESET};
use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_CONFIG_GENERATION, VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING,
    VIRTIO_MMIO_INTERRUPT_STATUS, VIRTIO_MMIO_STATUS,
};
use vmm_sys_util::eventfd::EventFd;

use super::page::RegisterPage;
use crate::Interrupt;
use crate::virtio::VirtioInterrupt;

/// What a device signals to its driver: the device status, the interrupt status and the config generation, with
/// the interrupts that go with them.
pub(super) struct Signals {
    page: RegisterPage,
    /// Whether the driver looks for used buffers at every interrupt: another process raises interrupts, or the guest
    /// reads and acknowledges the interrupt status without mvm.
    always_used: AtomicBool,
    lines: Lines,
    notifiers: Arc<[EventFd]>,
    /// The device's name in log lines.
    name: OnceLock<String>,
}

/// The interrupts of a device.
#[derive(Clone)]
pub struct Lines {
    /// For changes of the config space.
    config: Arc<dyn Interrupt>,
    /// For used buffers, by the index of the queue; `None`, where the one for the config space is for all.
    queues: Option<Vec<Arc<dyn Interrupt>>>,
}

impl Lines {
    /// One interrupt for everything.
    pub fn shared(line: Arc<dyn Interrupt>) -> Self {
        Self { config: line, queues: None }
    }

    /// An interrupt for the config space and one for each queue, in the order of their indices.
    pub fn separate(config: Arc<dyn Interrupt>, queues: Vec<Arc<dyn Interrupt>>) -> Self {
        Self { config, queues: Some(queues) }
    }

    fn queue(&self, index: u16) -> &Arc<dyn Interrupt> {
        let own = self.queues.as_ref().and_then(|queues| queues.get(usize::from(index)));
        own.unwrap_or(&self.config)
    }
}

impl Signals {
    pub(super) fn new(lines: Lines, notifiers: Arc<[EventFd]>, page: RegisterPage) -> Self {
        Self { page, always_used: AtomicBool::new(false), lines, notifiers, name: OnceLock::new() }
    }

    /// The registers that the driver reads.
    pub(super) fn page(&self) -> &RegisterPage {
        &self.page
    }

    fn status_register(&self) -> &AtomicU32 {
        self.page.register::<VIRTIO_MMIO_STATUS>()
    }

    fn interrupt_status_register(&self) -> &AtomicU32 {
        self.page.register::<VIRTIO_MMIO_INTERRUPT_STATUS>()
    }

    fn config_generation_register(&self) -> &AtomicU32 {
        self.page.register::<VIRTIO_MMIO_CONFIG_GENERATION>()
    }

    /// Names the device, once.
    pub(super) fn set_name(&self, name: String) {
        self.name.get_or_init(|| name);
    }

    pub(super) fn name(&self) -> &str {
        self.name.get().map_or("virtio", String::as_str)
    }

    pub(super) fn status(&self) -> u32 {
        self.status_register().load(Ordering::Acquire)
    }

    pub(super) fn add_status(&self, bits: u32) {
        self.status_register().fetch_or(bits, Ordering::AcqRel);
    }

    /// The driver is about to be interrupted for the first time.
    pub(super) fn start(&self) {
        if self.page.is_shown() {
            self.always_say_used();
        }
    }

    /// Has the interrupt status say used buffers until the next reset. Looking for them in vain is allowed (2.7.7.2).
    fn always_say_used(&self) {
        self.always_used.store(true, Ordering::SeqCst);
        self.interrupt_status_register().fetch_or(VIRTIO_MMIO_INT_VRING, Ordering::SeqCst);
    }

    pub(super) fn acknowledge(&self, causes: u32) {
        let lasting = if self.always_used.load(Ordering::SeqCst) { VIRTIO_MMIO_INT_VRING } else { 0 };
        self.interrupt_status_register().fetch_and(!causes | lasting, Ordering::SeqCst);
    }

    /// Makes the config space `space`.
    pub(super) fn set_config(&self, space: &[u8]) {
        self.page.set_config(self.config_generation_register(), space);
    }

    /// Clears what a device reset clears. The config generation goes on: to begin again would make an old
    /// config space look like a new one.
    pub(super) fn reset(&self) {
        self.always_used.store(false, Ordering::SeqCst);
        self.interrupt_status_register().store(0, Ordering::SeqCst);
        self.status_register().store(0, Ordering::SeqCst);
    }

    pub(super) fn state(&self) -> SignalState {
        SignalState {
            status: self.status(),
            interrupt_status: self.interrupt_status_register().load(Ordering::Acquire),
            config_generation: self.config_generation_register().load(Ordering::Acquire),
        }
    }

    pub(super) fn restore(&self, state: SignalState) {
        self.status_register().store(state.status, Ordering::SeqCst);
        self.interrupt_status_register().store(state.interrupt_status, Ordering::SeqCst);
        self.config_generation_register().store(state.config_generation, Ordering::SeqCst);
    }

    /// Raises an interrupt once more whose cause is not acknowledged: it may have got lost.
    pub(super) fn raise_config_again(&self) {
        if self.interrupt_status_register().load(Ordering::Acquire) & VIRTIO_MMIO_INT_CONFIG != 0 {
            self.raise(&self.lines.config, VIRTIO_MMIO_INT_CONFIG);
        }
    }

    fn raise(&self, line: &Arc<dyn Interrupt>, cause: u32) {
        if cause != VIRTIO_MMIO_INT_VRING || !self.always_used.load(Ordering::SeqCst) {
            self.interrupt_status_register().fetch_or(cause, Ordering::SeqCst);
        }
        if let Err(error) = line.trigger() {
            tracing::error!(device = self.name(), %error, "cannot raise a virtio device's interrupt");
        }
    }
}

/// The part of the state that changes without a lock.
#[derive(Clone, Copy)]
pub(super) struct SignalState {
    pub(super) status: u32,
    pub(super) interrupt_status: u32,
    pub(super) config_generation: u32,
}

impl VirtioInterrupt for Signals {
    fn device_name(&self) -> &str {
        self.name()
    }

    fn queue_used(&self, index: u16) {
        self.raise(self.lines.queue(index), VIRTIO_MMIO_INT_VRING);
    }

    fn queues_used(&self, one: u16, other: u16) {
        self.queue_used(one);
        if !Arc::ptr_eq(self.lines.queue(one), self.lines.queue(other)) {
            self.queue_used(other);
        }
    }

    fn queue_eventfd(&self, index: u16) -> Option<&EventFd> {
        let eventfd = self.lines.queue(index).eventfd()?;
        self.always_say_used();
        Some(eventfd)
    }

    fn config_changed(&self, space: &[u8]) {
        self.set_config(space);
        self.raise(&self.lines.config, VIRTIO_MMIO_INT_CONFIG);
    }

    fn config_updated(&self, space: &[u8]) {
        self.set_config(space);
    }

    fn needs_reset(&self) {
        let before = self.status_register().fetch_or(VIRTIO_CONFIG_S_NEEDS_RESET, Ordering::AcqRel);
        // 2.1.2: the notification is due once, and only to a driver that has set DRIVER_OK.
        if before & VIRTIO_CONFIG_S_NEEDS_RESET == 0 && before & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
            self.raise(&self.lines.config, VIRTIO_MMIO_INT_CONFIG);
        }
    }

    fn notify_again(&self, index: u16) {
        if let Some(notifier) = self.notifiers.get(usize::from(index)) {
            // It fails only where the counter is full, and then the device is woken all the same.
            let _ = notifier.write(1);
        }
    }
}
