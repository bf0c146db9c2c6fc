//! A vCPU's registers, between KVM and GDB.

use gdbstub_arch::x86::reg::{F80, X86_64CoreRegs};
use kvm_bindings::{Msrs, kvm_fpu, kvm_msr_entry, kvm_regs, kvm_sregs};
use kvm_ioctls::{Error, VcpuFd};

use super::{GuestRegisters, SystemRegisters};

/// The base of GS that SWAPGS brings (Intel SDM volume 4, IA32_KERNEL_GS_BASE).
const KERNEL_GS_BASE: u32 = 0xc000_0102;

/// The x87's tags: two bits a register (Intel SDM volume 1, 8.1.7).
const TAG_VALID: u32 = 0b00;
const TAG_ZERO: u32 = 0b01;
const TAG_SPECIAL: u32 = 0b10;
const TAG_EMPTY: u32 = 0b11;

/// Reads all registers.
pub(crate) fn read(vcpu: &VcpuFd) -> Result<GuestRegisters, Error> {
    let (regs, sregs, fpu) = (vcpu.get_regs()?, vcpu.get_sregs()?, vcpu.get_fpu()?);
    let mut core = X86_64CoreRegs::default();
    read_general(&mut core, &regs);
    let segments = &mut core.segments;
    let selectors = [
        (&mut segments.cs, sregs.cs),
        (&mut segments.ss, sregs.ss),
        (&mut segments.ds, sregs.ds),
        (&mut segments.es, sregs.es),
        (&mut segments.fs, sregs.fs),
        (&mut segments.gs, sregs.gs),
    ];
    for (selector, segment) in selectors {
        *selector = segment.selector.into();
    }
    read_fpu(&mut core, &fpu);
    let system = SystemRegisters {
        fs_base: sregs.fs.base,
        gs_base: sregs.gs.base,
        kernel_gs_base: kernel_gs_base(vcpu)?,
        cr0: sregs.cr0,
        cr2: sregs.cr2,
        cr3: sregs.cr3,
        cr4: sregs.cr4,
        cr8: sregs.cr8,
        efer: sregs.efer,
    };
    Ok(GuestRegisters { core, system })
}

/// Writes those registers that differ from what they are. KVM checks what it is given.
pub(crate) fn write(vcpu: &VcpuFd, new: &GuestRegisters) -> Result<(), Error> {
    let old = read(vcpu)?;
    if new.core.segments != old.core.segments {
        // A selector alone does not make a segment: the processor would read the rest from a table.
        return Err(Error::new(libc::EOPNOTSUPP));
    }
    if new.system != old.system {
        write_system(vcpu, &new.system, &old.system)?;
    }
    let mut fpu = vcpu.get_fpu()?;
    write_fpu(&mut fpu, &new.core);
    let mut rewritten = old.core.clone();
    read_fpu(&mut rewritten, &fpu);
    if rewritten != old.core {
        vcpu.set_fpu(&fpu)?;
    }
    let mut regs = vcpu.get_regs()?;
    write_general(&mut regs, &new.core);
    vcpu.set_regs(&regs)
}

fn general(regs: &mut kvm_regs) -> [&mut u64; 16] {
    [
        &mut regs.rax,
        &mut regs.rbx,
        &mut regs.rcx,
        &mut regs.rdx,
        &mut regs.rsi,
        &mut regs.rdi,
        &mut regs.rbp,
        &mut regs.rsp,
        &mut regs.r8,
        &mut regs.r9,
        &mut regs.r10,
        &mut regs.r11,
        &mut regs.r12,
        &mut regs.r13,
        &mut regs.r14,
        &mut regs.r15,
    ]
}

fn read_general(core: &mut X86_64CoreRegs, regs: &kvm_regs) {
    let mut regs = *regs;
    core.rip = regs.rip;
    // The upper half of RFLAGS is reserved and zero.
    core.eflags = u32::try_from(regs.rflags & u64::from(u32::MAX)).unwrap_or_default();
    for (register, value) in core.regs.iter_mut().zip(general(&mut regs)) {
        *register = *value;
    }
}

fn write_general(regs: &mut kvm_regs, core: &X86_64CoreRegs) {
    regs.rip = core.rip;
    regs.rflags = core.eflags.into();
    for (value, register) in general(regs).into_iter().zip(core.regs) {
        *value = register;
    }
}

/// The lower `N` bytes of a register's 16.
fn low<const N: usize>(bytes: &[u8; 16]) -> [u8; N] {
    bytes.first_chunk().copied().unwrap_or([0; N])
}

/// The 16 bits of a field, and the rest of it.
fn field(value: u32) -> u16 {
    u16::try_from(value & 0xffff).unwrap_or_default()
}

fn read_fpu(core: &mut X86_64CoreRegs, fpu: &kvm_fpu) {
    for (register, bytes) in core.st.iter_mut().zip(&fpu.fpr) {
        *register = low(bytes);
    }
    for (register, bytes) in core.xmm.iter_mut().zip(&fpu.xmm) {
        *register = u128::from_le_bytes(*bytes);
    }
    core.mxcsr = fpu.mxcsr;
    core.fpu.fctrl = fpu.fcw.into();
    core.fpu.fstat = fpu.fsw.into();
    core.fpu.ftag = full_tags(fpu.ftwx, fpu.fsw, &core.st);
    core.fpu.fop = fpu.last_opcode.into();
    // FXSAVE has 64 bits, of which GDB takes 32 for the offset and 16 for the segment.
    let halves = |pointer: u64| {
        let half = |value: u64| u32::try_from(value & u64::from(u32::MAX)).unwrap_or_default();
        (half(pointer), half(pointer >> 32 & 0xffff))
    };
    (core.fpu.fioff, core.fpu.fiseg) = halves(fpu.last_ip);
    (core.fpu.fooff, core.fpu.foseg) = halves(fpu.last_dp);
}

/// All but the pointers to the last instruction and its operand, which GDB has not the whole of.
fn write_fpu(fpu: &mut kvm_fpu, core: &X86_64CoreRegs) {
    for (bytes, register) in fpu.fpr.iter_mut().zip(&core.st) {
        for (byte, value) in bytes.iter_mut().zip(register) {
            *byte = *value;
        }
    }
    for (bytes, register) in fpu.xmm.iter_mut().zip(&core.xmm) {
        *bytes = register.to_le_bytes();
    }
    fpu.mxcsr = core.mxcsr;
    fpu.fcw = field(core.fpu.fctrl);
    fpu.fsw = field(core.fpu.fstat);
    fpu.ftwx =
        (0..8).filter(|index| core.fpu.ftag >> (2 * index) & 0b11 != TAG_EMPTY).map(|index| 1 << index).sum();
    fpu.last_opcode = field(core.fpu.fop);
}

/// The tag word from FXSAVE's, which has one bit a register: it is not empty (Intel SDM volume 1, 10.5.1.1).
fn full_tags(present: u8, status: u16, stack: &[F80; 8]) -> u32 {
    // Tags go by the register's number, the stack by its distance from the top.
    let top = u32::from(status >> 11 & 0b111);
    (0_u32..).zip(stack).fold(0, |tags, (depth, value)| {
        let number = (top + depth) % 8;
        let tag = if present >> number & 1 == 0 { TAG_EMPTY } else { tag(value) };
        tags | tag << (2 * number)
    })
}

fn tag(value: &F80) -> u32 {
    let [mantissa @ .., low, high] = value;
    let exponent = u16::from_le_bytes([*low, *high]) & 0x7fff;
    let mantissa = u64::from_le_bytes(*mantissa);
    match exponent {
        0 if mantissa == 0 => TAG_ZERO,
        0 | 0x7fff => TAG_SPECIAL,
        // Without the integer bit the processor does not accept the number.
        _ if mantissa >> 63 == 0 => TAG_SPECIAL,
        _ => TAG_VALID,
    }
}

fn write_system(vcpu: &VcpuFd, new: &SystemRegisters, old: &SystemRegisters) -> Result<(), Error> {
    if new.kernel_gs_base != old.kernel_gs_base {
        let set = vcpu.set_msrs(&one_msr(new.kernel_gs_base)?)?;
        if set != 1 {
            return Err(Error::new(libc::EINVAL));
        }
    }
    let sregs = kvm_sregs {
        cr0: new.cr0,
        cr2: new.cr2,
        cr3: new.cr3,
        cr4: new.cr4,
        cr8: new.cr8,
        efer: new.efer,
        ..vcpu.get_sregs()?
    };
    let (fs, gs) = (
        kvm_bindings::kvm_segment { base: new.fs_base, ..sregs.fs },
        kvm_bindings::kvm_segment { base: new.gs_base, ..sregs.gs },
    );
    vcpu.set_sregs(&kvm_sregs { fs, gs, ..sregs })
}

fn kernel_gs_base(vcpu: &VcpuFd) -> Result<u64, Error> {
    let mut msrs = one_msr(0)?;
    vcpu.get_msrs(&mut msrs)?;
    Ok(msrs.as_slice().first().map_or(0, |msr| msr.data))
}

fn one_msr(data: u64) -> Result<Msrs, Error> {
    let entry = kvm_msr_entry { index: KERNEL_GS_BASE, data, ..Default::default() };
    Msrs::from_entries(&[entry]).map_err(|_| Error::new(libc::E2BIG))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_tell_empty_zero_special_and_numbers() {
        let one = [0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x3f];
        let infinity = [0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x7f];
        let mut stack = [[0; 10]; 8];
        (stack[0], stack[1]) = (one, infinity);
        // The top is register 6, and registers 6, 7 and 0 are in use.
        assert_eq!(full_tags(0b1100_0001, 6 << 11, &stack), 0b1000_1111_1111_1101);
        assert_eq!(full_tags(0, 0, &stack), 0xffff);
    }

    #[test]
    fn an_fpu_goes_to_gdb_and_back() {
        let mut fpu = kvm_fpu { fcw: 0x37f, fsw: 0x3800, ftwx: 0x80, mxcsr: 0x1f80, ..Default::default() };
        fpu.fpr[0] = [1, 2, 3, 4, 5, 6, 7, 0x80, 9, 10, 0, 0, 0, 0, 0, 0];
        fpu.xmm[15] = [7; 16];
        let mut core = X86_64CoreRegs::default();
        read_fpu(&mut core, &fpu);
        assert_eq!(core.fpu.ftag, 0x3fff);
        let mut copy = kvm_fpu::default();
        write_fpu(&mut copy, &core);
        assert_eq!(copy, fpu);
    }
}
