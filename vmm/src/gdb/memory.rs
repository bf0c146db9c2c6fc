//! From the addresses that a vCPU uses to those of guest memory.

use crate::vcpu::{Gate, GateError};

const PAGE: u64 = 4096;

/// The physical address behind a linear one, by the vCPU's own page tables and mode; `None` where it has none.
///
/// KVM walks the tables, which are the guest's and may hold anything, with the bounds of the processor's own walk.
pub(super) fn physical(gate: &Gate, vcpu: usize, linear: u64) -> Result<Option<u64>, GateError> {
    let translation = gate.with_vcpu(vcpu, move |fd| fd.translate_gva(linear))?;
    let valid = translation.ok().filter(|translation| translation.valid != 0);
    Ok(valid.map(|translation| translation.physical_address))
}

/// Cuts a range into pieces, none of which crosses the end of a page: offset, address and length of each. It ends
/// with the last address there is.
pub(super) fn pages(start: u64, length: usize) -> impl Iterator<Item = (usize, u64, usize)> {
    let mut offset = 0;
    std::iter::from_fn(move || {
        let address = start.checked_add(offset as u64)?;
        // At most a page, so that it fits.
        let to_end = usize::try_from(PAGE - address % PAGE).unwrap_or(usize::MAX);
        let piece = to_end.min(length - offset);
        let item = (offset, address, piece);
        offset += piece;
        (piece > 0).then_some(item)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_piece_crosses_a_page() {
        let all = |start, length| pages(start, length).collect::<Vec<_>>();
        assert_eq!(all(0xff0, 0x20), [(0, 0xff0, 0x10), (0x10, 0x1000, 0x10)]);
        assert_eq!(all(0x1000, 0x1001), [(0, 0x1000, 0x1000), (0x1000, 0x2000, 1)]);
        assert_eq!(all(5, 0), []);
        assert_eq!(all(u64::MAX, 2), [(0, u64::MAX, 1)]);
    }
}
