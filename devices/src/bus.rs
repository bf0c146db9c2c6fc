//! An address space with devices in it: the ports, or the physical addresses outside RAM.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use thiserror::Error;

/// A device that the guest reads and writes.
///
/// All calls come from vCPU threads, several at a time. `offset` is relative to the device's base; the bus
/// keeps it below the device's length, but `offset + data.len()` may lie past the end.
pub trait BusDevice: Send + Sync {
    /// Fills `data` with what the guest reads at `offset`. What is left alone reads as all ones.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Takes `data`, which the guest writes at `offset`.
    fn write(&self, offset: u64, data: &[u8]);
}

/// Why a device could not be put on a bus.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BusError {
    /// The range is empty or passes the end of the address space.
    #[error("the range of {length:#x} bytes at {base:#x} is empty or passes the end of the address space")]
    Range {
        /// First address.
        base: u64,
        /// Length in bytes.
        length: u64,
    },
    /// Another device has an address of the range.
    #[error("the range of {length:#x} bytes at {base:#x} overlaps another device")]
    Overlap {
        /// First address.
        base: u64,
        /// Length in bytes.
        length: u64,
    },
}

struct Entry {
    length: u64,
    device: Arc<dyn BusDevice>,
}

/// Devices by address. It is built once, before the first vCPU runs, and read without a lock from then on.
#[derive(Default)]
pub struct Bus {
    entries: BTreeMap<u64, Entry>,
}

impl Bus {
    /// Puts `device` at `base`, for `length` bytes.
    ///
    /// # Errors
    ///
    /// [`BusError`] where the range is empty, wraps, or overlaps another device's.
    pub fn insert(&mut self, base: u64, length: u64, device: Arc<dyn BusDevice>) -> Result<(), BusError> {
        let end = match base.checked_add(length) {
            Some(end) if length > 0 => end,
            _ => return Err(BusError::Range { base, length }),
        };
        if self.entries.range(base..end).next().is_some() || self.find(base).is_some() {
            return Err(BusError::Overlap { base, length });
        }
        self.entries.insert(base, Entry { length, device });
        Ok(())
    }

    fn find(&self, address: u64) -> Option<(u64, &dyn BusDevice)> {
        let (base, entry) = self.entries.range((Bound::Unbounded, Bound::Included(address))).next_back()?;
        let offset = address - base;
        (offset < entry.length).then_some((offset, &*entry.device))
    }

    /// Reads from the device at `address`. Where there is none, all bits read as ones, as on a real bus.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((offset, device)) = self.find(address) {
            device.read(offset, data);
        }
    }

    /// Writes to the device at `address`; where there is none, nothing happens.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((offset, device)) = self.find(address) {
            device.write(offset, data);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Default)]
    struct Recorder(Mutex<Vec<(u64, Vec<u8>)>>);

    impl BusDevice for Recorder {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(u8::try_from(offset).unwrap());
        }
        fn write(&self, offset: u64, data: &[u8]) {
            self.0.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    fn read(bus: &Bus, address: u64) -> u8 {
        let mut data = [0];
        bus.read(address, &mut data);
        data[0]
    }

    #[test]
    fn an_access_reaches_the_device_that_has_the_address() {
        let device = Arc::new(Recorder::default());
        let mut bus = Bus::default();
        bus.insert(0x10, 4, device.clone()).unwrap();
        assert_eq!(read(&bus, 0x10), 0);
        assert_eq!(read(&bus, 0x13), 3);
        bus.write(0x12, &[7, 8]);
        assert_eq!(*device.0.lock().unwrap(), [(2, vec![7, 8])]);
    }

    #[test]
    fn an_address_without_a_device_reads_as_ones_and_swallows_writes() {
        let mut bus = Bus::default();
        bus.insert(0x10, 4, Arc::new(Recorder::default())).unwrap();
        for address in [0, 0xf, 0x14, u64::MAX] {
            assert_eq!(read(&bus, address), 0xff);
            bus.write(address, &[0]);
        }
    }

    #[test]
    fn ranges_may_touch_but_not_overlap_wrap_or_be_empty() {
        let mut bus = Bus::default();
        let mut insert = |base, length| bus.insert(base, length, Arc::new(Recorder::default()));
        insert(0x10, 4).unwrap();
        insert(0x14, 4).unwrap();
        insert(0x0c, 4).unwrap();
        for (base, length) in [(0x10, 4), (0x11, 1), (0x0, 0x100), (0x17, 8)] {
            assert_eq!(insert(base, length), Err(BusError::Overlap { base, length }));
        }
        for (base, length) in [(0x20, 0), (u64::MAX, 2)] {
            assert_eq!(insert(base, length), Err(BusError::Range { base, length }));
        }
    }
}
