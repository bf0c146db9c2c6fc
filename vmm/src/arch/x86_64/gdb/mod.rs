//! What a debugger needs to know of the processor: its registers, and its breakpoints.

pub(crate) mod debug_registers;
pub(crate) mod registers;

use gdbstub::arch::{Arch, Registers};
use gdbstub_arch::x86::reg::X86_64CoreRegs;

/// x86-64 with SSE, the bases of FS and GS, and the system registers that one who debugs a kernel asks for.
pub(crate) enum GuestArch {}

impl Arch for GuestArch {
    type Usize = u64;
    type Registers = GuestRegisters;
    type RegId = ();
    type BreakpointKind = usize;

    fn target_description_xml() -> Option<&'static str> {
        Some(include_str!("target.xml"))
    }
}

/// Registers behind the core's, in the order of `target.xml`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SystemRegisters {
    pub(crate) fs_base: u64,
    pub(crate) gs_base: u64,
    pub(crate) kernel_gs_base: u64,
    pub(crate) cr0: u64,
    pub(crate) cr2: u64,
    pub(crate) cr3: u64,
    pub(crate) cr4: u64,
    pub(crate) cr8: u64,
    pub(crate) efer: u64,
}

impl SystemRegisters {
    /// How many bytes they take.
    const SIZE: usize = 9 * 8;

    fn fields(&mut self) -> [&mut u64; 9] {
        [
            &mut self.fs_base,
            &mut self.gs_base,
            &mut self.kernel_gs_base,
            &mut self.cr0,
            &mut self.cr2,
            &mut self.cr3,
            &mut self.cr4,
            &mut self.cr8,
            &mut self.efer,
        ]
    }
}

/// All registers of a vCPU that GDB knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct GuestRegisters {
    pub(crate) core: X86_64CoreRegs,
    pub(crate) system: SystemRegisters,
}

impl Registers for GuestRegisters {
    type ProgramCounter = u64;

    fn pc(&self) -> u64 {
        self.core.rip
    }

    fn gdb_serialize(&self, mut write_byte: impl FnMut(Option<u8>)) {
        self.core.gdb_serialize(&mut write_byte);
        let mut system = self.system;
        for byte in system.fields().into_iter().flat_map(|field| field.to_le_bytes()) {
            write_byte(Some(byte));
        }
    }

    fn gdb_deserialize(&mut self, bytes: &[u8]) -> Result<(), ()> {
        let end = bytes.len().checked_sub(SystemRegisters::SIZE).ok_or(())?;
        let (core, system) = bytes.split_at_checked(end).ok_or(())?;
        self.core.gdb_deserialize(core)?;
        let (values, _) = system.as_chunks();
        for (field, value) in self.system.fields().into_iter().zip(values) {
            *field = u64::from_le_bytes(*value);
        }
        Ok(())
    }
}

/// The exception of INT3 (Intel SDM volume 3A, 6.15); the other that KVM reports is the debug exception.
pub(crate) const BREAKPOINT_VECTOR: u32 = 3;
/// The debug exception, and DR6 after a step (Intel SDM volume 3B, 18.2.3).
pub(crate) const DEBUG_VECTOR: u32 = 1;
pub(crate) const SINGLE_STEP: u64 = 1 << 14;

#[cfg(test)]
mod tests {
    use super::*;

    fn serialized(registers: &GuestRegisters) -> Vec<u8> {
        let mut bytes = Vec::new();
        registers.gdb_serialize(|byte| bytes.push(byte.unwrap()));
        bytes
    }

    #[test]
    fn gdb_is_told_of_as_many_bits_as_it_gets() {
        let description = GuestArch::target_description_xml().unwrap();
        let bits = description.split("bitsize=\"").skip(1).map(|rest| rest.split('"').next().unwrap());
        let bits: usize = bits.map(|bits| bits.parse::<usize>().unwrap()).sum();
        assert_eq!(bits, 8 * serialized(&GuestRegisters::default()).len());
    }

    #[test]
    fn what_gdb_sends_back_is_what_it_got() {
        let mut registers = GuestRegisters::default();
        registers.core.rip = 1 << 63;
        registers.system = SystemRegisters { fs_base: 1, cr0: 2, efer: 3, ..Default::default() };
        let bytes = serialized(&registers);
        let mut copy = GuestRegisters::default();
        copy.gdb_deserialize(&bytes).unwrap();
        assert_eq!(copy, registers);
        for length in 0..bytes.len() {
            assert_eq!(copy.gdb_deserialize(&bytes[..length]), Err(()));
        }
    }
}
