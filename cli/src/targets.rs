//! What commands that act on running VMs have in common.

use std::panic::resume_unwind;
use std::time::Duration;

use instance::console::AttachError;
use instance::{Client, ClientError};
use instance::{InstanceError, ProcessError, Registry, Running};
use thiserror::Error;

use crate::process::ExitCode;
use crate::{chain, complain, exit_code, print};

/// Why a command failed for a VM.
#[derive(Debug, Error)]
pub enum Failure {
    /// There is no such VM.
    #[error(transparent)]
    Instance(#[from] InstanceError),
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
    let mut code = exit_code::SUCCESS;
    let mut done = String::new();
    let act = |word: &String| registry.find(word).map_err(Failure::from).and_then(|vm| action(&vm));
    for (word, result) in words.iter().zip(at_once(words, act)) {
        match result {
            Ok(()) => done += &format!("{word}\n"),
            Err(failure) => code = code.max(complain_of(word, &failure)),
        }
    }
    // A process that was killed leaves its directory behind.
    registry.sweep();
    print(done.as_bytes(), code)
}

/// Prints the failure on one line; returns the exit code for it.
pub fn complain_of(word: &str, failure: &Failure) -> u8 {
    match failure {
        Failure::Instance(error) => complain(&chain(error)),
        failure => complain(&format!("VM {word}: {}", chain(failure))),
    }
    exit_code::FAILURE
}

/// A connection to the VM's control socket.
pub fn client(vm: &Running) -> Result<Client, Failure> {
    Ok(Client::connect(&vm.control_socket())?)
}

/// The same for questions that take the VM no time, see [`ANSWER`].
pub fn quick_client(vm: &Running) -> Result<Client, Failure> {
    Ok(Client::connect_with_limit(&vm.control_socket(), ANSWER)?)
}
