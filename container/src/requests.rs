//! What the agent is asked about a container, of which each is answered at once.

use std::path::Path;
use std::time::Duration;

use agent_protocol::{ProcessEntry, Reply, Request, Resources, Size, Usage};

use crate::connection::{Connection, ConnectionError};
use crate::exec::ExecError;
use crate::machine::VSOCK;

/// How long the agent has to connect and how long to say what a container uses: what shows it goes on without.
const USAGE: Duration = Duration::from_secs(1);
/// How long the processes of a container may take to stand still: one that waits for a disk does so when that has
/// answered.
const FREEZE: Duration = Duration::from_secs(10);

/// A connection to the agent of the VM whose directory is `directory`, for a request that takes little time.
fn open(directory: &Path) -> Result<Connection, ExecError> {
    Ok(Connection::open(&directory.join(VSOCK))?.with_patience()?)
}

/// Waits for the answer of which `take` makes what was asked for; another one is given back.
fn answer<T>(
    reply: Result<Reply, ConnectionError>,
    take: impl FnOnce(Reply) -> Result<T, Reply>,
) -> Result<T, ExecError> {
    match reply? {
        Reply::Failed(failure) => Err(failure.into()),
        reply => take(reply).map_err(|other| ConnectionError::Unexpected(format!("{other:?}")).into()),
    }
}

/// The answer that there is nothing more to say.
fn done(reply: Reply) -> Result<(), Reply> {
    if matches!(reply, Reply::Done) { Ok(()) } else { Err(reply) }
}

/// Sends a signal to the first process of the container `container` of the VM whose directory is `directory`.
///
/// # Errors
///
/// [`ExecError`]: the agent does not answer, or it has no such container yet or any more.
pub fn send_signal(directory: &Path, container: &str, signal: u8) -> Result<(), ExecError> {
    let mut control = open(directory)?;
    control.send(&Request::Signal { container: container.to_owned(), signal })?;
    answer(control.answer(), done)
}

/// Kills the first process of the container `container` of the VM whose directory is `directory`, which has the agent
/// write what is not on the disks yet and power the VM off. Each step of it is waited for no longer than `limit`.
///
/// # Errors
///
/// As [`send_signal`].
pub fn kill_within(directory: &Path, container: &str, limit: Duration) -> Result<(), ExecError> {
    let mut control = Connection::open_within(&directory.join(VSOCK), limit)?;
    let kill = u8::try_from(libc::SIGKILL).unwrap_or_default();
    control.send(&Request::Signal { container: container.to_owned(), signal: kill })?;
    answer(control.receive_within(limit), done)
}

/// Has the container `container` of a pod whose VM's directory, or its own, is `directory` stand still, or go on.
///
/// # Errors
///
/// [`ExecError`]: the agent does not answer, or has no such container.
pub fn freeze(directory: &Path, container: &str, freezes: bool) -> Result<(), ExecError> {
    let mut control = open(directory)?;
    control.send(&Request::Freeze { container: container.to_owned(), freezes })?;
    answer(control.receive_within(FREEZE), done)
}

/// Whether it stands still. It is not waited for longer than a second.
///
/// # Errors
///
/// As [`freeze`].
pub fn is_frozen(directory: &Path, container: &str) -> Result<bool, ExecError> {
    let mut control = Connection::open_within(&directory.join(VSOCK), USAGE)?;
    control.send(&Request::IsFrozen { container: container.to_owned() })?;
    answer(control.receive_within(USAGE), |reply| match reply {
        Reply::Frozen(is_frozen) => Ok(is_frozen),
        other => Err(other),
    })
}

/// What the container `container` of the VM whose directory is `directory` uses.
///
/// # Errors
///
/// [`ExecError`]: the agent does not answer within a second, does not know the question, or has no such container.
pub fn usage(directory: &Path, container: &str) -> Result<Usage, ExecError> {
    let mut control = Connection::open_within(&directory.join(VSOCK), USAGE)?;
    control.send(&Request::Usage { container: container.to_owned() })?;
    answer(control.receive_within(USAGE), |reply| match reply {
        Reply::Usage(usage) => Ok(usage),
        other => Err(other),
    })
}

/// Sets what the container `container` of the VM whose directory is `directory` may use.
pub(crate) fn limit(directory: &Path, container: &str, resources: Resources) -> Result<(), ExecError> {
    let mut control = open(directory)?;
    let resources = Box::new(resources);
    control.send(&Request::Update { container: container.to_owned(), resources })?;
    answer(control.answer(), done)
}

/// The processes of the container `container` of the VM whose directory is `directory`, and the milliseconds since the
/// VM's boot.
///
/// # Errors
///
/// [`ExecError`]: the agent does not answer, does not know the question, or has no such container.
pub fn processes(directory: &Path, container: &str) -> Result<(Vec<ProcessEntry>, u64), ExecError> {
    let mut control = open(directory)?;
    control.send(&Request::Processes { container: container.to_owned() })?;
    answer(control.answer(), |reply| match reply {
        Reply::Processes(processes, now) => Ok((processes, now)),
        other => Err(other),
    })
}

/// Sets the size of the terminal of the container `container` of the VM whose directory is `directory`.
///
/// # Errors
///
/// [`ExecError`]: the agent does not answer.
pub(crate) fn resize(directory: &Path, container: &str, size: Size) -> Result<(), ExecError> {
    Ok(open(directory)?.send(&Request::Resize { container: container.to_owned(), size })?)
}
