//! The ELF file that a guest is booted from.

use vmm::arch::current::layout::HIGH_RAM_START;

/// How the guest is entered.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Entry {
    /// In 64-bit mode, by the entry point of the ELF header.
    Linux64,
    /// In 32-bit mode, by the PVH note.
    Pvh,
}

/// Where guests are loaded and entered.
pub(super) const LOAD_ADDRESS: u64 = HIGH_RAM_START.0;

const HEADER_SIZE: usize = 64;
const PROGRAM_HEADER_SIZE: usize = 56;
const LOAD: u32 = 1;
const NOTE: u32 = 4;
const NOTE_OFFSET: usize = 0x800;
const CODE_OFFSET: usize = 0x1000;

/// A kernel with the segments that an ELF vmlinux has: the code, and the notes where there is a PVH entry.
pub(super) fn elf(code: &[u8], entry: Entry) -> Vec<u8> {
    let note = pvh_note();
    let segments = match entry {
        Entry::Linux64 => vec![(LOAD, CODE_OFFSET, LOAD_ADDRESS, code.len())],
        Entry::Pvh => {
            vec![(NOTE, NOTE_OFFSET, 0, note.len()), (LOAD, CODE_OFFSET, LOAD_ADDRESS, code.len())]
        }
    };
    let mut file = vec![0; CODE_OFFSET];
    let mut put = |offset: usize, bytes: &[u8]| file[offset..offset + bytes.len()].copy_from_slice(bytes);
    // 64 bits, little-endian, version 1; an executable for x86_64.
    put(0, b"\x7fELF\x02\x01\x01");
    put(16, &[2, 0, 62, 0, 1]);
    // A kernel that is entered by its note says nothing here that mvm could use.
    put(24, &if entry == Entry::Linux64 { LOAD_ADDRESS } else { 0 }.to_le_bytes());
    put(32, &HEADER_SIZE.to_le_bytes());
    put(52, &(HEADER_SIZE as u16).to_le_bytes());
    put(54, &(PROGRAM_HEADER_SIZE as u16).to_le_bytes());
    put(56, &(segments.len() as u16).to_le_bytes());
    for (index, (kind, offset, address, size)) in segments.into_iter().enumerate() {
        let header = HEADER_SIZE + index * PROGRAM_HEADER_SIZE;
        put(header, &kind.to_le_bytes());
        put(header + 4, &7_u32.to_le_bytes());
        let fields = [offset as u64, address, address, size as u64, size as u64, 0x1000];
        for (at, field) in (header + 8..).step_by(8).zip(fields) {
            put(at, &field.to_le_bytes());
        }
    }
    put(NOTE_OFFSET, &note);
    file.extend(code);
    file
}

/// The note of type 18 of the owner "Xen": the physical address of the 32-bit entry.
fn pvh_note() -> Vec<u8> {
    let mut note = Vec::new();
    for field in [4_u32, 4, 18, u32::from_le_bytes(*b"Xen\0"), LOAD_ADDRESS as u32] {
        note.extend(field.to_le_bytes());
    }
    note
}
