//! Registers and memory of a stopped vCPU.

use gdbstub::common::Tid;
use gdbstub::target::TargetResult;
use gdbstub::target::ext::base::multithread::{MultiThreadBase, MultiThreadResumeOps};
use gdbstub::target::ext::thread_extra_info::{ThreadExtraInfo, ThreadExtraInfoOps};
use kvm_bindings::{KVM_MP_STATE_HALTED, KVM_MP_STATE_RUNNABLE};

use super::{Target, refusal, tid, vcpu};
use crate::arch::current::gdb::{GuestRegisters, registers};
use crate::gdb::memory;
use crate::vcpu::GateError;

impl MultiThreadBase for Target {
    fn read_registers(&mut self, to: &mut GuestRegisters, tid: Tid) -> TargetResult<(), Self> {
        *to = self.gate.with_vcpu(vcpu(tid), |fd| registers::read(fd)).map_err(refusal)?.map_err(refusal)?;
        Ok(())
    }

    fn write_registers(&mut self, from: &GuestRegisters, tid: Tid) -> TargetResult<(), Self> {
        let from = from.clone();
        let written = self.gate.with_vcpu(vcpu(tid), move |fd| registers::write(fd, &from));
        written.map_err(refusal)?.map_err(refusal)
    }

    fn read_addrs(&mut self, start: u64, data: &mut [u8], tid: Tid) -> TargetResult<usize, Self> {
        let mut read = 0;
        for (offset, address, length) in memory::pages(start, data.len()) {
            let physical = memory::physical(&self.gate, vcpu(tid), address).map_err(refusal)?;
            let Some(piece) = data.get_mut(offset..offset + length) else { break };
            if !physical.is_some_and(|physical| self.breakpoints.read(&self.memory, physical, piece)) {
                break;
            }
            read += length;
        }
        // Less than asked for is an answer, nothing is not.
        if read == 0 && !data.is_empty() { Err(refusal(())) } else { Ok(read) }
    }

    fn write_addrs(&mut self, start: u64, data: &[u8], tid: Tid) -> TargetResult<(), Self> {
        let mut written = 0;
        for (offset, address, length) in memory::pages(start, data.len()) {
            let physical = memory::physical(&self.gate, vcpu(tid), address).map_err(refusal)?;
            let piece = data.get(offset..offset + length).unwrap_or_default();
            if !physical.is_some_and(|physical| self.breakpoints.write(&self.memory, physical, piece)) {
                break;
            }
            written += length;
        }
        if written == data.len() { Ok(()) } else { Err(refusal(())) }
    }

    fn list_active_threads(&mut self, thread_is_active: &mut dyn FnMut(Tid)) -> Result<(), GateError> {
        (0..self.gate.cpus()).map(tid).for_each(thread_is_active);
        Ok(())
    }

    fn support_resume(&mut self) -> Option<MultiThreadResumeOps<'_, Self>> {
        Some(self)
    }

    fn support_thread_extra_info(&mut self) -> Option<ThreadExtraInfoOps<'_, Self>> {
        Some(self)
    }
}

impl ThreadExtraInfo for Target {
    fn thread_extra_info(&self, tid: Tid, buffer: &mut [u8]) -> Result<usize, GateError> {
        let vcpu = vcpu(tid);
        let state = match self.gate.with_vcpu(vcpu, |fd| fd.get_mp_state()) {
            Ok(Ok(state)) if state.mp_state == KVM_MP_STATE_RUNNABLE => "in use",
            Ok(Ok(state)) if state.mp_state == KVM_MP_STATE_HALTED => "halted",
            Ok(Ok(_)) => "not started by the guest",
            Ok(Err(_)) | Err(_) => "busy",
        };
        let text = format!("vCPU {vcpu}, {state}");
        let length = text.len().min(buffer.len());
        for (to, from) in buffer.iter_mut().zip(text.bytes()) {
            *to = from;
        }
        Ok(length)
    }
}
