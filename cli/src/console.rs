//! `mvm console`.

use std::io::{self, IsTerminal, Write};

use clap::Args;
use instance::console::{AttachError, Detached, attach};
use instance::{Kind, Registry};

use crate::process::ExitCode;
use crate::targets::{self, Failure, complain_of};
use crate::{chain, complain, exit_code};

const EXAMPLES: &str = "\
Examples:
  mvm console web
  echo reboot | mvm console web

Keys:
  Ctrl-A d detaches and Ctrl-A h shows help; all other keys go to the guest.";

/// Arguments of `mvm console`.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub struct ConsoleCommand {
    /// ID, beginning of an ID, or name of the VM
    pub vm: String,
}

impl ConsoleCommand {
    /// Attaches to the VM's console until the user detaches or the VM ends.
    pub fn run(self) -> ExitCode {
        let vm = match targets::find(&Registry::of_user(), &self.vm) {
            Ok(vm) => vm,
            Err(failure) => return complain_of(&self.vm, &failure).into(),
        };
        let is_container =
            targets::kept(vm.record.id.as_str()).is_ok_and(|kept| kept.entry.kind == Kind::Container);
        if is_container {
            let name = &self.vm;
            complain(&format!(
                "{name}: it is a container and has no console: `mvm logs -f {name}` shows its output, \
                 `mvm exec -it {name} sh` is a shell in it"
            ));
            return exit_code::FAILURE.into();
        }
        match attach(&vm.console_socket()) {
            Ok(Detached::ByUser) => {
                self.note("keeps running");
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

    /// Tells a user at a terminal whether the VM still runs, on a new line: the guest's last line may not be complete.
    fn note(&self, what: &str) {
        if io::stdin().is_terminal() && io::stderr().is_terminal() {
            // Nothing can be done where standard error is closed.
            let _ = writeln!(io::stderr(), "\r\nVM {} {what}", self.vm);
        }
    }
}
