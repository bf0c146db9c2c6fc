//! Letting vCPUs go, all or some, freely or for one instruction.

use gdbstub::common::{Signal, Tid};
use gdbstub::target::ext::base::multithread::{
    MultiThreadResume, MultiThreadSchedulerLocking, MultiThreadSchedulerLockingOps, MultiThreadSingleStep,
    MultiThreadSingleStepOps,
};

use super::{Action, DebugError, Target, vcpu};
use crate::vcpu::{GateError, Holder};

impl Target {
    /// Opens the gate for those that go.
    pub(super) fn let_go(&self) {
        for vcpu in (0..self.gate.cpus()).filter(|vcpu| self.goes(*vcpu)) {
            self.gate.resume_one(Holder::Debugger, vcpu);
        }
    }
}

impl MultiThreadResume for Target {
    fn resume(&mut self) -> Result<(), GateError> {
        if !self.pending.is_empty() {
            // There is something to tell before anything goes.
            self.stops.wake();
            return Ok(());
        }
        for vcpu in (0..self.gate.cpus()).filter(|vcpu| self.goes(*vcpu)) {
            match self.debug(vcpu, 0) {
                Ok(()) => {}
                Err(DebugError::Gate(error)) => return Err(error),
                Err(DebugError::Kvm(error)) => tracing::warn!(%error, vcpu, "KVM cannot debug a vCPU"),
            }
        }
        self.let_go();
        Ok(())
    }

    fn clear_resume_actions(&mut self) -> Result<(), GateError> {
        self.actions.clear();
        self.locked = false;
        Ok(())
    }

    /// A signal is a process's; a VM has none to give to its vCPUs.
    fn set_resume_action_continue(&mut self, tid: Tid, _signal: Option<Signal>) -> Result<(), GateError> {
        self.actions.insert(vcpu(tid), Action::Continue);
        Ok(())
    }

    fn support_single_step(&mut self) -> Option<MultiThreadSingleStepOps<'_, Self>> {
        Some(self)
    }

    fn support_scheduler_locking(&mut self) -> Option<MultiThreadSchedulerLockingOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadSingleStep for Target {
    fn set_resume_action_step(&mut self, tid: Tid, _signal: Option<Signal>) -> Result<(), GateError> {
        self.actions.insert(vcpu(tid), Action::Step);
        Ok(())
    }
}

impl MultiThreadSchedulerLocking for Target {
    fn set_resume_action_scheduler_lock(&mut self) -> Result<(), GateError> {
        self.locked = true;
        Ok(())
    }
}
