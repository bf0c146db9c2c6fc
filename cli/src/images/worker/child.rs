//! The process that works.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Seek};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use agent_protocol::Decoder;
use clap::Args;
use copies::{Owner, Rules, Unpacked};
use image::{
    Client, Commit, CredentialSource, Credentials, Digest, Loaded, Progress, PullEvent, Reference,
    RegistryError, RegistryOptions, Store,
};
use serde_json::Value;

use super::{Answer, Done, Job, Message, Request, bounded, receive, seal, send};
use crate::process::ExitCode;
use crate::{chain, complain, exit_code};

/// How long a layer's progress is not told again.
const QUIET: Duration = Duration::from_millis(100);

/// `mvm worker`, which mvm runs itself.
#[derive(Args)]
pub struct WorkerCommand {}

impl WorkerCommand {
    /// Does what the process at the other end of standard output asks for.
    pub fn run(self) -> ExitCode {
        close_inherited();
        let Ok((parent, sealed)) = Parent::new() else {
            complain("mvm runs this command itself: see `mvm --help`");
            return exit_code::USAGE.into();
        };
        let (message, code) = match sealed.map_err(Failed::new).and_then(|()| parent.work()) {
            Ok(done) => (Message::Done(done), exit_code::SUCCESS),
            Err(Failed { is_refused: true, line }) => (Message::Refused(line), exit_code::FAILURE),
            Err(Failed { line, .. }) => (Message::Failed(line), exit_code::FAILURE),
        };
        parent.say(&message);
        code.into()
    }
}

/// Closes all but the standard streams, as what the user's shell may have left open.
fn close_inherited() {
    // SAFETY: nothing of this process's is open yet besides the standard streams.
    unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
}

/// Why nothing came of it.
struct Failed {
    line: String,
    is_refused: bool,
}

impl Failed {
    fn new(line: impl Into<String>) -> Self {
        Self { line: bounded(line.into()), is_refused: false }
    }

    fn of(error: &dyn std::error::Error) -> Self {
        Self::new(chain(error))
    }
}

/// The process that has started this one.
#[derive(Debug)]
struct Parent {
    socket: Mutex<UnixStream>,
    /// Answers, in the order of the questions.
    answers: Mutex<Receiver<Answer>>,
    request: Mutex<Option<Request>>,
}

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Request")
    }
}

impl Parent {
    /// Takes the request and seals this process, which has one thread until then; why that is not possible, in a line
    /// for the user.
    fn new() -> io::Result<(Arc<Self>, Result<(), String>)> {
        let socket = UnixStream::from(io::stdout().as_fd().try_clone_to_owned()?);
        // Nothing but a socket has the other end's address.
        socket.peer_addr()?;
        let mut decoder = Decoder::default();
        let request: Option<Request> = receive(&socket, &mut decoder)?;
        let sealed = request.as_ref().map_or(Ok(()), seal::seal);
        let (sender, answers) = mpsc::sync_channel(1);
        let reader = socket.try_clone()?;
        std::thread::Builder::new().spawn(move || read(&reader, decoder, &sender))?;
        let parent =
            Self { socket: Mutex::new(socket), answers: Mutex::new(answers), request: Mutex::new(request) };
        Ok((Arc::new(parent), sealed))
    }

    fn say(&self, message: &Message) {
        if send(&lock(&self.socket), message).is_err() {
            // The process that wanted the result has ended.
            std::process::exit(exit_code::FAILURE.into());
        }
    }

    fn work(self: &Arc<Self>) -> Result<Done, Failed> {
        let request = lock(&self.request).take().ok_or_else(|| Failed::new("there is no request"))?;
        #[cfg(feature = "attack")]
        super::attack::attempt().map_err(Failed::new)?;
        let client = || {
            let credentials: Arc<dyn CredentialSource> = Arc::new(Asked(Arc::clone(self)));
            Client::new(RegistryOptions { credentials: Some(credentials), ..options(&request) })
        };
        let of_registry = |error: RegistryError| Failed {
            is_refused: matches!(error, RegistryError::Refused { .. }),
            ..Failed::of(&error)
        };
        let reference = |text: &str| text.parse::<Reference>().map_err(|error| Failed::of(&error));
        if let Job::Login { registry, credentials } = &request.job {
            return client().login(registry, credentials).map(Done::LoggedIn).map_err(of_registry);
        }
        if let Job::Unpack { only, keeps_owners } = &request.job {
            return unpack(only.clone(), *keeps_owners);
        }
        let mut store = Store::open(&request.store).map_err(|error| Failed::of(&error))?;
        store.set_max_unpacked(request.max_unpacked);
        match &request.job {
            Job::Pull(text) => {
                let progress = Told { parent: self, last: Mutex::default() };
                let pulled = store.pull(&client(), &reference(text)?, &progress);
                pulled.map(Done::Pulled).map_err(of_registry)
            }
            Job::Push(text) => {
                let pushed = store.push(&client(), text, &reference(text)?);
                pushed.map(Done::Pushed).map_err(of_registry)
            }
            Job::Load => {
                let loaded = store.load(io::stdin().lock());
                self.loaded(loaded.map_err(|error| Failed::of(&error))?)
            }
            Job::LoadDirectory => {
                let loaded = store.load_directory(Path::new("."));
                self.loaded(loaded.map_err(|error| Failed::of(&error))?)
            }
            Job::Import { config, created, comment, reference: name } => {
                let config = serde_json::from_str(config).map_err(|error| Failed::of(&error))?;
                let name = name.as_deref().map(reference).transpose()?;
                self.loaded([import(&store, &config, (created, comment), name.as_ref())?])
            }
            Job::Commit { parent, changes, created, created_by, author, comment, reference: name } => {
                let changes = changes.iter().map(|change| serde_json::from_str(change));
                let changes: Vec<Value> =
                    changes.collect::<Result<_, _>>().map_err(|error| Failed::of(&error))?;
                let name = name.as_deref().map(reference).transpose()?;
                let author = author.as_deref();
                let commit = Commit { parent, changes: &changes, created, created_by, author, comment };
                let committed = store.commit(io::stdin().lock(), &commit, name.as_ref());
                self.loaded([committed.map_err(|error| Failed::of(&error))?])
            }
            Job::Unpack { .. } | Job::Login { .. } => Err(Failed::new("unreachable")),
        }
    }

    fn loaded(&self, images: impl IntoIterator<Item = Loaded>) -> Result<Done, Failed> {
        for Loaded { id, references } in images {
            let references = references.iter().map(ToString::to_string).collect();
            self.say(&Message::Loaded { id, references });
        }
        Ok(Done::Loaded)
    }
}

/// How registries are reached, but for credentials.
pub(super) fn options(request: &Request) -> RegistryOptions {
    RegistryOptions {
        plain_http: request.plain_http,
        mirrors: request.mirrors.clone(),
        ..RegistryOptions::default()
    }
}

/// Unpacks the stream on standard input in the working directory.
fn unpack(only: Option<Vec<u8>>, keeps_owners: bool) -> Result<Done, Failed> {
    let is_root = rustix::process::geteuid().is_root();
    let directory = File::open(".").map_err(|error| Failed::of(&error))?;
    let owner = if keeps_owners && is_root { Owner::Kept } else { Owner::Own };
    let rules = Rules { follows_links: false, owner, makes_devices: is_root, only };
    let mut input = io::stdin().lock();
    let unpacked = copies::unpack(directory.as_fd(), &mut input, &rules);
    let Unpacked { devices, .. } = unpacked.map_err(|error| Failed::of(&error))?;
    // What follows the end of the archive is read, so that who writes it sees no error.
    io::copy(&mut input, &mut io::sink()).map_err(|error| Failed::of(&error))?;
    Ok(Done::Unpacked { devices })
}

/// Makes an image of the archive on standard input.
fn import(
    store: &Store,
    config: &Value,
    history: (&str, &str),
    reference: Option<&Reference>,
) -> Result<Loaded, Failed> {
    let input = io::stdin().as_fd().try_clone_to_owned().map(File::from);
    let mut input = input.map_err(|error| Failed::of(&error))?;
    let is_file = input.metadata().is_ok_and(|metadata| metadata.is_file());
    // A file of which a part was read before goes on from there; others are read twice.
    let imported = match is_file && input.stream_position().is_ok_and(|position| position == 0) {
        true => store.import(&mut input, config, history, reference),
        false => store.import_stream(input, config, history, reference),
    };
    imported.map_err(|error| Failed::of(&error))
}

/// Takes answers from the socket, and ends the process when the other end has gone: no process waits for the work then.
fn read(socket: &UnixStream, mut decoder: Decoder, answers: &SyncSender<Answer>) {
    while let Ok(Some(answer)) = receive(socket, &mut decoder) {
        if answers.send(answer).is_err() {
            break;
        }
    }
    let _ = socket.shutdown(Shutdown::Both);
    std::process::exit(exit_code::FAILURE.into());
}

/// Credentials are those that the other process gives.
#[derive(Debug)]
struct Asked(Arc<Parent>);

impl CredentialSource for Asked {
    fn find(&self, registry: &str, repository: &str) -> Result<Option<Credentials>, RegistryError> {
        let answers = lock(&self.0.answers);
        let (registry, repository) = (registry.to_owned(), repository.to_owned());
        self.0.say(&Message::Credentials { registry, repository });
        let none = || RegistryError::Credentials("mvm has ended".to_owned());
        answers.recv().map_err(|_| none())?.map_err(RegistryError::Credentials)
    }
}

/// Tells how a pull goes, each layer ten times a second.
struct Told<'a> {
    parent: &'a Parent,
    last: Mutex<HashMap<Digest, Instant>>,
}

impl Progress for Told<'_> {
    fn event(&self, event: PullEvent) {
        if let PullEvent::Downloading { digest, done, total } = event {
            let mut last = lock(&self.last);
            let is_recent = last.get(&digest).is_some_and(|time| time.elapsed() < QUIET);
            if is_recent && done < total {
                return;
            }
            last.insert(digest, Instant::now());
        }
        self.parent.say(&Message::Event(event));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
