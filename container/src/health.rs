//! Health checks: a command that the keeper runs in the container again and again, as docker does.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Builder;
use std::time::{Duration, Instant};

use agent_protocol::{Exec, Reply, Request, Stream};
use instance::api::{InstanceInfo, State};
use instance::{CONTROL_SOCKET, Client, time};
use serde::{Deserialize, Serialize};

use crate::connection::{Connection, ConnectionError};
use crate::exec::{ExecError, random_id};
use crate::machine::VSOCK;
use crate::pod::pod_directory;
use crate::requests::{is_frozen, kill_within};
use crate::streams::{self, Place};

/// The most bytes that are kept of what a check writes.
const MAX_OUTPUT: usize = 4096;
/// How many results are kept.
const MAX_RESULTS: usize = 5;
/// How long a VM has to say whether it is paused.
const STATE: Duration = Duration::from_secs(1);
/// How long the last of the output, and the end of a command that is killed, are waited for.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// The shortest time, which is docker's: what an image has below it would make one check after the other.
pub const SHORTEST: Duration = Duration::from_millis(1);

/// What an image says of its containers' health (docker's image specification, "Healthcheck"); times are in
/// nanoseconds, and 0 is what docker takes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ImageHealth {
    /// `CMD` and the command, `CMD-SHELL` and a line for the shell, or `NONE`.
    pub test: Vec<String>,
    /// Between two checks.
    pub interval: u64,
    /// How long one may take.
    pub timeout: u64,
    /// How long failures do not count after the start.
    pub start_period: u64,
    /// Between two checks in that time.
    pub start_interval: u64,
    /// How many failures in a row make it unhealthy.
    pub retries: u32,
    /// The image's own shell and its options, which runs such lines, the user's as well.
    #[serde(skip)]
    pub shell: Vec<String>,
}

/// What the user says in place of that.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HealthOptions {
    /// A line for the shell.
    pub command: Option<String>,
    /// See [`ImageHealth::interval`].
    pub interval: Option<Duration>,
    /// See [`ImageHealth::timeout`].
    pub timeout: Option<Duration>,
    /// See [`ImageHealth::start_period`].
    pub start_period: Option<Duration>,
    /// See [`ImageHealth::start_interval`].
    pub start_interval: Option<Duration>,
    /// See [`ImageHealth::retries`].
    pub retries: Option<u32>,
    /// There is no check.
    pub is_off: bool,
}

/// A check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    command: Vec<String>,
    interval: Duration,
    timeout: Duration,
    start_period: Duration,
    start_interval: Duration,
    retries: u32,
}

impl HealthCheck {
    /// The check of a container, if it has one.
    pub fn new(image: Option<&ImageHealth>, options: &HealthOptions) -> Option<Self> {
        let image = image.cloned().unwrap_or_default();
        if options.is_off {
            return None;
        }
        let sh = || ["/bin/sh", "-c"].map(str::to_owned).to_vec();
        let shell = |line: &str| {
            let mut command = if image.shell.is_empty() { sh() } else { image.shell.clone() };
            command.push(line.to_owned());
            command
        };
        let of_image = || match image.test.split_first() {
            Some((kind, command)) if kind == "CMD" && !command.is_empty() => Some(command.to_vec()),
            Some((kind, [line])) if kind == "CMD-SHELL" => Some(shell(line)),
            _ => None,
        };
        let command = options.command.as_deref().map(shell).or_else(of_image)?;
        let time = |own: Option<Duration>, image: u64, default: u64| {
            let image = Some(Duration::from_nanos(image));
            let given = own.filter(|time| !time.is_zero()).or(image.filter(|time| !time.is_zero()));
            given.map_or(Duration::from_secs(default), |time| time.max(SHORTEST))
        };
        Some(Self {
            command,
            interval: time(options.interval, image.interval, 30),
            timeout: time(options.timeout, image.timeout, 30),
            start_period: time(options.start_period, image.start_period, 0),
            start_interval: time(options.start_interval, image.start_interval, 5),
            retries: options.retries.filter(|retries| *retries > 0).unwrap_or(match image.retries {
                0 => 3,
                retries => retries,
            }),
        })
    }

    /// As docker shows it.
    pub fn shown(&self) -> ImageHealth {
        let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        ImageHealth {
            test: std::iter::once("CMD".to_owned()).chain(self.command.iter().cloned()).collect(),
            interval: nanoseconds(self.interval),
            timeout: nanoseconds(self.timeout),
            start_period: nanoseconds(self.start_period),
            start_interval: nanoseconds(self.start_interval),
            retries: self.retries,
            shell: Vec::new(),
        }
    }
}

/// How a container is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthStatus {
    /// Nothing is known yet.
    #[default]
    Starting,
    /// The last check was good.
    Healthy,
    /// So many checks in a row were bad.
    Unhealthy,
}

impl HealthStatus {
    /// In docker's words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// How a container is, and what its last checks have said; the names are docker's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Health {
    /// How it is.
    pub status: HealthStatus,
    /// How many checks in a row were bad.
    pub failing_streak: u32,
    /// The last five.
    pub log: VecDeque<HealthResult>,
}

/// A check that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct HealthResult {
    /// When it began (RFC 3339).
    pub start: String,
    /// When it ended.
    pub end: String,
    /// 0 is good; -1 that it could not be made, or took too long.
    pub exit_code: i32,
    /// The beginning of what it wrote.
    pub output: String,
}

impl Health {
    /// Takes the result of a check.
    fn take(&mut self, result: HealthResult, check: &HealthCheck, age: Duration) {
        if result.exit_code == 0 {
            (self.status, self.failing_streak) = (HealthStatus::Healthy, 0);
        } else if self.status != HealthStatus::Starting || age >= check.start_period {
            self.failing_streak = self.failing_streak.saturating_add(1);
            if self.failing_streak >= check.retries {
                self.status = HealthStatus::Unhealthy;
            }
        }
        self.log.push_back(result);
        while self.log.len() > MAX_RESULTS {
            self.log.pop_front();
        }
    }
}

/// Checks the container `id` of the VM whose directory is `directory` on a thread of its own, until the other end of
/// `stop` is dropped; `report` is called at first and after each check.
///
/// # Errors
///
/// Those of starting a thread.
pub fn watch(
    check: HealthCheck,
    directory: PathBuf,
    id: String,
    stop: Receiver<()>,
    mut report: impl FnMut(&Health) + Send + 'static,
) -> io::Result<()> {
    let watch = move || {
        let start = Instant::now();
        let mut health = Health::default();
        report(&health);
        loop {
            let is_starting = health.status == HealthStatus::Starting && start.elapsed() < check.start_period;
            let wait = if is_starting { check.start_interval } else { check.interval };
            if stop.recv_timeout(wait) != Err(RecvTimeoutError::Timeout) {
                return;
            }
            // Of one that is paused or has ended, nothing is known.
            if let Some(result) = perform(&check, &directory, &id) {
                health.take(result, &check, start.elapsed());
                report(&health);
            }
        }
    };
    Builder::new().name("health".into()).stack_size(256 << 10).spawn(watch).map(drop)
}

/// Whether the VM of the container whose directory that is is paused, as far as it says so.
fn is_paused(directory: &Path) -> bool {
    let directory = pod_directory(directory).unwrap_or_else(|| directory.to_owned());
    Client::connect_with_limit(&directory.join(CONTROL_SOCKET), STATE)
        .and_then(|mut client| client.get::<InstanceInfo>("/"))
        .is_ok_and(|info| info.state == State::Paused)
}

/// Makes a check; `None` where the container is paused, or has ended.
fn perform(check: &HealthCheck, directory: &Path, id: &str) -> Option<HealthResult> {
    if is_paused(directory) {
        return None;
    }
    // One of a pod may be paused while its VM runs.
    let stands_still = || is_paused(directory) || is_frozen(directory, id).unwrap_or(false);
    let now = || time::rfc3339(time::since_1970());
    let start = now();
    let (exit_code, output) = match probe(&check.command, check.timeout, directory, id) {
        Ok((Some(code), output)) => (code.into(), output),
        Ok((None, _)) if stands_still() => return None,
        Ok((None, output)) => {
            let text = format!("Health check exceeded timeout ({:?})", check.timeout);
            (-1, if output.is_empty() { text } else { format!("{text}: {output}") })
        }
        Err(ExecError::Failed(_)) if stands_still() => return None,
        Err(error @ (ExecError::NotFound(_) | ExecError::Failed(_))) => (-1, error.to_string()),
        // It was paused meanwhile.
        Err(error) if is_silence(&error) && is_paused(directory) => return None,
        Err(error) if is_silence(&error) => {
            (-1, format!("Health check exceeded timeout ({:?}): {error}", check.timeout))
        }
        Err(_) => return None,
    };
    let output = output.chars().take(MAX_OUTPUT).collect::<String>();
    Some(HealthResult { start, end: now(), exit_code, output })
}

/// Whether the guest takes connections and does not answer, as one that hangs.
fn is_silence(error: &ExecError) -> bool {
    let ExecError::Connection(error) = error else { return false };
    let error = error.downcast_ref::<ConnectionError>();
    error.is_some_and(|error| matches!(error, ConnectionError::NoAnswer | ConnectionError::Silent(_)))
}

/// The beginning of what is written to it.
#[derive(Clone, Default)]
struct Beginning(Arc<Mutex<Vec<u8>>>);

impl Write for Beginning {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let room = MAX_OUTPUT.saturating_sub(kept.len());
        kept.extend(bytes.iter().take(room));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The sockets of a check's streams, which end with it: its children may hold its output open for good.
#[derive(Default)]
struct Sockets(Vec<UnixStream>);

impl Drop for Sockets {
    fn drop(&mut self) {
        for socket in &self.0 {
            // It fails where the agent has closed it.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

/// Runs `command` for up to `timeout`, with its start; its exit code, if it ended in that time, and the beginning of
/// what it wrote.
fn probe(
    command: &[String],
    timeout: Duration,
    directory: &Path,
    container: &str,
) -> Result<(Option<u8>, String), ExecError> {
    let path = directory.join(VSOCK);
    let id = random_id().map_err(|source| ExecError::Host { doing: "draw a random ID", source })?;
    let deadline = Instant::now() + timeout;
    let left = || deadline.saturating_duration_since(Instant::now()).max(SHORTEST);
    let mut control = Connection::open_within(&path, left())?;
    let exec = Box::new(Exec { args: command.to_vec(), ..Exec::default() });
    control.send(&Request::Exec { container: container.to_owned(), id: id.clone(), exec })?;
    let streams =
        [Stream::Stdout, Stream::Stderr].map(|stream| (stream, Connection::open_within(&path, left())));
    match control.receive_within(left())? {
        Reply::Started => {}
        Reply::Failed(failure) => return Err(failure.into()),
        other => return Err(ConnectionError::Unexpected(format!("{other:?}")).into()),
    }
    let output = Beginning::default();
    let (alive, ended) = channel::<()>();
    let mut sockets = Sockets::default();
    for (stream, connection) in streams {
        let place = Place { path: path.clone(), id: id.clone(), stream };
        let (connection, output, alive) = (connection?, output.clone(), alive.clone());
        sockets.0.push(connection.try_clone().map_err(ConnectionError::from)?);
        let pass = move || {
            let _ = streams::pass_output_once(connection, &place, output);
            drop(alive);
        };
        let spawned = Builder::new().name("check".into()).stack_size(256 << 10).spawn(pass);
        spawned.map_err(|source| ExecError::Host { doing: "start a thread", source })?;
    }
    drop(alive);
    let code = match control.receive_within(left()) {
        Ok(Reply::Exited(exit)) => Some(exit.code),
        Ok(other) => return Err(ConnectionError::Unexpected(format!("{other:?}")).into()),
        Err(ConnectionError::Silent(_)) => {
            // A guest that hangs does not take it.
            let _ = kill_within(directory, &id, LAST_WORDS);
            let _ = control.receive_within::<Reply>(LAST_WORDS);
            None
        }
        Err(error) => return Err(error.into()),
    };
    // Its children may hold its output open.
    let _ = ended.recv_timeout(LAST_WORDS);
    let output = output.0.lock().unwrap_or_else(PoisonError::into_inner);
    Ok((code, String::from_utf8_lossy(&output).into_owned()))
}

#[cfg(test)]
#[path = "health_tests.rs"]
mod tests;
