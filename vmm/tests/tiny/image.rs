//! The ELF file that a guest is booted from.

use vmm::layout::HIGH_RAM_START;

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

const HEADER_SIZE: u16 = 64;
const PROGRAM_HEADER_SIZE: u16 = 56;
const LOAD: u32 = 1;
const NOTE: u32 = 4;
const NOTE_OFFSET: u16 = 0x800;
const CODE_OFFSET: u16 = 0x1000;

/// A kernel with the segments that an ELF vmlinux has: the code, and the notes where there is a PVH entry.
pub(super) fn elf(code: &[u8], entry: Entry) -> Vec<u8> {
    let note = pvh_note();
    let mut segments = vec![(LOAD, CODE_OFFSET, LOAD_ADDRESS, code.len())];
    if entry == Entry::Pvh {
        segments.push((NOTE, NOTE_OFFSET, 0, note.len()));
    }
    let mut file = vec![0; usize::from(CODE_OFFSET)];
    let mut put = |offset: u16, bytes: &[u8]| {
        let offset = usize::from(offset);
        file[offset..offset + bytes.len()].copy_from_slice(bytes);
    };
    // 64 bits, little-endian, version 1; an executable for x86_64.
    put(0, b"\x7fELF\x02\x01\x01");
    put(16, &[2, 0, 62, 0, 1]);
    // Where the note gives the entry, this one is not to be used.
    put(24, &if entry == Entry::Linux64 { LOAD_ADDRESS } else { 0 }.to_le_bytes());
    put(32, &u64::from(HEADER_SIZE).to_le_bytes());
    put(52, &HEADER_SIZE.to_le_bytes());
    put(54, &PROGRAM_HEADER_SIZE.to_le_bytes());
    put(56, &u16::try_from(segments.len()).unwrap().to_le_bytes());
    let mut header = HEADER_SIZE;
    for (kind, offset, address, size) in segments {
        put(header, &kind.to_le_bytes());
        // Read, write and execute.
        put(header + 4, &7_u32.to_le_bytes());
        let fields = [u64::from(offset), address, address, size as u64, size as u64, 0x1000];
        for (at, field) in (header + 8..).step_by(8).zip(fields) {
            put(at, &field.to_le_bytes());
        }
        header += PROGRAM_HEADER_SIZE;
    }
    put(NOTE_OFFSET, &note);
    file.extend(code);
    file
}

/// The note of type 18 of the owner "Xen": the physical address of the 32-bit entry.
fn pvh_note() -> Vec<u8> {
    let mut note = Vec::new();
    for field in [4_u32, 4, 18, u32::from_le_bytes(*b"Xen\0"), u32::try_from(LOAD_ADDRESS).unwrap()] {
        note.extend(field.to_le_bytes());
    }
    note
}
