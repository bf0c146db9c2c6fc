//! How a copy goes, on a terminal.

use std::io::{self, IsTerminal, Read, Write};

use indicatif::{ProgressBar, ProgressStyle};

use crate::images::human;

/// A line that says how many bytes have passed.
pub struct Progress {
    bar: Option<ProgressBar>,
    bytes: u64,
}

impl Progress {
    /// `title` is what is done. Nothing is shown where standard output is no terminal, or if it `is_quiet`.
    pub fn new(title: &str, is_quiet: bool) -> Self {
        let is_shown = !is_quiet && io::stdout().is_terminal() && io::stderr().is_terminal();
        let bar = is_shown.then(|| {
            let style = ProgressStyle::with_template("{msg} - {decimal_bytes}");
            let bar = ProgressBar::no_length().with_message(title.to_owned());
            bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()))
        });
        Self { bar, bytes: 0 }
    }

    fn add(&mut self, count: usize) {
        self.bytes = self.bytes.saturating_add(u64::try_from(count).unwrap_or(0));
        if let Some(bar) = &self.bar {
            bar.set_position(self.bytes);
        }
    }

    /// Says that all was copied to `target`.
    pub fn finish(self, target: &str) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
            let _ = writeln!(io::stderr(), "Successfully copied {} to {target}", human::size(self.bytes));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Passes bytes on, and counts them.
pub struct Counted<'a, T> {
    pub stream: T,
    pub progress: &'a mut Progress,
}

impl<T: Write> Write for Counted<'_, T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.stream.write(bytes)?;
        self.progress.add(count);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

impl<T: Read> Read for Counted<'_, T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.stream.read(buffer)?;
        self.progress.add(count);
        Ok(count)
    }
}
