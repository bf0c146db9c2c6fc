//! What commands that act on running VMs have in common.

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

/// Calls `action` for each of the VMs that `words` name, and prints the words of those for which it succeeded, as docker
/// does.
pub fn each(words: &[String], action: impl Fn(&Running) -> Result<(), Failure>) -> ExitCode {
    let registry = Registry::of_user();
    let mut code = exit_code::SUCCESS;
    let mut done = String::new();
    for word in words {
        match registry.find(word).map_err(Failure::from).and_then(|vm| action(&vm)) {
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
