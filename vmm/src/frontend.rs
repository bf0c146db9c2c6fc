//! The user's side of a VM: the process's ending signals, its standard input and output, and the file of the console's
//! latest output.
//!
//! Whoever launches a VM makes it and hands it over. The VM itself takes no signal and touches no terminal, so that all
//! this can be in another process than the VM.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use devices::Interrupt;

use crate::console::Sink;
use crate::device_manager::Subscriber;
use crate::exit::ExitSlot;
use crate::signals::{EndingSignals, SignalHandler};
use crate::{ConsoleConfig, VmError};

/// The name of the log in a VM's directory.
const LOG_NAME: &str = "console.log";

/// The user's side of a VM; see the module.
#[derive(Default)]
pub struct Frontend {
    signals: Option<EndingSignals>,
    /// Where the console's output goes.
    pub(crate) output: Option<Sink>,
    /// The console's input is this process's standard input, which may be a terminal.
    pub(crate) reads_stdin: bool,
    /// Where the latest output of the console is kept.
    pub(crate) log: Option<PathBuf>,
}

impl Frontend {
    /// The user of this process: its ending signals are taken from here on, and its standard input and output are used
    /// where `console` says so. The log is in `directory`.
    ///
    /// Without it, with [`Frontend::default`], a VM can be controlled by its directory alone.
    ///
    /// # Errors
    ///
    /// [`VmError::Console`] and [`VmError::Host`].
    pub fn of_process(console: &ConsoleConfig, directory: Option<&Path>) -> Result<Self, VmError> {
        Ok(Self {
            output: Sink::open(console)?,
            reads_stdin: matches!(console, ConsoleConfig::Stdio | ConsoleConfig::Virtio),
            log: directory.map(|directory| directory.join(LOG_NAME)),
            signals: Some(EndingSignals::block().map_err(VmError::host("take signals"))?),
        })
    }

    /// What turns the ending signals into presses of `power_button` and the VM's end.
    pub(crate) fn signal_handler(
        &mut self,
        power_button: Arc<dyn Interrupt>,
        exit: &Arc<ExitSlot>,
    ) -> Option<Subscriber> {
        let signals = self.signals.take()?;
        Some(Box::new(SignalHandler::new(signals, power_button, exit.clone())))
    }
}
