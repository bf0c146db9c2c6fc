//! The MMIO transport (VIRTIO 1.2, section 4.2): version 2, without the legacy interface. It maps registers to what all
//! transports share.

#[cfg(test)]
pub(crate) mod tests;

use std::io;
use std::sync::{Arc, Mutex};

use virtio_bindings::virtio_mmio as reg;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::events::DeviceEvents;
use super::transport::{CONFIG, LENGTH, Lines, QueueField, RegisterPage, RegisterPages, Transport};
use super::{Meter, VirtioDevice};
use crate::suspend::{Section, Suspend, SuspendError};
use crate::{BusDevice, Interrupt};

/// The length in bytes of a device's region: the registers and room for its config space.
pub const MMIO_LENGTH: u64 = LENGTH as u64;
/// Offset of QueueNotify. The vmm has KVM turn a 32-bit write of a queue's index to it into a write to that
/// queue's notifier (ioeventfd with a data match).
pub const QUEUE_NOTIFY: u64 = 0x50;
/// Offset of InterruptACK. Where the guest reads the registers itself, the interrupt status always says used buffers
/// and nothing has to be cleared when they are acknowledged, [`ACKNOWLEDGE_USED`]: the vmm may have KVM turn that write
/// into a write to an eventfd that is never read. A write of any other value has to reach the transport.
pub const INTERRUPT_ACK: u64 = 0x64;
/// What a driver writes to InterruptACK that was interrupted for used buffers.
pub const ACKNOWLEDGE_USED: u32 = reg::VIRTIO_MMIO_INT_VRING;

/// "virt" (4.2.2).
const MAGIC: u32 = 0x7472_6976;
/// Version of the register layout (4.2.2): not the legacy one.
const VERSION: u32 = 2;
/// "MVM\0".
const VENDOR: u32 = u32::from_le_bytes(*b"MVM\0");
/// A shared memory region that does not exist has a length of -1 (4.2.2).
const NO_REGION: u32 = u32::MAX;

/// A virtio device as the guest finds it at an address.
pub struct MmioTransport<D: VirtioDevice>(Transport<D>);

impl<D: VirtioDevice> MmioTransport<D> {
    /// Puts `device` behind registers. Its queues lie in `memory`, its interrupts go to `line`.
    ///
    /// # Errors
    ///
    /// The process has no descriptor or no memory left.
    pub fn new(device: D, memory: Arc<GuestMemoryMmap>, line: Arc<dyn Interrupt>) -> io::Result<Self> {
        let page = RegisterPages::new(1).map_err(io::Error::other)?.page(0);
        let page = page.ok_or(io::ErrorKind::OutOfMemory)?;
        Self::with_page(device, memory, line, page)
    }

    /// The same, with registers that are read from `page`.
    ///
    /// # Errors
    ///
    /// The process has no descriptor left.
    pub fn with_page(
        device: D,
        memory: Arc<GuestMemoryMmap>,
        line: Arc<dyn Interrupt>,
        page: RegisterPage,
    ) -> io::Result<Self> {
        page.set::<{ reg::VIRTIO_MMIO_MAGIC_VALUE }>(MAGIC);
        page.set::<{ reg::VIRTIO_MMIO_VERSION }>(VERSION);
        page.set::<{ reg::VIRTIO_MMIO_DEVICE_ID }>(device.device_type());
        page.set::<{ reg::VIRTIO_MMIO_VENDOR_ID }>(VENDOR);
        page.set::<{ reg::VIRTIO_MMIO_SHM_LEN_LOW }>(NO_REGION);
        page.set::<{ reg::VIRTIO_MMIO_SHM_LEN_HIGH }>(NO_REGION);
        page.set::<{ reg::VIRTIO_MMIO_SHM_BASE_LOW }>(NO_REGION);
        page.set::<{ reg::VIRTIO_MMIO_SHM_BASE_HIGH }>(NO_REGION);
        Ok(Self(Transport::new(device, memory, Lines::shared(line), page)?))
    }

    /// Lets the data of requests lie in `dma` too, which is `memory` and more (see
    /// [`Activation::dma`](super::Activation::dma)).
    #[must_use]
    pub fn with_dma(self, dma: Arc<GuestMemoryMmap>) -> Self {
        Self(self.0.with_dma(dma))
    }

    /// Names the device in log lines.
    #[must_use]
    pub fn with_name(self, name: String) -> Self {
        Self(self.0.with_name(name))
    }

    /// The device.
    pub fn device(&self) -> &Arc<Mutex<D>> {
        self.0.device()
    }

    /// An eventfd for each queue, in the order of their indices; a write to it notifies the queue.
    pub fn queue_notifiers(&self) -> &[EventFd] {
        self.0.queue_notifiers()
    }

    /// What brings notifications and the device's own descriptors to the device, for the event loop.
    pub fn events(&self) -> DeviceEvents<D> {
        self.0.events()
    }

    /// What turns of the device's queues have cost so far.
    pub fn meter(&self) -> &Meter {
        self.0.meter()
    }

    fn write_register(&self, offset: u64, value: u32) {
        let Ok(register) = u32::try_from(offset) else { return };
        match register {
            reg::VIRTIO_MMIO_QUEUE_NOTIFY => self.0.notify(value),
            reg::VIRTIO_MMIO_INTERRUPT_ACK => self.0.acknowledge(value),
            reg::VIRTIO_MMIO_STATUS => self.0.write_status(value),
            reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.0.select_device_features(value),
            reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.0.select_driver_features(value),
            reg::VIRTIO_MMIO_QUEUE_SEL => self.0.select_queue(value),
            reg::VIRTIO_MMIO_DRIVER_FEATURES => self.0.set_driver_features(value),
            _ => {
                if let Some(field) = queue_field(register) {
                    self.0.set_queue(field, value);
                }
            }
        }
    }
}

/// What of the selected queue a register sets.
fn queue_field(register: u32) -> Option<QueueField> {
    Some(match register {
        reg::VIRTIO_MMIO_QUEUE_NUM => QueueField::Size,
        reg::VIRTIO_MMIO_QUEUE_READY => QueueField::Ready,
        reg::VIRTIO_MMIO_QUEUE_DESC_LOW => QueueField::DescriptorTableLow,
        reg::VIRTIO_MMIO_QUEUE_DESC_HIGH => QueueField::DescriptorTableHigh,
        reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW => QueueField::AvailableRingLow,
        reg::VIRTIO_MMIO_QUEUE_AVAIL_HIGH => QueueField::AvailableRingHigh,
        reg::VIRTIO_MMIO_QUEUE_USED_LOW => QueueField::UsedRingLow,
        reg::VIRTIO_MMIO_QUEUE_USED_HIGH => QueueField::UsedRingHigh,
        _ => return None,
    })
}

impl<D: VirtioDevice> Suspend for MmioTransport<D> {
    fn suspend(&self) -> Result<(), SuspendError> {
        self.0.suspend()
    }

    fn save(&self) -> Result<Section, SuspendError> {
        self.0.save()
    }

    fn restore(&self, section: &Section) -> Result<(), SuspendError> {
        self.0.restore(section)
    }

    fn resume(&self) -> Result<(), SuspendError> {
        self.0.resume()
    }

    fn end(&self) {
        self.0.end();
    }
}

impl<D: VirtioDevice> BusDevice for MmioTransport<D> {
    /// Control registers are read 32 bits at a time (4.2.2.2); any other access to them reads as zero. Where the guest
    /// reads the page itself, this is not called.
    fn read(&self, offset: u64, data: &mut [u8]) {
        let is_valid = if offset >= CONFIG as u64 {
            matches!(data.len(), 1 | 2 | 4 | 8)
        } else {
            data.len() == 4 && offset.is_multiple_of(4)
        };
        if !is_valid {
            data.fill(0);
            return;
        }
        if offset == u64::from(reg::VIRTIO_MMIO_CONFIG_GENERATION) {
            self.0.wait_for_config();
        }
        self.0.page().read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(CONFIG as u64) {
            if matches!(data.len(), 1 | 2 | 4 | 8) {
                self.0.write_config(offset, data);
            }
        } else if offset.is_multiple_of(4)
            && let Ok(data) = <[u8; 4]>::try_from(data)
        {
            self.write_register(offset, u32::from_le_bytes(data));
        }
    }
}
