//! `mvm console`.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use clap::Args;
use instance::Registry;
use instance::console::{AttachError, Detached, attach};

use crate::targets::{Failure, complain_of};
use crate::{chain, complain, exit_code};

/// Arguments of `mvm console`.
#[derive(Args)]
pub struct ConsoleCommand {
    /// The VM: its ID, the beginning of its ID, or its name
    vm: String,
}

impl ConsoleCommand {
    /// Is on the VM's console until the user leaves it or the VM ends.
    pub fn run(self) -> ExitCode {
        let vm = match Registry::of_user().find(&self.vm) {
            Ok(vm) => vm,
            Err(error) => return complain_of(&self.vm, &error.into()).into(),
        };
        match attach(&vm.console_socket()) {
            Ok(Detached::ByUser) => {
                self.note("goes on");
                exit_code::SUCCESS
            }
            Ok(Detached::Ended) => {
                self.note("has ended");
                exit_code::SUCCESS
            }
            Ok(Detached::Signal(signal)) => exit_code::of_signal(signal),
            Err(error @ AttachError::Connect { .. }) => complain_of(&self.vm, &Failure::Console(error)),
            Err(error) => {
                complain(&format!("VM {}: {}", self.vm, chain(&error)));
                exit_code::HOST
            }
        }
        .into()
    }

    /// Says what became of the VM where a user sees it, on a line of its own: the guest's may not have ended.
    fn note(&self, what: &str) {
        if io::stdin().is_terminal() && io::stderr().is_terminal() {
            // Where standard error is closed there is nobody to tell.
            let _ = writeln!(io::stderr(), "\r\nVM {} {what}", self.vm);
        }
    }
}
