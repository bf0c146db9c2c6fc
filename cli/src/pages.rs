//! `mvm completions` and `mvm man`: what packages install beside the program, made from its own arguments.

use clap::{Args, CommandFactory, ValueEnum};
use clap_complete::{generate, shells};

use crate::process::ExitCode;
use crate::{Cli, complain, exit_code, print};

/// The shells that Linux distributions have scripts for.
#[derive(Clone, Copy, ValueEnum)]
enum Shell {
    Bash,
    Fish,
    Zsh,
}

const COMPLETIONS_EXAMPLES: &str = "\
Examples:
  mvm completions bash > ~/.local/share/bash-completion/completions/mvm
  mvm completions fish > ~/.config/fish/completions/mvm.fish
  mvm completions zsh > /usr/local/share/zsh/site-functions/_mvm";

const MAN_EXAMPLES: &str = "\
Examples:
  mvm man boot | man -l -
  mvm man boot > ~/.local/share/man/man1/mvm-boot.1";

/// Arguments of `mvm completions`.
#[derive(Args)]
#[command(after_long_help = COMPLETIONS_EXAMPLES)]
pub struct CompletionsCommand {
    /// Shell to print the script for
    shell: Shell,
}

impl CompletionsCommand {
    /// Prints the script.
    pub fn run(self) -> ExitCode {
        let (mut script, mut root) = (Vec::new(), Cli::command());
        match self.shell {
            Shell::Bash => generate(shells::Bash, &mut root, "mvm", &mut script),
            Shell::Fish => generate(shells::Fish, &mut root, "mvm", &mut script),
            Shell::Zsh => generate(shells::Zsh, &mut root, "mvm", &mut script),
        }
        print(&script, exit_code::SUCCESS)
    }
}

/// Arguments of `mvm man`.
#[derive(Args)]
#[command(after_long_help = MAN_EXAMPLES)]
pub struct ManCommand {
    /// Command that the page is about [default: mvm itself]
    #[arg(value_name = "COMMAND")]
    subcommand: Option<String>,
}

impl ManCommand {
    /// Prints the page.
    pub fn run(self) -> ExitCode {
        let mut root = Cli::command();
        // Subcommands get the global flags.
        root.build();
        let command = match &self.subcommand {
            None => root,
            Some(name) => match root.find_subcommand(name) {
                Some(command) => command.clone(),
                None => {
                    complain(&format!("there is no command {name:?}: `mvm --help` lists them"));
                    return exit_code::USAGE.into();
                }
            },
        };
        let mut page = Vec::new();
        match clap_mangen::Man::new(command).render(&mut page) {
            Ok(()) => print(&page, exit_code::SUCCESS),
            Err(error) => {
                complain(&format!("cannot make the manual page: {error}"));
                exit_code::HOST.into()
            }
        }
    }
}
