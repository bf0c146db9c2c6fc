//! `mvm logs`.

use std::io::{self, BufWriter, Read, Write};
use std::path::Path;

use clap::Args;
use container::{LogOptions, LogReader, follow, parse_time};
use instance::{Kept, Kind, earlier, open_output};

use crate::process::ExitCode;
use crate::targets::{self, complain_of};
use crate::{complain, exit_code, run};

const EXAMPLES: &str = "\
Examples:
  mvm logs web
  mvm logs --follow --tail 20 web
  mvm logs --since 10m --timestamps web";

/// What a VM's console has in a file at most.
const MAX_CONSOLE: u64 = 64 << 20;

/// Arguments of `mvm logs`.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub struct LogsCommand {
    /// ID, beginning of an ID, or name
    #[arg(value_name = "NAME")]
    container: String,

    #[command(flatten)]
    lines: LineArguments,
}

/// Which lines of a log are printed.
#[derive(Args)]
pub struct LineArguments {
    /// Go on until it ends
    #[arg(long, short)]
    pub follow: bool,

    /// Print the last lines only: a number, or all
    #[arg(long, short = 'n', value_name = "N", default_value = "all", allow_negative_numbers = true, value_parser = tail)]
    tail: Tail,

    /// Print the time of each line
    #[arg(long, short)]
    timestamps: bool,

    /// Print the labels, variables and tag that --log-opt of `mvm run` names before each line
    #[arg(long)]
    details: bool,

    /// Leave out what is older: a time, or how long ago, as in 10m
    #[arg(long, value_name = "TIME", value_parser = moment)]
    since: Option<String>,

    /// Leave out what is newer
    #[arg(long, value_name = "TIME", value_parser = moment)]
    until: Option<String>,
}

#[derive(Clone, Copy)]
struct Tail(Option<usize>);

fn tail(text: &str) -> Result<Tail, String> {
    match text {
        "all" => Ok(Tail(None)),
        // As docker reads a number below 0.
        _ if text.parse::<i64>().is_ok_and(|number| number < 0) => Ok(Tail(None)),
        _ => Ok(Tail(Some(
            text.parse().map_err(|_| format!("invalid number of lines {text:?}: give a number, or all"))?,
        ))),
    }
}

fn moment(text: &str) -> Result<String, String> {
    parse_time(text).ok_or_else(|| {
        format!("invalid time {text:?}: write 2024-02-29T12:34:56Z, seconds since 1970, or how long ago, as in 10m")
    })
}

impl LineArguments {
    /// Whether each has its time in front.
    pub fn timestamps(&self) -> bool {
        self.timestamps
    }

    /// What reads them of a container's log.
    ///
    /// # Errors
    ///
    /// Those of opening it, and that there is none.
    pub fn open(&self, kept: &Kept) -> io::Result<LogReader> {
        let path = kept.output();
        if !path.exists() && !kept.is_running {
            return Err(io::Error::other("none is kept: it ran with --log-driver none, or did not start"));
        }
        let options = LogOptions {
            tail: self.tail.0,
            since: self.since.clone(),
            until: self.until.clone(),
            timestamps: self.timestamps,
            details: self.details.then(|| run::log_details(kept)),
        };
        LogReader::open(&path, options)
    }
}

impl LogsCommand {
    /// Prints what a container has written, or what a VM's console showed.
    pub fn run(self) -> ExitCode {
        let kept = match targets::kept(&self.container) {
            Ok(kept) => kept,
            Err(error) => return complain_of(&self.container, &error.into()).into(),
        };
        let result = match kept.entry.kind {
            Kind::Container | Kind::Pod => self.print(&kept),
            Kind::Vm => self.print_console(&kept),
        };
        match result {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => exit_code::SUCCESS.into(),
            Err(error) => {
                complain(&format!("cannot print the log of {}: {error}", self.container));
                exit_code::FAILURE.into()
            }
            Ok(()) => exit_code::SUCCESS.into(),
        }
    }

    fn print(&self, kept: &Kept) -> io::Result<()> {
        if let Some(line) = run::in_journal(kept) {
            return Err(io::Error::other(line));
        }
        // One that was only created has written nothing yet.
        if kept.entry.started.is_none() && !kept.is_running && !kept.output().exists() {
            return Ok(());
        }
        let mut reader = self.lines.open(kept)?;
        let (output, errors) = (io::stdout(), io::stderr());
        if self.lines.follow {
            return follow(&mut reader, kept, output, errors);
        }
        reader.copy(BufWriter::with_capacity(64 << 10, output), errors)
    }

    /// A console has bytes and no times.
    fn print_console(&self, kept: &Kept) -> io::Result<()> {
        if self.lines.timestamps
            || self.lines.details
            || self.lines.since.is_some()
            || self.lines.until.is_some()
        {
            return Err(io::Error::other(
                "a VM's console has no times: leave --timestamps, --details, --since and --until out",
            ));
        }
        if self.lines.follow {
            return Err(io::Error::other("`mvm console` follows a VM's console"));
        }
        let mut content = Vec::new();
        for number in [1, 0] {
            content.extend(read_console(&earlier(&kept.output(), number))?);
        }
        let start = self.lines.tail.0.map_or(0, |lines| start_of_last(&content, lines));
        io::stdout().write_all(content.get(start..).unwrap_or_default())
    }
}

fn read_console(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    match open_output(path) {
        Ok(file) => drop(file.take(MAX_CONSOLE).read_to_end(&mut content)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    Ok(content)
}

/// Where the last `lines` lines begin.
fn start_of_last(content: &[u8], lines: usize) -> usize {
    let end = content.strip_suffix(b"\n").unwrap_or(content).len();
    let breaks = content.iter().take(end).enumerate().rev().filter(|(_, byte)| **byte == b'\n');
    match lines.checked_sub(1) {
        None => content.len(),
        Some(before) => breaks.map(|(place, _)| place + 1).nth(before).unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_found() {
        let last = |text: &str, lines| text[start_of_last(text.as_bytes(), lines)..].to_owned();
        assert_eq!(last("a\nb\nc\n", 2), "b\nc\n");
        assert_eq!(last("a\nb\nc", 1), "c");
        assert_eq!(last("a\nb", 9), "a\nb");
        assert_eq!(last("a\n", 0), "");
        assert_eq!(last("", 3), "");
    }
}
