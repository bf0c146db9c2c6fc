//! The command `mvm`: arguments, output and exit codes.
#![cfg_attr(not(test), no_main)]

mod balloon;
mod boot;
mod completions;
mod config_file;
mod console;
mod doctor;
mod exit_code;
mod foreign;
mod images;
mod kill;
mod log;
mod man;
mod options;
mod pause;
mod process;
mod ps;
mod resize;
mod run;
mod stats;
mod stop;
mod supervise;
mod table;
mod targets;
#[cfg(test)]
mod units;
mod usage;
mod values;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::{Parser, Subcommand};

use crate::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  mvm doctor                                               check this host
  mvm run alpine echo hello                                run a container
  mvm boot --kernel vmlinux --rootfs rootfs.ext4           boot a VM
  mvm ps                                                   list what runs
  mvm stop web                                             stop one

`mvm COMMAND --help` describes a command, `mvm man COMMAND` is its manual page.";

/// Run Linux virtual machines, and containers in VMs of their own
#[derive(Parser)]
#[command(name = "mvm", version, max_term_width = 100, arg_required_else_help = true)]
#[command(after_help = EXAMPLES, disable_help_subcommand = true)]
struct Cli {
    /// Set how much is logged on standard error
    #[arg(
        long,
        global = true,
        // Behind a command's own options.
        display_order = 100,
        env = "MVM_LOG",
        value_name = "LEVEL",
        default_value = "warn",
        hide_env_values = true,
        hide_possible_values = true,
        hide_short_help = true,
        long_help = "Set how much is logged on standard error: off, error, warn, info, debug or trace"
    )]
    log_level: log::LogLevel,

    /// Keep and look for VMs in this directory
    #[arg(
        long,
        global = true,
        display_order = 101,
        env = "MVM_RUNTIME_DIR",
        value_name = "DIR",
        hide_env_values = true,
        hide_short_help = true,
        long_help = "Keep and look for VMs in this directory, in place of mvm in $XDG_RUNTIME_DIR, /run/mvm or \
                     /tmp/mvm-UID. With \"none\", mvm boot runs a VM without a directory: signals end it, but no other \
                     command finds it"
    )]
    runtime_dir: Option<PathBuf>,

    #[command(subcommand)]
    command: Command,
}

/// What --runtime-dir says for a VM without a directory.
const NO_DIRECTORY: &str = "none";

#[derive(Subcommand)]
enum Command {
    /// Boot a VM from a kernel and disks
    Boot(Box<boot::BootCommand>),
    /// Run a command in a new container
    Run(Box<run::RunCommand>),
    /// Pull an image from a registry
    Pull(images::PullCommand),
    /// Push an image to a registry
    Push(images::PushCommand),
    /// List images
    Images(images::ImagesCommand),
    /// Put the images of an archive into the store
    Load(images::LoadCommand),
    /// Write images to an archive
    Save(images::SaveCommand),
    /// Remove images
    Rmi(images::RmiCommand),
    /// Give an image another name
    Tag(images::TagCommand),
    /// Show how an image was made
    History(images::HistoryCommand),
    /// List running VMs and containers
    #[command(alias = "list", alias = "ls")]
    Ps(ps::PsCommand),
    /// Shut VMs down; kill those that take too long
    Stop(stop::StopCommand),
    /// Kill VMs, or send them a signal
    Kill(kill::KillCommand),
    /// Pause VMs
    Pause(pause::PauseCommand),
    /// Resume paused VMs
    #[command(alias = "unpause")]
    Resume(pause::ResumeCommand),
    /// Show the resources that VMs use
    #[command(alias = "top")]
    Stats(stats::StatsCommand),
    /// Attach this terminal to a VM's console
    #[command(alias = "attach")]
    Console(console::ConsoleCommand),
    /// Show or set the size of a VM's memory balloon
    Balloon(balloon::BalloonCommand),
    /// Resize a VM's disk while it runs
    Resize(resize::ResizeCommand),
    /// Check whether this host can run VMs
    #[command(alias = "info")]
    Doctor(doctor::DoctorCommand),
    /// Print a completion script for a shell
    Completions(completions::CompletionsCommand),
    /// Print a manual page
    Man(man::ManCommand),
    /// Print the version
    #[command(hide = true)]
    Version,
    /// Print what a word on the command line can become
    #[command(hide = true)]
    Complete(completions::CompleteCommand),
}

#[cfg_attr(test, expect(dead_code, reason = "the tests have an entry of their own"))]
fn run() -> ExitCode {
    let start = Instant::now();
    restore_terminal_on_panic();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let arguments: Vec<_> =
                std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect();
            return usage::report(&error, &arguments);
        }
    };
    devices::log::init(cli.log_level.filter());
    let has_directory = cli.runtime_dir.as_deref() != Some(Path::new(NO_DIRECTORY));
    if let Some(directory) = cli.runtime_dir.filter(|_| has_directory)
        && let Err(error) = instance::set_runtime_directory(&directory)
    {
        complain(&format!("cannot use --runtime-dir {}: {error}", directory.display()));
        return exit_code::USAGE.into();
    }
    match cli.command {
        Command::Boot(command) => boot::run(*command, has_directory, start),
        Command::Run(command) => run::run(*command, start),
        Command::Pull(command) => command.run(),
        Command::Push(command) => command.run(),
        Command::Images(command) => command.run(),
        Command::Load(command) => command.run(),
        Command::Save(command) => command.run(),
        Command::Rmi(command) => command.run(),
        Command::Tag(command) => command.run(),
        Command::History(command) => command.run(),
        Command::Ps(command) => command.run(),
        Command::Stop(command) => command.run(),
        Command::Kill(command) => command.run(),
        Command::Pause(command) => command.run(),
        Command::Resume(command) => command.run(),
        Command::Stats(command) => command.run(),
        Command::Console(command) => command.run(),
        Command::Balloon(command) => command.run(),
        Command::Resize(command) => command.run(),
        Command::Doctor(command) => command.run(),
        Command::Completions(command) => command.run(),
        Command::Man(command) => command.run(),
        Command::Complete(command) => command.run(),
        Command::Version => {
            print(concat!("mvm ", env!("CARGO_PKG_VERSION"), "\n").as_bytes(), exit_code::SUCCESS)
        }
    }
}

fn restore_terminal_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        instance::console::restore_terminal();
        report(panic);
    }));
}

/// Prints an error on one line of standard error, with the control characters escaped that a VM's answer or a path may
/// have in it.
fn complain(message: &str) {
    devices::log::say(message);
}

/// Prints `text` on standard output; returns `code`, or [`exit_code::HOST`] where that fails. A closed pipe is no
/// error.
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
    // Only maps whose keys are not strings fail, and there are none.
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
