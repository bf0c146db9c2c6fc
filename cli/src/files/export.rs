//! `mvm export`.

use std::io::{self, IsTerminal};
use std::path::PathBuf;

use clap::Args;

use super::cp::pass_to;
use super::with;
use crate::output::to_file;
use crate::process::ExitCode;
use crate::{complain, exit_code};

const EXAMPLES: &str = "\
Examples:
  mvm export -o web.tar web
  mvm export web | mvm import - web:1

What is mounted in the container is left out.";

/// Arguments of `mvm export`, which are those of `docker export`.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub struct ExportCommand {
    /// Write this file in place of standard output
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,

    /// The container: its ID, the beginning of that, or its name
    #[arg(value_name = "CONTAINER")]
    container: String,
}

impl ExportCommand {
    /// Writes an archive of a container's files.
    pub fn run(self) -> ExitCode {
        if self.output.is_none() && io::stdout().is_terminal() {
            complain("standard output is a terminal: give a file by `-o FILE` or `> FILE`");
            return exit_code::FAILURE.into();
        }
        with(&self.container, |opened| {
            opened.note("export");
            let stream = opened.files.root().map_err(|error| opened.line(&error))?;
            let written = match &self.output {
                Some(path) => to_file(path, |out| pass_to(stream, out, &path.display().to_string(), opened)),
                None => pass_to(stream, &mut io::stdout().lock(), "standard output", opened),
            };
            written.map(|()| exit_code::SUCCESS.into())
        })
    }
}
