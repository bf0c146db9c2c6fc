//! Pages that a guest is about to use, in the tables by which its processor finds them.

use std::os::fd::AsRawFd;

use kvm_bindings::{KVMIO, kvm_pre_fault_memory};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::ioctl::ioctl_with_mut_ref;
use vmm_sys_util::ioctl_iowr_nr;

use crate::snapshot::Touched;

ioctl_iowr_nr!(KVM_PRE_FAULT_MEMORY, KVMIO, 0xd5, kvm_pre_fault_memory);

/// Has KVM's tables have the pages of `memory` that are `touched`: otherwise the guest leaves its processor for each of
/// them (`KVM_PRE_FAULT_MEMORY` of the KVM API, Linux 6.12; older kernels do without). The regions of `memory` lie
/// behind each other in the file that `touched` is about.
///
/// Nothing depends on it.
pub fn prefault(vcpu: &impl AsRawFd, memory: &GuestMemoryMmap, touched: &[Touched]) {
    for (GuestAddress(gpa), size) in touched.iter().flat_map(|run| ranges(memory, run)) {
        let mut range = kvm_pre_fault_memory { gpa, size, ..kvm_pre_fault_memory::default() };
        while range.size > 0 {
            let before = range.size;
            // SAFETY: the kernel reads and writes the structure, which lives until the call returns.
            let result = unsafe { ioctl_with_mut_ref(vcpu, KVM_PRE_FAULT_MEMORY(), &mut range) };
            // A signal may cut it short, and then the rest is in the structure.
            if result < 0 || range.size >= before {
                return;
            }
        }
    }
}

/// Where `run` is for the guest: the part of it in each region.
fn ranges(memory: &GuestMemoryMmap, run: &Touched) -> impl Iterator<Item = (GuestAddress, u64)> {
    let (from, to) = (run.place, run.place.saturating_add(run.bytes));
    memory
        .iter()
        .scan(0_u64, |next, region| {
            let start = *next;
            *next = start.saturating_add(region.len());
            Some((start, *next, region.start_addr()))
        })
        .filter_map(move |(start, end, address)| {
            let (first, last) = (from.max(start), to.min(end));
            (first < last).then(|| (GuestAddress(address.0 + (first - start)), last - first))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_touched_is_found_in_the_regions() {
        const MIB: u64 = 1 << 20;
        let regions = [(GuestAddress(0), 4 << 20), (GuestAddress(4 << 30), 2 << 20)];
        let memory = GuestMemoryMmap::from_ranges(&regions).unwrap();
        let found = |place, bytes| {
            let run = Touched { place, bytes, is_written: true };
            ranges(&memory, &run).map(|(address, size)| (address.0, size)).collect::<Vec<_>>()
        };
        assert_eq!(found(MIB, 4096), [(MIB, 4096)]);
        assert_eq!(found(3 * MIB, 2 * MIB), [(3 * MIB, MIB), (4 << 30, MIB)]);
        assert_eq!(found(5 * MIB, u64::MAX), [((4 << 30) + MIB, MIB)]);
        assert_eq!(found(6 * MIB, MIB), []);
    }
}
