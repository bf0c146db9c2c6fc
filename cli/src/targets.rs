//! What commands share that do something to running VMs.

use std::process::ExitCode;

use instance::console::AttachError;
use instance::{Client, ClientError};
use instance::{InstanceError, ProcessError, Registry, Running};
use thiserror::Error;

use crate::{chain, complain, exit_code, print};

/// Why something was not done to a VM.
#[derive(Debug, Error)]
pub enum Failure {
    /// It is not there.
    #[error(transparent)]
    Instance(#[from] InstanceError),
    /// Its process can't be reached.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// It said no, or nothing.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// It has no console.
    #[error(transparent)]
    Console(#[from] AttachError),
}

/// Does `action` to each of the VMs that `words` mean, and prints the word of each for which it was done, as docker
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
    // Where a process had to be killed, its directory is left.
    registry.sweep();
    print(done.as_bytes(), code)
}

/// Says what is wrong on one line; returns the exit code for it.
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
