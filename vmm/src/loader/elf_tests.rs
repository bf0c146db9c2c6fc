//! Tests of the ELF loader, on files made byte by byte.

use std::io::Write;
use std::sync::Arc;

use proptest::prelude::*;
use rstest::rstest;
use vm_memory::Bytes;

use super::*;
use crate::memory::reserve;

const MIB: u64 = 1 << 20;

/// A small ELF file; tests damage one field of it.
#[derive(Clone)]
struct Image {
    class: u8,
    machine: u16,
    kind: u16,
    entry: u64,
    program_headers: u64,
    program_header_size: u16,
    /// Type, file offset, physical address, size in the file, size in memory.
    segments: Vec<(u32, u64, u64, u64, u64)>,
    length: usize,
    notes: Vec<u8>,
}

const NOTES_OFFSET: u64 = 0x400;

impl Image {
    fn new() -> Self {
        Self {
            class: 2,
            machine: 62,
            kind: 2,
            entry: MIB,
            program_headers: 64,
            program_header_size: 56,
            segments: vec![
                (1, 0x1000, MIB, 0x1800, 0x2000),
                (1, 0x2800, MIB + 0x3000, 0x100, 0x100),
                (4, NOTES_OFFSET, 0, 0, 0),
            ],
            length: 0x3000,
            notes: Vec::new(),
        }
    }

    fn with_pvh_note(entry: u32) -> Self {
        let mut image = Self::new();
        for (owner, kind, descriptor) in
            [(&b"GNU\0"[..], 3, [9; 4].to_vec()), (b"Xen\0", 18, u64::from(entry).to_le_bytes().to_vec())]
        {
            for size in [owner.len(), descriptor.len(), kind] {
                image.notes.extend(u32::try_from(size).unwrap().to_le_bytes());
            }
            image.notes.extend(owner);
            image.notes.extend(descriptor);
        }
        image.segments[2].3 = image.notes.len() as u64;
        image
    }

    fn bytes(&self) -> Vec<u8> {
        let mut header = vec![0; HEADER_SIZE];
        let mut set =
            |offset: usize, bytes: &[u8]| header[offset..offset + bytes.len()].copy_from_slice(bytes);
        set(0, b"\x7fELF");
        set(4, &[self.class, 1, 1]);
        set(16, &self.kind.to_le_bytes());
        set(18, &self.machine.to_le_bytes());
        set(24, &self.entry.to_le_bytes());
        set(32, &self.program_headers.to_le_bytes());
        set(54, &self.program_header_size.to_le_bytes());
        set(56, &u16::try_from(self.segments.len()).unwrap().to_le_bytes());
        for (kind, offset, address, file_size, memory_size) in &self.segments {
            header.extend(kind.to_le_bytes());
            header.extend(7_u32.to_le_bytes());
            for field in [*offset, *address, *address, *file_size, *memory_size, 0x1000] {
                header.extend(field.to_le_bytes());
            }
        }
        // Each byte behind the headers says where it was in the file.
        let mut bytes: Vec<u8> = (0..self.length).map(|offset| u8::try_from(offset / 256).unwrap()).collect();
        let used = header.len().min(self.length);
        bytes[..used].copy_from_slice(&header[..used]);
        let notes = usize::try_from(NOTES_OFFSET).unwrap();
        if self.length >= notes + self.notes.len() {
            bytes[notes..notes + self.notes.len()].copy_from_slice(&self.notes);
        }
        bytes
    }
}

fn load_bytes(bytes: &[u8], memory_size: u64) -> (Result<Kernel, Problem>, Arc<GuestMemoryMmap>) {
    load_with_head(bytes, memory_size, 4096)
}

/// Loads a file of which the first `head` bytes were read before.
fn load_with_head(
    bytes: &[u8],
    memory_size: u64,
    head: usize,
) -> (Result<Kernel, Problem>, Arc<GuestMemoryMmap>) {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    let memory = reserve(&[(GuestAddress(0), memory_size)]).unwrap();
    let head = &bytes[..head.min(bytes.len())];
    (load(&memory, &Source { file: &file, length: bytes.len() as u64, head }), memory)
}

fn read(memory: &GuestMemoryMmap, address: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0xee; length];
    memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
    bytes
}

#[test]
fn segments_come_to_their_addresses_and_the_rest_is_zero() {
    let (kernel, memory) = load_bytes(&Image::new().bytes(), 16 * MIB);
    let kernel = kernel.unwrap();
    assert_eq!(kernel.entry, EntryPoint::Linux64(MIB));
    assert_eq!(kernel.end, MIB + 0x3100);
    let file = Image::new().bytes();
    assert_eq!(read(&memory, MIB, 0x1800), file[0x1000..0x2800]);
    assert_eq!(read(&memory, MIB + 0x1800, 0x1800), [0; 0x1800]);
    assert_eq!(read(&memory, MIB + 0x3000, 0x100), file[0x2800..0x2900]);
}

#[test]
fn headers_are_found_wherever_the_part_that_was_read_first_ends() {
    let bytes = Image::with_pvh_note(0x10_0040).bytes();
    for head in [HEADER_SIZE, HEADER_SIZE + 1, 0x401, 0x1000] {
        let (kernel, _) = load_with_head(&bytes, 16 * MIB, head);
        assert_eq!(kernel.unwrap().entry, EntryPoint::Pvh(0x10_0040), "{head}");
    }
}

#[test]
fn the_pvh_note_gives_the_entry() {
    let (kernel, _) = load_bytes(&Image::with_pvh_note(0x10_0040).bytes(), 16 * MIB);
    assert_eq!(kernel.unwrap().entry, EntryPoint::Pvh(0x10_0040));
}

/// Notes as a segment with this alignment has them, whatever they are padded to.
#[rstest]
fn the_pvh_note_is_found_with_either_padding(
    #[values(4, 8)] padding: usize,
    #[values(1, 4, 8, 0x1000)] alignment: u64,
) {
    let mut image = Image::new();
    for (kind, descriptor) in [(6_u32, b"osv\0".to_vec()), (18, 0x10_0040_u64.to_le_bytes().to_vec())] {
        for field in [4, u32::try_from(descriptor.len()).unwrap(), kind] {
            image.notes.extend(field.to_le_bytes());
        }
        image.notes.extend(b"Xen\0");
        image.notes.extend(descriptor);
        image.notes.resize(image.notes.len().next_multiple_of(padding), 0);
    }
    image.segments[2].3 = image.notes.len() as u64;
    let mut bytes = image.bytes();
    let field = 64 + 2 * PROGRAM_HEADER_SIZE + 48;
    bytes[field..field + 8].copy_from_slice(&alignment.to_le_bytes());
    let (kernel, _) = load_bytes(&bytes, 16 * MIB);
    assert_eq!(kernel.unwrap().entry, EntryPoint::Pvh(0x10_0040));
}

#[test]
fn notes_beyond_the_end_of_the_file_are_none() {
    let mut image = Image::new();
    image.segments[2] = (4, 0x2ff0, 0, 0x100, 0);
    assert_eq!(load_bytes(&image.bytes(), 16 * MIB).0.unwrap().entry, EntryPoint::Linux64(MIB));
}

#[rstest]
#[case::arm("aarch64", |image: &mut Image| image.machine = 183)]
#[case::bits("32 bits", |image: &mut Image| image.class = 1)]
#[case::object("type 1", |image: &mut Image| image.kind = 1)]
#[case::header_size("unknown size", |image: &mut Image| image.program_header_size = 32)]
#[case::no_segments("no segments", |image: &mut Image| image.segments.clear())]
#[case::too_many("more than 128", |image: &mut Image| image.segments = vec![(0, 0, 0, 0, 0); 129])]
#[case::nothing_to_load("no segment to load", |image: &mut Image| image.segments = vec![(4, 0, 0, 0, 0)])]
#[case::headers_outside("the table of its segments needs", |image: &mut Image| image.program_headers = 0x3000)]
#[case::headers_wrap("the table of its segments needs", |image: &mut Image| image.program_headers = u64::MAX)]
#[case::truncated("a segment needs 10496 bytes", |image: &mut Image| image.length = 0x2880)]
#[case::file_wrap("a segment needs", |image: &mut Image| image.segments[1].1 = u64::MAX)]
#[case::larger_in_file("larger in the file", |image: &mut Image| image.segments[0].4 = 0x10)]
#[case::overlap("segments 0 and 1 overlap", |image: &mut Image| image.segments[1].2 = MIB + 0x1fff)]
#[case::low("at 0xff000, below 1 MiB", |image: &mut Image| image.segments[0].2 = MIB - 0x1000)]
#[case::beyond_ram("of memory, the guest has 16.0 MiB", |image: &mut Image| image.segments[1].2 = 16 * MIB - 1)]
#[case::huge("of memory, the guest has 16.0 MiB", |image: &mut Image| image.segments[0].4 = 1 << 40)]
#[case::memory_wrap("end of the address space", |image: &mut Image| image.segments[1].2 = u64::MAX)]
#[case::entry("entry point at 0x200000", |image: &mut Image| image.entry = 2 * MIB)]
fn damage_is_refused(#[case] expected: &str, #[case] damage: fn(&mut Image)) {
    let mut image = Image::new();
    damage(&mut image);
    let (kernel, _) = load_bytes(&image.bytes(), 16 * MIB);
    let error = kernel.err().expect("the file is damaged").to_string();
    assert!(error.contains(expected), "{error}");
}

#[test]
fn a_pvh_entry_outside_of_the_segments_is_refused() {
    let (kernel, _) = load_bytes(&Image::with_pvh_note(0x20).bytes(), 16 * MIB);
    assert!(matches!(kernel, Err(Problem::Entry(0x20))));
}

#[test]
fn damaged_notes_end_the_search() {
    for notes in [vec![0xff; 64], [4, 0, 0, 0, 8, 0, 0, 0, 18, 0, 0, 0].to_vec()] {
        let mut image = Image::new();
        image.segments[2].3 = notes.len() as u64;
        image.notes = notes;
        // Whatever is made of them, it ends.
        let _ = load_bytes(&image.bytes(), 16 * MIB);
    }
}

proptest! {
    #[test]
    fn no_file_makes_the_loader_panic_or_pass_the_end_of_ram(
        changes in proptest::collection::vec((0..0x500_usize, any::<u8>()), 0..24),
        length in 0..0x3000_usize,
    ) {
        let mut bytes = Image::with_pvh_note(0x10_0040).bytes();
        for (offset, value) in changes {
            bytes[offset] = value;
        }
        bytes.truncate(length);
        if let (Ok(kernel), _) = load_bytes(&bytes, 2 * MIB) {
            prop_assert!(kernel.end <= 2 * MIB);
        }
    }
}
