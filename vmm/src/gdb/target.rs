//! The VM as GDB sees it: threads that are vCPUs, with registers, memory and breakpoints.

mod breakpoints;
mod resume;
mod threads;

use std::collections::BTreeMap;
use std::sync::Arc;

use gdbstub::common::{Signal, Tid};
use gdbstub::stub::MultiThreadStopReason;
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::breakpoints::BreakpointsOps;
use gdbstub::target::{Target as GdbTarget, TargetError};
use kvm_bindings::{
    KVM_GUESTDBG_BLOCKIRQ, KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_INJECT_BP, KVM_GUESTDBG_INJECT_DB,
    KVM_GUESTDBG_SINGLESTEP, KVM_GUESTDBG_USE_HW_BP, KVM_GUESTDBG_USE_SW_BP, kvm_guest_debug,
    kvm_guest_debug_arch,
};
use vm_memory::GuestMemoryMmap;

use super::breakpoints::Breakpoints;
use super::memory;
use super::stops::{Stop, Stops};
use crate::arch::current::gdb::debug_registers::{DebugRegisters, Request};
use crate::arch::current::gdb::{BREAKPOINT_VECTOR, GuestArch, SINGLE_STEP};
use crate::vcpu::{Gate, GateError, Holder};

type StopReason = MultiThreadStopReason<u64>;

/// What a vCPU does when the client resumes the VM.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Action {
    Continue,
    Step,
}

/// The state of debugging, from one client to the next.
pub(super) struct Target {
    gate: Arc<Gate>,
    memory: Arc<GuestMemoryMmap>,
    stops: Arc<Stops>,
    breakpoints: Breakpoints,
    /// Where software breakpoints were put, by the linear addresses that the client gave.
    places: BTreeMap<u64, u64>,
    registers: DebugRegisters,
    /// What the client asked of single vCPUs before it resumes them.
    actions: BTreeMap<usize, Action>,
    /// Only those go of which it said something.
    locked: bool,
    /// Stops that are not reported yet, because another one was.
    pending: Vec<Stop>,
}

/// Whose a stop is.
enum Owner {
    /// The client's, to which this is reported.
    Client(StopReason),
    /// The guest's: it gets the exception.
    Guest(u32),
    /// It was handled.
    Done,
}

/// GDB counts threads from 1, for 0 means any.
fn tid(vcpu: usize) -> Tid {
    Tid::MIN.saturating_add(vcpu)
}

fn vcpu(tid: Tid) -> usize {
    tid.get() - 1
}

impl Target {
    pub(super) fn new(gate: Arc<Gate>, memory: Arc<GuestMemoryMmap>, stops: Arc<Stops>) -> Self {
        Self {
            gate,
            memory,
            stops,
            breakpoints: Breakpoints::default(),
            places: BTreeMap::new(),
            registers: DebugRegisters::default(),
            actions: BTreeMap::new(),
            locked: false,
            pending: Vec::new(),
        }
    }

    /// Stops all vCPUs.
    pub(super) fn halt(&mut self) {
        if let Err(error) = self.gate.pause(Holder::Debugger) {
            // The others can be looked at all the same.
            tracing::warn!(%error, "not all vCPUs can be debugged");
        }
    }

    /// Stops all vCPUs because one has stopped. `None` where that was the guest's own business; then it goes on.
    pub(super) fn stopped(&mut self) -> Option<StopReason> {
        self.halt();
        let reason = self.collect();
        if reason.is_none() {
            self.let_go();
        }
        reason
    }

    /// Stops all vCPUs because the client wants it.
    pub(super) fn interrupted(&mut self) -> StopReason {
        self.halt();
        let signal = StopReason::SignalWithThread { tid: Tid::MIN, signal: Signal::SIGINT };
        self.collect().unwrap_or(signal)
    }

    /// Removes all breakpoints from the guest and resumes it.
    pub(super) fn release(&mut self) {
        self.halt();
        // Exceptions of the guest's are still due.
        self.collect();
        self.pending.clear();
        self.breakpoints.clear(&self.memory);
        self.places.clear();
        self.registers = DebugRegisters::default();
        self.actions.clear();
        for vcpu in 0..self.gate.cpus() {
            self.stops.set_stepping(vcpu, false);
            let off = kvm_guest_debug::default();
            if let Ok(Err(error)) = self.gate.with_vcpu(vcpu, move |fd| fd.set_guest_debug(&off)) {
                tracing::warn!(%error, vcpu, "cannot end the debugging of a vCPU");
            }
        }
        self.gate.resume(Holder::Debugger);
    }

    /// Goes through the stops: finds the one to tell, and gives the guest what is the guest's. All vCPUs stand.
    fn collect(&mut self) -> Option<StopReason> {
        let old = std::mem::take(&mut self.pending);
        let olds = old.len();
        let mut reported = None;
        for (index, stop) in old.into_iter().chain(self.stops.take()).enumerate() {
            match self.owner(&stop, index < olds) {
                Owner::Client(reason) if reported.is_none() => reported = Some(reason),
                // A breakpoint is met again, as the instruction is still to come; what was accessed is not.
                Owner::Client(StopReason::Watch { .. }) => self.pending.push(stop),
                Owner::Client(_) | Owner::Done => {}
                Owner::Guest(exception) => {
                    if let Err(error) = self.debug(stop.vcpu, exception) {
                        tracing::warn!(%error, vcpu = stop.vcpu, "cannot inject an exception into the guest");
                    }
                }
            }
        }
        reported
    }

    fn owner(&self, stop: &Stop, is_old: bool) -> Owner {
        let tid = tid(stop.vcpu);
        if stop.cause.exception == BREAKPOINT_VECTOR {
            let pc = stop.cause.pc;
            let address = memory::physical(&self.gate, stop.vcpu, pc).ok().flatten();
            return match address {
                Some(address) if self.places.get(&pc) == Some(&address) => {
                    Owner::Client(StopReason::SwBreak(tid))
                }
                // One that the client put to another linear address of the same memory: it would take it for an old
                // one there, and go on forever.
                Some(address) if self.breakpoints.contains(address) => {
                    Owner::Client(StopReason::SignalWithThread { tid, signal: Signal::SIGTRAP })
                }
                _ => Owner::Guest(KVM_GUESTDBG_INJECT_BP),
            };
        }
        let steps = self.actions.get(&stop.vcpu) == Some(&Action::Step);
        let here = Some(Request::Execute(stop.cause.pc)).filter(|request| self.registers.has(*request));
        match self.registers.hit(stop.cause.dr6).or(here) {
            Some(Request::Watch(addr, _, kind)) => Owner::Client(StopReason::Watch { tid, kind, addr }),
            Some(Request::Execute(_)) => Owner::Client(StopReason::HwBreak(tid)),
            None if is_old => Owner::Done,
            None if steps || stop.cause.dr6 & SINGLE_STEP != 0 => {
                Owner::Client(StopReason::SignalWithThread { tid, signal: Signal::SIGTRAP })
            }
            None => Owner::Guest(KVM_GUESTDBG_INJECT_DB),
        }
    }

    fn goes(&self, vcpu: usize) -> bool {
        !self.locked || self.actions.contains_key(&vcpu)
    }

    /// Tells KVM how a vCPU is debugged from here on; `more` is added to the flags.
    fn debug(&self, vcpu: usize, more: u32) -> Result<(), DebugError> {
        let mut control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_SW_BP | more;
        if self.registers.is_used() {
            control |= KVM_GUESTDBG_USE_HW_BP;
        }
        let steps = self.actions.get(&vcpu) == Some(&Action::Step);
        self.stops.set_stepping(vcpu, steps);
        if steps {
            control |= KVM_GUESTDBG_SINGLESTEP;
        }
        let arch = kvm_guest_debug_arch { debugreg: self.registers.values() };
        self.gate.with_vcpu(vcpu, move |fd| {
            // A step is to end behind its instruction and not in the handler of the timer's interrupt. Hosts before
            // Linux 5.16 don't know the flag.
            if steps {
                let control = control | KVM_GUESTDBG_BLOCKIRQ;
                if fd.set_guest_debug(&kvm_guest_debug { control, pad: 0, arch }).is_ok() {
                    return Ok(());
                }
            }
            fd.set_guest_debug(&kvm_guest_debug { control, pad: 0, arch })
        })??;
        Ok(())
    }
}

/// Why a vCPU can't be debugged.
#[derive(Debug, thiserror::Error)]
enum DebugError {
    #[error(transparent)]
    Gate(#[from] GateError),
    #[error("KVM refuses it")]
    Kvm(#[from] kvm_ioctls::Error),
}

/// The number that the client gets for a failed request.
fn refusal<E>(_error: E) -> TargetError<GateError> {
    TargetError::NonFatal
}

impl GdbTarget for Target {
    type Arch = GuestArch;
    type Error = GateError;

    fn base_ops(&mut self) -> BaseOps<'_, GuestArch, GateError> {
        BaseOps::MultiThread(self)
    }

    fn support_breakpoints(&mut self) -> Option<BreakpointsOps<'_, Self>> {
        Some(self)
    }
}
