//! What a command has to say of why it failed.

use crate::format::{FilterError, FormatError};
use crate::process::ExitCode;
use crate::{chain, complain, exit_code};

/// A line for the user, and the exit code that goes with it.
#[derive(Debug, PartialEq, Eq)]
pub struct Complaint {
    /// What is wrong, and what to do about it.
    pub line: String,
    /// One of [`exit_code`].
    pub code: u8,
}

impl Complaint {
    /// That the user has to write it another way.
    pub fn usage(error: &dyn std::error::Error) -> Self {
        Self { line: chain(error), code: exit_code::USAGE }
    }

    /// That the host can't do what was asked for.
    pub fn host(error: &dyn std::error::Error) -> Self {
        Self { line: chain(error), code: exit_code::HOST }
    }
}

impl From<String> for Complaint {
    fn from(line: String) -> Self {
        Self { line, code: exit_code::FAILURE }
    }
}

impl From<FilterError> for Complaint {
    fn from(error: FilterError) -> Self {
        Self::usage(&error)
    }
}

impl From<FormatError> for Complaint {
    fn from(error: FormatError) -> Self {
        Self::usage(&error)
    }
}

/// The exit code of a command, whose error is said.
pub fn complete<C: Into<Complaint>>(result: Result<ExitCode, C>) -> ExitCode {
    result.unwrap_or_else(|complaint| {
        let Complaint { line, code } = complaint.into();
        complain(&line);
        code.into()
    })
}
