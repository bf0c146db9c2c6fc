//! The tables of the MultiProcessor Specification 1.4, for kernels that run without ACPI: the processors, the I/O APIC
//! and its interrupts. Linux looks for them with `CONFIG_X86_MPPARSE`, and takes those of ACPI where there are both.

use vm_memory::{Bytes, GuestMemoryError, GuestMemoryMmap};

use super::layout;

/// Version 1.4 of the specification.
const VERSION: u8 = 4;
/// The version of an APIC that is part of the processor, and of the I/O APIC that KVM has.
const LOCAL_APIC_VERSION: u8 = 0x14;
const IO_APIC_VERSION: u8 = 0x11;
/// The interrupts of the I/O APIC.
const INTERRUPTS: u8 = 24;
/// The one bus: interrupts that are not said to be otherwise are edge-triggered and active high (4.3.4).
const ISA: u8 = 0;

/// Entry types of the configuration table (table 4-3) and what is in them.
const PROCESSOR: u8 = 0;
const BUS: u8 = 1;
const IO_APIC: u8 = 2;
const IO_INTERRUPT: u8 = 3;
const ENABLED: u8 = 1;
const BOOT_PROCESSOR: u8 = 1 << 1;

/// Writes the tables of a machine with `cpus` vCPUs at [`layout::MP_TABLE`].
///
/// # Errors
///
/// Those of writing to guest memory.
pub fn write(memory: &GuestMemoryMmap, cpus: u8) -> Result<(), GuestMemoryError> {
    memory.write_slice(&tables(cpus), layout::MP_TABLE)
}

/// The floating pointer structure (4.1), and behind it the configuration table (4.2).
fn tables(cpus: u8) -> Vec<u8> {
    const CONFIGURATION: u32 = layout::in_32_bits(layout::MP_TABLE) + 16;
    let mut tables = Vec::from(*b"_MP_");
    tables.extend(CONFIGURATION.to_le_bytes());
    // Its length in paragraphs, the version, the checksum, and no feature.
    tables.extend([1, VERSION, 0, 0, 0, 0, 0, 0]);
    set_checksum(&mut tables, 10);
    tables.extend(configuration_table(cpus));
    tables
}

fn configuration_table(cpus: u8) -> Vec<u8> {
    // The I/O APIC has the ID behind those of the vCPUs.
    let io_apic = cpus;
    let mut entries: Vec<Vec<u8>> = (0..cpus).map(processor).collect();
    entries.push([&[BUS, ISA][..], b"ISA   "].concat());
    entries
        .push([&[IO_APIC, io_apic, IO_APIC_VERSION, ENABLED][..], &layout::IO_APIC.to_le_bytes()].concat());
    entries.extend((0..INTERRUPTS).map(|gsi| vec![IO_INTERRUPT, 0, 0, 0, ISA, gsi, io_apic, gsi]));

    // One entry for the bus and one for the I/O APIC.
    let others = 2 + u16::from(INTERRUPTS);
    let count = u16::from(cpus) + others;
    let length = HEADER + PROCESSOR_LENGTH * u16::from(cpus) + ENTRY_LENGTH * others;
    let mut table = Vec::from(*b"PCMP");
    table.extend(length.to_le_bytes());
    table.extend([VERSION, 0]);
    table.extend(b"MVM     MVM         ");
    // No table of the OEM's.
    table.extend([0; 6]);
    table.extend(count.to_le_bytes());
    table.extend(layout::LOCAL_APIC.to_le_bytes());
    table.extend([0; 4]);
    table.extend(entries.concat());
    set_checksum(&mut table, 7);
    table
}

/// Lengths of the configuration table's header, of a processor's entry, and of all other entries, in bytes.
const HEADER: u16 = 44;
const PROCESSOR_LENGTH: u16 = 20;
const ENTRY_LENGTH: u16 = 8;

fn processor(id: u8) -> Vec<u8> {
    let flags = if id == 0 { ENABLED | BOOT_PROCESSOR } else { ENABLED };
    let mut entry = vec![PROCESSOR, id, LOCAL_APIC_VERSION, flags];
    // What CPUID says better: the signature and the features.
    entry.extend([0; 16]);
    entry
}

/// Makes all bytes of `table` add up to 0 by the one at `at`, which is 0.
fn set_checksum(table: &mut [u8], at: usize) {
    let sum = table.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    if let Some(checksum) = table.get_mut(at) {
        *checksum = sum.wrapping_neg();
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    #[rstest]
    #[case(1)]
    #[case(254)]
    fn each_processor_and_interrupt_is_found(#[case] cpus: u8) {
        let tables = tables(cpus);
        assert!(tables.len() as u64 <= layout::RESET_PAGE.0 - layout::MP_TABLE.0, "{:#x}", tables.len());
        let (pointer, table) = tables.split_at(16);
        assert_eq!((&pointer[..4], sum(pointer)), (&b"_MP_"[..], 0));
        assert_eq!(u64::from(u32::from_le_bytes(pointer[4..8].try_into().unwrap())), layout::MP_TABLE.0 + 16);
        assert_eq!((&table[..4], sum(table)), (&b"PCMP"[..], 0));
        assert_eq!(usize::from(u16::from_le_bytes([table[4], table[5]])), table.len());

        let (mut rest, mut count, mut ids, mut gsis) =
            (&table[usize::from(HEADER)..], 0, Vec::new(), Vec::new());
        while let [kind, ..] = rest {
            match kind {
                0 => ids.push((rest[1], rest[3])),
                2 => assert_eq!(rest[1], cpus, "the I/O APIC has an ID of its own"),
                3 => gsis.push((rest[5], rest[7])),
                1 => assert_eq!(&rest[2..8], b"ISA   "),
                other => panic!("entry of type {other}"),
            }
            rest = &rest[if *kind == 0 { 20 } else { 8 }..];
            count += 1;
        }
        assert_eq!(u16::from_le_bytes([table[34], table[35]]), count);
        let expected = (0..cpus).map(|id| (id, if id == 0 { 3 } else { 1 }));
        assert!(ids.into_iter().eq(expected));
        assert!(gsis.into_iter().eq((0..24).map(|gsi| (gsi, gsi))));
    }
}
