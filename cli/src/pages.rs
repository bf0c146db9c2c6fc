//! `mvm completions` and `mvm man`: what packages install beside the program, made from its own arguments.

use std::process::ExitCode;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::{Cli, complain, exit_code, print};

/// Arguments of `mvm completions`.
#[derive(Args)]
pub struct CompletionsCommand {
    /// The shell
    shell: Shell,
}

impl CompletionsCommand {
    /// Prints the script.
    pub fn run(self) -> ExitCode {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "mvm", &mut script);
        print(&script, exit_code::SUCCESS)
    }
}

/// Arguments of `mvm man`.
#[derive(Args)]
pub struct ManCommand {
    /// The command whose page is meant; without it, the page of mvm itself
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
