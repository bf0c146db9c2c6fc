//! Hardware breakpoints and watchpoints: the four debug registers (Intel SDM volume 3B, 18.2).

use gdbstub::target::ext::breakpoints::WatchKind;

/// DR7: the bit that is always set, and the processor's exact detection of watchpoints.
const DR7_FIXED: u64 = 1 << 10;
const DR7_EXACT: u64 = 1 << 9;
/// DR7: enables of breakpoint 0, local and global; those of the others follow.
const DR7_ENABLE: u64 = 0b11;

/// What a breakpoint waits for, with the numbers of DR7's R/W fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    Execute = 0b00,
    Write = 0b01,
    ReadWrite = 0b11,
}

/// What the client asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// A breakpoint at a linear address.
    Execute(u64),
    /// A watchpoint: address, length in bytes, kind.
    Watch(u64, u64, WatchKind),
}

/// One of the four.
#[derive(Clone, Copy, Debug)]
struct Slot {
    address: u64,
    /// 1, 2, 4 or 8; the address is a multiple of it.
    length: u64,
    request: Request,
}

/// The debug registers, the same on all vCPUs.
#[derive(Default)]
pub(crate) struct DebugRegisters {
    slots: [Option<Slot>; 4],
}

impl DebugRegisters {
    /// Takes as many registers as `request` needs: false where there are too few. What is there already stays.
    pub(crate) fn add(&mut self, request: Request) -> bool {
        if self.has(request) {
            return true;
        }
        let Some(pieces) = pieces(request) else { return false };
        if pieces.len() > self.slots.iter().filter(|slot| slot.is_none()).count() {
            return false;
        }
        let free = self.slots.iter_mut().filter(|slot| slot.is_none());
        for (slot, (address, length)) in free.zip(pieces) {
            *slot = Some(Slot { address, length, request });
        }
        true
    }

    /// Frees the registers of `request`; false where it has none.
    pub(crate) fn remove(&mut self, request: Request) -> bool {
        let mut found = false;
        for slot in &mut self.slots {
            if slot.is_some_and(|slot| slot.request == request) {
                *slot = None;
                found = true;
            }
        }
        found
    }

    /// Whether `request` has its registers.
    pub(crate) fn has(&self, request: Request) -> bool {
        self.slots.iter().flatten().any(|slot| slot.request == request)
    }

    /// Whether any is in use.
    pub(crate) fn is_used(&self) -> bool {
        self.slots.iter().any(Option::is_some)
    }

    /// DR0 to DR7 for KVM.
    pub(crate) fn values(&self) -> [u64; 8] {
        let mut values = [0; 8];
        let mut control = DR7_FIXED | DR7_EXACT;
        for (index, (value, slot)) in values.iter_mut().zip(&self.slots).enumerate() {
            let Some(slot) = slot else { continue };
            *value = slot.address;
            let access = match slot.request {
                Request::Execute(_) => Access::Execute,
                Request::Watch(_, _, WatchKind::Write) => Access::Write,
                // There is none for reads alone.
                Request::Watch(_, _, WatchKind::Read | WatchKind::ReadWrite) => Access::ReadWrite,
            };
            let length = match slot.length {
                2 => 0b01,
                4 => 0b11,
                8 => 0b10,
                _ => 0b00,
            };
            control |= DR7_ENABLE << (2 * index) | (length << 2 | access as u64) << (16 + 4 * index);
        }
        values[7] = control;
        values
    }

    /// What was met by an exception after which DR6 is `status`: a watchpoint rather than a breakpoint, for what has
    /// been accessed is not accessed again, while what was to be executed still is.
    pub(crate) fn hit(&self, status: u64) -> Option<Request> {
        let slots = self.slots.iter().enumerate().filter(|(index, _)| status >> index & 1 == 1);
        let hits = || slots.clone().filter_map(|(_, slot)| slot.map(|slot| slot.request));
        hits().find(|request| matches!(request, Request::Watch(..))).or_else(|| hits().next())
    }
}

/// Cuts a request into what one register can watch each; `None` where there would be more than four.
fn pieces(request: Request) -> Option<Vec<(u64, u64)>> {
    let (mut address, mut left) = match request {
        Request::Execute(address) => return Some(vec![(address, 1)]),
        Request::Watch(address, length, _) => (address, length),
    };
    let mut pieces = Vec::new();
    while left > 0 {
        let length =
            [8, 4, 2, 1].into_iter().find(|length| address.is_multiple_of(*length) && *length <= left)?;
        pieces.push((address, length));
        left -= length;
        if pieces.len() > 4 {
            return None;
        }
        address = address.checked_add(length).or((left == 0).then_some(0))?;
    }
    (!pieces.is_empty()).then_some(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_breakpoint_and_a_watchpoint_look_as_the_manual_says() {
        let mut registers = DebugRegisters::default();
        assert!(!registers.is_used());
        assert!(registers.add(Request::Execute(0x1000)));
        assert!(registers.add(Request::Watch(0x2008, 8, WatchKind::Write)));
        assert!(registers.add(Request::Watch(0x3004, 4, WatchKind::ReadWrite)));
        let values = registers.values();
        assert_eq!(values[..4], [0x1000, 0x2008, 0x3004, 0]);
        assert_eq!(values[7], 0x0f90_0000 | 0x600 | 0b11_1111);
        assert_eq!(registers.hit(0b1), Some(Request::Execute(0x1000)));
        assert_eq!(registers.hit(0b11), Some(Request::Watch(0x2008, 8, WatchKind::Write)));
        assert_eq!(registers.hit(0b1000), None);
        assert_eq!(registers.hit(1 << 14), None);
    }

    #[test]
    fn there_are_four_and_they_can_be_had_again() {
        let mut registers = DebugRegisters::default();
        for address in 0..4 {
            for _ in 0..2 {
                assert!(registers.add(Request::Execute(address)));
            }
        }
        assert!(!registers.add(Request::Execute(4)));
        assert!(registers.remove(Request::Execute(2)) && !registers.remove(Request::Execute(2)));
        assert!(registers.add(Request::Execute(4)));
        assert_eq!(registers.values()[..4], [0, 1, 4, 3]);
    }

    #[test]
    fn what_is_not_aligned_takes_several() {
        let watch = |address, length| Request::Watch(address, length, WatchKind::Write);
        assert_eq!(pieces(watch(0x1003, 6)), Some(vec![(0x1003, 1), (0x1004, 4), (0x1008, 1)]));
        assert_eq!(pieces(watch(0x1000, 32)).map(|pieces| pieces.len()), Some(4));
        assert_eq!(pieces(watch(0x1000, 33)), None);
        assert_eq!(pieces(watch(0x1000, 0)), None);
        assert_eq!(pieces(watch(u64::MAX, 1)), Some(vec![(u64::MAX, 1)]));
        assert_eq!(pieces(watch(u64::MAX, 2)), None);
        assert_eq!(pieces(watch(0, u64::MAX)), None);
    }
}
