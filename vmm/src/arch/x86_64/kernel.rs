//! A kernel and an initrd in guest RAM: what the loader found, and what the boot structures say about it.

use linux_loader::loader::bootparam::setup_header;

/// How to enter a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryPoint {
    /// In 32-bit protected mode without paging, `hvm_start_info` in EBX (PVH).
    Pvh(u32),
    /// In 64-bit mode with the first GiB mapped onto itself, `boot_params` in RSI.
    Linux64(u64),
}

impl EntryPoint {
    /// The entry point of an ELF kernel, whose header says `header` and whose [`ENTRY_NOTE`] says `note`.
    pub(crate) fn of_elf(header: u64, note: Option<u32>) -> Self {
        note.map_or(Self::Linux64(header), Self::Pvh)
    }

    /// The guest physical address.
    pub(crate) fn address(self) -> u64 {
        match self {
            Self::Pvh(address) => address.into(),
            Self::Linux64(address) => address,
        }
    }
}

/// `e_machine` of a kernel's ELF file.
pub(crate) const ELF_MACHINE: u16 = 62;
/// Owner and type of the ELF note that holds an entry point: PVH's.
pub(crate) const ENTRY_NOTE: (&[u8; 4], u32) = (b"Xen\0", 18);

/// A kernel in guest RAM.
pub struct Kernel {
    /// Where it starts.
    pub entry: EntryPoint,
    /// The first address behind it, with what it needs for itself before it knows the memory map.
    pub end: u64,
    /// The setup header of a bzImage; an ELF has none.
    pub setup_header: Option<Box<setup_header>>,
}

impl Kernel {
    /// The last address that a byte of the initrd may have: all of the first 4 GiB, unless the kernel says less
    /// (`initrd_addr_max`).
    pub(crate) fn initrd_address_max(&self) -> u64 {
        self.setup_header.as_ref().map_or(u64::from(u32::MAX), |header| header.initrd_addr_max.into())
    }

    /// The most bytes of arguments that the kernel takes, without the terminating zero.
    pub fn cmdline_max(&self) -> usize {
        let own = super::layout::CMDLINE_CAPACITY - 1;
        match self.setup_header.as_ref().map(|header| header.cmdline_size as usize) {
            Some(size) if size > 0 => size.min(own),
            _ => own,
        }
    }
}

/// Where the initrd is in guest RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Initrd {
    /// The guest physical address of its first byte, at a page.
    pub address: u32,
    /// Its size in bytes.
    pub length: u32,
}
