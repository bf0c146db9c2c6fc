//! `mvm attach`, and what commands have in common that are attached to a container.

use std::io::{self, IsTerminal};
use std::os::unix::net::UnixStream;

use clap::Args;
use container::{AttachOptions, AttachStreams, Attached, DetachKeys};
use instance::{Kind, Registry};

use crate::console::ConsoleCommand;
use crate::process::ExitCode;
use crate::targets::{self, Failure, complain_of};
use crate::{chain, complain, events, exit_code};

const EXAMPLES: &str = "\
Examples:
  mvm attach web
  mvm attach --detach-keys ctrl-] shell

Keys:
  At a terminal, Ctrl-P Ctrl-Q leaves the container, which runs on.";

/// Arguments of `mvm attach`, which are those of `docker attach`.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub struct AttachCommand {
    /// ID, beginning of an ID, or name
    #[arg(value_name = "NAME")]
    container: String,

    /// Do not pass standard input on
    #[arg(long)]
    no_stdin: bool,

    #[command(flatten)]
    attach: AttachArguments,
}

/// What commands have in common that attach to a container.
#[derive(Args)]
pub struct AttachArguments {
    /// Pass signals on to the container: true or false
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        action = clap::ArgAction::Set,
        default_value = "true",
        default_missing_value = "true",
        hide_possible_values = true,
        hide_short_help = true
    )]
    sig_proxy: bool,

    /// Set the keys that leave the container [default: ctrl-p,ctrl-q]
    #[arg(long, value_name = "KEYS", hide_short_help = true)]
    detach_keys: Option<DetachKeys>,
}

impl AttachArguments {
    /// Whether signals are for the container, or else for the command that is connected with it.
    pub fn passes_signals(&self) -> bool {
        self.sig_proxy
    }

    /// The keys that leave it.
    pub fn keys(&self) -> DetachKeys {
        self.detach_keys.clone().unwrap_or_default()
    }
}

impl AttachCommand {
    /// Attaches this process's standard input and output to a container, or this terminal to a VM's console.
    pub fn run(self) -> ExitCode {
        let is_vm = targets::find(&Registry::of_user(), &self.container).is_ok_and(|vm| {
            !targets::kept(vm.record.id.as_str()).is_ok_and(|kept| kept.entry.kind == Kind::Container)
        });
        if is_vm {
            return ConsoleCommand { vm: self.container }.run();
        }
        match self.attach() {
            Ok(code) => code.into(),
            Err(failure) => complain_of(&self.container, &failure).into(),
        }
    }

    fn attach(&self) -> Result<u8, Failure> {
        let vm = targets::find(&Registry::of_user(), &self.container)?;
        let id = vm.record.id.as_str();
        if targets::is_paused(&vm) {
            return Err(Failure::Attach("it is paused: `mvm resume` it first".into()));
        }
        let socket =
            container::connect_to_keeper(&vm.directory).map_err(|error| Failure::Attach(chain(&error)))?;
        events::note_of(id, "attach", &[]);
        let streams = AttachStreams { input: !self.no_stdin, output: true, errors: true };
        follow(socket, id, &self.container, &self.attach, streams).map_err(Failure::Attach)
    }
}

/// Attaches to the container `id`, which the user calls `name`, until it ends or the user leaves it; returns the exit
/// code.
///
/// # Errors
///
/// A line for the user.
pub fn follow(
    socket: UnixStream,
    id: &str,
    name: &str,
    arguments: &AttachArguments,
    streams: AttachStreams,
) -> Result<u8, String> {
    let signals = instance::take_for_container().map_err(|error| format!("cannot take signals: {error}"))?;
    // One that has ended already gets none.
    let vm = Registry::of_user().find(id).ok();
    let pass = |signal: i32| {
        if let Some((vm, signal)) = vm.clone().zip(u8::try_from(signal).ok()).filter(|_| arguments.sig_proxy)
        {
            // An agent that does not answer holds up nothing else.
            let send = move || drop(container::send_signal(&vm.directory, vm.record.id.as_str(), signal));
            let started = std::thread::Builder::new().name("signal".into()).stack_size(128 << 10).spawn(send);
            return started.is_ok();
        }
        arguments.sig_proxy
    };
    let options = AttachOptions { streams, detach_keys: arguments.keys() };
    match container::attach(socket, options, &signals, pass).map_err(|error| chain(&error))? {
        Attached::Ended { code, text } => {
            devices::log::print(&text);
            Ok(code)
        }
        Attached::ByUser => {
            events::note_of(id, "detach", &[]);
            if io::stderr().is_terminal() {
                // The container's last line may not be complete.
                devices::log::print("\n");
                complain(&format!("{name} runs on: `mvm attach {name}` comes back"));
            }
            Ok(exit_code::SUCCESS)
        }
        Attached::InputEnd => Ok(exit_code::SUCCESS),
        Attached::Signal(signal) => Ok(exit_code::of_signal(signal)),
        Attached::Lost => Err("the process that keeps it was killed".into()),
    }
}
