//! The latest output in a file.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::ConsoleError;
use super::hub::Reader;

/// How much of the output the file has at least, once there was as much; it never has more than twice of it.
const KEEP: u64 = 1 << 20;

/// A file that does not grow without end.
pub(super) struct Log {
    path: PathBuf,
    file: File,
    length: u64,
    reader: Reader,
    buffer: Vec<u8>,
    /// Writing failed, which was said.
    failed: bool,
}

fn create(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    // Readable by its owner alone: guests show secrets on their consoles.
    OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(path)
}

impl Log {
    /// A new log at `path` of what `reader` reads.
    ///
    /// # Errors
    ///
    /// [`ConsoleError::Open`].
    pub(super) fn create(path: PathBuf, reader: Reader) -> Result<Self, ConsoleError> {
        let file = create(&path).map_err(|source| ConsoleError::Open { path: path.clone(), source })?;
        Ok(Self { path, file, length: 0, reader, buffer: Vec::new(), failed: false })
    }

    /// Writes what there is.
    pub(super) fn write(&mut self) {
        while self.reader.take(&mut self.buffer) > 0 {
            let result = self.append();
            self.buffer.clear();
            match result {
                Ok(()) => self.failed = false,
                Err(error) if !self.failed => {
                    self.failed = true;
                    tracing::warn!(%error, path = %self.path.display(), "cannot write to the console's log: it lacks output");
                }
                Err(_) => {}
            }
        }
    }

    fn append(&mut self) -> io::Result<()> {
        let result = self.file.write_all(&self.buffer);
        let length = self.length + self.buffer.len() as u64;
        if result.is_ok() && length <= 2 * KEEP {
            self.length = length;
            return Ok(());
        }
        // A part may have been written where not all could be.
        self.length = self.file.stream_position()?;
        result?;
        if self.length > 2 * KEEP { self.shorten() } else { Ok(()) }
    }

    /// Begins a new file with the latest part of the old one and puts it in its place, so that a reader sees the
    /// one or the other.
    fn shorten(&mut self) -> io::Result<()> {
        let new_path = self.path.with_extension("log.new");
        let mut new = create(&new_path)?;
        self.file.seek(SeekFrom::Start(self.length.saturating_sub(KEEP)))?;
        let length = io::copy(&mut self.file, &mut new)?;
        std::fs::rename(&new_path, &self.path)?;
        (self.file, self.length) = (new, length);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::hub::{Hub, Output};

    #[test]
    fn the_log_has_the_latest_output_and_not_more_than_twice_what_it_keeps() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console.log");
        let hub = Hub::new().unwrap();
        let mut output = Output::new(&hub);
        let mut log = Log::create(path.clone(), hub.reader()).unwrap();
        let mut all = Vec::new();
        for line in 0..100_000 {
            let line = format!("line {line} of endless output without a reader\n");
            all.extend(line.as_bytes());
            output.write_all(line.as_bytes()).unwrap();
            if all.len() % 7 == 0 {
                log.write();
                let length = std::fs::metadata(&path).unwrap().len();
                assert!(length <= 2 * KEEP, "{length}");
            }
        }
        log.write();
        let logged = std::fs::read(&path).unwrap();
        assert!(logged.len() as u64 >= KEEP);
        assert!(all.ends_with(&logged));
        let names: Vec<_> = std::fs::read_dir(directory.path()).unwrap().collect();
        assert_eq!(names.len(), 1, "{names:?}");
    }
}
