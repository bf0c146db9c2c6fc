//! A kernel and an initrd in guest RAM: what the loader found, and what the boot structures say about it.

use linux_loader::loader::bootparam::setup_header;
use vm_memory::GuestAddress;

/// How to enter a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryPoint {
    /// In 32-bit protected mode without paging, `hvm_start_info` in EBX (PVH).
    Pvh(u32),
    /// In 64-bit mode with the first GiB mapped onto itself, `boot_params` in RSI.
    Linux64(u64),
}

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
    /// Its first byte, at a page.
    pub address: GuestAddress,
    /// Its size in bytes.
    pub length: u32,
}
