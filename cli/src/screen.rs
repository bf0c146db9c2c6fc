//! What is shown again each second, as by top(1).

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use crate::format::FormatError;
use crate::process::ExitCode;
use crate::{complain, exit_code};

/// Before the first time, so that something is there soon: long enough for rates.
const FIRST: Duration = Duration::from_millis(250);
/// Between two times.
const INTERVAL: Duration = Duration::from_secs(1);
/// Moves the cursor to the upper left corner and clears the rest of the screen (ECMA-48: CUP, ED).
const CLEAR: &str = "\x1b[H\x1b[J";

/// Calls `turn` soon and then each second until it is done, or the reader of standard output has gone: `code` then.
pub fn each_second(code: u8, mut turn: impl FnMut() -> io::Result<bool>) -> ExitCode {
    let mut interval = FIRST;
    loop {
        std::thread::sleep(std::mem::replace(&mut interval, INTERVAL));
        match turn() {
            Ok(false) => {}
            Ok(true) => return code.into(),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return code.into(),
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                complain(&error.to_string());
                return exit_code::USAGE.into();
            }
            Err(error) => {
                complain(&format!("cannot write to standard output: {error}"));
                return exit_code::HOST.into();
            }
        }
    }
}

/// What [`each_second`] ends with where a form of the user's does not fit.
pub fn no_form(error: FormatError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, error)
}

/// Writes `text` to standard output, in place of all that a terminal shows where it `clears`.
pub fn show(clears: bool, text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let clear = if clears && out.is_terminal() { CLEAR } else { "" };
    write!(out, "{clear}{text}")?;
    out.flush()
}
