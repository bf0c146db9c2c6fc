//! Software breakpoints: INT3 in the guest's memory in place of an instruction's first byte.
//!
//! A read of memory through the debugger returns what the guest has there, and a write does not overwrite the
//! INT3. The guest itself sees it; a kernel that checks its own code may notice.

use std::collections::BTreeMap;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// The instruction.
const INT3: u8 = 0xcc;
/// A debugger wants few; this bounds what a client makes mvm keep.
const MOST: usize = 4096;

/// What stands behind each INT3, by its guest physical address.
#[derive(Default)]
pub(super) struct Breakpoints {
    inserted: BTreeMap<u64, u8>,
}

impl Breakpoints {
    /// Puts an INT3 to the physical `address`; false where there is no memory, or there are too many.
    pub(super) fn add(&mut self, memory: &GuestMemoryMmap, address: u64) -> bool {
        if self.inserted.contains_key(&address) {
            return true;
        }
        let Ok(original) = memory.read_obj::<u8>(GuestAddress(address)) else { return false };
        if self.inserted.len() >= MOST || memory.write_obj(INT3, GuestAddress(address)).is_err() {
            return false;
        }
        self.inserted.insert(address, original);
        true
    }

    /// Puts back what was there; false where there was no breakpoint.
    pub(super) fn remove(&mut self, memory: &GuestMemoryMmap, address: u64) -> bool {
        let Some(original) = self.inserted.remove(&address) else { return false };
        // Where the guest has written over it since, that is what is there now.
        let unchanged = memory.read_obj::<u8>(GuestAddress(address)).is_ok_and(|byte| byte == INT3);
        !unchanged || memory.write_obj(original, GuestAddress(address)).is_ok()
    }

    /// Puts all back.
    pub(super) fn clear(&mut self, memory: &GuestMemoryMmap) {
        while let Some((address, _)) = self.inserted.first_key_value() {
            let address = *address;
            self.remove(memory, address);
        }
    }

    /// Whether the INT3 at the physical `address` is a breakpoint, and not the guest's own.
    pub(super) fn contains(&self, address: u64) -> bool {
        self.inserted.contains_key(&address)
    }

    /// Reads the memory at the physical `address` as it is without breakpoints; false where there is none.
    pub(super) fn read(&self, memory: &GuestMemoryMmap, address: u64, data: &mut [u8]) -> bool {
        if memory.read_slice(data, GuestAddress(address)).is_err() {
            return false;
        }
        for (offset, original) in self.within(address, data.len()) {
            if let Some(byte) = data.get_mut(offset).filter(|byte| **byte == INT3) {
                *byte = original;
            }
        }
        true
    }

    /// Writes to the memory at the physical `address`, below the breakpoints there; false where there is none.
    pub(super) fn write(&mut self, memory: &GuestMemoryMmap, address: u64, data: &[u8]) -> bool {
        let mut bytes = data.to_vec();
        let within: Vec<_> = self.within(address, data.len()).collect();
        for (offset, _) in &within {
            if let Some(byte) = bytes.get_mut(*offset) {
                *byte = INT3;
            }
        }
        if memory.write_slice(&bytes, GuestAddress(address)).is_err() {
            return false;
        }
        for (offset, _) in within {
            if let Some(byte) = data.get(offset) {
                self.inserted.insert(address + offset as u64, *byte);
            }
        }
        true
    }

    /// Offsets and original bytes of the breakpoints in a range, which has been found in memory or will be.
    fn within(&self, address: u64, length: usize) -> impl Iterator<Item = (usize, u8)> {
        let end = address.saturating_add(length as u64);
        let range = self.inserted.range(address..end.max(address));
        range.filter_map(move |(at, byte)| Some((usize::try_from(at - address).ok()?, *byte)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> GuestMemoryMmap {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x2000)]).unwrap();
        memory.write_slice(&[1, 2, 3, 4], GuestAddress(0x100)).unwrap();
        memory
    }

    fn raw(memory: &GuestMemoryMmap) -> [u8; 4] {
        let mut bytes = [0; 4];
        memory.read_slice(&mut bytes, GuestAddress(0x100)).unwrap();
        bytes
    }

    #[test]
    fn breakpoints_are_seen_by_the_guest_and_not_by_the_debugger() {
        let (memory, mut breakpoints) = (memory(), Breakpoints::default());
        for _ in 0..2 {
            assert!(breakpoints.add(&memory, 0x101));
        }
        assert_eq!(raw(&memory), [1, INT3, 3, 4]);
        let mut seen = [0; 4];
        assert!(breakpoints.read(&memory, 0x100, &mut seen));
        assert_eq!(seen, [1, 2, 3, 4]);
        assert!(breakpoints.write(&memory, 0x100, &[5, 6, 7, 8]));
        assert_eq!(raw(&memory), [5, INT3, 7, 8]);
        assert!(breakpoints.remove(&memory, 0x101) && !breakpoints.remove(&memory, 0x101));
        assert_eq!(raw(&memory), [5, 6, 7, 8]);
    }

    #[test]
    fn what_the_guest_wrote_over_a_breakpoint_stays() {
        let (memory, mut breakpoints) = (memory(), Breakpoints::default());
        assert!(breakpoints.add(&memory, 0x100) && breakpoints.add(&memory, 0x102));
        memory.write_obj(9_u8, GuestAddress(0x100)).unwrap();
        breakpoints.clear(&memory);
        assert_eq!(raw(&memory), [9, 2, 3, 4]);
    }

    #[test]
    fn there_is_none_where_there_is_no_memory() {
        let (memory, mut breakpoints) = (memory(), Breakpoints::default());
        for address in [0x2000, u64::MAX] {
            assert!(!breakpoints.add(&memory, address));
            assert!(!breakpoints.read(&memory, address, &mut [0; 4]));
            assert!(!breakpoints.write(&memory, address, &[0; 4]));
        }
        assert!(!breakpoints.write(&memory, 0x1ffe, &[0; 4]));
    }
}
