//! What all `prune` commands have in common.

use std::io::{self, BufRead, Read};

use crate::complaint::Complaint;
use crate::images::human;
use crate::process::ExitCode;
use crate::{exit_code, print};

/// The most bytes of an answer.
const MAX_ANSWER: u64 = 1024;

/// Has `remove` remove things after the `warning`, to which the user has to agree unless it `is_forced`; what `remove`
/// says of it is printed, and how many bytes that has freed.
///
/// # Errors
///
/// A [`Complaint`].
pub fn prune(
    is_forced: bool,
    warning: &str,
    remove: impl FnOnce() -> Result<(String, u64), Complaint>,
) -> Result<ExitCode, Complaint> {
    if !is_forced && !is_confirmed(warning)? {
        return Ok(exit_code::SUCCESS.into());
    }
    let (said, freed) = remove()?;
    let text = format!("{said}Total reclaimed space: {}\n", human::size(freed));
    Ok(print(text.as_bytes(), exit_code::SUCCESS))
}

/// What was removed of a kind, a line each, as docker says it.
pub fn deleted(kind: &str, lines: &str) -> String {
    if lines.is_empty() { String::new() } else { format!("Deleted {kind}:\n{lines}\n") }
}

/// Asks on standard output, after the `warning`; anything but `y` and `yes` is a no, as is the end of the input.
///
/// # Errors
///
/// A line for the user.
pub fn is_confirmed(warning: &str) -> Result<bool, String> {
    let question = format!("{warning}Are you sure you want to continue? [y/N] ");
    print(question.as_bytes(), exit_code::SUCCESS);
    let mut answer = String::new();
    let input = io::stdin().lock().take(MAX_ANSWER);
    let read = io::BufReader::new(input).read_line(&mut answer);
    read.map_err(|error| format!("cannot read standard input: {error}"))?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}
