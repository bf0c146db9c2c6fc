//! The MMIO transport (VIRTIO 1.2, section 4.2): version 2, without the legacy interface.

mod registers;
mod signals;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::{Arc, Mutex};

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio as reg;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use self::registers::Registers;
use self::signals::Signals;
use super::events::{self, DeviceEvents};
use super::{Activation, VirtioDevice, VirtioInterrupt};
use crate::{BusDevice, Interrupt, lock};

/// The length in bytes of a device's region: the registers and room for its config space.
pub const MMIO_LENGTH: u64 = 0x1000;
/// Offset of QueueNotify. The vmm has KVM turn a 32-bit write of a queue's index to it into a write to that
/// queue's notifier (ioeventfd with a data match).
pub const QUEUE_NOTIFY: u64 = 0x50;

/// "virt" (4.2.2).
const MAGIC: u32 = 0x7472_6976;
/// Version of the register layout (4.2.2): not the legacy one.
const VERSION: u32 = 2;
/// "MVM\0".
const VENDOR: u32 = u32::from_le_bytes(*b"MVM\0");
/// Offset of the config space.
const CONFIG: u64 = 0x100;
/// The transport's own feature bits (6).
const TRANSPORT_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX;
/// The feature bits that belong to a device type (6): 0 to 23 and from 50 on.
const DEVICE_FEATURES: u64 = 0xff_ffff | !0 << 50;

/// A virtio device as the guest finds it at an address.
///
/// Three locks, taken in this order and none of them on the way of a notification or an interrupt: the
/// registers, the device, and whatever the device has.
pub struct MmioTransport<D: VirtioDevice> {
    device: Arc<Mutex<D>>,
    device_type: u32,
    offered: u64,
    memory: Arc<GuestMemoryMmap>,
    dma: Arc<GuestMemoryMmap>,
    registers: Mutex<Registers>,
    signals: Arc<Signals>,
    notifiers: Arc<[EventFd]>,
}

impl<D: VirtioDevice> MmioTransport<D> {
    /// Puts `device` behind a register file. Its queues lie in `memory`, its interrupts go to `line`.
    ///
    /// # Errors
    ///
    /// Those of eventfd creation: the process has no descriptor left.
    pub fn new(device: D, memory: Arc<GuestMemoryMmap>, line: Arc<dyn Interrupt>) -> io::Result<Self> {
        let sizes = device.queue_sizes();
        let notifiers =
            sizes.iter().map(|_| EventFd::new(EFD_NONBLOCK)).collect::<io::Result<Arc<[EventFd]>>>()?;
        Ok(Self {
            device_type: device.device_type(),
            offered: device.features() & DEVICE_FEATURES | TRANSPORT_FEATURES,
            dma: Arc::clone(&memory),
            memory,
            registers: Mutex::new(Registers::new(sizes)),
            signals: Arc::new(Signals::new(line, Arc::clone(&notifiers))),
            notifiers,
            device: Arc::new(Mutex::new(device)),
        })
    }

    /// Lets the data of requests lie in `dma` too, which is `memory` and more (see [`Activation::dma`]).
    #[must_use]
    pub fn with_dma(self, dma: Arc<GuestMemoryMmap>) -> Self {
        Self { dma, ..self }
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

    fn read_register(&self, offset: u64) -> u32 {
        let Ok(register) = u32::try_from(offset) else { return 0 };
        match register {
            reg::VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            reg::VIRTIO_MMIO_VERSION => VERSION,
            reg::VIRTIO_MMIO_DEVICE_ID => self.device_type,
            reg::VIRTIO_MMIO_VENDOR_ID => VENDOR,
            reg::VIRTIO_MMIO_DEVICE_FEATURES => lock(&self.registers).device_features(self.offered),
            reg::VIRTIO_MMIO_QUEUE_NUM_MAX => lock(&self.registers).queue_size_max(),
            reg::VIRTIO_MMIO_QUEUE_READY => lock(&self.registers).queue_ready(),
            reg::VIRTIO_MMIO_INTERRUPT_STATUS => self.signals.interrupt_status(),
            reg::VIRTIO_MMIO_STATUS => self.signals.status(),
            // A shared memory region that does not exist has a length of -1 (4.2.2).
            reg::VIRTIO_MMIO_SHM_LEN_LOW
            | reg::VIRTIO_MMIO_SHM_LEN_HIGH
            | reg::VIRTIO_MMIO_SHM_BASE_LOW
            | reg::VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            reg::VIRTIO_MMIO_CONFIG_GENERATION => {
                // A device changes its config space and the generation under its lock. To wait for it is
                // what keeps a driver from seeing a new config space with the old generation.
                let _device = lock(&self.device);
                self.signals.config_generation()
            }
            _ => 0,
        }
    }

    fn write_register(&self, offset: u64, value: u32) {
        let Ok(register) = u32::try_from(offset) else { return };
        match register {
            reg::VIRTIO_MMIO_QUEUE_NOTIFY => {
                if let Ok(index) = u16::try_from(value) {
                    self.signals.notify_again(index);
                }
            }
            reg::VIRTIO_MMIO_INTERRUPT_ACK => self.signals.acknowledge(value),
            reg::VIRTIO_MMIO_STATUS => self.write_status(value),
            _ => self.write_negotiation(register, value),
        }
    }

    fn write_negotiation(&self, register: u32, value: u32) {
        let mut registers = lock(&self.registers);
        match register {
            reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL => registers.select_device_features(value),
            reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL => registers.select_driver_features(value),
            reg::VIRTIO_MMIO_QUEUE_SEL => registers.select_queue(value),
            reg::VIRTIO_MMIO_DRIVER_FEATURES => {
                if self.phase() == Phase::Features {
                    registers.set_driver_features(value);
                }
            }
            _ => {
                if self.phase() == Phase::Queues {
                    registers.write_queue(register, value);
                }
            }
        }
    }

    fn phase(&self) -> Phase {
        Phase::of(self.signals.status())
    }

    /// Takes a write to the device status (2.1, 3.1.1). The driver can only add bits, each in its turn; what
    /// comes out of turn is not taken, which the driver sees when it reads the status back.
    fn write_status(&self, value: u32) {
        let mut registers = lock(&self.registers);
        if value == 0 {
            self.reset(&mut registers);
            return;
        }
        let new = |bit| value & bit != 0 && self.signals.status() & bit == 0;
        if new(VIRTIO_CONFIG_S_FAILED) {
            self.signals.add_status(VIRTIO_CONFIG_S_FAILED);
            // The driver has given up: there is nobody left to work for.
            lock(&self.device).reset();
        }
        if new(VIRTIO_CONFIG_S_ACKNOWLEDGE) && self.phase() == Phase::Found {
            self.signals.add_status(VIRTIO_CONFIG_S_ACKNOWLEDGE);
        }
        if new(VIRTIO_CONFIG_S_DRIVER) && self.phase() == Phase::Acknowledged {
            self.signals.add_status(VIRTIO_CONFIG_S_DRIVER);
        }
        if new(VIRTIO_CONFIG_S_FEATURES_OK)
            && self.phase() == Phase::Features
            && registers.features_ok(self.offered)
        {
            self.signals.add_status(VIRTIO_CONFIG_S_FEATURES_OK);
        }
        if new(VIRTIO_CONFIG_S_DRIVER_OK) && self.phase() == Phase::Queues {
            self.signals.add_status(VIRTIO_CONFIG_S_DRIVER_OK);
            self.activate(&registers);
        }
    }

    fn activate(&self, registers: &Registers) {
        let queues = match registers.queues(&self.memory) {
            Ok(queues) => queues,
            Err(error) => {
                tracing::warn!(device_type = self.device_type, %error, "the driver set up an invalid queue");
                self.signals.needs_reset();
                return;
            }
        };
        let activation = Activation {
            memory: Arc::clone(&self.memory),
            dma: Arc::clone(&self.dma),
            queues,
            notifiers: Arc::clone(&self.notifiers),
            features: registers.driver_features(),
            interrupt: Arc::clone(&self.signals) as Arc<dyn VirtioInterrupt>,
        };
        if let Err(error) = lock(&self.device).activate(activation) {
            tracing::error!(
                device_type = self.device_type,
                error = &error as &dyn std::error::Error,
                "a virtio device cannot start"
            );
            self.signals.needs_reset();
        }
    }

    fn reset(&self, registers: &mut Registers) {
        lock(&self.device).reset();
        registers.reset();
        self.signals.reset();
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

impl<D: VirtioDevice> BusDevice for MmioTransport<D> {
    /// Control registers are read 32 bits at a time (4.2.2.2); any other access to them reads as zero.
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(offset) = offset.checked_sub(CONFIG) {
            if matches!(data.len(), 1 | 2 | 4 | 8) {
                lock(&self.device).read_config(offset, data);
            }
        } else if offset.is_multiple_of(4)
            && let Ok(data) = <&mut [u8; 4]>::try_from(data)
        {
            *data = self.read_register(offset).to_le_bytes();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(CONFIG) {
            if matches!(data.len(), 1 | 2 | 4 | 8) {
                lock(&self.device).write_config(offset, data);
            }
        } else if offset.is_multiple_of(4)
            && let Ok(data) = <[u8; 4]>::try_from(data)
        {
            self.write_register(offset, u32::from_le_bytes(data));
        }
    }
}
