//! What KVM knows of a VM beyond its memory: saved while its vCPUs are parked, and restored in another VM.

mod features;
mod interrupts;
mod processor;
mod vectors;

use kvm_bindings::Msrs;
use kvm_ioctls::{Kvm, VmFd};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::kvm::KvmError;

use self::vectors::XsaveSize;

pub use interrupts::InterruptState;
pub use processor::ProcessorState;

/// Why a state could not be saved or restored.
#[derive(Debug, Error)]
pub enum StateError {
    /// KVM refused a part of it.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// A model-specific register that the guest has and this host's KVM does not.
    #[error("this host's KVM has no MSR {0:#x}, or not with this value")]
    Msr(u32),
    /// Features of the processor that the guest uses and this VM's vCPUs do not have.
    #[error("the guest uses features that this host's processors, or the VM's options, do not give it: {0}")]
    Features(String),
    /// Vector units that the guest uses and this host's processors do not have.
    #[error("the guest uses vector units that this host's processors do not have")]
    Vectors,
    /// More entries than KVM ever has.
    #[error("{0} has more entries than KVM takes")]
    TooLong(&'static str),
    /// The time stamp counter can't have the guest's frequency.
    #[error(
        "the guest's time stamp counter has {saved} kHz, and this host's {own} kHz cannot be scaled to that"
    )]
    Frequency {
        /// The guest's.
        saved: u32,
        /// The host's.
        own: u32,
    },
}

/// What this host's KVM can save and restore.
#[derive(Clone, Debug)]
pub struct Facts {
    /// MSRs of a vCPU.
    msrs: Vec<u32>,
    /// How much state its vector units have.
    xsave: XsaveSize,
}

impl Facts {
    /// That of `vm`, which `kvm` has made.
    ///
    /// # Errors
    ///
    /// [`KvmError::Call`].
    pub fn of(kvm: &Kvm, vm: &VmFd) -> Result<Self, KvmError> {
        let list = kvm.get_msr_index_list().map_err(KvmError::call("list the MSRs of a vCPU"))?;
        Ok(Self { msrs: list.as_slice().to_vec(), xsave: XsaveSize::of(vm) })
    }
}

/// A list that KVM takes in one call.
fn batch(entries: &[kvm_bindings::kvm_msr_entry]) -> Result<Msrs, StateError> {
    Msrs::from_entries(entries).map_err(|_| StateError::TooLong("the list of MSRs"))
}

/// What KVM knows of a VM: its vCPUs, in their order, and its interrupt controllers and clock.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VmState {
    /// The vCPUs.
    pub processors: Vec<ProcessorState>,
    /// What they have in common.
    pub interrupts: InterruptState,
}
