//! The process that has the work done.

use std::ffi::OsString;
use std::io::{self, PipeReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use agent_protocol::Decoder;
use image::{CredentialFiles, CredentialSource, Digest, Loaded, Progress, Pulled, Store};
use jail::seccomp::Violation;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::{Answer, Done, Job, MAX_IMAGES, Message, Request, bounded, receive, send};
use crate::chain;
use crate::images::RegistryArguments;

/// What the other process gets of the environment: what concerns networks.
const ENVIRONMENT: &[&str] = &[
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "ALL_PROXY",
    "all_proxy",
    "NO_PROXY",
    "no_proxy",
    "SSL_CERT_FILE",
    "LOCALDOMAIN",
    "RES_OPTIONS",
    "MVM_LOG",
    "RUST_BACKTRACE",
    #[cfg(debug_assertions)]
    super::attack::VARIABLE,
];
/// How long the other process may leave what it is sent unread.
const SEND_TIME: Duration = Duration::from_secs(10);

/// How many seconds the other process has to end when it says nothing more.
const END_TIME: i64 = 5;
/// How often the other process may ask for credentials: each asks a helper, which may ask the user.
const MAX_QUESTIONS: u32 = 64;

/// What is to be done, and with what.
pub struct Task<'a> {
    /// What is to be done.
    pub job: Job,
    /// The store's directory, where one is needed.
    pub store: Option<&'a Path>,
    /// How registries are reached.
    pub registry: &'a RegistryArguments,
    /// The registries whose credentials may be given.
    pub registries: Vec<String>,
    /// What is read: an archive or a directory.
    pub input: Input,
    /// Who is told how it goes.
    pub progress: &'a dyn Progress,
}

/// What is loaded.
pub enum Input {
    /// Nothing.
    None,
    /// An archive on this process's own standard input.
    Stdin,
    /// An archive.
    File(OwnedFd),
    /// A layout's directory.
    Directory(PathBuf),
    /// A pipe, and the directory that is worked in.
    Stream {
        /// What is read.
        input: OwnedFd,
        /// The working directory, where it matters.
        directory: Option<PathBuf>,
    },
}

/// What came of it.
pub enum Outcome {
    /// An image was pulled.
    Pulled(Pulled),
    /// An image was pushed: its manifest's digest.
    Pushed(Digest),
    /// Images were loaded, or one was made.
    Loaded(Vec<Loaded>),
    /// A stream was unpacked.
    Unpacked {
        /// Device nodes that were not made.
        devices: u64,
    },
    /// The registry has taken the credentials, perhaps with an identity token that stands for them.
    LoggedIn(Option<String>),
}

/// Why nothing came of it, in a line for the user.
pub enum Failure {
    /// The credentials are wrong.
    Refused(String),
    /// Something else.
    Failed(String),
}

impl Failure {
    /// The line.
    pub fn into_line(self) -> String {
        match self {
            Self::Refused(line) | Self::Failed(line) => line,
        }
    }
}

impl From<String> for Failure {
    fn from(line: String) -> Self {
        Self::Failed(line)
    }
}

impl Task<'_> {
    /// Has it done, and waits for that. The process ends with this one.
    ///
    /// # Errors
    ///
    /// [`Failure`]. What the process has left in the store when it was killed is removed.
    pub fn run(mut self) -> Result<Outcome, Failure> {
        let (ours, theirs) = UnixStream::pair().map_err(|error| cannot_start(&error))?;
        ours.set_write_timeout(Some(SEND_TIME)).map_err(|error| cannot_start(&error))?;
        let mut command = command().map_err(|error| cannot_start(&error))?;
        // Pipes without another end: there may be no /dev/null.
        let (input, _) = io::pipe().map_err(|error| cannot_start(&error))?;
        let (reports, errors) = io::pipe().map_err(|error| cannot_start(&error))?;
        command.stdout(OwnedFd::from(theirs)).stdin(input).stderr(errors);
        match std::mem::replace(&mut self.input, Input::None) {
            Input::None => &mut command,
            Input::Stdin => command.stdin(Stdio::inherit()),
            Input::File(file) => command.stdin(file),
            Input::Directory(path) => command.current_dir(path),
            Input::Stream { input, directory } => {
                if let Some(directory) = directory {
                    command.current_dir(directory);
                }
                // The other process's alone: who writes to it sees its end.
                command.stdin(input)
            }
        };
        let mut process = Process(command.spawn().map_err(|error| cannot_start(&error))?);
        // Its end of the socket is closed here, so that its end is seen.
        drop(command);
        let told = self.talk(&ours);
        drop(ours);
        let mut end = || process.end(|| self.violation(&reports));
        let line = match told {
            // It has nothing more to do, whether it has ended or not.
            Ok(Some(result)) => return result,
            Ok(None) => end(),
            Err(error) if has_gone(&error) => end(),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                "the process that does it sent an invalid message".to_owned()
            }
            Err(error) => format!("cannot reach the process that does it: {error}"),
        };
        drop(process);
        // Opening the store removes what was left.
        let _ = self.store.map(Store::open);
        Err(line.into())
    }

    /// Makes the request, and answers questions until there is a result; none where the process has ended.
    pub(super) fn talk(&self, socket: &UnixStream) -> io::Result<Option<Result<Outcome, Failure>>> {
        send(socket, &self.request())?;
        let mut decoder = Decoder::default();
        let mut loaded = Vec::new();
        let mut questions = 0;
        while let Some(message) = receive(socket, &mut decoder)? {
            match message {
                Message::Event(event) => self.progress.event(event),
                Message::Credentials { registry, repository } => {
                    questions += 1;
                    if questions > MAX_QUESTIONS {
                        return Err(io::ErrorKind::InvalidData.into());
                    }
                    send(socket, &self.credentials(&registry, &repository))?;
                }
                Message::Loaded { id, references } => {
                    let references: Result<_, _> = references.iter().map(|text| text.parse()).collect();
                    let references =
                        references.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
                    loaded.push(Loaded { id, references });
                    if loaded.len() > MAX_IMAGES {
                        return Err(io::ErrorKind::InvalidData.into());
                    }
                }
                Message::Refused(line) => return Ok(Some(Err(Failure::Refused(bounded(line))))),
                Message::Failed(line) => return Ok(Some(Err(Failure::Failed(bounded(line))))),
                Message::Done(done) => {
                    return match (done, &self.job) {
                        (Done::Pulled(pulled), Job::Pull(_)) => Ok(Some(Ok(Outcome::Pulled(pulled)))),
                        (Done::Pushed(digest), Job::Push(_)) => Ok(Some(Ok(Outcome::Pushed(digest)))),
                        (
                            Done::Loaded,
                            Job::Load | Job::LoadDirectory | Job::Import { .. } | Job::Commit { .. },
                        ) => Ok(Some(Ok(Outcome::Loaded(loaded)))),
                        (Done::Unpacked { devices }, Job::Unpack { .. }) => {
                            Ok(Some(Ok(Outcome::Unpacked { devices })))
                        }
                        (Done::LoggedIn(token), Job::Login { .. }) => Ok(Some(Ok(Outcome::LoggedIn(token)))),
                        _ => Err(io::ErrorKind::InvalidData.into()),
                    };
                }
            }
        }
        Ok(None)
    }

    /// The line of a system call that the process may not make, which has ended it; none without a report of one.
    fn violation(&self, reports: &PipeReader) -> Option<String> {
        let mut report = [0; 256];
        // Another process could have the pipe, though none should.
        rustix::io::ioctl_fionbio(reports, true).ok()?;
        let count = (&mut &*reports).read(&mut report).ok()?;
        let Violation { call, .. } = Violation::parse(report.get(..count)?)?;
        let name = jail::seccomp::name(call).map_or_else(|| format!("number {call}"), str::to_owned);
        let suspect = match &self.job {
            Job::Pull(_) | Job::Load | Job::LoadDirectory => "image",
            Job::Import { .. } => "archive",
            Job::Commit { .. } | Job::Unpack { .. } => "container",
            Job::Push(_) | Job::Login { .. } => "registry",
        };
        Some(format!(
            "the process that does it was ended, as it made the system call {name}, which it never needs: the \
             {suspect} may be hostile, or mvm has a fault (SECURITY.md says how to report it)"
        ))
    }

    fn request(&self) -> Request {
        Request {
            store: self.store.unwrap_or(Path::new("")).to_owned(),
            max_unpacked: self.registry.unpacked.max_unpacked(),
            plain_http: self.registry.plain_http,
            mirrors: RegistryArguments::mirrors(),
            jail: crate::defaults::jail(),
            job: self.job.clone(),
        }
    }

    /// The credentials for a registry, if the task is one with that registry.
    fn credentials(&self, registry: &str, repository: &str) -> Answer {
        if !self.registries.iter().any(|known| known == registry) {
            return Err(format!("{registry} is not a registry of this command"));
        }
        CredentialFiles::of_user().find(registry, repository).map_err(|error| bounded(chain(&error)))
    }
}

fn cannot_start(error: &io::Error) -> Failure {
    Failure::Failed(format!("cannot start a process: {error}"))
}

/// Whether a process cannot be talked to as it has ended.
fn has_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

/// How a process has ended that has not said how.
fn end_of(status: ExitStatus) -> String {
    let how = match status.signal() {
        Some(signal) => format!("was ended by {}", instance::name_of(signal)),
        None => format!("ended with {}", status.code().unwrap_or_default()),
    };
    let hint = if status.signal() == Some(libc::SIGKILL) { "; the host may have no memory left" } else { "" };
    format!("the process that does it {how}{hint}")
}

/// A process that does not outlive this.
struct Process(Child);

impl Process {
    /// Waits for its end, and says how that was. One that has closed its socket ends soon, or is made to. `violation`
    /// is asked whether it has made a system call that it may not make.
    fn end(&mut self, violation: impl FnOnce() -> Option<String>) -> String {
        let is_ended = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw).is_some_and(|id| {
            let Ok(descriptor) = pidfd_open(id, PidfdFlags::empty()) else { return false };
            let time = Timespec { tv_sec: END_TIME, tv_nsec: 0 };
            poll(&mut [PollFd::new(&descriptor, PollFlags::IN)], Some(&time)) == Ok(1)
        });
        if !is_ended {
            // It may have ended just now.
            let _ = self.0.kill();
        }
        match self.0.wait() {
            Ok(status) if status.code() == Some(jail::seccomp::EXIT_CODE) => {
                violation().unwrap_or_else(|| end_of(status))
            }
            Ok(status) => end_of(status),
            Err(error) => error.to_string(),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Errors are those of a process that has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// This program as one that works.
fn command() -> io::Result<Command> {
    let own = Path::new("/proc/self/exe");
    let program: PathBuf = if own.exists() {
        own.to_owned()
    } else {
        // There may be no /proc.
        let name = rustix::param::linux_execfn().to_bytes();
        Path::new(std::ffi::OsStr::from_bytes(name)).canonicalize()?
    };
    let mut command = Command::new(program);
    let kept = ENVIRONMENT.iter().filter_map(|name| Some((*name, std::env::var_os(name)?)));
    let kept: Vec<(&str, OsString)> = kept.collect();
    command.arg0("mvm").arg("worker").env_clear().envs(kept);
    Ok(command)
}
