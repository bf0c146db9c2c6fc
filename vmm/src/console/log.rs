//! The latest output in a file.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::ConsoleError;
use super::hub::Reader;

/// How much of the output the file has at least, once there was as much; it never has more than twice of it.
const KEEP: u64 = 1 << 20;
/// Where another process makes the next file, it never has more than this and one write.
const MOST: u64 = 3 << 20;

/// The file of the latest output, open.
pub struct LogFile {
    path: PathBuf,
    file: File,
    /// How much is in it from an earlier life of the VM.
    length: u64,
    /// Who makes the files that take its place, where this process may not.
    keeper: Option<Box<dyn LogKeeper>>,
}

/// Another process, which makes files that this one may not make. It is not waited for.
pub trait LogKeeper: Send {
    /// Asks for an empty file.
    fn ask(&self);
    /// The file, once it is there, open to be read and written.
    fn take(&self) -> Option<File>;
    /// Puts it in the place of the log.
    fn replace(&self);
}

impl LogFile {
    /// The file at `path`, which is made where it is missing; what is in it stays.
    ///
    /// # Errors
    ///
    /// [`ConsoleError::Open`].
    pub(crate) fn create(path: PathBuf) -> Result<Self, ConsoleError> {
        let opened = open(&path, false).and_then(|mut file| Ok((file.seek(SeekFrom::End(0))?, file)));
        let (length, file) = opened.map_err(|source| ConsoleError::Open { path: path.clone(), source })?;
        Ok(Self { path, file, length, keeper: None })
    }

    /// The same, which gets its next files from `keeper`.
    pub(crate) fn kept_by(self, keeper: Option<Box<dyn LogKeeper>>) -> Self {
        Self { keeper, ..self }
    }

    /// Where the next file is until it takes this one's place.
    pub fn next_of(path: &Path) -> PathBuf {
        path.with_extension("log.new")
    }
}

/// Copies what is left of a file; [`io::copy`] tries calls for it that a process may be denied.
fn copy(from: &mut File, to: &mut File) -> io::Result<u64> {
    let (mut buffer, mut length) = (vec![0; 64 << 10], 0);
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(length),
            count => {
                to.write_all(buffer.get(..count).unwrap_or_default())?;
                length += count as u64;
            }
        }
    }
}

/// A file that does not grow without end.
pub(super) struct Log {
    file: LogFile,
    length: u64,
    /// The keeper was asked for a file.
    asked: bool,
    reader: Reader,
    buffer: Vec<u8>,
    /// Writing failed, which was said.
    failed: bool,
}

/// Opens the file at `path`, and makes it where it is missing; it is made empty if it `is_new`.
fn open(path: &Path, is_new: bool) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    // Readable by its owner alone: guests show secrets on their consoles.
    OpenOptions::new().read(true).write(true).create(true).truncate(is_new).mode(0o600).open(path)
}

impl Log {
    /// A log in `file` of what `reader` reads.
    pub(super) fn new(file: LogFile, reader: Reader) -> Self {
        Self { length: file.length, file, asked: false, reader, buffer: Vec::new(), failed: false }
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
                    tracing::warn!(%error, path = %self.file.path.display(), "cannot write to the console's log: it lacks output");
                }
                Err(_) => {}
            }
        }
    }

    fn append(&mut self) -> io::Result<()> {
        // Without a new file for long, what comes is left out.
        if self.length > MOST {
            return self.shorten().and_then(|()| match self.length {
                ..=MOST => self.append(),
                _ => Err(io::Error::other("the process that keeps the VM does not answer")),
            });
        }
        let result = self.file.file.write_all(&self.buffer);
        let length = self.length + self.buffer.len() as u64;
        if result.is_ok() && length <= 2 * KEEP {
            self.length = length;
            return Ok(());
        }
        // A part may have been written where not all could be.
        self.length = self.file.file.stream_position()?;
        result?;
        if self.length > 2 * KEEP { self.shorten() } else { Ok(()) }
    }

    /// Begins a new file with the latest part of the old one and puts it in its place, so that a reader sees the
    /// one or the other.
    fn shorten(&mut self) -> io::Result<()> {
        let LogFile { path, file, keeper, .. } = &mut self.file;
        let next = LogFile::next_of(path);
        let mut new = match keeper {
            None => open(&next, true)?,
            Some(keeper) => match keeper.take() {
                Some(new) => new,
                None => {
                    if !std::mem::replace(&mut self.asked, true) {
                        keeper.ask();
                    }
                    return Ok(());
                }
            },
        };
        file.seek(SeekFrom::Start(self.length.saturating_sub(KEEP)))?;
        let length = copy(file, &mut new)?;
        match keeper {
            None => std::fs::rename(&next, path)?,
            Some(keeper) => keeper.replace(),
        }
        (*file, self.length, self.asked) = (new, length, false);
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
        let mut log = Log::new(LogFile::create(path.clone()).unwrap(), hub.reader());
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

    /// A keeper that has a file when the test says so.
    #[derive(Clone, Default)]
    struct Slow(std::sync::Arc<std::sync::Mutex<(usize, Option<File>, usize)>>);

    impl LogKeeper for Slow {
        fn ask(&self) {
            self.0.lock().unwrap().0 += 1;
        }

        fn take(&self) -> Option<File> {
            self.0.lock().unwrap().1.take()
        }

        fn replace(&self) {
            self.0.lock().unwrap().2 += 1;
        }
    }

    #[test]
    fn a_keeper_is_asked_once_and_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console.log");
        let (hub, keeper) = (Hub::new().unwrap(), Slow::default());
        let mut output = Output::new(&hub);
        let file = LogFile::create(path.clone()).unwrap().kept_by(Some(Box::new(keeper.clone())));
        let mut log = Log::new(file, hub.reader());
        let mut write = |text: &[u8], log: &mut Log| {
            output.write_all(text).unwrap();
            log.write();
        };
        for _ in 0..6000 {
            write(&[b'a'; 1000], &mut log);
        }
        let length = std::fs::metadata(&path).unwrap().len();
        assert!((MOST..MOST + (1 << 20)).contains(&length), "{length}");
        assert_eq!(keeper.0.lock().unwrap().0, 1);
        let next = LogFile::next_of(&path);
        keeper.0.lock().unwrap().1 = Some(open(&next, true).unwrap());
        write(b"later", &mut log);
        let text = std::fs::read(&next).unwrap();
        assert!(text.len() as u64 == KEEP + 5 && text.ends_with(b"alater"), "{}", text.len());
        assert_eq!(keeper.0.lock().unwrap().2, 1);
    }
}
