//! `mvm image`: the commands of images in a group of their own, as docker has them.

use clap::{Args, Subcommand};

use super::inspect::InspectCommand;
use super::prune::PruneCommand;
use super::{
    HistoryCommand, ImagesCommand, ImportCommand, LoadCommand, PullCommand, PushCommand, RmiCommand,
    SaveCommand, TagCommand,
};
use crate::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  mvm image ls --filter dangling=true
  mvm image inspect alpine
  mvm image prune --force";

/// Arguments of `mvm image`.
#[derive(Args)]
#[command(after_help = EXAMPLES, disable_help_subcommand = true, arg_required_else_help = true)]
pub struct ImageCommand {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List images
    #[command(alias = "list")]
    Ls(ImagesCommand),
    /// Show all that is known of images
    Inspect(InspectCommand),
    /// Show how an image was made
    History(HistoryCommand),
    /// Pull an image from a registry
    Pull(PullCommand),
    /// Push an image to a registry
    Push(PushCommand),
    /// Put the images of an archive into the store
    Load(LoadCommand),
    /// Write images to an archive
    Save(SaveCommand),
    /// Make an image of an archive of files
    Import(ImportCommand),
    /// Give an image another name
    Tag(TagCommand),
    /// Remove images
    #[command(alias = "remove")]
    Rm(RmiCommand),
    /// Remove images that nothing uses
    Prune(PruneCommand),
}

impl ImageCommand {
    /// Runs the command.
    pub fn run(self) -> ExitCode {
        match self.command {
            Command::Ls(command) => command.run(),
            Command::Inspect(command) => command.run(),
            Command::History(command) => command.run(),
            Command::Pull(command) => command.run(),
            Command::Push(command) => command.run(),
            Command::Load(command) => command.run(),
            Command::Save(command) => command.run(),
            Command::Import(command) => command.run(),
            Command::Tag(command) => command.run(),
            Command::Rm(command) => command.run(),
            Command::Prune(command) => command.run(),
        }
    }
}
