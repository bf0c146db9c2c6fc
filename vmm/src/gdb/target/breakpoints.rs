//! Breakpoints of all three kinds. They take effect when the vCPUs go.

use gdbstub::target::TargetResult;
use gdbstub::target::ext::breakpoints::{
    Breakpoints, HwBreakpoint, HwBreakpointOps, HwWatchpoint, HwWatchpointOps, SwBreakpoint, SwBreakpointOps,
    WatchKind,
};

use super::Target;
use crate::arch::current::gdb::debug_registers::Request;
use crate::gdb::memory;

impl Target {
    /// Where the first vCPU that has `linear` in its page tables has it: a breakpoint is for all of them, whichever
    /// the client looks at.
    fn physical(&self, linear: u64) -> Option<u64> {
        (0..self.gate.cpus()).find_map(|vcpu| memory::physical(&self.gate, vcpu, linear).ok().flatten())
    }
}

impl Breakpoints for Target {
    fn support_sw_breakpoint(&mut self) -> Option<SwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_breakpoint(&mut self) -> Option<HwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_watchpoint(&mut self) -> Option<HwWatchpointOps<'_, Self>> {
        Some(self)
    }
}

impl SwBreakpoint for Target {
    fn add_sw_breakpoint(&mut self, address: u64, _kind: usize) -> TargetResult<bool, Self> {
        let physical = self.physical(address);
        let added = physical.filter(|physical| self.breakpoints.add(&self.memory, *physical));
        if let Some(physical) = added {
            self.places.insert(address, physical);
        }
        Ok(added.is_some())
    }

    fn remove_sw_breakpoint(&mut self, address: u64, _kind: usize) -> TargetResult<bool, Self> {
        // Where it was put, wherever the address may lead by now.
        let place = self.places.remove(&address);
        Ok(place.is_some_and(|physical| {
            self.places.values().any(|other| *other == physical)
                || self.breakpoints.remove(&self.memory, physical)
        }))
    }
}

impl HwBreakpoint for Target {
    fn add_hw_breakpoint(&mut self, address: u64, _kind: usize) -> TargetResult<bool, Self> {
        Ok(self.registers.add(Request::Execute(address)))
    }

    fn remove_hw_breakpoint(&mut self, address: u64, _kind: usize) -> TargetResult<bool, Self> {
        Ok(self.registers.remove(Request::Execute(address)))
    }
}

impl HwWatchpoint for Target {
    fn add_hw_watchpoint(&mut self, address: u64, length: u64, kind: WatchKind) -> TargetResult<bool, Self> {
        Ok(self.registers.add(Request::Watch(address, length, kind)))
    }

    fn remove_hw_watchpoint(
        &mut self,
        address: u64,
        length: u64,
        kind: WatchKind,
    ) -> TargetResult<bool, Self> {
        Ok(self.registers.remove(Request::Watch(address, length, kind)))
    }
}
