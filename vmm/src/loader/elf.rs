//! ELF kernels (`vmlinux`).
//!
//! linux-loader's loader takes an ELF file for any machine, and segments that overlap each other or the boot
//! structures; so the few fields that loading takes are read here, and every one of them is checked.

use std::fs::File;
use std::ops::Range;

use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::{EntryPoint, Kernel, Problem, low_ram_end};
use crate::arch::current::kernel::{ELF_MACHINE, ENTRY_NOTE};
use crate::arch::current::layout::HIGH_RAM_START;
use crate::memory::read_file;

const HEADER_SIZE: usize = 64;
const PROGRAM_HEADER_SIZE: usize = 56;
/// A kernel has about five; this bounds what a damaged file makes mvm read.
const MAX_PROGRAM_HEADERS: u16 = 128;
/// A kernel's notes are less than a page; the same.
const MAX_NOTES: u64 = 64 << 10;

const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const TYPE_EXECUTABLE: u16 = 2;
const TYPE_SHARED: u16 = 3;
const SEGMENT_LOAD: u32 = 1;
const SEGMENT_NOTE: u32 = 4;

/// Little-endian fields at fixed places of a buffer; what lies outside reads as an error.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn bytes<const N: usize>(&self, offset: usize) -> Result<[u8; N], Problem> {
        let bytes = offset.checked_add(N).and_then(|end| self.0.get(offset..end));
        bytes.and_then(|bytes| bytes.try_into().ok()).ok_or(Problem::Elf("a header is cut short"))
    }

    fn u16(&self, offset: usize) -> Result<u16, Problem> {
        self.bytes(offset).map(u16::from_le_bytes)
    }

    fn u32(&self, offset: usize) -> Result<u32, Problem> {
        self.bytes(offset).map(u32::from_le_bytes)
    }

    fn u64(&self, offset: usize) -> Result<u64, Problem> {
        self.bytes(offset).map(u64::from_le_bytes)
    }
}

struct Header {
    entry: u64,
    program_headers: u64,
    count: u16,
}

struct Segment {
    kind: u32,
    file_offset: u64,
    address: u64,
    file_size: u64,
    memory_size: u64,
    alignment: u64,
}

impl Segment {
    fn parse(bytes: &[u8]) -> Result<Self, Problem> {
        let fields = Fields(bytes);
        Ok(Self {
            kind: fields.u32(0)?,
            file_offset: fields.u64(8)?,
            address: fields.u64(24)?,
            file_size: fields.u64(32)?,
            memory_size: fields.u64(40)?,
            alignment: fields.u64(48)?,
        })
    }

    /// The guest physical addresses that it takes.
    fn range(&self) -> Result<Range<u64>, Problem> {
        match self.address.checked_add(self.memory_size) {
            Some(end) => Ok(self.address..end),
            None => Err(Problem::Elf("a segment passes the end of the address space")),
        }
    }
}

/// A kernel's file, with what was read of its beginning already.
pub(super) struct Source<'a> {
    pub(super) file: &'a File,
    pub(super) length: u64,
    pub(super) head: &'a [u8],
}

impl Source<'_> {
    /// Reads a part of the file that lies in it wholly; `size` is bounded by the caller.
    fn read(&self, part: &'static str, offset: u64, size: u64) -> Result<Vec<u8>, Problem> {
        use std::os::unix::fs::FileExt;
        let end = part_end(self.length, part, offset, size)?;
        let range = usize::try_from(offset).ok().zip(usize::try_from(end).ok());
        if let Some(bytes) = range.and_then(|(start, end)| self.head.get(start..end)) {
            return Ok(bytes.to_vec());
        }
        let mut bytes = vec![0; usize::try_from(size).map_err(|_| Problem::Elf("a part is too large"))?];
        self.file.read_exact_at(&mut bytes, offset).map_err(Problem::Read)?;
        Ok(bytes)
    }
}

/// Loads an ELF kernel.
pub(super) fn load(memory: &GuestMemoryMmap, source: &Source<'_>) -> Result<Kernel, Problem> {
    let header = read_header(source)?;
    let segments = read_segments(source, &header)?;
    let loaded: Vec<_> = segments.iter().filter(|segment| is_loaded(segment)).collect();
    check_placement(&loaded, low_ram_end(memory))?;
    for segment in &loaded {
        let address = GuestAddress(segment.address);
        read_file(memory, address, source.file, segment.file_offset, segment.file_size)
            .map_err(Problem::Memory)?;
    }
    let entry = EntryPoint::of_elf(header.entry, noted_entry(source, &segments)?);
    let address = entry.address();
    let mut end = 0;
    let mut has_entry = false;
    for segment in loaded {
        let range = segment.range()?;
        has_entry |= range.contains(&address);
        end = end.max(range.end);
    }
    if !has_entry {
        return Err(Problem::Entry(address));
    }
    Ok(Kernel { entry, end, setup_header: None })
}

fn is_loaded(segment: &Segment) -> bool {
    segment.kind == SEGMENT_LOAD && segment.memory_size > 0
}

fn read_header(source: &Source<'_>) -> Result<Header, Problem> {
    let Some(bytes) = source.head.first_chunk::<HEADER_SIZE>() else {
        let needed = HEADER_SIZE as u64;
        return Err(Problem::Truncated { part: "the ELF header", needed, length: source.length });
    };
    let fields = Fields(bytes);
    let [_, _, _, _, class, data, ..] = *bytes;
    let machine = fields.u16(18)?;
    if class != CLASS_64 || data != LITTLE_ENDIAN || machine != ELF_MACHINE {
        return Err(Problem::Machine(machine_name(class, data, machine)));
    }
    match fields.u16(16)? {
        TYPE_EXECUTABLE | TYPE_SHARED => {}
        other => return Err(Problem::NotExecutable(other)),
    }
    if usize::from(fields.u16(54)?) != PROGRAM_HEADER_SIZE {
        return Err(Problem::Elf("its program headers have an unknown size"));
    }
    let header = Header { entry: fields.u64(24)?, program_headers: fields.u64(32)?, count: fields.u16(56)? };
    match header.count {
        0 => Err(Problem::Elf("it has no segments")),
        1..=MAX_PROGRAM_HEADERS => Ok(header),
        _ => Err(Problem::Elf("it has more than 128 segments")),
    }
}

fn machine_name(class: u8, data: u8, machine: u16) -> String {
    let name = match machine {
        3 => "x86".to_owned(),
        40 => "arm".to_owned(),
        62 => "x86_64".to_owned(),
        183 => "aarch64".to_owned(),
        243 => "riscv".to_owned(),
        other => format!("machine {other}"),
    };
    let bits = if class == CLASS_64 { "64 bits" } else { "32 bits" };
    let order = if data == LITTLE_ENDIAN { "little-endian" } else { "big-endian" };
    format!("{name}, {bits}, {order}")
}

fn read_segments(source: &Source<'_>, header: &Header) -> Result<Vec<Segment>, Problem> {
    let size = usize::from(header.count) * PROGRAM_HEADER_SIZE;
    let bytes = source.read("the table of its segments", header.program_headers, size as u64)?;
    let segments = bytes.chunks_exact(PROGRAM_HEADER_SIZE).map(Segment::parse);
    let segments = segments.collect::<Result<Vec<_>, _>>()?;
    for segment in segments.iter().filter(|segment| is_loaded(segment)) {
        if segment.file_size > segment.memory_size {
            return Err(Problem::Elf("a segment is larger in the file than in memory"));
        }
        part_end(source.length, "a segment", segment.file_offset, segment.file_size)?;
    }
    Ok(segments)
}

/// Where a part ends that lies in a file of `length` bytes.
fn part_end(length: u64, part: &'static str, offset: u64, size: u64) -> Result<u64, Problem> {
    match offset.checked_add(size) {
        Some(end) if end <= length => Ok(end),
        end => Err(Problem::Truncated { part, needed: end.unwrap_or(u64::MAX), length }),
    }
}

fn check_placement(segments: &[&Segment], ram_end: u64) -> Result<(), Problem> {
    if segments.is_empty() {
        return Err(Problem::Elf("it has no segment to load"));
    }
    for (index, segment) in segments.iter().enumerate() {
        let range = segment.range()?;
        if range.start < HIGH_RAM_START.0 {
            return Err(Problem::TooLow(range.start));
        }
        if range.end > ram_end {
            return Err(Problem::TooBig { needed: range.end, available: ram_end });
        }
        for (other_index, other) in segments.iter().enumerate().take(index) {
            let other = other.range()?;
            if range.start < other.end && other.start < range.end {
                return Err(Problem::Overlap(other_index, index));
            }
        }
    }
    Ok(())
}

/// The entry point that a note says, where there is one. A segment of notes that is not wholly in the file has none.
fn noted_entry(source: &Source<'_>, segments: &[Segment]) -> Result<Option<u32>, Problem> {
    for segment in segments.iter().filter(|segment| segment.kind == SEGMENT_NOTE) {
        let size = segment.file_size.min(MAX_NOTES);
        let notes = match source.read("its notes", segment.file_offset, size) {
            Err(Problem::Truncated { .. }) => continue,
            read => read?,
        };
        // The gABI pads notes to the segment's alignment. Linkers pad to 4 whatever that is, so the other one is tried
        // too.
        let paddings = if segment.alignment == 8 { [8, 4] } else { [4, 8] };
        let entry = paddings.into_iter().find_map(|padding| find_entry_note(&notes, padding));
        if entry.is_some() {
            return Ok(entry);
        }
    }
    Ok(None)
}

/// Walks the notes of a segment: each has three sizes of 4 bytes, an owner and a descriptor, of which descriptor and
/// next note begin at a multiple of `padding`.
fn find_entry_note(mut notes: &[u8], padding: usize) -> Option<u32> {
    const NOTE_HEADER: usize = 12;
    while notes.len() >= NOTE_HEADER {
        let fields = Fields(notes);
        let [owner_size, descriptor_size, kind] = [0, 4, 8].map(|offset| fields.u32(offset).unwrap_or(0));
        let descriptor = (NOTE_HEADER + owner_size as usize).next_multiple_of(padding);
        let (owner, entry_kind) = ENTRY_NOTE;
        let has_entry = kind == entry_kind
            && owner_size as usize == owner.len()
            && fields.bytes(NOTE_HEADER).is_ok_and(|bytes| bytes == *owner);
        if has_entry {
            // The address has 4 bytes or, in a 64-bit kernel, 8, of which the upper ones are zero.
            return fields.u32(descriptor).ok();
        }
        let next = (descriptor + descriptor_size as usize).next_multiple_of(padding);
        notes = notes.get(next..).unwrap_or_default();
    }
    None
}

#[cfg(test)]
#[path = "elf_tests.rs"]
mod tests;
