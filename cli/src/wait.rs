//! `mvm wait`.

use clap::Args;
use instance::ProcessError;

use crate::process::ExitCode;
use crate::targets::{self, Failure, complain_of};
use crate::{exit_code, print};

const EXAMPLES: &str = "\
Examples:
  mvm wait web
  exit $(mvm wait job)";

/// Arguments of `mvm wait`.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub struct WaitCommand {
    /// IDs, beginnings of IDs, or names
    #[arg(required = true, value_name = "NAME")]
    containers: Vec<String>,
}

impl WaitCommand {
    /// Waits until they have ended, one after the other, and prints their exit codes.
    pub fn run(self) -> ExitCode {
        let mut code = exit_code::SUCCESS;
        for word in &self.containers {
            match wait(word) {
                Ok(ended) => {
                    print(format!("{ended}\n").as_bytes(), code);
                }
                Err(failure) => code = code.max(complain_of(word, &failure)),
            }
        }
        code.into()
    }
}

fn wait(word: &str) -> Result<u8, Failure> {
    let kept = targets::kept(word)?;
    if let Some(end) = kept.end() {
        return Ok(end.code);
    }
    // As docker says it of one that does not run.
    if !kept.is_running {
        return Ok(0);
    }
    match kept.entry.process.open() {
        Ok(process) => drop(process.wait(None)),
        Err(ProcessError::Ended(_)) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(kept.last_end().code)
}
