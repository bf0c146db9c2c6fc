//! Pausing a VM: its vCPUs and its devices.
//!
//! While a VM is paused nothing changes its memory: its vCPUs wait at the gate, and every device is suspended, so that
//! packets stay in the tap, sockets are not read and what is typed waits.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use devices::log::chain;
use devices::{Suspend, SuspendError};
use thiserror::Error;

use crate::exit::{ExitReason, ExitSlot};
use crate::snapshot::Hold;
use crate::vcpu::{Gate, GateError, Holder};

/// How long pausing may take; a device that is being suspended then is still waited for, for as long as that takes it
/// (5 s at most).
const DEADLINE: Duration = Duration::from_secs(10);

/// Why a VM could not be paused; it runs on. Or why a device could not be resumed.
#[derive(Debug, Error)]
pub enum PauseError {
    /// A vCPU does not stop.
    #[error(transparent)]
    Vcpu(#[from] GateError),
    /// A device does not stop, or does not go on.
    #[error(transparent)]
    Device(#[from] SuspendError),
    /// The devices together took too long.
    #[error("its devices did not stop within {} seconds", DEADLINE.as_secs())]
    TooSlow,
    /// What is to stay paused runs.
    #[error("it does not stand still: it was resumed meanwhile")]
    Runs,
    /// Another process has it paused until that is done.
    #[error("it is being saved")]
    Kept,
}

/// Pauses and resumes a VM, from any thread.
pub struct Pauser {
    gate: Arc<Gate>,
    /// Held while it changes.
    state: Mutex<State>,
}

struct State {
    /// In the order in which they are suspended; they are resumed in the same order.
    devices: Vec<Arc<dyn Suspend>>,
    are_suspended: bool,
    /// As long as it lasts, the VM is not resumed.
    kept: Option<Hold>,
}

impl Pauser {
    /// The vCPUs of `gate` and `devices`.
    pub fn new(gate: Arc<Gate>, devices: Vec<Arc<dyn Suspend>>) -> Self {
        Self { gate, state: Mutex::new(State { devices, are_suspended: false, kept: None }) }
    }

    /// Where the vCPUs are held.
    pub fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }

    /// Parks all vCPUs, then suspends all devices. Pausing what is paused already is no error. It may take seconds, so
    /// that neither the event loop nor a vCPU's thread must call it.
    ///
    /// # Errors
    ///
    /// [`PauseError`]; the VM runs on.
    pub fn pause(&self) -> Result<(), PauseError> {
        self.pause_in(&mut self.lock())
    }

    fn pause_in(&self, state: &mut State) -> Result<(), PauseError> {
        let paused = self.gate.pause(Holder::User).map_err(PauseError::from).and_then(|()| {
            if state.are_suspended { Ok(()) } else { state.suspend(Instant::now() + DEADLINE) }
        });
        state.are_suspended = paused.is_ok();
        if paused.is_err() {
            self.gate.resume(Holder::User);
        }
        paused
    }

    /// Calls `work` with all devices while the VM is paused. It runs on then, unless it was paused before. Nothing else
    /// resumes it meanwhile.
    ///
    /// # Errors
    ///
    /// As [`pause`](Self::pause).
    pub fn while_paused<T>(&self, work: impl FnOnce(&[Arc<dyn Suspend>]) -> T) -> Result<T, PauseError> {
        let mut state = self.lock();
        let was_paused = state.are_suspended;
        self.pause_in(&mut state)?;
        let done = work(&state.devices);
        if !was_paused {
            report(self.resume_in(&mut state));
        }
        Ok(done)
    }

    /// The VM is one whose devices were restored: it is paused before it has run.
    pub(crate) fn begin_paused(&self) {
        self.gate.hold(Holder::User);
        self.lock().are_suspended = true;
    }

    /// Has the VM, which is paused, stay so as long as `hold` lasts.
    ///
    /// # Errors
    ///
    /// [`PauseError::Runs`], or [`PauseError::Kept`] where another one has it paused.
    pub(crate) fn stay(&self, hold: Hold) -> Result<(), PauseError> {
        let mut state = self.lock();
        if !state.are_suspended {
            return Err(PauseError::Runs);
        }
        state.check_kept()?;
        state.kept = Some(hold);
        Ok(())
    }

    /// Resumes all devices, then the vCPUs. Resuming what runs does nothing.
    ///
    /// # Errors
    ///
    /// [`PauseError::Kept`]: it stays paused. [`PauseError::Device`]: the driver of a device was told that it needs a
    /// reset. The VM runs all the same.
    pub fn resume(&self) -> Result<(), PauseError> {
        let mut state = self.lock();
        state.check_kept()?;
        state.kept = None;
        Ok(self.resume_in(&mut state)?)
    }

    /// Resumes a VM that was saved for the first time, and returns whether it goes on: its driver has no part in what
    /// is lost with a device that does not start, so that it ends for that reason.
    pub(crate) fn begin(&self, exit: &ExitSlot) -> bool {
        match self.resume() {
            Ok(()) => true,
            Err(error) => {
                exit.end(ExitReason::NotResumed { detail: chain(&error) });
                false
            }
        }
    }

    fn resume_in(&self, state: &mut State) -> Result<(), SuspendError> {
        let mut result = Ok(());
        if std::mem::take(&mut state.are_suspended) {
            for device in &state.devices {
                let resumed = device.resume();
                if result.is_ok() {
                    result = resumed;
                } else {
                    report(resumed);
                }
            }
        }
        self.gate.resume(Holder::User);
        result
    }

    /// The VM ends: tells all devices to end, and gives them up, so that this keeps none of them alive.
    pub(crate) fn end(&self) -> Vec<Arc<dyn Suspend>> {
        let devices = std::mem::take(&mut self.lock().devices);
        devices.iter().for_each(|device| device.end());
        devices
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn check_kept(&self) -> Result<(), PauseError> {
        if self.kept.as_ref().is_some_and(Hold::lasts) { Err(PauseError::Kept) } else { Ok(()) }
    }

    /// Suspends all devices, or none.
    fn suspend(&self, deadline: Instant) -> Result<(), PauseError> {
        for (index, device) in self.devices.iter().enumerate() {
            let result = match device.suspend() {
                Ok(()) if Instant::now() > deadline => Err((index + 1, PauseError::TooSlow)),
                Ok(()) => Ok(()),
                Err(error) => Err((index, error.into())),
            };
            if let Err((count, error)) = result {
                for device in self.devices.iter().take(count) {
                    report(device.resume());
                }
                return Err(error);
            }
        }
        Ok(())
    }
}

/// Logs what can't be returned.
fn report(result: Result<(), SuspendError>) {
    if let Err(error) = result {
        tracing::error!(error = &error as &dyn std::error::Error, "cannot resume a device");
    }
}

#[cfg(test)]
mod tests {
    use devices::Section;

    use super::*;

    type Log = Arc<Mutex<Vec<String>>>;

    /// A device that notes what is done to it, and whether the vCPUs were held.
    struct Device {
        name: &'static str,
        gate: Arc<Gate>,
        log: Log,
        fails: Mutex<bool>,
    }

    impl Device {
        fn note(&self, what: &str) -> Result<(), SuspendError> {
            assert!(self.gate.is_paused(), "the vCPUs are parked around everything that is done to a device");
            self.log.lock().unwrap().push(format!("{what} {}", self.name));
            if *self.fails.lock().unwrap() {
                Err(SuspendError::NotSuspended(self.name.into()))
            } else {
                Ok(())
            }
        }
    }

    impl Suspend for Device {
        fn suspend(&self) -> Result<(), SuspendError> {
            self.note("suspend")
        }
        fn save(&self) -> Result<Section, SuspendError> {
            Err(SuspendError::NotSuspended(self.name.into()))
        }
        fn restore(&self, _section: &Section) -> Result<(), SuspendError> {
            Ok(())
        }
        fn resume(&self) -> Result<(), SuspendError> {
            self.note("resume")
        }
    }

    fn rig() -> (Pauser, Vec<Arc<Device>>, Log) {
        let (gate, log) = (Arc::new(Gate::new(1)), Log::default());
        let device =
            |name| Arc::new(Device { name, gate: gate.clone(), log: log.clone(), fails: Mutex::new(false) });
        let devices = vec![device("a"), device("b"), device("c")];
        let list = devices.iter().map(|device| device.clone() as Arc<dyn Suspend>).collect();
        (Pauser::new(gate, list), devices, log)
    }

    fn logged(log: &Log) -> String {
        std::mem::take(&mut *log.lock().unwrap()).join(", ")
    }

    #[test]
    fn devices_are_suspended_once_and_resumed_once_in_order() {
        let (pauser, _devices, log) = rig();
        for _ in 0..2 {
            pauser.pause().unwrap();
        }
        assert_eq!(logged(&log), "suspend a, suspend b, suspend c");
        assert!(pauser.gate().is_paused());
        for _ in 0..2 {
            pauser.resume().unwrap();
        }
        assert_eq!(logged(&log), "resume a, resume b, resume c");
        assert!(!pauser.gate().is_paused());
    }

    #[test]
    fn a_device_that_does_not_stop_leaves_the_vm_running() {
        let (pauser, devices, log) = rig();
        *devices[1].fails.lock().unwrap() = true;
        assert!(matches!(pauser.pause(), Err(PauseError::Device(_))));
        assert_eq!(logged(&log), "suspend a, suspend b, resume a");
        assert!(!pauser.gate().is_paused());
        pauser.resume().unwrap();
        assert_eq!(logged(&log), "", "there is nothing to resume");
        *devices[1].fails.lock().unwrap() = false;
        pauser.pause().unwrap();
        assert_eq!(logged(&log), "suspend a, suspend b, suspend c");
    }

    #[test]
    fn a_device_that_does_not_go_on_keeps_no_other_from_it() {
        let (pauser, devices, log) = rig();
        pauser.pause().unwrap();
        logged(&log);
        *devices[0].fails.lock().unwrap() = true;
        assert!(matches!(pauser.resume(), Err(PauseError::Device(_))));
        assert_eq!(logged(&log), "resume a, resume b, resume c");
        assert!(!pauser.gate().is_paused());
    }

    #[test]
    fn a_saved_vm_whose_device_does_not_start_ends() {
        let exit = ExitSlot::new().unwrap();
        let (pauser, devices, _log) = rig();
        pauser.pause().unwrap();
        assert!(pauser.begin(&exit) && !exit.has_ended());
        pauser.pause().unwrap();
        *devices[1].fails.lock().unwrap() = true;
        assert!(!pauser.begin(&exit));
        let reason = exit.reason().unwrap();
        assert_eq!(reason.to_string(), "the saved VM cannot continue: b is not suspended");
    }

    #[test]
    fn a_device_that_was_suspended_too_late_is_resumed_as_well() {
        let (pauser, _devices, log) = rig();
        pauser.gate().pause(Holder::User).unwrap();
        assert!(matches!(
            pauser.lock().suspend(Instant::now() - Duration::from_nanos(1)),
            Err(PauseError::TooSlow)
        ));
        assert_eq!(logged(&log), "suspend a, resume a");
    }

    #[test]
    fn what_is_kept_is_not_resumed_until_who_keeps_it_is_gone() {
        let (pauser, ..) = rig();
        let hold = || std::os::unix::net::UnixStream::pair().map(|(far, near)| (far, Hold::new(near.into())));
        let (far, near) = hold().unwrap();
        assert!(matches!(pauser.stay(near), Err(PauseError::Runs)));
        drop(far);
        pauser.pause().unwrap();
        let (far, near) = hold().unwrap();
        pauser.stay(near).unwrap();
        assert!(matches!(pauser.resume(), Err(PauseError::Kept)) && pauser.gate().is_paused());
        assert!(matches!(pauser.stay(hold().unwrap().1), Err(PauseError::Kept)));
        assert!(pauser.while_paused(|_| ()).is_ok() && pauser.gate().is_paused());
        drop(far);
        pauser.resume().unwrap();
        assert!(!pauser.gate().is_paused());
    }

    #[test]
    fn a_debuggers_hold_outlasts_a_resume() {
        let (pauser, ..) = rig();
        pauser.gate().hold(Holder::Debugger);
        pauser.pause().unwrap();
        pauser.resume().unwrap();
        assert!(pauser.gate().is_paused_by(Holder::Debugger) && !pauser.gate().is_paused_by(Holder::User));
    }
}
