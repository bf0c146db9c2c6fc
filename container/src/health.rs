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
use instance::time;
use serde::{Deserialize, Serialize};

use crate::connection::{Connection, ConnectionError};
use crate::exec::{ExecError, random_id};
use crate::machine::VSOCK;
use crate::requests::{is_frozen, send_signal};
use crate::streams::{self, Place};

/// The most bytes that are kept of what a check writes.
const MAX_OUTPUT: usize = 4096;
/// How many results are kept.
const MAX_RESULTS: usize = 5;
/// How long the agent has to start the command.
const START: Duration = Duration::from_secs(30);
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
        let shell = |line: &str| ["/bin/sh", "-c", line].map(str::to_owned).to_vec();
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

/// Makes a check; `None` where the agent does not answer.
fn perform(check: &HealthCheck, directory: &Path, id: &str) -> Option<HealthResult> {
    let now = || time::rfc3339(time::since_1970());
    let start = now();
    let (exit_code, output) = match probe(&check.command, check.timeout, directory, id) {
        Ok((Some(code), output)) => (code.into(), output),
        Ok((None, output)) => {
            let text = format!("Health check exceeded timeout ({:?})", check.timeout);
            (-1, if output.is_empty() { text } else { format!("{text}: {output}") })
        }
        // One of a pod whose VM runs.
        Err(ExecError::Failed(_)) if is_frozen(directory, id).unwrap_or(false) => return None,
        Err(error @ (ExecError::NotFound(_) | ExecError::Failed(_))) => (-1, error.to_string()),
        Err(_) => return None,
    };
    let output = output.chars().take(MAX_OUTPUT).collect::<String>();
    Some(HealthResult { start, end: now(), exit_code, output })
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

/// Runs `command` for up to `timeout`; its exit code, if it ended in that time, and the beginning of what it wrote.
fn probe(
    command: &[String],
    timeout: Duration,
    directory: &Path,
    container: &str,
) -> Result<(Option<u8>, String), ExecError> {
    let path = directory.join(VSOCK);
    let id = random_id().map_err(|source| ExecError::Host { doing: "draw a random ID", source })?;
    let mut control = Connection::open_within(&path, START)?;
    let exec = Box::new(Exec { args: command.to_vec(), ..Exec::default() });
    control.send(&Request::Exec { container: container.to_owned(), id: id.clone(), exec })?;
    let streams =
        [Stream::Stdout, Stream::Stderr].map(|stream| (stream, Connection::open_within(&path, START)));
    match control.receive_within(START)? {
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
    let code = match control.receive_within(timeout) {
        Ok(Reply::Exited(exit)) => Some(exit.code),
        Ok(other) => return Err(ConnectionError::Unexpected(format!("{other:?}")).into()),
        Err(ConnectionError::Silent(_)) => {
            send_signal(directory, &id, 9)?;
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
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    fn words(list: &[&str]) -> Vec<String> {
        list.iter().map(|word| (*word).to_owned()).collect()
    }

    fn check(options: &HealthOptions) -> HealthCheck {
        HealthCheck::new(None, options).unwrap()
    }

    #[rstest]
    #[case(&["CMD", "a", "b"], Some(&["a", "b"][..]))]
    #[case(&["CMD-SHELL", "a b"], Some(&["/bin/sh", "-c", "a b"][..]))]
    #[case(&["NONE"], None)]
    #[case(&["CMD"], None)]
    #[case(&["x", "y"], None)]
    #[case(&[], None)]
    fn an_image_names_a_command_or_none(#[case] test: &[&str], #[case] command: Option<&[&str]>) {
        let image = ImageHealth { test: words(test), ..ImageHealth::default() };
        let made = HealthCheck::new(Some(&image), &HealthOptions::default());
        assert_eq!(made.map(|check| check.command), command.map(words));
        let off = HealthOptions { is_off: true, ..HealthOptions::default() };
        assert_eq!(HealthCheck::new(Some(&image), &off), None);
    }

    #[test]
    fn the_users_times_win_over_the_images_and_these_over_dockers() {
        let image: ImageHealth = serde_json::from_value(json!({
            "Test": ["CMD", "x"], "Interval": 7_000_000_000_u64, "Retries": 9, "Later": 1
        }))
        .unwrap();
        let options =
            HealthOptions { timeout: Some(Duration::from_millis(1500)), ..HealthOptions::default() };
        let check = HealthCheck::new(Some(&image), &options).unwrap();
        assert_eq!((check.interval, check.timeout), (Duration::from_secs(7), Duration::from_millis(1500)));
        assert_eq!((check.start_period, check.start_interval), (Duration::ZERO, Duration::from_secs(5)));
        assert_eq!((check.retries, check.shown().test), (9, words(&["CMD", "x"])));
    }

    #[test]
    fn an_images_times_are_no_shorter_than_dockers_shortest() {
        let image: ImageHealth = serde_json::from_value(json!({
            "Test": ["CMD", "x"], "Interval": 1, "Timeout": 999_999, "StartPeriod": 1, "StartInterval": 1
        }))
        .unwrap();
        let check = HealthCheck::new(Some(&image), &HealthOptions::default()).unwrap();
        assert_eq!([check.interval, check.timeout, check.start_period, check.start_interval], [SHORTEST; 4]);
    }

    #[test]
    fn failures_count_in_a_row_and_not_while_it_starts() {
        let options = HealthOptions {
            command: Some("x".into()),
            retries: Some(2),
            start_period: Some(Duration::from_secs(10)),
            ..HealthOptions::default()
        };
        let check = check(&options);
        let mut health = Health::default();
        let mut take = |exit_code, age| {
            let result =
                HealthResult { start: String::new(), end: String::new(), exit_code, output: String::new() };
            health.take(result, &check, Duration::from_secs(age));
            (health.status, health.failing_streak, health.log.len())
        };
        assert_eq!(take(1, 1), (HealthStatus::Starting, 0, 1));
        assert_eq!(take(1, 10), (HealthStatus::Starting, 1, 2));
        assert_eq!(take(-1, 11), (HealthStatus::Unhealthy, 2, 3));
        assert_eq!(take(0, 12), (HealthStatus::Healthy, 0, 4));
        assert_eq!(take(1, 13), (HealthStatus::Healthy, 1, 5));
        assert_eq!(take(1, 14), (HealthStatus::Unhealthy, 2, 5));
    }

    /// An agent whose check ends at once, while what it has started keeps the output open.
    #[test]
    fn a_check_leaves_no_connection_behind() {
        use std::io::Read;
        use std::os::unix::net::UnixListener;
        use std::thread;

        use agent_protocol::{Decoder, Exit, VERSION, encode};
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join(VSOCK)).unwrap();
        let serve = |mut socket: UnixStream| {
            socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            let mut line = [0; "CONNECT 1000\n".len()];
            socket.read_exact(&mut line).unwrap();
            socket.write_all(b"OK 1\n").unwrap();
            socket.write_all(&encode(&Reply::Hello { version: VERSION }).unwrap()).unwrap();
            let mut decoder = Decoder::default();
            let request = loop {
                let mut bytes = vec![0; decoder.wants().unwrap()];
                socket.read_exact(&mut bytes).unwrap();
                decoder.push(&bytes);
                if let Some(request) = decoder.take::<Request>().unwrap() {
                    break request;
                }
            };
            let replies = match request {
                Request::Exec { .. } => {
                    vec![Reply::Started, Reply::Exited(Exit { code: 3, out_of_memory: false })]
                }
                Request::Attach { .. } => vec![Reply::Attached { position: 0 }],
                other => panic!("{other:?}"),
            };
            let is_stream = matches!(&replies[..], [Reply::Attached { .. }]);
            for reply in replies {
                socket.write_all(&encode(&reply).unwrap()).unwrap();
            }
            if is_stream {
                socket.write_all(b"\x02\0\0\0hi").unwrap();
            }
            // The host's end, or an error after the time of waiting for it.
            socket.read(&mut [0]).unwrap()
        };
        let agent = thread::spawn(move || {
            let accept = |_| {
                let (socket, _) = listener.accept().unwrap();
                thread::spawn(move || serve(socket))
            };
            // Each is served at once: the next one comes after its answer.
            let threads: Vec<_> = (0..3).map(accept).collect();
            let ends: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
            listener.set_nonblocking(true).unwrap();
            (ends, listener.accept().is_err())
        });
        let result = probe(&words(&["x"]), Duration::from_secs(60), directory.path(), "c").unwrap();
        assert_eq!(result, (Some(3), "hihi".into()));
        assert_eq!(agent.join().unwrap(), (vec![0, 0, 0], true));
    }

    #[test]
    fn what_a_check_writes_is_bounded() {
        let mut beginning = Beginning::default();
        for _ in 0..100 {
            assert_eq!(beginning.write(&[b'x'; 1000]).unwrap(), 1000);
        }
        assert_eq!(beginning.0.lock().unwrap().len(), MAX_OUTPUT);
    }
}
