//! Other limits for a container that is there already.

use std::path::Path;

use agent_protocol::Resources;

use crate::exec::ExecError;
use crate::limits::{CpuSet, weight};
use crate::machine::{OVERHEAD, size};
use crate::options::{OptionsError, RunOptions};
use crate::requests;

/// A quota of more processors than any VM has, which is none.
const NO_QUOTA: u64 = 100_000 * 1024;

/// What a container may use from now on; what is `None` stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Update {
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// Thousandths of a processor; `u64::MAX` for all that the VM has.
    pub milli_cpus: Option<u64>,
    /// Its share of the processors.
    pub cpu_shares: Option<u64>,
    /// Processes and threads; `u64::MAX` for any number.
    pub pids: Option<u64>,
    /// Processors of the VM.
    pub cpu_set: Option<CpuSet>,
    /// Bytes of memory that are taken from it last.
    pub memory_reservation: Option<u64>,
}

impl Update {
    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Has `options` say the same.
    ///
    /// # Errors
    ///
    /// [`OptionsError::Reservation`].
    pub fn apply(&self, options: &mut RunOptions) -> Result<(), OptionsError> {
        options.memory = self.memory.or(options.memory);
        options.milli_cpus = self.milli_cpus.or(options.milli_cpus).filter(|milli| *milli < u64::MAX);
        options.cpu_shares = self.cpu_shares.or(options.cpu_shares);
        options.pids = self.pids.or(options.pids).filter(|most| *most < u64::MAX);
        options.cpu_set = self.cpu_set.clone().or_else(|| options.cpu_set.take());
        options.memory_reservation = self.memory_reservation.or(options.memory_reservation);
        match options.memory_reservation.zip(options.memory) {
            Some((kept, memory)) if kept > memory => Err(OptionsError::Reservation),
            _ => Ok(()),
        }
    }

    /// Whether a VM of so many `cpus` and bytes of `memory`, which can't grow, has room for it.
    ///
    /// # Errors
    ///
    /// [`OptionsError`].
    pub fn check(&self, cpus: u32, memory: u64) -> Result<(), OptionsError> {
        if let Some(limit) = self.memory {
            let needed = size(&RunOptions { memory: Some(limit), ..RunOptions::default() }).1;
            if needed > memory {
                let most = memory.saturating_sub(OVERHEAD) / 17 * 16;
                return Err(OptionsError::VmMemory { vm: memory >> 20, most: most >> 20 });
            }
        }
        let most = u64::from(cpus).saturating_mul(1000);
        if self.milli_cpus.is_some_and(|milli| milli > most && milli < u64::MAX) {
            return Err(OptionsError::VmCpus(cpus));
        }
        match &self.cpu_set {
            Some(set) if set.last() >= cpus => Err(OptionsError::NoCpu(set.last(), cpus)),
            _ => Ok(()),
        }
    }

    fn resources(&self) -> Resources {
        Resources {
            memory: self.memory,
            cpu_quota: self.milli_cpus.map(|milli| milli.saturating_mul(100).min(NO_QUOTA)),
            cpu_weight: self.cpu_shares.map(weight),
            cpus: self.cpu_set.as_ref().map(ToString::to_string),
            pids: self.pids,
            memory_low: self.memory_reservation,
        }
    }
}

/// Sets what the container `container` of the VM whose directory is `directory` may use.
///
/// # Errors
///
/// [`ExecError`]: the agent does not answer, can't do it, or has no such container.
pub fn update(directory: &Path, container: &str, update: &Update) -> Result<(), ExecError> {
    requests::limit(directory, container, update.resources())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_have_to_fit_the_vm() {
        let vm = size(&RunOptions { memory: Some(512 << 20), ..RunOptions::default() }).1;
        let memory = |bytes| Update { memory: Some(bytes), ..Update::default() };
        assert_eq!(memory(512 << 20).check(2, vm), Ok(()));
        let error = memory(600 << 20).check(2, vm).unwrap_err().to_string();
        assert!(error.contains("up to 512 MiB"), "{error}");
        let cpus = |milli| Update { milli_cpus: Some(milli), ..Update::default() }.check(2, vm);
        assert_eq!((cpus(2000), cpus(2001)), (Ok(()), Err(OptionsError::VmCpus(2))));
        assert_eq!(cpus(u64::MAX), Ok(()));
        let none = Update { milli_cpus: Some(u64::MAX), ..Update::default() };
        assert_eq!(none.resources().cpu_quota, Some(NO_QUOTA));
        let mut options = RunOptions { milli_cpus: Some(5), ..RunOptions::default() };
        assert_eq!((none.apply(&mut options), options.milli_cpus), (Ok(()), None));
        let set = Update { cpu_set: Some("0-2".parse().unwrap()), ..Update::default() };
        assert_eq!(set.check(2, vm), Err(OptionsError::NoCpu(2, 2)));
    }

    #[test]
    fn what_is_not_changed_stays() {
        let mut options = RunOptions {
            memory: Some(1 << 30),
            pids: Some(5),
            milli_cpus: Some(1500),
            ..RunOptions::default()
        };
        let update = Update { pids: Some(u64::MAX), memory_reservation: Some(1 << 20), ..Update::default() };
        update.apply(&mut options).unwrap();
        let expected = RunOptions {
            memory: Some(1 << 30),
            memory_reservation: Some(1 << 20),
            milli_cpus: Some(1500),
            ..RunOptions::default()
        };
        assert_eq!(options, expected);
        let smaller = Update { memory: Some(1 << 10), ..Update::default() };
        assert_eq!(smaller.apply(&mut options), Err(OptionsError::Reservation));
    }
}
