//! The guest's physical address map.
//!
//! | from | to | what |
//! | --- | --- | --- |
//! | 0 | 0x9_fc00 | RAM; the boot structures below lie in it and are free once the kernel has read them |
//! | 0xe_0000 | 0xf_d000 | ACPI tables |
//! | 0xf_d000 | 0xf_f000 | tables of the MultiProcessor Specification |
//! | 0xf_f000 | 0x10_0000 | the page of the reset vector and of the generation ID, see [`RESET_VECTOR`] |
//! | 0x10_0000 | up to 0xc000_0000 | RAM: kernel, initrd at its top |
//! | 0xd000_0000 | 0xd010_0000 | virtio-mmio devices, a page each |
//! | 0xfec0_0000 | 0xfec0_1000 | I/O APIC |
//! | 0xfee0_0000 | 0xfee0_1000 | local APIC |
//! | 0xfffb_c000 | 0xffff_f000 | KVM's own pages for processors without unrestricted guests |
//! | 0x1_0000_0000 | | RAM beyond 3 GiB |
//! | the next multiple of 1 GiB | | persistent memory, each file at a multiple of 1 GiB |

use devices::virtio::mmio::MMIO_LENGTH;
use vm_memory::GuestAddress;

/// The segment descriptors of the boot.
pub const GDT: GuestAddress = GuestAddress(0x500);
/// `hvm_start_info` of the PVH boot protocol, then its module list and memory map.
pub const PVH_START_INFO: GuestAddress = GuestAddress(0x6000);
/// `hvm_modlist_entry` of the initrd.
pub const PVH_MODULES: GuestAddress = GuestAddress(0x6040);
/// `hvm_memmap_table_entry` array.
pub const PVH_MEMORY_MAP: GuestAddress = GuestAddress(0x6100);
/// `boot_params` of the Linux boot protocol, the zero page.
pub const ZERO_PAGE: GuestAddress = GuestAddress(0x7000);
/// The top of the stack that the 64-bit entry gets.
pub const BOOT_STACK: u64 = 0x8ff0;
/// PML4, one PDPT and one page directory that map the first GiB onto itself.
pub const PAGE_TABLES: GuestAddress = GuestAddress(0x9000);
/// The kernel's arguments.
pub const CMDLINE: GuestAddress = GuestAddress(0x2_0000);
/// The most bytes that x86 Linux takes as its arguments, with the terminating zero (COMMAND_LINE_SIZE).
pub const CMDLINE_CAPACITY: usize = 2048;

/// `address` as the 32 bits that a boot structure has for it. Where it has more, a constant made of it is an error of
/// the compiler's.
#[allow(clippy::cast_possible_truncation, reason = "checked")]
pub(super) const fn in_32_bits(address: GuestAddress) -> u32 {
    assert!(address.0 <= u32::MAX as u64);
    address.0 as u32
}

/// The end of the RAM below the ISA hole; above it a PC has its extended BIOS data.
pub const LOW_RAM_END: u64 = 0x9_fc00;
/// The RSDP and all tables behind it.
pub const ACPI_TABLES: GuestAddress = GuestAddress(0xe_0000);
/// The end of the ACPI tables.
pub const ACPI_TABLES_END: GuestAddress = GuestAddress(0xf_d000);
/// The MP floating pointer structure, in the range in which kernels look for it, and the table behind it.
pub const MP_TABLE: GuestAddress = GuestAddress(0xf_d000);
/// The end of the MP table: the page of the reset vector.
pub const RESET_PAGE: GuestAddress = GuestAddress(0xf_f000);
/// The VM generation ID, 16 bytes: in memory that is neither RAM nor that of ACPI tables to the guest, which keeps it.
pub const GENERATION_ID: GuestAddress = RESET_PAGE;
/// F000:FFF0, where a PC's firmware has its entry point. A kernel that finds no EFI reset service jumps there in real
/// mode to reboot (Linux: `reboot=bios`, the last resort of kernels with `CONFIG_EFI` on hardware-reduced ACPI).
pub const RESET_VECTOR: GuestAddress = GuestAddress(0xf_fff0);
/// The end of the ISA hole.
pub const HIGH_RAM_START: GuestAddress = GuestAddress(0x10_0000);

/// RAM ends here and goes on at [`ABOVE_4G`].
pub const MMIO_HOLE: u64 = 0xc000_0000;
/// RAM beyond the hole.
pub const ABOVE_4G: GuestAddress = GuestAddress(1 << 32);

/// Persistent memory begins at multiples of this: then it shares no memory section of Linux (128 MiB) with RAM or with
/// other persistent memory, and Linux maps it with pages as large as there are.
const PMEM_ALIGNMENT: u64 = 1 << 30;

/// The first virtio-mmio device.
pub const VIRTIO_MMIO: u64 = 0xd000_0000;

/// The I/O APIC, where KVM has it.
pub const IO_APIC: u32 = 0xfec0_0000;
/// The local APIC, where KVM has it.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// The page for identity-mapped page tables that KVM keeps for real mode on older Intel processors.
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// Three pages of task state for the same purpose.
pub const KVM_TSS: usize = 0xfffb_d000;

/// The interrupt of the generic event device, by which the power button is pressed.
pub const EVENT_DEVICE_GSI: u32 = 9;
/// Interrupts of the I/O APIC for virtio devices: what COM1 (4), the event device (9) and the timer (0 to 2, as
/// some kernels insist) leave of its 24.
pub const VIRTIO_GSIS: [u32; 18] = [5, 6, 7, 8, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23];

/// Where a virtio-mmio device is, as the guest has to know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtioPlace {
    /// First guest physical address of its registers.
    pub address: u32,
    /// Its interrupt.
    pub gsi: u32,
}

/// The place of the virtio device at `index`; `None` where there is no interrupt left.
pub fn virtio_place(index: usize) -> Option<VirtioPlace> {
    let gsi = *VIRTIO_GSIS.get(index)?;
    let offset = u64::try_from(index).ok()?.checked_mul(MMIO_LENGTH)?;
    let address = u32::try_from(VIRTIO_MMIO.checked_add(offset)?).ok()?;
    Some(VirtioPlace { address, gsi })
}

/// The regions of `size` bytes of RAM, on both sides of the MMIO hole.
pub fn ram_regions(size: u64) -> Vec<(GuestAddress, u64)> {
    let below = size.min(MMIO_HOLE);
    let mut regions = vec![(GuestAddress(0), below)];
    if size > below {
        regions.push((ABOVE_4G, size - below));
    }
    regions
}

/// The places of persistent memory of these `sizes`, behind `ram` bytes of RAM; `None` where there are not enough
/// addresses.
pub fn pmem_addresses(ram: u64, sizes: impl IntoIterator<Item = u64>) -> Option<Vec<GuestAddress>> {
    let mut free = ABOVE_4G.0.checked_add(ram.saturating_sub(MMIO_HOLE))?;
    let place = |size| {
        let start = free.checked_next_multiple_of(PMEM_ALIGNMENT)?;
        free = start.checked_add(size)?;
        Some(GuestAddress(start))
    };
    sizes.into_iter().map(place).collect()
}

/// Types of memory in the map that the guest gets, in the numbers of the E820 map, which the PVH memory map shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryKind {
    /// Usable.
    Ram = 1,
    /// Not to be touched.
    Reserved = 2,
    /// ACPI tables.
    Acpi = 3,
}

/// The memory map of a guest with `size` bytes of RAM.
pub fn memory_map(size: u64) -> Vec<(GuestAddress, u64, MemoryKind)> {
    let mut map = vec![
        (GuestAddress(0), LOW_RAM_END, MemoryKind::Ram),
        (GuestAddress(LOW_RAM_END), ACPI_TABLES.0 - LOW_RAM_END, MemoryKind::Reserved),
        (ACPI_TABLES, ACPI_TABLES_END.0 - ACPI_TABLES.0, MemoryKind::Acpi),
        // Linux may use the memory of ACPI tables for something else once it has read them.
        (ACPI_TABLES_END, HIGH_RAM_START.0 - ACPI_TABLES_END.0, MemoryKind::Reserved),
    ];
    for (start, length) in ram_regions(size) {
        let start_of_free = start.max(if start.0 == 0 { HIGH_RAM_START } else { start });
        map.push((start_of_free, start.0 + length - start_of_free.0, MemoryKind::Ram));
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(region: &(GuestAddress, u64)) -> u64 {
        region.0.0 + region.1
    }

    #[test]
    fn ram_goes_around_the_hole() {
        const GIB: u64 = 1 << 30;
        assert_eq!(ram_regions(GIB), [(GuestAddress(0), GIB)]);
        assert_eq!(ram_regions(3 * GIB), [(GuestAddress(0), 3 * GIB)]);
        let big = ram_regions(65 * GIB);
        assert_eq!(big, [(GuestAddress(0), 3 * GIB), (ABOVE_4G, 62 * GIB)]);
        assert_eq!(big.iter().map(|region| region.1).sum::<u64>(), 65 * GIB);
    }

    #[test]
    fn the_memory_map_is_sorted_and_has_no_overlap() {
        for size in [16 << 20, 3 << 30, 5 << 30, 1 << 40_u64] {
            let map = memory_map(size);
            for pair in map.windows(2) {
                assert!(end(&(pair[0].0, pair[0].1)) <= pair[1].0.0, "{pair:x?}");
            }
            assert_eq!(
                end(&(map.last().unwrap().0, map.last().unwrap().1)),
                end(ram_regions(size).last().unwrap())
            );
        }
    }

    #[test]
    fn persistent_memory_is_behind_ram_and_each_has_gibs_of_its_own() {
        const GIB: u64 = 1 << 30;
        let addresses = |ram, sizes: &[u64]| {
            let addresses = pmem_addresses(ram, sizes.iter().copied())?;
            Some(addresses.iter().map(|at| at.0 / GIB).collect::<Vec<_>>())
        };
        assert_eq!(addresses(512 << 20, &[2 << 20, GIB, GIB + 1, GIB]), Some(vec![4, 5, 6, 8]));
        assert_eq!(addresses(3 * GIB, &[GIB]), Some(vec![4]));
        assert_eq!(addresses(3 * GIB + 4096, &[GIB]), Some(vec![5]));
        assert_eq!(addresses(8 * GIB, &[GIB]), Some(vec![9]));
        assert_eq!(addresses(8 * GIB, &[]), Some(vec![]));
        assert_eq!(addresses(8 * GIB, &[u64::MAX - 10 * GIB, GIB]), None);
        assert_eq!(addresses(u64::MAX, &[GIB]), None);
    }

    #[test]
    fn boot_structures_do_not_touch() {
        let starts = [
            GDT,
            PVH_START_INFO,
            PVH_MODULES,
            PVH_MEMORY_MAP,
            ZERO_PAGE,
            GuestAddress(0x8000),
            PAGE_TABLES,
            GuestAddress(PAGE_TABLES.0 + 3 * 4096),
            CMDLINE,
            GuestAddress(CMDLINE.0 + CMDLINE_CAPACITY as u64),
        ];
        assert!(starts.is_sorted());
        assert!(starts.last().unwrap().0 <= LOW_RAM_END);
    }

    #[test]
    fn no_two_devices_share_an_interrupt() {
        let mut all = VIRTIO_GSIS.to_vec();
        all.extend([EVENT_DEVICE_GSI, devices::legacy::Serial::GSI]);
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), VIRTIO_GSIS.len() + 2);
        assert!(all.iter().all(|gsi| *gsi < 24));
    }
}
