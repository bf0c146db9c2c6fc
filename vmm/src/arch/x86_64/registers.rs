//! The state in which a vCPU enters the kernel.

use kvm_bindings::{Msrs, kvm_fpu, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;
use thiserror::Error;
use vm_memory::{Bytes, GuestMemoryError, GuestMemoryMmap};

use super::kernel::EntryPoint;
use super::layout;
use crate::kvm::KvmError;

/// Why a vCPU could not be set up.
#[derive(Debug, Error)]
pub enum RegisterError {
    /// KVM refused a part of the state.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// KVM took the MSRs only up to one of them.
    #[error("KVM rejects MSR {0:#x}")]
    Msr(u32),
    /// Page tables or descriptors could not be written.
    #[error("cannot write the boot structures to guest memory")]
    Memory(#[from] GuestMemoryError),
}

/// Control register 0: protected mode, the x87 of any processor since the 486, paging.
const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
/// Control register 4: page tables of 64-bit entries.
const CR4_PAE: u64 = 1 << 5;
/// EFER: long mode is enabled, and active.
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// RFLAGS has one bit that is always set.
const RFLAGS: u64 = 1 << 1;

/// Page table entries: present, writable, and a 2 MiB page.
const PAGE_PRESENT: u64 = 1 << 0;
const PAGE_WRITABLE: u64 = 1 << 1;
const PAGE_HUGE: u64 = 1 << 7;
const ENTRIES: u64 = 512;

/// Selectors that the Linux boot protocol asks for (`__BOOT_CS`, `__BOOT_DS`), and one for the task.
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const TASK_SELECTOR: u16 = 0x20;

/// Segment types (Intel SDM volume 3A, 3.4.5.1 and 3.5): all accessed, as the processor would leave them.
const TYPE_CODE: u8 = 0xb;
const TYPE_DATA: u8 = 0x3;
const TYPE_TASK_BUSY: u8 = 0xb;

/// MSRs (Intel SDM volume 4, AMD APM volume 2 appendix A) with the values that firmware leaves.
const BOOT_MSRS: [(u32, u64); 3] = [
    // IA32_TSC: all vCPUs start to count from zero.
    (0x10, 0),
    // IA32_MISC_ENABLE: fast string operations.
    (0x1a0, 1),
    // IA32_MTRR_DEF_TYPE: MTRRs enabled, memory is write-back.
    (0x2ff, 1 << 11 | 6),
];

/// IA32_FEATURE_CONTROL, which firmware locks: VMX may be used, outside of SMX. Without it VMXON faults, and Linux's
/// KVM says that the BIOS has disabled it.
const VMX_MSR: (u32, u64) = (0x3a, 1 << 2 | 1);

/// Local vector table entries of the local APIC, by their offset in its page. LINT1 takes the NMI. LINT0 would take
/// the interrupts of the 8259s, which the guest is told nothing of: KVM makes them with all lines open and vectors
/// from 0 on, so that a line below 16 would reach the guest as an exception, too.
const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;
const LVT_MASKED: u32 = 1 << 16;
const DELIVERY_MODE_NMI: u32 = 0b100 << 8;

/// Writes the descriptors and page tables that the boot vCPU starts with.
///
/// # Errors
///
/// Those of writing to guest memory.
pub fn write_boot_tables(memory: &GuestMemoryMmap, entry: EntryPoint) -> Result<(), GuestMemoryError> {
    let segments = Segments::of(entry);
    let descriptors =
        [0, 0, descriptor(&segments.code), descriptor(&segments.data), descriptor(&segments.task)];
    for (address, value) in (layout::GDT.0..).step_by(8).zip(descriptors) {
        memory.write_obj::<u64>(value, vm_memory::GuestAddress(address))?;
    }
    if matches!(entry, EntryPoint::Linux64(_)) {
        write_page_tables(memory)?;
    }
    Ok(())
}

/// Maps the first GiB onto itself.
fn write_page_tables(memory: &GuestMemoryMmap) -> Result<(), GuestMemoryError> {
    let pml4 = layout::PAGE_TABLES;
    let pdpt = vm_memory::GuestAddress(pml4.0 + 0x1000);
    let directory = vm_memory::GuestAddress(pml4.0 + 0x2000);
    memory.write_obj(pdpt.0 | PAGE_PRESENT | PAGE_WRITABLE, pml4)?;
    memory.write_obj(directory.0 | PAGE_PRESENT | PAGE_WRITABLE, pdpt)?;
    for index in 0..ENTRIES {
        let entry = index << 21 | PAGE_PRESENT | PAGE_WRITABLE | PAGE_HUGE;
        memory.write_obj(entry, vm_memory::GuestAddress(directory.0 + index * 8))?;
    }
    Ok(())
}

struct Segments {
    code: kvm_segment,
    data: kvm_segment,
    task: kvm_segment,
}

impl Segments {
    /// Flat segments of 4 GiB.
    fn of(entry: EntryPoint) -> Self {
        let long = u8::from(matches!(entry, EntryPoint::Linux64(_)));
        let flat = |selector, type_| kvm_segment {
            limit: u32::MAX,
            selector,
            type_,
            present: 1,
            s: 1,
            g: 1,
            ..Default::default()
        };
        Self {
            code: kvm_segment { l: long, db: 1 - long, ..flat(CODE_SELECTOR, TYPE_CODE) },
            data: kvm_segment { db: 1, ..flat(DATA_SELECTOR, TYPE_DATA) },
            task: kvm_segment {
                limit: 0x67,
                selector: TASK_SELECTOR,
                type_: TYPE_TASK_BUSY,
                present: 1,
                ..Default::default()
            },
        }
    }
}

/// A segment as it stands in the descriptor table (Intel SDM volume 3A, 3.4.5).
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = u64::from(if segment.g == 1 { segment.limit >> 12 } else { segment.limit });
    let access = u64::from(segment.type_ | segment.s << 4 | segment.dpl << 5 | segment.present << 7);
    let flags = u64::from(segment.avl | segment.l << 1 | segment.db << 2 | segment.g << 3);
    limit & 0xffff
        | (segment.base & 0xff_ffff) << 16
        | access << 40
        | (limit >> 16 & 0xf) << 48
        | flags << 52
        | (segment.base >> 24 & 0xff) << 56
}

/// Sets up the state that all vCPUs share. Those that are not the first wait for INIT and SIPI with it. The CPUID is
/// there already; `vmx` is whether it has VMX.
///
/// # Errors
///
/// [`RegisterError`].
pub fn set_up(vcpu: &VcpuFd, vmx: bool) -> Result<(), RegisterError> {
    let fpu = kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..Default::default() };
    vcpu.set_fpu(&fpu).map_err(KvmError::call("set the FPU of a vCPU"))?;
    set_msrs(vcpu, &BOOT_MSRS)?;
    if vmx {
        set_msrs(vcpu, &[VMX_MSR])?;
    }
    set_local_apic(vcpu)
}

fn set_msrs(vcpu: &VcpuFd, values: &[(u32, u64)]) -> Result<(), RegisterError> {
    let entry =
        |(index, data): &(u32, u64)| kvm_msr_entry { index: *index, data: *data, ..Default::default() };
    let entries: Vec<_> = values.iter().map(entry).collect();
    let first = values.first().map_or(0, |(index, _)| *index);
    let msrs = Msrs::from_entries(&entries).map_err(|_| RegisterError::Msr(first))?;
    let set = vcpu.set_msrs(&msrs).map_err(KvmError::call("set the MSRs of a vCPU"))?;
    // KVM stops at the first one that it does not know.
    values.get(set).map_or(Ok(()), |(index, _)| Err(RegisterError::Msr(*index)))
}

fn set_local_apic(vcpu: &VcpuFd) -> Result<(), RegisterError> {
    let mut apic = vcpu.get_lapic().map_err(KvmError::call("read the local APIC of a vCPU"))?;
    for (offset, entry) in [(LVT_LINT0, LVT_MASKED), (LVT_LINT1, DELIVERY_MODE_NMI)] {
        if let Some(register) = apic.regs.get_mut(offset..offset + 4) {
            let bytes = entry.to_le_bytes();
            for (byte, value) in register.iter_mut().zip(bytes) {
                *byte = value.cast_signed();
            }
        }
    }
    vcpu.set_lapic(&apic).map_err(KvmError::call("set the local APIC of a vCPU"))?;
    Ok(())
}

/// Points the boot vCPU at the kernel.
///
/// # Errors
///
/// [`RegisterError::Kvm`].
pub fn set_entry(vcpu: &VcpuFd, entry: EntryPoint) -> Result<(), RegisterError> {
    let mut sregs = vcpu.get_sregs().map_err(KvmError::call("read the registers of a vCPU"))?;
    set_segments(&mut sregs, entry);
    vcpu.set_sregs(&sregs).map_err(KvmError::call("set the system registers of a vCPU"))?;
    let registers = match entry {
        EntryPoint::Pvh(address) => kvm_regs {
            rip: address.into(),
            rbx: layout::PVH_START_INFO.0,
            rflags: RFLAGS,
            ..Default::default()
        },
        EntryPoint::Linux64(address) => kvm_regs {
            rip: address,
            rsi: layout::ZERO_PAGE.0,
            rsp: layout::BOOT_STACK,
            rbp: layout::BOOT_STACK,
            rflags: RFLAGS,
            ..Default::default()
        },
    };
    vcpu.set_regs(&registers).map_err(KvmError::call("set the registers of a vCPU"))?;
    Ok(())
}

fn set_segments(sregs: &mut kvm_sregs, entry: EntryPoint) {
    let segments = Segments::of(entry);
    sregs.cs = segments.code;
    for data in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
        *data = segments.data;
    }
    sregs.tr = segments.task;
    sregs.gdt.base = layout::GDT.0;
    sregs.gdt.limit = 5 * 8 - 1;
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    sregs.cr0 = CR0_PE | CR0_ET;
    sregs.cr4 = 0;
    if matches!(entry, EntryPoint::Linux64(_)) {
        sregs.cr0 |= CR0_PG;
        sregs.cr3 = layout::PAGE_TABLES.0;
        sregs.cr4 = CR4_PAE;
        sregs.efer = EFER_LME | EFER_LMA;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flat_segments_have_the_descriptors_that_every_textbook_has() {
        let segments = Segments::of(EntryPoint::Linux64(0));
        assert_eq!(descriptor(&segments.code), 0x00af_9b00_0000_ffff);
        assert_eq!(descriptor(&segments.data), 0x00cf_9300_0000_ffff);
        let segments = Segments::of(EntryPoint::Pvh(0));
        assert_eq!(descriptor(&segments.code), 0x00cf_9b00_0000_ffff);
        assert_eq!(descriptor(&segments.task), 0x0000_8b00_0000_0067);
    }

    #[test]
    fn the_first_gib_is_mapped_onto_itself() {
        let memory = crate::memory::reserve(&[(vm_memory::GuestAddress(0), 1 << 20)]).unwrap();
        write_boot_tables(&memory, EntryPoint::Linux64(0)).unwrap();
        let read = |address| memory.read_obj::<u64>(vm_memory::GuestAddress(address)).unwrap();
        assert_eq!(read(0x9000), 0xa003);
        assert_eq!(read(0xa000), 0xb003);
        assert_eq!(read(0xb000), 0x83);
        assert_eq!(read(0xb000 + 511 * 8), 0x3fe0_0083);
        assert_eq!(read(0xc000), 0);
    }
}
