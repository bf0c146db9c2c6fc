//! What driver and device negotiate: plain data, without the device and its resources.

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Error, Queue as Rings, QueueT};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use crate::virtio::queue::Queue;

/// What of a queue the driver sets up (4.2.2, 4.1.4.3), 32 bits at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::virtio) enum QueueField {
    /// The number of descriptors.
    Size,
    /// Bit 0: whether the device may use the queue.
    Ready,
    DescriptorTableLow,
    DescriptorTableHigh,
    /// The driver area.
    AvailableRingLow,
    AvailableRingHigh,
    /// The device area.
    UsedRingLow,
    UsedRingHigh,
}

/// The registers of one queue, as the driver wrote them (4.2.2).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct QueueRegisters {
    max_size: u16,
    size: u32,
    ready: bool,
    descriptor_table: u64,
    available_ring: u64,
    used_ring: u64,
}

impl QueueRegisters {
    fn new(max_size: u16) -> Self {
        Self { max_size, size: u32::from(max_size), ..Self::default() }
    }

    fn write(&mut self, field: QueueField, value: u32) {
        if field == QueueField::Ready {
            self.ready = value & 1 != 0;
            return;
        }
        // 4.2.2.2: the driver may not change a queue that is ready.
        if self.ready {
            return;
        }
        match field {
            QueueField::Ready => {}
            QueueField::Size => self.size = value,
            QueueField::DescriptorTableLow => set_low(&mut self.descriptor_table, value),
            QueueField::DescriptorTableHigh => set_high(&mut self.descriptor_table, value),
            QueueField::AvailableRingLow => set_low(&mut self.available_ring, value),
            QueueField::AvailableRingHigh => set_high(&mut self.available_ring, value),
            QueueField::UsedRingLow => set_low(&mut self.used_ring, value),
            QueueField::UsedRingHigh => set_high(&mut self.used_ring, value),
        }
    }

    /// Makes the queue that the registers describe; `None` where the driver left it disabled.
    fn to_queue(&self, memory: &GuestMemoryMmap, event_idx: bool) -> Result<Option<Queue>, Error> {
        if !self.ready {
            return Ok(None);
        }
        let mut rings = Rings::new(self.max_size)?;
        rings.try_set_size(u16::try_from(self.size).map_err(|_| Error::InvalidSize)?)?;
        rings.try_set_desc_table_address(GuestAddress(self.descriptor_table))?;
        rings.try_set_avail_ring_address(GuestAddress(self.available_ring))?;
        rings.try_set_used_ring_address(GuestAddress(self.used_ring))?;
        rings.set_event_idx(event_idx);
        rings.set_ready(true);
        // `is_valid` does not check whether the available ring was set.
        if self.available_ring == 0 || !rings.is_valid(memory) {
            return Err(Error::QueueNotReady);
        }
        Ok(Some(Queue::new(rings)))
    }
}

fn set_low(address: &mut u64, value: u32) {
    *address = (*address & !0xffff_ffff) | u64::from(value);
}

fn set_high(address: &mut u64, value: u32) {
    *address = (*address & 0xffff_ffff) | (u64::from(value) << 32);
}

/// The half of `features` that a select register chose; there are only two.
fn half(features: u64, select: u32) -> u32 {
    let [a, b, c, d, e, f, g, h] = features.to_le_bytes();
    match select {
        0 => u32::from_le_bytes([a, b, c, d]),
        1 => u32::from_le_bytes([e, f, g, h]),
        _ => 0,
    }
}

/// The registers by which the driver sets a device up (4.2.2). What changes while the device works is in
/// [`Signals`](super::signals::Signals).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Registers {
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    queue_select: u32,
    queues: Vec<QueueRegisters>,
}

impl Registers {
    pub(super) fn new(queue_sizes: &[u16]) -> Self {
        Self {
            device_features_select: 0,
            driver_features_select: 0,
            driver_features: 0,
            queue_select: 0,
            queues: queue_sizes.iter().map(|&size| QueueRegisters::new(size)).collect(),
        }
    }

    pub(super) fn reset(&mut self) {
        let sizes: Vec<u16> = self.queues.iter().map(|queue| queue.max_size).collect();
        *self = Self::new(&sizes);
    }

    pub(super) fn select_device_features(&mut self, select: u32) {
        self.device_features_select = select;
    }

    pub(super) fn select_driver_features(&mut self, select: u32) {
        self.driver_features_select = select;
    }

    pub(super) fn select_queue(&mut self, index: u32) {
        self.queue_select = index;
    }

    pub(super) fn device_features(&self, offered: u64) -> u32 {
        half(offered, self.device_features_select)
    }

    pub(super) fn set_driver_features(&mut self, value: u32) {
        match self.driver_features_select {
            0 => set_low(&mut self.driver_features, value),
            1 => set_high(&mut self.driver_features, value),
            _ => {}
        }
    }

    pub(super) fn driver_features(&self) -> u64 {
        self.driver_features
    }

    /// 3.1.1, step 5: the driver may accept only what was offered, and a modern device needs VERSION_1.
    pub(super) fn features_ok(&self, offered: u64) -> bool {
        self.driver_features & !offered == 0 && self.driver_features & (1 << VIRTIO_F_VERSION_1) != 0
    }

    fn selected(&self) -> Option<&QueueRegisters> {
        self.queues.get(usize::try_from(self.queue_select).ok()?)
    }

    /// The largest size of the selected queue; 0 where there is none.
    pub(super) fn queue_size_max(&self) -> u32 {
        self.selected().map_or(0, |queue| u32::from(queue.max_size))
    }

    pub(super) fn queue_ready(&self) -> u32 {
        self.selected().map_or(0, |queue| u32::from(queue.ready))
    }

    /// Takes a write to one of the selected queue's registers.
    pub(super) fn write_queue(&mut self, field: QueueField, value: u32) {
        let Ok(index) = usize::try_from(self.queue_select) else { return };
        if let Some(queue) = self.queues.get_mut(index) {
            queue.write(field, value);
        }
    }

    /// Whether these are registers of a device that offers `offered` and has queues as `self` has them: what was saved
    /// is not to be trusted more than a driver is.
    pub(super) fn accept(&self, other: &Self, offered: u64) -> bool {
        let sizes =
            |registers: &Self| registers.queues.iter().map(|queue| queue.max_size).collect::<Vec<_>>();
        sizes(self) == sizes(other) && other.driver_features & !offered == 0
    }

    /// Makes the queues that the driver described; the error is that of the first that breaks a rule.
    pub(super) fn queues(&self, memory: &GuestMemoryMmap) -> Result<Vec<Option<Queue>>, Error> {
        let event_idx = self.driver_features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
        self.queues.iter().map(|queue| queue.to_queue(memory, event_idx)).collect()
    }
}
