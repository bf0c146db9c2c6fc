//! What others may do to a VM while it runs.

use std::io;
use std::sync::Arc;

use devices::virtio::balloon::BalloonHandle;
use devices::virtio::block::BlockHandle;
use instance::{Identity, MetricsReport, ProcessMeter};

use crate::config::DeviceKind;
use crate::exit::{ExitReason, ExitSlot};
use crate::metrics::MetricsRegistry;
use crate::pause::{PauseError, Pauser};
use crate::power_button::PowerButton;
use crate::snapshot::{Hold, Saver};
use crate::{DiskConfig, VmConfig};

/// A running VM, in the hands of those who control it. Any thread may call it.
pub struct VmHandle {
    identity: Identity,
    config: VmConfig,
    exit: Arc<ExitSlot>,
    power_button: Arc<PowerButton>,
    pauser: Arc<Pauser>,
    metrics: MetricsRegistry,
    process: ProcessMeter,
    disks: Vec<BlockHandle>,
    balloon: Option<BalloonHandle>,
    saver: Option<Arc<Saver>>,
}

/// A disk of a running VM.
pub struct RunningDisk<'a> {
    /// What the guest calls it, such as `vda`.
    pub name: String,
    /// What it is made of.
    pub config: &'a DiskConfig,
    /// What changes its size.
    pub handle: &'a BlockHandle,
}

impl VmHandle {
    /// The VM of `config` called by `identity`, that ends through `exit`, hears `power_button`, is paused by `pauser`
    /// and counts in `metrics`. It has no balloon, and nothing says what its process uses.
    pub fn new(
        identity: Identity,
        config: VmConfig,
        exit: Arc<ExitSlot>,
        power_button: Arc<PowerButton>,
        pauser: Arc<Pauser>,
        metrics: MetricsRegistry,
    ) -> Self {
        Self {
            identity,
            config,
            exit,
            power_button,
            pauser,
            metrics,
            process: ProcessMeter::default(),
            disks: Vec::new(),
            balloon: None,
            saver: None,
        }
    }

    /// The same VM, which `saver` saves.
    #[must_use]
    pub fn saved_by(self, saver: Arc<Saver>) -> Self {
        Self { saver: Some(saver), ..self }
    }

    /// What saves it.
    pub fn saver(&self) -> Option<&Arc<Saver>> {
        self.saver.as_ref()
    }

    /// The same VM, whose process `meter` measures.
    #[must_use]
    pub fn measured_by(self, meter: ProcessMeter) -> Self {
        Self { process: meter, ..self }
    }

    /// The same VM with `balloon`, where it has one.
    #[must_use]
    pub fn with_balloon(self, balloon: Option<BalloonHandle>) -> Self {
        Self { balloon, ..self }
    }

    /// The same VM with `disks`, in the order of its configuration.
    #[must_use]
    pub fn with_disks(self, disks: Vec<BlockHandle>) -> Self {
        Self { disks, ..self }
    }

    /// The disks, in their order.
    pub fn disks(&self) -> impl Iterator<Item = RunningDisk<'_>> {
        let configs = self.config.rootfs.iter().chain(&self.config.disks);
        (0..).zip(configs.zip(&self.disks)).map(|(index, (config, handle))| RunningDisk {
            name: DeviceKind::Block.id(index),
            config,
            handle,
        })
    }

    /// Who the VM is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// What the VM is made of.
    pub fn config(&self) -> &VmConfig {
        &self.config
    }

    /// Presses the guest's power button. A paused VM is resumed first, as it could not react, which may take seconds.
    ///
    /// # Errors
    ///
    /// Those of raising the interrupt.
    pub fn press_power_button(&self) -> io::Result<()> {
        if self.is_paused()
            && let Err(error) = self.resume()
        {
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot resume a device");
        }
        self.power_button.press()
    }

    /// Has the VM, which is paused, stay so as long as `hold` lasts.
    ///
    /// # Errors
    ///
    /// [`PauseError`]: it runs, or somebody has it paused.
    pub(crate) fn stay_paused(&self, hold: Hold) -> Result<(), PauseError> {
        self.pauser.stay(hold)
    }

    /// Ends the VM now, as SIGKILL would, but after cleaning up.
    pub fn kill(&self) {
        self.exit.end(ExitReason::Signal(libc::SIGKILL));
    }

    /// Whether all vCPUs are held, by the user or a debugger.
    pub fn is_paused(&self) -> bool {
        self.pauser.gate().is_paused()
    }

    /// Pauses the VM: its vCPUs are parked and its devices suspended. That may take seconds, so that the event loop
    /// must not call it.
    ///
    /// # Errors
    ///
    /// [`PauseError`]; the VM runs on.
    pub fn pause(&self) -> Result<(), PauseError> {
        self.pauser.pause()
    }

    /// Resumes the VM. That may take seconds as well.
    ///
    /// # Errors
    ///
    /// [`PauseError`]: a device has to be reset by its driver; the VM runs all the same.
    pub fn resume(&self) -> Result<(), PauseError> {
        self.pauser.resume()
    }

    /// The memory balloon, where the VM has one.
    pub fn balloon(&self) -> Option<&BalloonHandle> {
        self.balloon.as_ref()
    }

    /// What was counted so far.
    pub fn metrics(&self) -> MetricsReport {
        MetricsReport { process: self.process.read(), counters: self.metrics.counters() }
    }
}
