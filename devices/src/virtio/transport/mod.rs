//! What all transports share (VIRTIO 1.2, sections 2 and 3): negotiation, device status, queues, interrupts, and the
//! device's whole state.
//!
//! A transport such as [`mmio`](super::mmio) maps the driver's accesses to calls of [`Transport`].

mod page;
mod registers;
mod signals;
mod state;
#[cfg(test)]
pub(crate) mod tests;

use std::io;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex};

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_DEVICE_FEATURES, VIRTIO_MMIO_QUEUE_NUM_MAX, VIRTIO_MMIO_QUEUE_READY,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub(super) use self::page::{CONFIG, LENGTH};
pub use self::page::{RegisterPage, RegisterPages};
pub(super) use self::registers::QueueField;
use self::registers::Registers;
pub use self::signals::Lines;
use self::signals::Signals;
pub use self::state::TransportState;
use super::events::{self, DeviceEvents};
use super::{Activation, Meter, Queue, VirtioDevice, VirtioInterrupt};
use crate::lock;

/// The transport's own feature bits (6).
const TRANSPORT_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX;
/// The feature bits that belong to a device type (6): 0 to 23 and from 50 on.
const DEVICE_FEATURES: u64 = 0xff_ffff | !0 << 50;

/// A virtio device and what its driver has set up.
///
/// Three locks, taken in this order and none of them on the way of a notification or an interrupt: the
/// set-up, the device, and whatever the device has.
pub struct Transport<D: VirtioDevice> {
    device: Arc<Mutex<D>>,
    device_type: u32,
    offered: u64,
    memory: Arc<GuestMemoryMmap>,
    dma: Arc<GuestMemoryMmap>,
    setup: Mutex<Setup<D::State>>,
    signals: Arc<Signals>,
    notifiers: Arc<[EventFd]>,
    meter: Arc<Meter>,
}

/// What the driver has set up, and where it is while the device is suspended.
struct Setup<S> {
    registers: Registers,
    suspended: Option<Suspended<S>>,
}

/// What the transport keeps of a suspended device.
struct Suspended<S> {
    /// The queues that the device gave back.
    queues: Vec<Option<Queue>>,
    /// The state that a new device begins with; a device that was suspended itself has its own.
    restored: Option<S>,
}

impl<D: VirtioDevice> Transport<D> {
    /// Puts `device` behind a transport. Its queues lie in `memory`, its interrupts go to `lines`, and what the driver
    /// reads is in `page`.
    ///
    /// # Errors
    ///
    /// Those of eventfd creation: the process has no descriptor left.
    pub fn new(
        device: D,
        memory: Arc<GuestMemoryMmap>,
        lines: Lines,
        page: RegisterPage,
    ) -> io::Result<Self> {
        let sizes = device.queue_sizes();
        let notifiers =
            sizes.iter().map(|_| EventFd::new(EFD_NONBLOCK)).collect::<io::Result<Arc<[EventFd]>>>()?;
        let registers = Registers::new(sizes);
        page.set_config(&AtomicU32::new(0), &device.config_space());
        let transport = Self {
            device_type: device.device_type(),
            offered: device.features() & DEVICE_FEATURES | TRANSPORT_FEATURES,
            dma: Arc::clone(&memory),
            memory,
            setup: Mutex::new(Setup { registers, suspended: None }),
            signals: Arc::new(Signals::new(lines, Arc::clone(&notifiers), page)),
            notifiers,
            meter: Arc::default(),
            device: Arc::new(Mutex::new(device)),
        };
        transport.show(&lock(&transport.setup).registers);
        Ok(transport)
    }

    /// Lets the data of requests lie in `dma` too, which is `memory` and more (see [`Activation::dma`]).
    #[must_use]
    pub fn with_dma(self, dma: Arc<GuestMemoryMmap>) -> Self {
        Self { dma, ..self }
    }

    /// Names the device in log lines.
    #[must_use]
    pub fn with_name(self, name: String) -> Self {
        self.signals.set_name(name);
        self
    }

    /// The device.
    pub fn device(&self) -> &Arc<Mutex<D>> {
        &self.device
    }

    /// An eventfd for each queue, in the order of their indices; a write to it notifies the queue.
    pub fn queue_notifiers(&self) -> &[EventFd] {
        &self.notifiers
    }

    /// What brings notifications and the device's own descriptors to the device, for the event loop.
    pub fn events(&self) -> DeviceEvents<D> {
        DeviceEvents::new(Arc::clone(&self.device), Arc::clone(&self.notifiers))
    }

    /// What turns of the device's queues have cost so far.
    pub fn meter(&self) -> &Meter {
        &self.meter
    }

    /// What the driver reads.
    pub(super) fn page(&self) -> &RegisterPage {
        self.signals.page()
    }

    /// Clears causes of interrupts.
    pub(super) fn acknowledge(&self, causes: u32) {
        self.signals.acknowledge(causes);
    }

    /// Puts what the driver selected where it reads it.
    fn show(&self, registers: &Registers) {
        let page = self.page();
        page.set::<VIRTIO_MMIO_DEVICE_FEATURES>(registers.device_features(self.offered));
        page.set::<VIRTIO_MMIO_QUEUE_NUM_MAX>(registers.queue_size_max());
        page.set::<VIRTIO_MMIO_QUEUE_READY>(registers.queue_ready());
    }

    pub(super) fn select_device_features(&self, half: u32) {
        let mut setup = lock(&self.setup);
        setup.registers.select_device_features(half);
        self.show(&setup.registers);
    }

    pub(super) fn select_driver_features(&self, half: u32) {
        lock(&self.setup).registers.select_driver_features(half);
    }

    pub(super) fn select_queue(&self, index: u32) {
        let mut setup = lock(&self.setup);
        setup.registers.select_queue(index);
        self.show(&setup.registers);
    }

    /// Sets the selected half of the features that the driver accepts.
    pub(super) fn set_driver_features(&self, half: u32) {
        let mut setup = lock(&self.setup);
        if self.phase() == Phase::Features {
            setup.registers.set_driver_features(half);
        }
    }

    /// Sets a field of the selected queue.
    pub(super) fn set_queue(&self, field: QueueField, value: u32) {
        let mut setup = lock(&self.setup);
        if self.phase() == Phase::Queues {
            setup.registers.write_queue(field, value);
            self.show(&setup.registers);
        }
    }

    /// Notifies the device of queue `index` (2.3).
    pub(super) fn notify(&self, index: u32) {
        if let Ok(index) = u16::try_from(index) {
            self.signals.notify_again(index);
        }
    }

    /// Waits for a change of the config space that is going on: a driver whose read of the generation is trapped sees
    /// no new config space with an old generation.
    pub(super) fn wait_for_config(&self) {
        drop(lock(&self.device));
    }

    /// Writes `data` to the config space.
    pub(super) fn write_config(&self, offset: u64, data: &[u8]) {
        let mut device = lock(&self.device);
        device.write_config(offset, data);
        self.signals.set_config(&device.config_space());
    }

    /// Puts the device's config space where the driver reads it.
    fn show_config(&self) {
        let device = lock(&self.device);
        self.signals.set_config(&device.config_space());
    }

    fn phase(&self) -> Phase {
        Phase::of(self.signals.status())
    }

    /// Takes a write to the device status (2.1, 3.1.1). The driver can only add bits, each in its turn; what
    /// comes out of turn is not taken, which the driver sees when it reads the status back.
    pub(super) fn write_status(&self, value: u32) {
        let mut setup = lock(&self.setup);
        if value == 0 {
            self.reset(&mut setup);
        } else {
            self.add_status(&mut setup, value);
        }
        // Before DRIVER_OK the device has no other way to report a change, and the status may have changed it.
        self.show_config();
    }

    fn add_status(&self, setup: &mut Setup<D::State>, value: u32) {
        let new = |bit| value & bit != 0 && self.signals.status() & bit == 0;
        if new(VIRTIO_CONFIG_S_FAILED) {
            self.signals.add_status(VIRTIO_CONFIG_S_FAILED);
            // The driver has given up on the device.
            self.stop(setup);
        }
        if new(VIRTIO_CONFIG_S_ACKNOWLEDGE) && self.phase() == Phase::Found {
            self.signals.add_status(VIRTIO_CONFIG_S_ACKNOWLEDGE);
        }
        if new(VIRTIO_CONFIG_S_DRIVER) && self.phase() == Phase::Acknowledged {
            self.signals.add_status(VIRTIO_CONFIG_S_DRIVER);
        }
        if new(VIRTIO_CONFIG_S_FEATURES_OK)
            && self.phase() == Phase::Features
            && setup.registers.features_ok(self.offered)
        {
            self.signals.add_status(VIRTIO_CONFIG_S_FEATURES_OK);
        }
        if new(VIRTIO_CONFIG_S_DRIVER_OK) && self.phase() == Phase::Queues {
            self.signals.start();
            self.signals.add_status(VIRTIO_CONFIG_S_DRIVER_OK);
            self.start(setup);
        }
    }

    /// Sets the queues up and gives them to the device.
    fn start(&self, setup: &mut Setup<D::State>) {
        let queues = match setup.registers.queues(&self.memory) {
            Ok(queues) => queues,
            Err(error) => {
                tracing::warn!(device = self.signals.name(), %error, "the driver set up an invalid queue");
                self.signals.needs_reset();
                return;
            }
        };
        if let Some(suspended) = &mut setup.suspended {
            // A suspended device gets them when it is resumed.
            suspended.queues = queues;
            return;
        }
        let activation = self.activation(&setup.registers, queues);
        if let Err(error) = lock(&self.device).activate(activation) {
            tracing::error!(
                device = self.signals.name(),
                error = &error as &dyn std::error::Error,
                "a virtio device cannot start"
            );
            self.signals.needs_reset();
        }
    }

    fn activation(&self, registers: &Registers, queues: Vec<Option<Queue>>) -> Activation {
        Activation {
            memory: Arc::clone(&self.memory),
            dma: Arc::clone(&self.dma),
            queues,
            notifiers: Arc::clone(&self.notifiers),
            features: registers.driver_features(),
            interrupt: Arc::clone(&self.signals) as Arc<dyn VirtioInterrupt>,
            meter: Arc::clone(&self.meter),
        }
    }

    /// Takes the queues from the device; whether it has stopped.
    fn stop(&self, setup: &mut Setup<D::State>) -> bool {
        if let Some(suspended) = &mut setup.suspended {
            suspended.queues.clear();
        }
        let result = lock(&self.device).reset();
        if let Err(error) = &result {
            tracing::error!(
                device = self.signals.name(),
                error = error as &dyn std::error::Error,
                "a virtio device did not stop"
            );
            self.signals.add_status(VIRTIO_CONFIG_S_NEEDS_RESET);
        }
        result.is_ok()
    }

    /// Resets the device (2.4). Where it does not stop, the status stays at DEVICE_NEEDS_RESET, in which nothing is
    /// negotiated: a thread that may still use the old queues must not meet new ones.
    fn reset(&self, setup: &mut Setup<D::State>) {
        let has_stopped = self.stop(setup);
        setup.registers.reset();
        self.show(&setup.registers);
        self.signals.reset();
        if !has_stopped {
            self.signals.add_status(VIRTIO_CONFIG_S_NEEDS_RESET);
        }
        self.notifiers.iter().for_each(events::drain);
    }
}

/// How far the driver has come with the initialization (3.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The driver has done nothing yet.
    Found,
    /// The driver has noticed the device.
    Acknowledged,
    /// The driver knows how to drive the device; feature bits may be accepted.
    Features,
    /// The feature bits are settled; queues may be set up.
    Queues,
    /// The device works.
    Live,
    /// Only a reset helps.
    Broken,
}

impl Phase {
    fn of(status: u32) -> Self {
        let has = |bit| status & bit != 0;
        if has(VIRTIO_CONFIG_S_FAILED) || has(VIRTIO_CONFIG_S_NEEDS_RESET) {
            Self::Broken
        } else if has(VIRTIO_CONFIG_S_DRIVER_OK) {
            Self::Live
        } else if has(VIRTIO_CONFIG_S_FEATURES_OK) {
            Self::Queues
        } else if has(VIRTIO_CONFIG_S_DRIVER) {
            Self::Features
        } else if has(VIRTIO_CONFIG_S_ACKNOWLEDGE) {
            Self::Acknowledged
        } else {
            Self::Found
        }
    }
}
