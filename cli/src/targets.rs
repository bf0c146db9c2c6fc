//! What commands that act on running VMs have in common.

use std::panic::resume_unwind;
use std::path::Path;
use std::time::Duration;

use container::ExecError;
use instance::api::{InstanceInfo, State};
use instance::console::AttachError;
use instance::{
    Archive, CONTROL_SOCKET, Client, ClientError, InstanceError, Kept, Kind, ProcessError, Registry, Running,
};
use thiserror::Error;

use crate::process::ExitCode;
use crate::{chain, complain, exit_code, print};

/// Why a command failed for a VM.
#[derive(Debug, Error)]
pub enum Failure {
    /// There is no such VM.
    #[error(transparent)]
    Instance(#[from] InstanceError),
    /// It has ended, with this exit code.
    #[error("it is not running: it ended with {0}")]
    NotRunning(u8),
    /// It was made and not started.
    #[error("it is not running: it was created, and `mvm start` starts it")]
    Created,
    /// It can't be started.
    #[error("{0}")]
    Start(String),
    /// One can't be attached to it.
    #[error("{0}")]
    Attach(String),
    /// Its VM is saved.
    #[error("it is saved: `mvm resume` continues it, and `mvm kill` ends it")]
    Saved,
    /// It can't be saved.
    #[error("{0}")]
    Save(String),
    /// It waits to be started again.
    #[error("it is not running: it ended with {0}, and is started again soon")]
    Restarting(u8),
    /// A VM is not started again.
    #[error("it is a VM, which is not started again: use `mvm boot -d`")]
    IsVm,
    /// A pod can't be made, or does not do what it is asked.
    #[error("{0}")]
    Pod(String),
    /// What is done to VMs is done to all of a pod.
    #[error("it is in a pod, and shares its VM: use `mvm pod` for all of the pod")]
    InPod,
    /// It is to be paused.
    #[error("it is paused already")]
    Paused,
    /// It is to be resumed.
    #[error("it is not paused")]
    NotPaused,
    /// All of its pod stands still.
    #[error("its pod is paused: `mvm pod unpause` it")]
    PodPaused,
    /// It is gone at its end.
    #[error("it runs with --rm, and is removed when it ends: use `mvm run` again")]
    Removes,
    /// It runs, and has to have ended.
    #[error("it is running: `mvm stop` it first, or use --force")]
    Running,
    /// It does not run, and a process copies its files.
    #[error("its files are being copied: try again when that is done")]
    Visited,
    /// It was killed, or starts.
    #[error("it was killed, and has not ended yet: try again")]
    NotEnded,
    /// The kernel does not end its process.
    #[error("its process was killed, and does not end: the host may be waiting for a disk")]
    Unkillable,
    /// A container whose command has not started yet.
    #[error("it has not started yet")]
    NotStarted,
    /// A VM has no use for that signal.
    #[error("it is a VM, which takes the signals HUP, INT, QUIT, KILL, TERM, CONT and STOP only")]
    Signal,
    /// A VM's power button is all that asks it to end.
    #[error("it is a VM, whose power button asks it to end: leave --signal out, or use `mvm kill --signal`")]
    StopSignal,
    /// The container's agent can't be asked.
    #[error(transparent)]
    Agent(#[from] ExecError),
    /// The VM's process can't be signalled.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The control socket refused the request or did not answer.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The console's socket can't be used.
    #[error(transparent)]
    Console(#[from] AttachError),
}

/// How long a VM has to answer a question that takes it no time. One whose process is stopped does not answer at all.
pub const ANSWER: Duration = Duration::from_secs(1);
/// How long a process that copies files of a container is waited for.
const VISIT: Duration = Duration::from_secs(20);
/// How many VMs are asked at the same time.
const AT_ONCE: usize = 64;

/// Calls `ask` for each of `items`, for many of them at the same time, so that one that does not answer holds up no
/// other; the results in the order of `items`.
pub fn at_once<I: Sync, T: Send>(items: &[I], ask: impl Fn(&I) -> T + Sync) -> Vec<T> {
    let ask = &ask;
    let ask_some = |items| {
        std::thread::scope(|scope| {
            let asked: Vec<_> = <[I]>::iter(items).map(|item| scope.spawn(move || ask(item))).collect();
            // A thread that panicked has reported it; the process ends as it would without threads.
            asked
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)))
                .collect()
        })
    };
    items.chunks(AT_ONCE).flat_map(|items| -> Vec<T> { ask_some(items) }).collect()
}

/// Calls `action` for each of the VMs that `words` name, for many of them at the same time, and prints the words of
/// those for which it succeeded, as docker does.
pub fn each(words: &[String], action: impl Fn(&Running) -> Result<(), Failure> + Sync) -> ExitCode {
    let registry = Registry::of_user();
    each_word(words, |word| action(&find(&registry, word)?))
}

/// Calls `act` for each of `words`, for many of them at the same time, and prints those for which it succeeded.
pub fn each_word(words: &[String], act: impl Fn(&str) -> Result<(), Failure> + Sync) -> ExitCode {
    let mut code = exit_code::SUCCESS;
    let mut done = String::new();
    let act = |word: &String| act(word);
    for (word, result) in words.iter().zip(at_once(words, act)) {
        match result {
            Ok(()) => done += &format!("{word}\n"),
            Err(failure) => code = code.max(complain_of(word, &failure)),
        }
    }
    // A process that was killed leaves its directory behind.
    Registry::of_user().sweep();
    print(done.as_bytes(), code)
}

/// The VM or container that `word` means, which has to run.
pub fn find(registry: &Registry, word: &str) -> Result<Running, Failure> {
    let found = registry.find(word);
    if found.as_ref().is_ok_and(|vm| container::is_pod(&vm.directory)) {
        return Err(InstanceError::IsPod(word.into()).into());
    }
    found.map_err(|error| {
        let kept = matches!(error, InstanceError::NotFound(_)).then(|| kept(word).ok()).flatten();
        match kept {
            Some(kept) if kept.is_created() && !kept.is_running => Failure::Created,
            Some(kept) if kept.is_saved() => Failure::Saved,
            Some(kept) if kept.is_restarting() => Failure::Restarting(kept.last_end().code),
            Some(kept) => kept.end().map_or_else(|| error.into(), |end| Failure::NotRunning(end.code)),
            None => error.into(),
        }
    })
}

/// The VM or container that `word` means, of which something is kept, whether it runs or not.
pub fn kept(word: &str) -> Result<Kept, InstanceError> {
    let kept = Archive::of_user()?.find(word)?;
    if kept.entry.kind == Kind::Pod { Err(InstanceError::IsPod(word.into())) } else { Ok(kept) }
}

/// The same, once no process copies files of one that does not run.
pub fn kept_alone(word: &str) -> Result<Kept, Failure> {
    let kept = kept(word)?;
    let Some(visitor) = kept.visitor() else { return Ok(kept) };
    match visitor.open() {
        Ok(process) if !process.wait(Some(VISIT)) => Err(Failure::Visited),
        _ => Ok(self::kept(word)?),
    }
}

/// Prints the failure on one line; returns the exit code for it.
pub fn complain_of(word: &str, failure: &Failure) -> u8 {
    complain(&message(word, failure));
    exit_code::FAILURE
}

/// The failure in one line, with what `word` means in it.
pub fn message(word: &str, failure: &Failure) -> String {
    match failure {
        Failure::Instance(error) => chain(error),
        failure => format!("{word}: {}", chain(failure)),
    }
}

/// Whether the VM is paused, or the container in a pod, as far as it says so.
pub fn is_paused(vm: &Running) -> bool {
    match container::pod_directory(&vm.directory) {
        None => is_vm_paused(&vm.directory),
        Some(pod) => {
            is_vm_paused(&pod) || container::is_frozen(&vm.directory, vm.record.id.as_str()).unwrap_or(false)
        }
    }
}

/// Refuses what the guest would have to answer where its VM is paused: that would wait for its deadline. `name` is what
/// the user wrote for `vm`, which is a VM or a container, also of a pod.
pub fn check_guest(name: &str, vm: &Running) -> Result<(), String> {
    match container::pod_directory(&vm.directory) {
        Some(pod) if is_vm_paused(&pod) => Err(message(name, &Failure::PodPaused)),
        None if is_vm_paused(&vm.directory) => Err(paused(name)),
        _ => Ok(()),
    }
}

/// Refuses to end a container of a pod that is paused: neither can it end, nor can what it has written be kept, unless
/// the others of its pod go on too.
pub fn check_pod(vm: &Running) -> Result<(), Failure> {
    match container::pod_directory(&vm.directory) {
        Some(pod) if is_vm_paused(&pod) => Err(Failure::PodPaused),
        _ => Ok(()),
    }
}

/// That `name` is paused, for the user.
pub fn paused(name: &str) -> String {
    format!("{name}: it is paused: `mvm resume {name}`")
}

/// Whether the VM whose directory that is is paused, as far as it says so.
pub fn is_vm_paused(directory: &Path) -> bool {
    state(directory) == Some(State::Paused)
}

/// The state of the VM whose directory that is, as far as it says so.
pub fn state(directory: &Path) -> Option<State> {
    let ask =
        || Client::connect_with_limit(&directory.join(CONTROL_SOCKET), ANSWER)?.get::<InstanceInfo>("/");
    ask().ok().map(|info| info.state)
}

/// A connection to the VM's control socket.
pub fn client(vm: &Running) -> Result<Client, Failure> {
    check_vm(vm)?;
    Ok(Client::connect(&vm.control_socket())?)
}

/// The same for questions that take the VM no time, see [`ANSWER`].
pub fn quick_client(vm: &Running) -> Result<Client, Failure> {
    check_vm(vm)?;
    Ok(Client::connect_with_limit(&vm.control_socket(), ANSWER)?)
}

/// Refuses a container that has no VM of its own.
fn check_vm(vm: &Running) -> Result<(), Failure> {
    if container::pod_directory(&vm.directory).is_some() { Err(Failure::InPod) } else { Ok(()) }
}
