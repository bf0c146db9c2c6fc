//! What others may do to a VM while it runs.

use std::io;
use std::sync::Arc;

use devices::Interrupt;
use devices::virtio::balloon::BalloonHandle;
use instance::{Identity, MetricsReport};

use crate::VmConfig;
use crate::exit::{ExitReason, ExitSlot};
use crate::metrics::Registry;
use crate::vcpu::{Gate, GateError, Holder};

/// A running VM, in the hands of those who control it. Any thread may call it.
pub struct VmHandle {
    identity: Identity,
    config: VmConfig,
    exit: Arc<ExitSlot>,
    power_button: Arc<dyn Interrupt>,
    gate: Arc<Gate>,
    metrics: Registry,
    balloon: Option<BalloonHandle>,
}

impl VmHandle {
    /// The VM of `config` called by `identity`, that ends through `exit`, hears `power_button`, stops at `gate` and counts in `metrics`. It has no balloon.
    pub fn new(
        identity: Identity,
        config: VmConfig,
        exit: Arc<ExitSlot>,
        power_button: Arc<dyn Interrupt>,
        gate: Arc<Gate>,
        metrics: Registry,
    ) -> Self {
        Self { identity, config, exit, power_button, gate, metrics, balloon: None }
    }

    /// The same VM with `balloon`, where it has one.
    #[must_use]
    pub fn with_balloon(self, balloon: Option<BalloonHandle>) -> Self {
        Self { balloon, ..self }
    }

    /// Who the VM is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// What the VM is made of.
    pub fn config(&self) -> &VmConfig {
        &self.config
    }

    /// Presses the guest's power button.
    ///
    /// # Errors
    ///
    /// Those of raising the interrupt.
    pub fn press_power_button(&self) -> io::Result<()> {
        self.power_button.trigger()
    }

    /// Ends the VM now, as SIGKILL would, but in good order.
    pub fn kill(&self) {
        self.exit.end(ExitReason::Signal(libc::SIGKILL));
    }

    /// Whether all vCPUs wait, for whoever's sake.
    pub fn is_paused(&self) -> bool {
        self.gate.is_paused()
    }

    /// Has the vCPUs wait; returns once none is in the guest. That may take as long as a device takes, so that the
    /// event loop must not call it.
    ///
    /// # Errors
    ///
    /// [`GateError`]: a vCPU does not stop.
    pub fn pause(&self) -> Result<(), GateError> {
        let paused = self.gate.pause(Holder::User);
        if paused.is_err() {
            // Not half of it: the others would wait for nothing.
            self.gate.resume(Holder::User);
        }
        paused
    }

    /// Lets the vCPUs go on.
    pub fn resume(&self) {
        self.gate.resume(Holder::User);
    }

    /// The memory balloon, where the VM has one.
    pub fn balloon(&self) -> Option<&BalloonHandle> {
        self.balloon.as_ref()
    }

    /// What was counted so far.
    pub fn metrics(&self) -> MetricsReport {
        self.metrics.report()
    }
}
