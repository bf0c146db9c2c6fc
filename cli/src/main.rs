//! The command `mvm`: arguments, output and exit codes.
#![cfg_attr(not(test), no_main)]

mod attach;
mod background;
mod balloon;
mod boot;
mod complaint;
mod completions;
mod config_file;
mod console;
mod containers;
mod defaults;
mod doctor;
mod events;
mod exec;
mod exit_code;
mod files;
mod foreign;
mod fork;
mod format;
mod images;
mod inspect;
mod kill;
mod log;
mod logs;
mod man;
mod operands;
mod options;
mod output;
mod pause;
mod pod;
mod port;
mod process;
mod prune;
mod ps;
mod rename;
mod resize;
mod rm;
mod root_config;
mod run;
mod screen;
mod snapshot;
mod stats;
mod stop;
mod table;
mod targets;
mod template;
mod top;
#[cfg(test)]
mod units;
mod usage;
mod values;
mod volumes;
mod wait;

use std::borrow::Cow;
use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::{Args, FromArgMatches, Parser, Subcommand};
use devices::log::chain;

use crate::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  mvm doctor                                               check this host
  mvm run alpine echo hello                                run a container
  mvm run -d --name web -p 8080:80 nginx                   one in the background
  mvm exec -it web sh                                      a shell in it
  mvm ps --all                                             list all
  mvm boot --kernel vmlinux --rootfs rootfs.ext4           boot a VM

`mvm COMMAND --help` describes a command, `mvm man COMMAND` is its manual page.";

const MORE: &str = "`mvm COMMAND --help` describes a command; `mvm --help` has examples.";

/// Run Linux virtual machines, and containers in VMs of their own
#[derive(Parser)]
#[command(name = "mvm", version, max_term_width = 100, arg_required_else_help = true)]
#[command(after_help = MORE, after_long_help = EXAMPLES, disable_help_subcommand = true)]
struct Cli {
    #[command(flatten)]
    global: GlobalArguments,

    #[command(subcommand)]
    command: Command,
}

/// Arguments of all commands.
#[derive(Args)]
struct GlobalArguments {
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

    /// Keep and look for what runs in this directory
    #[arg(
        long,
        global = true,
        display_order = 101,
        env = "MVM_RUNTIME_DIR",
        value_name = "DIR",
        hide_env_values = true,
        hide_short_help = true,
        long_help = "Keep and look for what runs in this directory, in place of mvm in $XDG_RUNTIME_DIR, /run/mvm or \
                     /tmp/mvm-UID. With \"none\", mvm boot runs a VM without a directory: signals end it, but no other \
                     command finds it"
    )]
    runtime_dir: Option<PathBuf>,
}

/// What --runtime-dir says for a VM without a directory.
const NO_DIRECTORY: &str = "none";

#[derive(Subcommand)]
enum Command {
    /// Run a command in a new container
    Run(Box<run::RunCommand>),
    /// Run a command in a running container
    Exec(exec::ExecCommand),
    /// Make a container without starting it
    Create(Box<run::CreateCommand>),
    /// Start containers that have ended, or were not started yet
    Start(run::StartCommand),
    /// Stop containers and start them again
    Restart(run::RestartCommand),
    /// Boot a VM from a kernel and disks
    Boot(Box<boot::BootCommand>),
    /// Pull an image from a registry
    Pull(images::PullCommand),
    /// Push an image to a registry
    Push(images::PushCommand),
    /// Log in to a registry
    Login(images::LoginCommand),
    /// Log out from a registry
    Logout(images::LogoutCommand),
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
    /// Make an image of an archive of files
    Import(images::ImportCommand),
    /// Copy files between a container and this host
    Cp(files::CpCommand),
    /// Show what a container has changed of its image's files
    Diff(files::DiffCommand),
    /// Write a container's files to an archive
    Export(files::ExportCommand),
    /// Make an image of a container
    Commit(files::CommitCommand),
    /// Manage images: list, inspect, prune and more
    Image(images::ImageCommand),
    /// Manage containers: list, prune and more
    Container(containers::ContainerCommand),
    /// Manage volumes: make, list, remove and more
    Volume(volumes::VolumeCommand),
    /// Manage mvm: disk space, and containers after a start of the host
    System(images::SystemCommand),
    /// Manage pods, which are several containers in one VM
    Pod(pod::PodCommand),
    /// List containers and VMs
    #[command(alias = "list", alias = "ls")]
    Ps(ps::PsCommand),
    /// Stop containers and VMs; kill those that take too long
    Stop(stop::StopCommand),
    /// Kill containers and VMs, or send them a signal
    Kill(kill::KillCommand),
    /// Wait until containers and VMs end, and print their exit codes
    Wait(wait::WaitCommand),
    /// Print the output of a container, or of a VM's console
    Logs(logs::LogsCommand),
    /// Remove what is kept of containers and VMs that have ended
    Rm(rm::RmCommand),
    /// Print what is known of containers and VMs
    Inspect(inspect::InspectCommand),
    /// Give a container or VM another name
    Rename(rename::RenameCommand),
    /// Print where the host has the ports of a container
    Port(port::PortCommand),
    /// Change what containers may use, and when they are started again
    Update(run::UpdateCommand),
    /// List the processes of a container
    Top(top::TopCommand),
    /// Print what happens to containers and images
    Events(events::EventsCommand),
    /// Manage templates, which spare containers' VMs the boot
    Template(template::TemplateCommand),
    /// Save a VM of `mvm boot` in a new directory; it continues to run
    Snapshot(snapshot::SnapshotCommand),
    /// Run a VM from a snapshot of `mvm snapshot`
    Restore(boot::RestoreCommand),
    /// Copy a running container or VM with its memory; both run
    Fork(fork::ForkCommand),
    /// Pause containers and VMs
    Pause(pause::PauseCommand),
    /// Resume paused containers and VMs
    #[command(alias = "unpause")]
    Resume(pause::ResumeCommand),
    /// Show the resources that containers and VMs use
    Stats(stats::StatsCommand),
    /// Attach this terminal to a container
    Attach(attach::AttachCommand),
    /// Attach this terminal to a VM's console
    Console(console::ConsoleCommand),
    /// Show or set the size of a VM's memory balloon
    Balloon(balloon::BalloonCommand),
    /// Resize a VM's disk while it runs
    Resize(resize::ResizeCommand),
    /// Check whether this host can run containers and VMs
    #[command(alias = "info")]
    Doctor(doctor::DoctorCommand),
    /// Print a completion script for a shell
    Completions(completions::CompletionsCommand),
    /// Print a manual page
    #[command(hide = true)]
    Man(man::ManCommand),
    /// Print the version
    #[command(hide = true)]
    Version,
    /// Pull, push or load for another process of mvm's
    #[command(hide = true)]
    Worker(images::WorkerCommand),
    /// Keep a container that is started again
    #[command(hide = true)]
    Keeper(run::KeeperCommand),
    /// Print what a word on the command line can become
    #[command(hide = true)]
    Complete(completions::CompleteCommand),
}

#[cfg_attr(test, expect(dead_code, reason = "the tests have an entry of their own"))]
fn run() -> ExitCode {
    let start = Instant::now();
    restore_terminal_on_panic();
    let parsed = parse_quickly(std::env::args_os().skip(1))
        .map_or_else(|| Cli::try_parse_from(operands::of_all_commands(std::env::args_os().collect())), Ok);
    let Cli { global, command } = match parsed {
        Ok(cli) => cli,
        Err(error) => {
            let arguments: Vec<_> =
                std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect();
            return short_help(&arguments).unwrap_or_else(|| usage::report(&error, &arguments));
        }
    };
    devices::log::init(global.log_level.filter());
    let has_directory = global.runtime_dir.as_deref() != Some(Path::new(NO_DIRECTORY));
    if let Some(directory) = global.runtime_dir.filter(|_| has_directory) {
        if let Err(error) = instance::set_runtime_directory(&directory) {
            complain(&format!("cannot use --runtime-dir {}: {error}", directory.display()));
            return exit_code::USAGE.into();
        }
        // It is made by the first VM, so that a list of none is right, and so may be a wrong path.
        if matches!(command, Command::Ps(_) | Command::Stats(_)) && !directory.exists() {
            complain(&format!(
                "--runtime-dir {} does not exist: no VM was started there",
                directory.display()
            ));
        }
    }
    match command {
        Command::Boot(command) => boot::run(*command, has_directory, start),
        Command::Run(command) => run::run(*command, start),
        Command::Create(command) => command.run(),
        Command::Start(command) => command.run(),
        Command::Restart(command) => command.run(),
        Command::Exec(command) => command.run(),
        Command::Cp(command) => command.run(),
        Command::Diff(command) => command.run(),
        Command::Export(command) => command.run(),
        Command::Commit(command) => command.run(),
        Command::Pull(command) => command.run(),
        Command::Push(command) => command.run(),
        Command::Login(command) => command.run(),
        Command::Logout(command) => command.run(),
        Command::Images(command) => command.run(),
        Command::Load(command) => command.run(),
        Command::Save(command) => command.run(),
        Command::Rmi(command) => command.run(),
        Command::Tag(command) => command.run(),
        Command::History(command) => command.run(),
        Command::Import(command) => command.run(),
        Command::Image(command) => command.run(),
        Command::Volume(command) => command.run(),
        Command::System(command) => command.run(),
        Command::Pod(command) => command.run(),
        Command::Ps(command) => command.run(),
        Command::Stop(command) => command.run(),
        Command::Kill(command) => command.run(),
        Command::Template(command) => command.run(),
        Command::Snapshot(command) => command.run(),
        Command::Restore(command) => boot::restore(command, has_directory, start),
        Command::Fork(command) => fork::fork(command, has_directory),
        Command::Pause(command) => command.run(),
        Command::Wait(command) => command.run(),
        Command::Logs(command) => command.run(),
        Command::Rm(command) => command.run(),
        Command::Inspect(command) => command.run(),
        Command::Resume(command) => command.run(),
        Command::Stats(command) => command.run(),
        Command::Attach(command) => command.run(),
        Command::Keeper(command) => command.run(),
        Command::Container(command) => command.run(),
        Command::Rename(command) => command.run(),
        Command::Port(command) => command.run(),
        Command::Update(command) => command.run(),
        Command::Top(command) => command.run(),
        Command::Events(command) => command.run(),
        Command::Console(command) => command.run(),
        Command::Balloon(command) => command.run(),
        Command::Resize(command) => command.run(),
        Command::Doctor(command) => command.run(),
        Command::Completions(command) => command.run(),
        Command::Man(command) => command.run(),
        Command::Complete(command) => command.run(),
        Command::Worker(command) => command.run(),
        Command::Version => {
            print(concat!("mvm ", env!("CARGO_PKG_VERSION"), "\n").as_bytes(), exit_code::SUCCESS)
        }
    }
}

/// What the command line says, where it begins with `run` or `boot` and is right: without the descriptions of all other
/// commands, which take longer to make than such a line takes to read.
fn parse_quickly(arguments: impl Iterator<Item = OsString>) -> Option<Cli> {
    let mut words: Vec<_> = arguments.collect();
    let name = words.first()?.to_str()?.to_owned();
    let described = match name.as_str() {
        "run" => run::RunCommand::augment_args(clap::Command::new("run")),
        "boot" => boot::BootCommand::augment_args(clap::Command::new("boot")),
        _ => return None,
    };
    // What is wrong is said by the parser of all commands.
    let mut described = GlobalArguments::augment_args(described);
    if name == "run" {
        operands::end_options(&mut words, &mut described);
        operands::plain_switches(&mut words, &described);
    }
    let matches = described.try_get_matches_from(words).ok()?;
    let command = match name.as_str() {
        "run" => Command::Run(Box::new(run::RunCommand::from_arg_matches(&matches).ok()?)),
        _ => Command::Boot(Box::new(boot::BootCommand::from_arg_matches(&matches).ok()?)),
    };
    Some(Cli { global: GlobalArguments::from_arg_matches(&matches).ok()?, command })
}

/// Prints the short help of `mvm run -h`, where -h is --hostname with other arguments behind it, as docker's.
fn short_help(arguments: &[String]) -> Option<ExitCode> {
    let [_, words @ .., flag] = arguments else { return None };
    if flag != "-h" {
        return None;
    }
    let mut cli = <Cli as clap::CommandFactory>::command();
    cli.build();
    let mut command = &mut cli;
    for word in words {
        if command.find_subcommand(word).is_some() {
            command = command.find_subcommand_mut(word)?;
        }
    }
    // Others have a -h of their own, or take it for a container's.
    let is_hostname = |arg: &clap::Arg| arg.get_short() == Some('h') && arg.get_long() == Some("hostname");
    if words.last()? != command.get_name() || !command.get_arguments().any(is_hostname) {
        return None;
    }
    Some(print(command.render_help().to_string().as_bytes(), exit_code::SUCCESS))
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
    escaped(&serde_json::to_string_pretty(value).unwrap_or_default()).into_owned() + "\n"
}

/// JSON with the control characters escaped that JSON itself allows: some terminals take U+009B for ESC and a bracket.
fn escaped(json: &str) -> Cow<'_, str> {
    let is_control = |letter: char| matches!(letter, '\u{7f}'..='\u{9f}');
    if !json.contains(is_control) {
        return Cow::Borrowed(json);
    }
    let mut escaped = String::with_capacity(json.len());
    for letter in json.chars() {
        if is_control(letter) {
            escaped.push_str(&format!("\\u{:04x}", u32::from(letter)));
        } else {
            escaped.push(letter);
        }
    }
    Cow::Owned(escaped)
}
