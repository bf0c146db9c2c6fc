//! A container's stream on its way to a worker, which reads it in a process of its own.

use std::io::{self, PipeWriter, Read, Write};

use container::{FilesError, Incoming};

use super::progress::{Counted, Progress};
use crate::images::worker::{Failure, Input, Outcome, Task};

/// Has `task` done with `stream` on its standard input. `input` makes what the worker gets of the pipe's other end.
///
/// # Errors
///
/// In a line for the user; `line` makes one of what the container says, which is the reason for what the worker has
/// seen.
pub fn relay<'a>(
    stream: Incoming,
    progress: &mut Progress,
    line: impl Fn(&FilesError) -> String,
    task: impl FnOnce(Input) -> Task<'a>,
    directory: Option<std::path::PathBuf>,
) -> Result<Outcome, String> {
    let (input, output) = io::pipe().map_err(|error| format!("cannot make a pipe: {error}"))?;
    let task = task(Input::Stream { input: input.into(), directory });
    std::thread::scope(|scope| {
        let pump = scope.spawn(move || pump(stream, output, progress));
        let outcome = task.run();
        let pumped = pump.join().unwrap_or(Ok(()));
        match (pumped, outcome) {
            (Err(error), _) => Err(line(&error)),
            (Ok(()), outcome) => outcome.map_err(Failure::into_line),
        }
    })
}

/// Passes the stream on as long as somebody reads it. An error is the container's.
fn pump(mut stream: Incoming, mut output: PipeWriter, progress: &mut Progress) -> Result<(), FilesError> {
    let mut buffer = vec![0; 128 << 10];
    let mut counted = Counted { stream: &mut stream, progress };
    loop {
        let read = match counted.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => buffer.get(..count).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // It is read again below, which says what it is.
            Err(_) => break,
        };
        if output.write_all(read).is_err() {
            // The worker says why.
            return Ok(());
        }
    }
    // The worker has all of a stream when it sees its end.
    let finished = stream.finish();
    drop(output);
    finished
}
