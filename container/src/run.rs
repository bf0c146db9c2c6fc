//! Running a container in the foreground.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::mpsc::channel;

use agent_protocol::{Exit, FailureKind};
use instance::{Identity, RemovalWatch, Signals};
use thiserror::Error;
use vmm::{ExitReason, Frontend, Requests, Timeline, VmError};

use crate::assets::Assets;
use crate::image::Image;
use crate::machine::machine;
use crate::options::{OptionsError, RunOptions};
use crate::session::{Listener, Session, SessionError};
use crate::signal::stop_signal;
use crate::spec::container;

/// How a container ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its exit code, or 128 and the number of the signal that killed it.
    pub code: u8,
    /// It had no memory left.
    pub out_of_memory: bool,
}

/// Why a container did not run to its end.
#[derive(Debug, Error)]
pub enum RunError {
    /// An option.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// The VM can't be built.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// The host can't do it.
    #[error("cannot {doing}")]
    Host {
        /// What was being done.
        doing: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Between this process and the agent.
    #[error(transparent)]
    Session(Box<dyn std::error::Error + Send + Sync>),
    /// The command can't be found.
    #[error("{0}")]
    NotFound(String),
    /// The command can't be executed.
    #[error("{0}")]
    NotExecutable(String),
    /// The container could not be started.
    #[error("cannot start the container: {0}")]
    Failed(String),
    /// A VM without a directory has no sockets for the agent.
    #[error("a container needs a directory: give another --runtime-dir than none")]
    NoDirectory,
    /// The VM ended first.
    #[error("the container's VM ended before the container did: {0}")]
    VmEnded(ExitReason),
}

/// Runs a container of `image` in a VM that `identity`, which has an ID and a directory, is for, until it ends.
/// `requests` lead to the supervisor of the VM, which says so when `removal` notices that the directory is gone;
/// `signals` are those that are passed on to the container.
///
/// # Errors
///
/// [`RunError`].
pub fn run(
    (assets, image, options): (&Assets, &Image, &RunOptions),
    (identity, removal): (&Identity, Option<RemovalWatch>),
    requests: Requests,
    signals: Option<Signals>,
    timeline: &Arc<Timeline>,
) -> Result<Ended, RunError> {
    let (Some(id), Some(directory)) = (&identity.id, &identity.directory) else {
        return Err(RunError::NoDirectory);
    };
    let container = container(id.as_str(), &image.config, options)?;
    let config = machine(assets, image, options, directory);
    let host = |doing| move |source| RunError::Host { doing, source };
    let listener = Listener::open(directory).map_err(host("make a socket for the agent"))?;
    let (stop, asked) = io::pipe().map_err(host("make a pipe"))?;
    rustix::io::ioctl_fionbio(&asked, true).map_err(|error| host("make a pipe")(error.into()))?;
    // One that has been asked already is not asked again.
    let on_press = Box::new(move || drop((&asked).write(&[1])));
    let frontend = Frontend::of_process(&config.console, Some(directory), requests.clone())?
        .watching(removal)
        .on_power_button(on_press);
    let (sender, receiver) = channel();
    let stop_signal = stop_signal(&image.config, options)?;
    let session = Session {
        listener,
        directory: directory.to_owned(),
        container,
        requests,
        signals,
        stop,
        stop_signal,
    };
    session.start(sender).map_err(host("start a thread"))?;
    let reason = vmm::launch(&config, identity, frontend, timeline)?;
    match receiver.try_recv() {
        Ok(Ok(Exit { code, out_of_memory })) => Ok(Ended { code, out_of_memory }),
        Ok(Err(SessionError::Failed(failure))) => Err(match failure.kind {
            FailureKind::NotFound => RunError::NotFound(failure.message),
            FailureKind::NotExecutable => RunError::NotExecutable(failure.message),
            FailureKind::Other => RunError::Failed(failure.message),
        }),
        // The VM's end is the reason for what the session has seen.
        Ok(Err(error)) if reason == ExitReason::PowerOff => Err(RunError::Session(Box::new(error))),
        _ => Err(RunError::VmEnded(reason)),
    }
}
