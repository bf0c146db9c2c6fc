//! `mvm exec`.

use std::io;
use std::path::PathBuf;

use clap::Args;
use container::{DetachKeys, Detached, Ended, ExecError, ExecOptions, Executed};
use instance::console::RawTerminal;
use instance::{Registry, Running, VmId};

use crate::background::{self, Report};
use crate::process::ExitCode;
use crate::run::{environment, terminal_size};
use crate::targets;
use crate::{chain, complain, events, exit_code};

const EXAMPLES: &str = "\
Examples:
  mvm exec web ls -l /srv         run a command
  mvm exec -it web sh             a shell on this terminal
  mvm exec -d web make            one in the background
  mvm exec -u 1000 vm make        in the guest of a VM of `mvm boot --agent`

In a VM the command starts in the home directory of its user, who is root
without --user, as after a login; --privileged changes nothing there.

Exit codes:
  N      that of the command (128 + signal where it was killed)
  1      there is no such container or VM, or mvm itself failed
  126    the command can't be executed
  127    there is no such command";

/// Arguments of `mvm exec`, which are those of `docker exec`.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub struct ExecCommand {
    /// Pass standard input on
    #[arg(long, short)]
    interactive: bool,

    /// Give the command a terminal
    #[arg(long, short)]
    tty: bool,

    /// Do not wait for the command, and drop what it writes
    #[arg(long, short)]
    detach: bool,

    /// Set a variable: NAME=VALUE
    ///
    /// Without =VALUE, the one that the variable has here. May be given more than once.
    #[arg(long, short, value_name = "VAR")]
    env: Vec<String>,

    /// Read variables from a file, one a line
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,

    /// Set the working directory
    #[arg(long, short, value_name = "DIR")]
    workdir: Option<String>,

    /// Set the user, and the group: USER or USER:GROUP
    #[arg(long, short, value_name = "USER")]
    user: Option<String>,

    /// Give the command all capabilities
    #[arg(long)]
    privileged: bool,

    /// Set the keys that leave the command, which runs on [default: ctrl-p,ctrl-q]
    #[arg(long, value_name = "KEYS")]
    detach_keys: Option<DetachKeys>,

    /// The container or VM: its ID, the beginning of that, or its name
    #[arg(value_name = "CONTAINER")]
    container: String,

    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<String>,
}

impl ExecCommand {
    /// Runs the command.
    pub fn run(self) -> ExitCode {
        match self.try_run() {
            Ok(code) => code.into(),
            Err(Failure { code, message }) => {
                complain(&message);
                code.into()
            }
        }
    }

    fn try_run(self) -> Result<u8, Failure> {
        let terminal = terminal_size(self.tty, self.interactive && !self.detach)?;
        let options = ExecOptions {
            command: self.command,
            env: environment(&self.env_file, &self.env)?,
            working_directory: self.workdir,
            user: self.user,
            interactive: self.interactive,
            terminal,
            detached: self.detach,
            privileged: self.privileged,
            detach_keys: self.detach_keys.unwrap_or_default(),
        };
        let vm = targets::find(&Registry::of_user(), &self.container)
            .map_err(|failure| targets::message(&self.container, &failure))?;
        targets::check_guest(&self.container, &vm)?;
        let host = |what: &'static str| move |error: io::Error| format!("cannot {what}: {error}");
        instance::ignore_limits_and_terminal();
        // The command gets them.
        let signals = (!options.detached).then(instance::take_for_container).transpose();
        let signals = signals.map_err(host("take signals"))?;
        let raw = options
            .terminal
            .filter(|_| options.interactive && !options.detached)
            .map(|_| RawTerminal::enter_for_output())
            .transpose();
        let _raw = raw.map_err(host("set up the terminal"))?.flatten();
        let id = vm.record.id.as_str();
        let command = options.command.join(" ");
        // The container may be gone when the command has ended.
        let entry = targets::kept(id).ok().map(|kept| kept.entry);
        let exec_id = VmId::random().map(|id| id.to_string()).unwrap_or_default();
        let note = |action: &str, more: &[(&str, &str)]| {
            let attributes = [&[("execID", exec_id.as_str())], more].concat();
            entry.iter().for_each(|entry| events::note(entry, action, &attributes));
        };
        note(&format!("exec_create: {command}"), &[]);
        note(&format!("exec_start: {command}"), &[]);
        let died = |ended: &Ended| note("exec_die", &[("exitCode", &ended.code.to_string())]);
        let failure = |error| Failure::of(&self.container, &vm, &error);
        if options.detached {
            return detach(|| container::exec_detached(&vm.directory, id, &options).map_err(failure), died);
        }
        match container::exec(&vm.directory, id, &options, signals.as_ref()).map_err(failure)? {
            Executed::Ended(ended) => {
                died(&ended);
                Ok(ended.code)
            }
            Executed::Left => {
                note("exec_detach", &[]);
                Ok(exit_code::SUCCESS)
            }
        }
    }
}

/// Starts a command by `start`, in a process in the background that waits for its end, which is told to `died`.
fn detach(
    start: impl FnOnce() -> Result<Detached, Failure>,
    died: impl FnOnce(&Ended),
) -> Result<u8, Failure> {
    let report = background::start(|mut reporter| {
        match start() {
            Ok(detached) => {
                reporter.report(&Report::Started { id: String::new() });
                if let Some(ended) = detached.wait() {
                    died(&ended);
                }
            }
            Err(Failure { code, message }) => reporter.report(&Report::Failed { code, message }),
        }
        exit_code::SUCCESS
    });
    match report.map_err(|error| format!("cannot start a process in the background: {error}"))? {
        Report::Started { .. } => Ok(exit_code::SUCCESS),
        Report::Failed { code, message } => Err(Failure { code, message }),
    }
}

/// What ends mvm with a code of its own.
struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    /// The command did not run to its end in the container `name` of the VM `vm`.
    fn of(name: &str, vm: &Running, error: &ExecError) -> Self {
        let code = match error {
            ExecError::NotFound(_) => exit_code::NOT_FOUND,
            ExecError::Failed(_) => exit_code::NOT_EXECUTABLE,
            ExecError::Signal(signal) | ExecError::Cancelled(signal) => exit_code::of_signal(*signal),
            // As where the kernel kills it with the container's first process.
            ExecError::ContainerEnded | ExecError::GuestEnded => exit_code::of_signal(libc::SIGKILL),
            _ => exit_code::FAILURE,
        };
        let message = match matches!(error, ExecError::Connection(_)) && targets::is_paused(vm) {
            true => targets::paused(name),
            false => format!("{name}: {}", chain(error)),
        };
        Self { code, message }
    }
}

impl From<String> for Failure {
    fn from(message: String) -> Self {
        Self { code: exit_code::FAILURE, message }
    }
}
