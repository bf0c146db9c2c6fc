//! What the kernel finds in memory when it starts: arguments, memory map, initrd, tables of the hardware; as
//! `boot_params` for the 64-bit entry, as `hvm_start_info` for the PVH entry; and where it ends, the reset vector.

use std::ffi::CStr;
use std::io;

use devices::legacy::{PowerRegisters, registers};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::elf::start_info::{
    XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use rustix::rand::GetRandomFlags;
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::acpi::{self, AcpiError};
use super::kernel::{EntryPoint, Initrd, Kernel};
use super::layout::{self, VirtioPlace};
use super::mp_table;
use super::registers::write_boot_tables;

/// What the kernel is told.
pub struct BootInformation<'a> {
    /// Its arguments.
    pub arguments: &'a CStr,
    /// The initrd.
    pub initrd: Option<Initrd>,
    /// The size of RAM in bytes.
    pub memory_size: u64,
    /// The number of vCPUs, at most [`MAX_CPUS`](super::vcpu::MAX_CPUS).
    pub cpus: u8,
    /// Where the virtio devices are.
    pub virtio: &'a [VirtioPlace],
}

/// Why it could not be written.
#[derive(Debug, Error)]
pub enum BootError {
    /// The ACPI tables.
    #[error(transparent)]
    Acpi(#[from] AcpiError),
    /// More arguments than there is room for.
    #[error("the kernel's arguments have {0} bytes, the limit is {limit}", limit = layout::CMDLINE_CAPACITY - 1)]
    Arguments(usize),
    /// The host has no random numbers.
    #[error("cannot make a generation ID")]
    Random(#[from] io::Error),
    /// Guest memory.
    #[error("cannot write the boot structures to guest memory")]
    Memory(#[from] GuestMemoryError),
}

impl BootError {
    /// Whether the host is at fault, and not what it was asked for.
    pub(crate) fn is_the_hosts(&self) -> bool {
        matches!(self, Self::Random(_) | Self::Memory(_) | Self::Acpi(AcpiError::Memory(_)))
    }
}

/// The boot loader's ID in `boot_params`: none that is registered.
const LOADER_UNDEFINED: u8 = 0xff;
const SETUP_HEADER_MAGIC: u32 = u32::from_le_bytes(*b"HdrS");
const BOOT_FLAG: u16 = 0xaa55;

/// Writes all that `kernel` and its boot vCPU start with.
///
/// # Errors
///
/// [`BootError`].
pub fn write(
    memory: &GuestMemoryMmap,
    kernel: &Kernel,
    information: &BootInformation<'_>,
) -> Result<(), BootError> {
    let rsdp = acpi::write(memory, information.cpus, information.virtio)?;
    mp_table::write(memory, information.cpus)?;
    write_boot_tables(memory, kernel.entry)?;
    write_generation(memory)?;
    write_parameters(memory, kernel, information, rsdp)
}

/// Writes another generation ID, which no VM has had.
///
/// # Errors
///
/// [`BootError::Random`], [`BootError::Memory`].
pub fn write_generation(memory: &GuestMemoryMmap) -> Result<(), BootError> {
    let mut id = [0_u8; 16];
    rustix::rand::getrandom(&mut id[..], GetRandomFlags::empty()).map_err(io::Error::from)?;
    Ok(memory.write_slice(&id, layout::GENERATION_ID)?)
}

/// Writes what `kernel` expects for its entry point. The root of the ACPI tables is at `rsdp`.
fn write_parameters(
    memory: &GuestMemoryMmap,
    kernel: &Kernel,
    information: &BootInformation<'_>,
    rsdp: GuestAddress,
) -> Result<(), BootError> {
    let arguments = information.arguments.to_bytes_with_nul();
    let room = u32::try_from(arguments.len()).ok().filter(|_| arguments.len() <= layout::CMDLINE_CAPACITY);
    let arguments_size = room.ok_or_else(|| BootError::Arguments(arguments.len() - 1))?;
    memory.write_slice(arguments, layout::CMDLINE)?;
    memory.write_slice(&reset_code(), layout::RESET_VECTOR)?;
    match kernel.entry {
        EntryPoint::Pvh(_) => write_start_info(memory, information, rsdp)?,
        EntryPoint::Linux64(_) => {
            let mut params = boot_params { acpi_rsdp_addr: rsdp.0, ..Default::default() };
            params.hdr = setup_header(kernel, information, arguments_size);
            write_zero_page(memory, params, information.memory_size)?;
        }
    }
    Ok(())
}

/// The code at [`layout::RESET_VECTOR`], for real mode: it writes the reset register and halts.
fn reset_code() -> [u8; 9] {
    let [low, high] = (PowerRegisters::PORT + registers::RESET).to_le_bytes();
    [
        0xba,
        low,
        high, // mov dx, PORT
        0xb0,
        PowerRegisters::RESET_VALUE, // mov al, VALUE
        0xee,                        // out dx, al
        0xf4,                        // hlt
        0xeb,
        0xfd, // jmp to the hlt
    ]
}

/// The PVH boot protocol's structures, version 1 (Xen, `arch-x86/hvm/start_info.h`).
fn write_start_info(
    memory: &GuestMemoryMmap,
    information: &BootInformation<'_>,
    rsdp: GuestAddress,
) -> Result<(), GuestMemoryError> {
    let map = layout::memory_map(information.memory_size);
    let mut start_info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: 1,
        cmdline_paddr: layout::CMDLINE.0,
        rsdp_paddr: rsdp.0,
        memmap_paddr: layout::PVH_MEMORY_MAP.0,
        ..Default::default()
    };
    if let Some(initrd) = information.initrd {
        let module = hvm_modlist_entry {
            paddr: initrd.address.into(),
            size: initrd.length.into(),
            ..Default::default()
        };
        memory.write_obj(module, layout::PVH_MODULES)?;
        start_info.nr_modules = 1;
        start_info.modlist_paddr = layout::PVH_MODULES.0;
    }
    let mut address = layout::PVH_MEMORY_MAP;
    for (start, size, kind) in map {
        let entry = hvm_memmap_table_entry { addr: start.0, size, type_: kind as u32, reserved: 0 };
        memory.write_obj(entry, address)?;
        address.0 += size_of_val(&entry) as u64;
        start_info.memmap_entries += 1;
    }
    memory.write_obj(start_info, layout::PVH_START_INFO)
}

/// The kernel's setup header with what the boot loader fills in.
fn setup_header(kernel: &Kernel, information: &BootInformation<'_>, arguments_size: u32) -> setup_header {
    const CMDLINE: u32 = layout::in_32_bits(layout::CMDLINE);
    let without = || setup_header {
        boot_flag: BOOT_FLAG,
        header: SETUP_HEADER_MAGIC,
        kernel_alignment: 0x0100_0000,
        ..Default::default()
    };
    let mut header = kernel.setup_header.as_deref().copied().unwrap_or_else(without);
    header.type_of_loader = LOADER_UNDEFINED;
    (header.cmd_line_ptr, header.cmdline_size) = (CMDLINE, arguments_size);
    if let Some(initrd) = information.initrd {
        (header.ramdisk_image, header.ramdisk_size) = (initrd.address, initrd.length);
    }
    header
}

/// The zero page (Linux, `Documentation/arch/x86/boot.rst`).
fn write_zero_page(
    memory: &GuestMemoryMmap,
    mut params: boot_params,
    memory_size: u64,
) -> Result<(), GuestMemoryError> {
    for ((start, size, kind), entry) in
        layout::memory_map(memory_size).into_iter().zip(&mut params.e820_table)
    {
        *entry = boot_e820_entry { addr: start.0, size, r#type: kind as u32 };
        params.e820_entries += 1;
    }
    memory.write_obj(params, layout::ZERO_PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::reserve;

    fn written(entry: EntryPoint) -> std::sync::Arc<GuestMemoryMmap> {
        let memory = reserve(&layout::ram_regions(4 << 30)).unwrap();
        let information = BootInformation {
            arguments: c"console=ttyS0",
            initrd: Some(Initrd { address: 0x800_0000, length: 1234 }),
            memory_size: 4 << 30,
            cpus: 1,
            virtio: &[],
        };
        write(&memory, &Kernel { entry, end: 0, setup_header: None }, &information).unwrap();
        memory
    }

    #[test]
    fn a_pvh_kernel_finds_its_start_info() {
        let memory = written(EntryPoint::Pvh(0x100_0000));
        let info: hvm_start_info = memory.read_obj(layout::PVH_START_INFO).unwrap();
        assert_eq!((info.magic, info.version, info.rsdp_paddr), (0x336e_c578, 1, 0xe_0000));
        let module: hvm_modlist_entry = memory.read_obj(GuestAddress(info.modlist_paddr)).unwrap();
        assert_eq!((info.nr_modules, module.paddr, module.size), (1, 0x800_0000, 1234));
        let mut arguments = [0; 14];
        memory.read_slice(&mut arguments, GuestAddress(info.cmdline_paddr)).unwrap();
        assert_eq!(&arguments, b"console=ttyS0\0");
        let ram: u64 = (0..info.memmap_entries)
            .map(|index| {
                let address = info.memmap_paddr + u64::from(index) * 24;
                memory.read_obj::<hvm_memmap_table_entry>(GuestAddress(address)).unwrap()
            })
            .filter(|entry| entry.type_ == 1)
            .map(|entry| entry.size)
            .sum();
        assert_eq!(ram, (4 << 30) - (0x10_0000 - 0x9_fc00));
    }

    #[test]
    fn a_64_bit_kernel_finds_its_zero_page() {
        let memory = written(EntryPoint::Linux64(0x100_0000));
        let params: boot_params = memory.read_obj(layout::ZERO_PAGE).unwrap();
        let (image, size, arguments) =
            (params.hdr.ramdisk_image, params.hdr.ramdisk_size, params.hdr.cmd_line_ptr);
        assert_eq!((image, size, arguments), (0x800_0000, 1234, 0x2_0000));
        assert_eq!(params.e820_entries, 6);
        let (start, size) = (params.e820_table[5].addr, params.e820_table[5].size);
        assert_eq!((start, size), (4 << 30, 1 << 30));
        let rsdp = params.acpi_rsdp_addr;
        assert_eq!(rsdp, 0xe_0000);
    }
}
