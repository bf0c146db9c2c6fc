//! `mvm pod logs`.

use std::io::{self, Stdout, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};

use clap::Args;
use container::{LogReader, OutputLine, OutputStream, follow};
use instance::{Kept, VmName};

use super::{containers, find};
use crate::logs::LineArguments;
use crate::process::ExitCode;
use crate::targets::at_once;
use crate::{chain, complain, exit_code};

const EXAMPLES: &str = "\
Examples:
  mvm pod logs web
  mvm pod logs --follow --names --tail 20 web
  mvm pod logs --container app web

Where the pod has several containers, the ID or name of each is in front of
its lines.";

/// The most bytes of a line that are waited for until it is printed.
const MAX_LINE: usize = 64 << 10;

/// Arguments of `mvm pod logs`, which are those of `podman pod logs`.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub struct LogsCommand {
    /// ID, beginning of an ID, or name
    #[arg(value_name = "POD")]
    pod: String,

    /// Print the log of this container alone
    #[arg(long, short, value_name = "NAME")]
    container: Option<String>,

    /// Print the containers' names in place of their IDs
    #[arg(long)]
    names: bool,

    #[command(flatten)]
    lines: LineArguments,
}

/// The log of one container.
struct Log {
    kept: Kept,
    reader: LogReader,
    /// What is in front of its lines.
    prefix: String,
}

impl LogsCommand {
    /// Prints what the containers of a pod have written.
    pub fn run(self) -> ExitCode {
        let (logs, code) = match self.logs() {
            Ok(found) => found,
            Err(code) => return code.into(),
        };
        let printed = if self.lines.follow { follow_all(logs) } else { print(logs, self.lines.timestamps()) };
        match printed {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => code.into(),
            Err(error) => {
                complain(&format!("cannot print the logs of {}: {error}", self.pod));
                exit_code::FAILURE.into()
            }
            Ok(()) => code.into(),
        }
    }

    /// The logs that are meant, and the exit code so far: one that can't be opened does not keep others from being
    /// printed.
    fn logs(&self) -> Result<(Vec<Log>, u8), u8> {
        let found = find(&self.pod).and_then(|pod| containers(&pod.entry.id));
        let mut found = found.map_err(|error| {
            complain(&chain(&error));
            exit_code::FAILURE
        })?;
        if let Some(word) = &self.container {
            found.retain(|kept| {
                kept.entry.name.as_ref().is_some_and(|name| name.as_str() == word)
                    || kept.entry.id.as_str().starts_with(word.as_str())
            });
            if found.is_empty() {
                complain(&format!("{}: it has no container {word}: `mvm ps -a --pod` lists them", self.pod));
                return Err(exit_code::FAILURE);
            }
        }
        let (several, mut code) = (found.len() > 1, exit_code::SUCCESS);
        let mut logs = Vec::new();
        for kept in found {
            let (id, name) = (kept.entry.id.as_str(), kept.entry.name.as_ref().map(VmName::as_str));
            let shown = if self.names { name.unwrap_or(id) } else { id };
            let prefix = if several { format!("{shown} ") } else { String::new() };
            match self.lines.open(&kept) {
                Ok(reader) => logs.push(Log { reader, prefix, kept }),
                // It was created and not started: it has written nothing.
                Err(_) if kept.is_created() => {}
                Err(error) => {
                    complain(&format!("{}: {error}", name.unwrap_or(id)));
                    code = exit_code::FAILURE;
                }
            }
        }
        Ok((logs, code))
    }
}

/// Prints all lines that there are, the oldest first.
fn print(mut logs: Vec<Log>, timestamps: bool) -> io::Result<()> {
    let (mut output, mut errors) = (io::BufWriter::new(io::stdout().lock()), io::stderr().lock());
    let mut heads = logs.iter_mut().map(|log| log.reader.next_wanted()).collect::<io::Result<Vec<_>>>()?;
    let mut at_start = vec![[true; 2]; logs.len()];
    loop {
        let times =
            heads.iter().enumerate().filter_map(|(number, head)| Some((&head.as_ref()?.time, number)));
        let Some((_, number)) = times.min() else { break };
        let (Some(log), Some(head), Some(at_start)) =
            (logs.get_mut(number), heads.get_mut(number), at_start.get_mut(number))
        else {
            break;
        };
        while let Some(OutputLine { time, stream, is_whole, text }) = head.take() {
            let is_error = stream == OutputStream::Stderr;
            let target: &mut dyn Write = if is_error { &mut errors } else { &mut output };
            if let Some(at_start) = at_start.get_mut(usize::from(is_error))
                && std::mem::replace(at_start, is_whole)
            {
                target.write_all(log.prefix.as_bytes())?;
                if timestamps {
                    write!(target, "{time} ")?;
                }
            }
            target.write_all(&text)?;
            if is_whole {
                target.write_all(b"\n")?;
            }
            *head = log.reader.next_wanted()?;
            // The rest of a line comes before other containers' lines.
            if is_whole {
                break;
            }
        }
    }
    output.flush()
}

/// Prints lines as they come, until all containers have ended.
fn follow_all(logs: Vec<Log>) -> io::Result<()> {
    let logs: Vec<Mutex<Log>> = logs.into_iter().map(Mutex::new).collect();
    // One line at a time, whichever stream it is of.
    let turn = Arc::new(Mutex::new(()));
    let followed = at_once(&logs, |log| {
        let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
        let Log { kept, reader, prefix } = &mut *log;
        let output = Lines::new(io::stdout(), prefix, &turn);
        let errors = Lines::new(io::stderr(), prefix, &turn);
        let result = follow(reader, kept, output, errors);
        if result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
            // The others would go on for as long as their containers write nothing.
            std::process::exit(exit_code::SUCCESS.into());
        }
        result
    });
    followed.into_iter().collect()
}

/// Writes whole lines, each with something in front.
struct Lines<'a, W: Write> {
    to: W,
    prefix: &'a str,
    turn: &'a Mutex<()>,
    /// The beginning of a line.
    begun: Vec<u8>,
}

impl<'a, W: Write> Lines<'a, W> {
    fn new(to: W, prefix: &'a str, turn: &'a Mutex<()>) -> Self {
        Self { to, prefix, turn, begun: Vec::new() }
    }

    fn finish_line(&mut self) -> io::Result<()> {
        let line = [self.prefix.as_bytes(), &self.begun, b"\n"].concat();
        self.begun.clear();
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.to.write_all(&line)?;
        self.to.flush()
    }
}

impl<W: Write> Write for Lines<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut pieces = bytes.split(|byte| *byte == b'\n').peekable();
        while let Some(piece) = pieces.next() {
            self.begun.extend(piece);
            if pieces.peek().is_some() || self.begun.len() > MAX_LINE {
                self.finish_line()?;
            }
        }
        Ok(bytes.len())
    }

    /// A line that is begun waits for its end.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<W: Write> Drop for Lines<'_, W> {
    fn drop(&mut self) {
        if !self.begun.is_empty() {
            // Who reads has gone, if it fails.
            let _ = self.finish_line();
        }
    }
}

impl AsFd for Lines<'_, Stdout> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.to.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_and_have_their_container_in_front() {
        let turn = Mutex::new(());
        let (mut one, mut other) = (Vec::new(), Vec::new());
        {
            let mut lines = Lines::new(&mut one, "web ", &turn);
            for piece in ["a", "b\nc\n\n", "rest"] {
                lines.write_all(piece.as_bytes()).unwrap();
            }
            let mut long = Lines::new(&mut other, "", &turn);
            long.write_all(&vec![b'x'; MAX_LINE + 1]).unwrap();
            long.write_all(b"y\n").unwrap();
        }
        assert_eq!(String::from_utf8(one).unwrap(), "web ab\nweb c\nweb \nweb rest\n");
        assert_eq!((other.len(), other.ends_with(b"x\ny\n")), (MAX_LINE + 4, true));
    }
}
