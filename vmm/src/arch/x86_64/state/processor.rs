//! A vCPU.

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state, kvm_mp_state,
    kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs,
};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};

use super::vectors::VectorState;
use super::{Facts, StateError, batch, features};
use crate::kvm::KvmError;

/// IA32_TSC, which the deadline depends on.
const TSC: u32 = 0x10;
/// IA32_TSC_DEADLINE: writing it starts the local APIC's timer.
const TSC_DEADLINE: u32 = 0x6e0;
/// The MSRs that one call reads or writes.
const BATCH: usize = kvm_bindings::KVM_MAX_MSR_ENTRIES;
/// How far frequencies of the time stamp counter may be from each other to count as the same, in millionths: as far as
/// KVM takes them for the same, and NTP corrects.
const TOLERANCE: u64 = 250;

/// A model-specific register and its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Msr {
    index: u32,
    value: u64,
}

/// The state of a vCPU.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ProcessorState {
    /// Whether it runs, waits for an interrupt, or to be started.
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    vectors: VectorState,
    xcrs: kvm_xcrs,
    debug: kvm_debugregs,
    lapic: kvm_lapic_state,
    cpuid: Vec<kvm_cpuid_entry2>,
    msrs: Vec<Msr>,
    events: kvm_vcpu_events,
    /// Of the time stamp counter, where KVM says it.
    tsc_khz: Option<u32>,
}

impl ProcessorState {
    /// Saves that of `vcpu`, which does not run: its thread calls this.
    ///
    /// # Errors
    ///
    /// [`StateError`].
    pub fn save(vcpu: &VcpuFd, facts: &Facts) -> Result<Self, StateError> {
        // First: reading it has KVM take what the local APIC holds back, such as a start, into the other state.
        let mp_state = vcpu.get_mp_state().map_err(KvmError::call("read whether a vCPU runs"))?;
        let regs = vcpu.get_regs().map_err(KvmError::call("read the registers of a vCPU"))?;
        let sregs = vcpu.get_sregs().map_err(KvmError::call("read the system registers of a vCPU"))?;
        let vectors = VectorState::save(vcpu, facts.xsave)?;
        let xcrs = vcpu.get_xcrs().map_err(KvmError::call("read the XCRs of a vCPU"))?;
        let debug = vcpu.get_debug_regs().map_err(KvmError::call("read the debug registers of a vCPU"))?;
        let lapic = vcpu.get_lapic().map_err(KvmError::call("read the local APIC of a vCPU"))?;
        let cpuid =
            vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES).map_err(KvmError::call("read the CPUID of a vCPU"))?;
        let msrs = read_msrs(vcpu, &facts.msrs)?;
        let events = vcpu.get_vcpu_events().map_err(KvmError::call("read the events of a vCPU"))?;
        let tsc_khz = vcpu.get_tsc_khz().ok().filter(|khz| *khz != 0);
        let cpuid = cpuid.as_slice().to_vec();
        Ok(Self { mp_state, regs, sregs, vectors, xcrs, debug, lapic, cpuid, msrs, events, tsc_khz })
    }

    /// Restores it in `vcpu`, which has not run yet.
    ///
    /// # Errors
    ///
    /// [`StateError`]: this host can't continue it.
    pub fn restore(&self, vcpu: &VcpuFd, facts: &Facts) -> Result<(), StateError> {
        self.restore_frequency(vcpu)?;
        let own =
            vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES).map_err(KvmError::call("read the CPUID of a vCPU"))?;
        if let Some(missing) = features::missing(&self.cpuid, own.as_slice()) {
            return Err(StateError::Features(missing));
        }
        let cpuid = CpuId::from_entries(&self.cpuid).map_err(|_| StateError::TooLong("the CPUID"))?;
        vcpu.set_cpuid2(&cpuid).map_err(KvmError::call("set the CPUID of a vCPU"))?;
        vcpu.set_mp_state(self.mp_state).map_err(KvmError::call("set whether a vCPU runs"))?;
        vcpu.set_regs(&self.regs).map_err(KvmError::call("set the registers of a vCPU"))?;
        vcpu.set_sregs(&self.sregs).map_err(KvmError::call("set the system registers of a vCPU"))?;
        self.vectors.restore(vcpu, facts.xsave)?;
        // KVM refuses them all where the processor has none.
        if self.xcrs.nr_xcrs > 0 {
            vcpu.set_xcrs(&self.xcrs).map_err(KvmError::call("set the XCRs of a vCPU"))?;
        }
        vcpu.set_debug_regs(&self.debug).map_err(KvmError::call("set the debug registers of a vCPU"))?;
        vcpu.set_lapic(&self.lapic).map_err(KvmError::call("set the local APIC of a vCPU"))?;
        write_msrs(vcpu, &self.msrs)?;
        vcpu.set_vcpu_events(&self.events).map_err(KvmError::call("set the events of a vCPU"))?;
        // The guest's watchdogs are told that it stood still. It fails for a guest without kvmclock.
        let _ = vcpu.kvmclock_ctrl();
        Ok(())
    }

    /// Gives the time stamp counter the guest's frequency where the host's is another.
    fn restore_frequency(&self, vcpu: &VcpuFd) -> Result<(), StateError> {
        let (Some(saved), Ok(own @ 1..)) = (self.tsc_khz, vcpu.get_tsc_khz()) else { return Ok(()) };
        if u64::from(saved.abs_diff(own)) * 1_000_000 <= u64::from(own) * TOLERANCE {
            return Ok(());
        }
        vcpu.set_tsc_khz(saved).map_err(|_| StateError::Frequency { saved, own })
    }
}

/// Reads those of `indices` that this vCPU has: which they are depends on its CPUID.
fn read_msrs(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<Msr>, StateError> {
    let mut msrs = Vec::new();
    let mut rest = indices;
    while !rest.is_empty() {
        let (now, _) = rest.split_at(rest.len().min(BATCH));
        let entries: Vec<_> =
            now.iter().map(|index| kvm_msr_entry { index: *index, ..Default::default() }).collect();
        let mut list = batch(&entries)?;
        let count = vcpu.get_msrs(&mut list).map_err(KvmError::call("read the MSRs of a vCPU"))?;
        msrs.extend(
            list.as_slice().iter().take(count).map(|entry| Msr { index: entry.index, value: entry.data }),
        );
        // KVM stops at the first that this vCPU does not have.
        let taken = if count < now.len() { count + 1 } else { count };
        rest = rest.get(taken..).unwrap_or_default();
    }
    Ok(msrs)
}

/// Writes them: the time stamp counter before the deadline that is counted by it.
fn write_msrs(vcpu: &VcpuFd, msrs: &[Msr]) -> Result<(), StateError> {
    let rank = |msr: &&Msr| match msr.index {
        TSC => 0,
        TSC_DEADLINE => 2,
        _ => 1,
    };
    let mut sorted: Vec<&Msr> = msrs.iter().collect();
    sorted.sort_by_key(rank);
    for some in sorted.chunks(BATCH) {
        let entries: Vec<_> = some
            .iter()
            .map(|msr| kvm_msr_entry { index: msr.index, data: msr.value, ..Default::default() })
            .collect();
        let count = vcpu.set_msrs(&batch(&entries)?).map_err(KvmError::call("set the MSRs of a vCPU"))?;
        if let Some(refused) = some.get(count) {
            return Err(StateError::Msr(refused.index));
        }
    }
    Ok(())
}
