//! `mvm container`: the commands of containers in a group of their own, as docker has them, and removing what is not
//! used.

mod prune;

use clap::{Args, Subcommand};

pub use self::prune::{PruneCommand, SystemPruneCommand};

use crate::process::ExitCode;
use crate::{attach, exec, inspect, kill, logs, pause, port, ps, rename, rm, run, stats, stop, top, wait};

const EXAMPLES: &str = "\
Examples:
  mvm container ls --all
  mvm container prune --force";

/// Arguments of `mvm container`.
#[derive(Args)]
#[command(after_help = EXAMPLES, disable_help_subcommand = true, arg_required_else_help = true)]
pub struct ContainerCommand {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a command in a new container
    Run(Box<run::RunCommand>),
    /// Make a container without starting it
    Create(Box<run::CreateCommand>),
    /// Start containers that have ended, or were not started yet
    Start(run::StartCommand),
    /// Stop containers and start them again
    Restart(run::RestartCommand),
    /// Run a command in a running container
    Exec(exec::ExecCommand),
    /// Attach this terminal to a container
    Attach(attach::AttachCommand),
    /// List containers and VMs
    #[command(alias = "list", alias = "ps")]
    Ls(ps::PsCommand),
    /// Stop containers; kill those that take too long
    Stop(stop::StopCommand),
    /// Kill containers, or send them a signal
    Kill(kill::KillCommand),
    /// Wait until containers end, and print their exit codes
    Wait(wait::WaitCommand),
    /// Print the output of a container
    Logs(logs::LogsCommand),
    /// Remove containers that have ended
    #[command(alias = "remove")]
    Rm(rm::RmCommand),
    /// Remove all containers that do not run
    Prune(PruneCommand),
    /// Print what is known of containers
    Inspect(inspect::InspectCommand),
    /// Give a container another name
    Rename(rename::RenameCommand),
    /// Print where the host has the ports of a container
    Port(port::PortCommand),
    /// Change what containers may use, and when they are started again
    Update(run::UpdateCommand),
    /// List the processes of a container
    Top(top::TopCommand),
    /// Pause containers
    Pause(pause::PauseCommand),
    /// Resume paused containers
    #[command(alias = "resume")]
    Unpause(pause::ResumeCommand),
    /// Show the resources that containers use
    Stats(stats::StatsCommand),
}

impl ContainerCommand {
    /// Runs the command.
    pub fn run(self) -> ExitCode {
        match self.command {
            Command::Run(command) => run::run(*command, std::time::Instant::now()),
            Command::Create(command) => command.run(),
            Command::Start(command) => command.run(),
            Command::Restart(command) => command.run(),
            Command::Exec(command) => command.run(),
            Command::Attach(command) => command.run(),
            Command::Ls(command) => command.run(),
            Command::Stop(command) => command.run(),
            Command::Kill(command) => command.run(),
            Command::Wait(command) => command.run(),
            Command::Logs(command) => command.run(),
            Command::Rm(command) => command.run(),
            Command::Prune(command) => command.run(),
            Command::Inspect(command) => command.run(),
            Command::Rename(command) => command.run(),
            Command::Port(command) => command.run(),
            Command::Update(command) => command.run(),
            Command::Top(command) => command.run(),
            Command::Pause(command) => command.run(),
            Command::Unpause(command) => command.run(),
            Command::Stats(command) => command.run(),
        }
    }
}
