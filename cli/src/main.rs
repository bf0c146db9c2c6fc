//! The command `mvm`: arguments, output and exit codes.

mod balloon;
mod boot;
mod config_file;
mod console;
mod doctor;
mod exit_code;
mod kill;
mod options;
mod pages;
mod pause;
mod ps;
mod stats;
mod stop;
mod table;
mod targets;
#[cfg(test)]
mod units;

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Instant;

use clap::{Parser, Subcommand};
use tracing::level_filters::LevelFilter;

/// A small virtual machine monitor on KVM.
#[derive(Parser)]
#[command(name = "mvm", version, about, max_term_width = 100, arg_required_else_help = true)]
struct Cli {
    /// What mvm says of its own work on standard error: off, error, warn, info, debug or trace
    #[arg(
        long,
        global = true,
        env = "MVM_LOG",
        value_name = "LEVEL",
        default_value = "warn",
        hide_env_values = true
    )]
    log_level: LevelFilter,

    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Boot a virtual machine from a kernel and disks
    Boot(Box<boot::BootCommand>),
    /// List running VMs
    Ps(ps::PsCommand),
    /// Press VMs' power buttons, and end those that do not power off in time
    Stop(stop::StopCommand),
    /// End VMs at once, or send them a signal
    Kill(kill::KillCommand),
    /// Have VMs wait where they are
    Pause(pause::PauseCommand),
    /// Let paused VMs go on
    Resume(pause::ResumeCommand),
    /// Show what VMs use of the host
    Stats(stats::StatsCommand),
    /// Take a VM's console, or look on; Ctrl-A d leaves it, and the VM goes on
    Console(console::ConsoleCommand),
    /// Show how much memory a VM's balloon has taken from the guest, or have it take more or less
    Balloon(balloon::BalloonCommand),
    /// Say what this host can and cannot do, and how to mend it
    Doctor,
    /// Print a shell's completion script
    Completions(pages::CompletionsCommand),
    /// Print a manual page
    Man(pages::ManCommand),
}

fn main() -> ExitCode {
    let start = Instant::now();
    restore_terminal_on_panic();
    let cli = Cli::parse();
    devices::log::init(cli.log_level);
    match cli.command {
        Command::Boot(command) => boot::run(*command, start),
        Command::Ps(command) => command.run(),
        Command::Stop(command) => command.run(),
        Command::Kill(command) => command.run(),
        Command::Pause(command) => command.run(),
        Command::Resume(command) => command.run(),
        Command::Stats(command) => command.run(),
        Command::Console(command) => command.run(),
        Command::Balloon(command) => command.run(),
        Command::Doctor => doctor::run(),
        Command::Completions(command) => command.run(),
        Command::Man(command) => command.run(),
    }
}

fn restore_terminal_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        instance::console::restore_terminal();
        report(panic);
    }));
}

/// Says `message` on one line of standard error, whatever characters a VM's answer or a path has brought into it.
fn complain(message: &str) {
    devices::log::say(message);
}

/// Prints `text` on standard output; returns `code`, unless that can't be done. A reader that has gone has read enough.
fn print(text: &[u8], code: u8) -> ExitCode {
    match io::stdout().write_all(text).and_then(|()| io::stdout().flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            complain(&format!("cannot write to standard output: {error}"));
            exit_code::HOST.into()
        }
        _ => code.into(),
    }
}

/// `value` as JSON for people and programs, with a line end.
fn json(value: &impl serde::Serialize) -> String {
    // Maps with keys that are no text would fail, and there are none.
    serde_json::to_string_pretty(value).unwrap_or_default() + "\n"
}

/// An error and its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line = format!("{line}: {error}");
        cause = error.source();
    }
    line
}
