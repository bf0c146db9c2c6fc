//! The state of the x87 and of the vector units, as XSAVE writes it.

use std::mem::size_of;

use kvm_bindings::{Xsave, kvm_xsave};
use kvm_ioctls::{Cap, VcpuFd, VmFd};
use serde::{Deserialize, Serialize};

use super::StateError;
use crate::kvm::KvmError;

/// Words of `kvm_xsave` without those that KVM_CAP_XSAVE2 adds.
const FIXED: usize = 1024;
/// The most words behind them: AMX takes 2 Ki.
const MOST_MORE: usize = 16 << 10;

/// How much of it this host's KVM reads and writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XsaveSize {
    /// Words behind the first [`FIXED`].
    more: usize,
}

impl XsaveSize {
    /// That of the vCPUs of `vm`. KVM before Linux 5.17 has the first words alone.
    pub fn of(vm: &VmFd) -> Self {
        let bytes = usize::try_from(vm.check_extension_int(Cap::Xsave2)).unwrap_or(0);
        Self { more: bytes.saturating_sub(size_of::<kvm_xsave>()).div_ceil(4).min(MOST_MORE) }
    }

    /// Room for it.
    fn room(self) -> Result<Xsave, StateError> {
        Xsave::new(self.more).map_err(|_| StateError::TooLong("the state of vector units"))
    }
}

/// The words, without the zeros at their end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VectorState(Vec<u32>);

impl VectorState {
    /// Saves that of `vcpu`.
    ///
    /// # Errors
    ///
    /// [`StateError::Kvm`].
    pub fn save(vcpu: &VcpuFd, size: XsaveSize) -> Result<Self, StateError> {
        let read = KvmError::call("read the vector units of a vCPU");
        let mut words = if size.more == 0 {
            vcpu.get_xsave().map_err(read)?.region.to_vec()
        } else {
            let mut room = size.room()?;
            // SAFETY: there is room for what KVM_CAP_XSAVE2 says.
            unsafe { vcpu.get_xsave2(&mut room) }.map_err(read)?;
            [&room.as_fam_struct_ref().xsave.region, room.as_slice()].concat()
        };
        let used = words.iter().rposition(|word| *word != 0).map_or(0, |last| last + 1);
        words.truncate(used);
        Ok(Self(words))
    }

    /// Restores it in `vcpu`.
    ///
    /// # Errors
    ///
    /// [`StateError`], also where it has units that this host's processors lack.
    pub fn restore(&self, vcpu: &VcpuFd, size: XsaveSize) -> Result<(), StateError> {
        if self.0.len() > FIXED + size.more {
            return Err(StateError::Vectors);
        }
        let write = KvmError::call("set the vector units of a vCPU");
        let (fixed, more) = self.0.split_at(self.0.len().min(FIXED));
        let mut room = size.room()?;
        let words = |to: &mut [u32], from: &[u32]| {
            to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
        };
        words(room.as_mut_slice(), more);
        // SAFETY: the length of what follows is not changed.
        let state = unsafe { room.as_mut_fam_struct() };
        words(&mut state.xsave.region, fixed);
        if size.more == 0 {
            // SAFETY: KVM reads no more than the structure has where it has no KVM_CAP_XSAVE2.
            unsafe { vcpu.set_xsave(&state.xsave) }.map_err(write)?;
        } else {
            // SAFETY: there is as much of it as KVM_CAP_XSAVE2 says, which is what KVM reads.
            unsafe { vcpu.set_xsave2(&room) }.map_err(write)?;
        }
        Ok(())
    }
}
