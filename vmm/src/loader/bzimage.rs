//! bzImage kernels, entered at their 64-bit entry (Linux/x86 boot protocol).

use std::fs::File;

use linux_loader::loader::KernelLoader;
use linux_loader::loader::bzimage::BzImage;
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::{EntryPoint, Kernel, Problem, low_ram_end, read_up_to};
use crate::arch::current::layout::HIGH_RAM_START;

/// The protocol that first had a 64-bit entry (`xloadflags`).
const MIN_PROTOCOL: u16 = 0x020c;
/// `xloadflags`: the kernel has the 64-bit entry.
const XLF_KERNEL_64: u16 = 1 << 0;
/// The 64-bit entry lies at this offset of the protected-mode kernel.
const ENTRY_64_OFFSET: u64 = 0x200;

/// The real-mode part of the file: boot sector and setup header.
const HEADER_END: usize = 0x290;
const SETUP_SECTS: usize = 0x1f1;
const SYSSIZE: usize = 0x1f4;
const VERSION: usize = 0x206;
const XLOADFLAGS: usize = 0x236;
const INIT_SIZE: usize = 0x260;
const PREF_ADDRESS: usize = 0x258;

/// Loads a bzImage of `length` bytes.
pub(super) fn load(memory: &GuestMemoryMmap, mut file: File, length: u64) -> Result<Kernel, Problem> {
    let mut head = [0; HEADER_END];
    let truncated = |needed| Problem::Truncated { part: "the bzImage", needed, length };
    if read_up_to(&file, &mut head)? < HEADER_END {
        return Err(truncated(HEADER_END as u64));
    }
    let version = u16::from_le_bytes(field(&head, VERSION));
    let flags = u16::from_le_bytes(field(&head, XLOADFLAGS));
    if version < MIN_PROTOCOL || flags & XLF_KERNEL_64 == 0 {
        return Err(Problem::OldProtocol(format!("{}.{:02}", version >> 8, version & 0xff)));
    }
    let [setup_sectors] = field(&head, SETUP_SECTS);
    let setup_sectors = if setup_sectors == 0 { 4 } else { u64::from(setup_sectors) };
    let payload = u64::from(u32::from_le_bytes(field(&head, SYSSIZE))) * 16;
    let needed = (setup_sectors + 1) * 512 + payload;
    // The size counts units of 16 bytes, and the last one need not be whole.
    if payload == 0 || needed > length.next_multiple_of(16) {
        return Err(truncated(needed));
    }
    // The kernel unpacks itself at its preferred address and needs `init_size` there.
    let init_size = u64::from(u32::from_le_bytes(field(&head, INIT_SIZE)));
    let preferred = u64::from_le_bytes(field(&head, PREF_ADDRESS));
    let end = preferred
        .max(HIGH_RAM_START.0)
        .checked_add(init_size)
        .ok_or_else(|| Problem::BzImage("its preferred address is out of range".to_owned()))?
        .max(HIGH_RAM_START.0 + payload);
    let available = low_ram_end(memory);
    if end > available {
        return Err(Problem::TooBig { needed: end, available });
    }
    let loaded = BzImage::load(memory, Some(GuestAddress(HIGH_RAM_START.0)), &mut file, None)
        .map_err(|error| Problem::BzImage(error.to_string()))?;
    Ok(Kernel {
        entry: EntryPoint::Linux64(HIGH_RAM_START.0 + ENTRY_64_OFFSET),
        end: end.max(loaded.kernel_end),
        setup_header: loaded.setup_header.map(Box::new),
    })
}

/// The `N` bytes at `offset`; zeros where the header has no such place.
fn field<const N: usize>(head: &[u8; HEADER_END], offset: usize) -> [u8; N] {
    head.get(offset..offset + N).and_then(|bytes| bytes.try_into().ok()).unwrap_or([0; N])
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;
    use rstest::rstest;
    use vm_memory::Bytes;

    use super::*;
    use crate::memory::reserve;

    const SETUP: usize = 5 * 512;
    const PAYLOAD: usize = 0x1000;

    fn image() -> Vec<u8> {
        let mut bytes = vec![0; SETUP + PAYLOAD];
        let mut set =
            |offset: usize, field: &[u8]| bytes[offset..offset + field.len()].copy_from_slice(field);
        set(SETUP_SECTS, &[4]);
        set(SYSSIZE, &0x100_u32.to_le_bytes());
        set(0x1fe, &[0x55, 0xaa]);
        set(0x202, b"HdrS");
        set(VERSION, &0x020f_u16.to_le_bytes());
        set(0x211, &[1]);
        set(0x214, &0x10_0000_u32.to_le_bytes());
        set(0x22c, &0x7fff_ffff_u32.to_le_bytes());
        set(XLOADFLAGS, &1_u16.to_le_bytes());
        set(0x238, &2047_u32.to_le_bytes());
        set(PREF_ADDRESS, &0x100_0000_u64.to_le_bytes());
        set(INIT_SIZE, &0x10_0000_u32.to_le_bytes());
        bytes[SETUP..].fill(0x5a);
        bytes
    }

    fn load_bytes(bytes: &[u8]) -> (Result<Kernel, Problem>, std::sync::Arc<GuestMemoryMmap>) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        let memory = reserve(&[(GuestAddress(0), 32 << 20)]).unwrap();
        (load(&memory, file, bytes.len() as u64), memory)
    }

    #[test]
    fn the_payload_comes_to_1_mib_and_is_entered_at_its_64_bit_entry() {
        let (kernel, memory) = load_bytes(&image());
        let kernel = kernel.unwrap();
        assert_eq!(kernel.entry, EntryPoint::Linux64(0x10_0200));
        assert_eq!(kernel.end, 0x110_0000, "it needs room to unpack itself");
        assert_eq!(kernel.initrd_address_max(), 0x7fff_ffff);
        assert_eq!(kernel.cmdline_max(), 2047);
        let mut payload = [0; PAYLOAD];
        memory.read_slice(&mut payload, GuestAddress(0x10_0000)).unwrap();
        assert!(payload.iter().all(|byte| *byte == 0x5a));
    }

    #[rstest]
    #[case::old("boot protocol 2.11", VERSION, &[0x0b])]
    #[case::no_64_bits("64 bits", XLOADFLAGS, &[0])]
    #[case::syssize("cut short", SYSSIZE, &[0xff, 0xff])]
    #[case::no_payload("cut short", SYSSIZE, &[0, 0])]
    #[case::not_big("Invalid bzImage", 0x211, &[0])]
    #[case::init_size("of memory, the guest has", INIT_SIZE, &[0xff, 0xff, 0xff, 0xff])]
    #[case::preferred("out of range", PREF_ADDRESS, &[0xff; 8])]
    fn damage_is_refused(#[case] expected: &str, #[case] offset: usize, #[case] damage: &[u8]) {
        let mut bytes = image();
        bytes[offset..offset + damage.len()].copy_from_slice(damage);
        let error = load_bytes(&bytes).0.err().expect("the file is damaged").to_string();
        assert!(error.contains(expected), "{error}");
    }

    proptest! {
        #[test]
        fn no_file_makes_the_loader_panic(
            changes in proptest::collection::vec((0x1f0..0x290_usize, any::<u8>()), 0..24),
            length in 0..SETUP + PAYLOAD,
        ) {
            let mut bytes = image();
            for (offset, value) in changes {
                bytes[offset] = value;
            }
            bytes.truncate(length);
            if let (Ok(kernel), _) = load_bytes(&bytes) {
                prop_assert!(kernel.end <= 32 << 20);
            }
        }
    }
}
