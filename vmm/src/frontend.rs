//! The user's side of a VM: the process's ending signals, its standard input and output, and the file of the console's
//! latest output.
//!
//! The caller of `launch` makes it. The VM itself takes no signal and touches no terminal, so that all
//! this can be in another process than the VM.

use crate::console::{AwaitedText, ConsoleKeeper, LogKeeper, Sink};
use crate::power_button::OnPress;
use crate::supervisor::Requests;
use crate::{ConsoleConfig, VmError};

/// The user's side of a VM; see the module.
#[derive(Default)]
pub struct Frontend {
    /// What asks the VM to end.
    pub(crate) supervisor: Option<Requests>,
    /// Where the console's output goes.
    pub(crate) output: Option<Sink>,
    /// The console's input is this process's standard input, which may be a terminal.
    pub(crate) reads_stdin: bool,
    /// What makes files for the latest output of the console, where this process may not.
    pub(crate) log_keeper: Option<Box<dyn LogKeeper>>,
    /// What a press of the guest's power button does besides.
    pub(crate) on_press: Option<OnPress>,
    /// What is called when the guest outputs a text.
    pub(crate) awaited: Option<AwaitedText>,
}

impl Frontend {
    /// The user of this process: its standard input and output are used where `console` says so.
    ///
    /// Without it, with [`Frontend::default`], a VM can be controlled by its directory alone.
    ///
    /// # Errors
    ///
    /// [`VmError::Console`].
    pub fn of_process(console: &ConsoleConfig) -> Result<Self, VmError> {
        Ok(Self {
            output: Sink::open(console)?,
            reads_stdin: matches!(console, ConsoleConfig::Stdio | ConsoleConfig::Virtio),
            ..Self::default()
        })
    }

    /// The same, with the supervisor to which `requests` lead, which ends the VM.
    #[must_use]
    pub fn supervised_by(self, requests: Requests) -> Self {
        Self { supervisor: Some(requests), ..self }
    }

    /// The same, whose log gets its next files from `keeper`.
    #[must_use]
    pub fn log_kept_by(self, keeper: Box<dyn LogKeeper>) -> Self {
        Self { log_keeper: Some(keeper), ..self }
    }

    /// The same, whose file of `--console` gets its next files from `keeper`.
    #[must_use]
    pub fn console_kept_by(self, keeper: Box<dyn ConsoleKeeper>) -> Self {
        Self { output: self.output.map(|output| output.kept_by(keeper)), ..self }
    }

    /// The same, which also looks for a text in the output.
    #[must_use]
    pub fn awaiting(self, awaited: Option<AwaitedText>) -> Self {
        Self { awaited, ..self }
    }

    /// The same, where each request to power the guest off also calls `on_press`, on any thread.
    #[must_use]
    pub fn on_power_button(self, on_press: OnPress) -> Self {
        Self { on_press: Some(on_press), ..self }
    }
}
