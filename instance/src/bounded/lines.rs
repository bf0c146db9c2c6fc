//! Lines of a file of a bounded size, and of those that were renamed when they were full.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

use super::{earlier, open_output};

/// What is looked for of renamed files at most.
const MAX_FILES: u32 = 1000;

/// Reads the lines of a [`BoundedFile`](super::BoundedFile) that another process may be writing, the oldest first.
pub struct Lines {
    path: PathBuf,
    /// What is not read yet, the oldest last.
    files: Vec<File>,
    current: Option<BufReader<File>>,
    /// The beginning of a line.
    line: Vec<u8>,
    is_whole: bool,
    /// A line is given in parts of this size, where it is longer.
    longest: usize,
}

impl Lines {
    /// Opens what there is; a file that is missing is empty. A line has up to `longest` bytes.
    ///
    /// # Errors
    ///
    /// Those of opening its files.
    pub fn open(path: &Path, longest: usize) -> io::Result<Self> {
        let mut files: Vec<File> = Vec::new();
        // The newest first, so that none is missed where they are renamed in between.
        for number in 0..MAX_FILES {
            match open_output(&earlier(path, number)) {
                // It is the one before, which was renamed since.
                Ok(file) if is_last(&files, &file)? => {}
                Ok(file) => files.push(file),
                // Between two names.
                Err(error) if error.kind() == io::ErrorKind::NotFound && number == 0 => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(error) => return Err(error),
            }
        }
        Ok(Self {
            path: path.to_owned(),
            files,
            current: None,
            line: Vec::new(),
            is_whole: false,
            longest: longest.max(1),
        })
    }

    /// The next line without its end, if there is one by now.
    ///
    /// # Errors
    ///
    /// Those of reading.
    pub fn next_line(&mut self) -> io::Result<Option<&[u8]>> {
        if std::mem::take(&mut self.is_whole) {
            self.line.clear();
        }
        loop {
            if self.current.is_none() {
                self.current = self.files.pop().map(BufReader::new);
            }
            let Some(file) = &mut self.current else {
                // It had no file, and may have one now.
                match open_output(&self.path) {
                    Ok(file) => self.files.push(file),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                    Err(error) => return Err(error),
                }
                continue;
            };
            let room = self.longest.saturating_sub(self.line.len());
            file.by_ref().take(room as u64).read_until(b'\n', &mut self.line)?;
            if self.line.ends_with(b"\n") {
                self.line.pop();
                self.is_whole = true;
                return Ok(Some(&self.line));
            }
            if self.line.len() >= self.longest {
                self.is_whole = true;
                return Ok(Some(&self.line));
            }
            if self.files.is_empty() && !self.is_renamed()? {
                return Ok(None);
            }
            self.line.clear();
            self.current = None;
        }
    }

    /// Whether another file has the name of the one that is read, which was read to its end.
    fn is_renamed(&mut self) -> io::Result<bool> {
        let Some(file) = &self.current else { return Ok(false) };
        let own = identity(file.get_ref())?;
        match open_output(&self.path) {
            Ok(there) if identity(&there)? != own => {
                // What was written before it was renamed comes first.
                let is_read = file.buffer().is_empty() && at_end(file.get_ref())?;
                if is_read {
                    self.files.push(there);
                }
                Ok(is_read)
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(false),
        }
    }
}

fn identity(file: &File) -> io::Result<(u64, u64)> {
    let metadata = file.metadata()?;
    Ok((metadata.dev(), metadata.ino()))
}

fn is_last(files: &[File], file: &File) -> io::Result<bool> {
    files.last().map_or(Ok(false), |last| Ok(identity(last)? == identity(file)?))
}

fn at_end(mut file: &File) -> io::Result<bool> {
    Ok(file.stream_position()? >= file.metadata()?.len())
}

/// Becomes readable when there may be something new in the files of a directory.
pub struct Changes(OwnedFd);

impl Changes {
    /// Those of `directory`, from now on.
    ///
    /// # Errors
    ///
    /// Those of inotify.
    pub fn of(directory: &Path) -> io::Result<Self> {
        let changes = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        let flags = WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::ONLYDIR;
        inotify::add_watch(&changes, directory, flags)?;
        Ok(Self(changes))
    }

    /// Forgets that there was something new, before it is read.
    pub fn clear(&self) {
        while rustix::io::read(&self.0, &mut [0; 4096]).is_ok() {}
    }
}

impl AsFd for Changes {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::BoundedFile;
    use super::*;

    fn all(lines: &mut Lines) -> Vec<String> {
        let mut all = Vec::new();
        while let Some(line) = lines.next_line().unwrap() {
            all.push(String::from_utf8(line.to_vec()).unwrap());
        }
        all
    }

    #[test]
    fn a_reader_that_follows_sees_each_line_once_across_renamed_files() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let mut lines = Lines::open(&path, 100).unwrap();
        assert!(all(&mut lines).is_empty());
        let mut file = BoundedFile::open(&path, 60, 3).unwrap();
        let mut read = Vec::new();
        let mut written = Vec::new();
        for number in 0..100 {
            file.write(format!("{number:04}\n").as_bytes()).unwrap();
            written.push(format!("{number:04}"));
            if number % 7 == 0 {
                read.extend(all(&mut lines));
            }
        }
        read.extend(all(&mut lines));
        assert_eq!(read, written);
        // Another one has what is there, the oldest first, also while the newest has no name.
        fs::rename(&path, earlier(&path, 3)).unwrap();
        fs::rename(earlier(&path, 2), directory.path().join("gone")).unwrap();
        fs::rename(earlier(&path, 3), earlier(&path, 2)).unwrap();
        let there = all(&mut Lines::open(&path, 100).unwrap());
        assert!(there.len() > 10 && there.len() < 30, "{there:?}");
    }

    #[test]
    fn a_line_that_is_not_whole_waits_and_one_that_is_too_long_is_cut() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        fs::write(&path, "one\ntw").unwrap();
        let changes = Changes::of(directory.path()).unwrap();
        let mut lines = Lines::open(&path, 5).unwrap();
        assert_eq!(all(&mut lines), ["one"]);
        let has_changed = || {
            let mut fds = [rustix::event::PollFd::new(&changes, rustix::event::PollFlags::IN)];
            let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
            rustix::event::poll(&mut fds, Some(&now)).unwrap() > 0
        };
        assert!(!has_changed());
        BoundedFile::open(&path, 100, 1).unwrap().write(b"o\n\n12345678\n").unwrap();
        assert!(has_changed());
        changes.clear();
        assert!(!has_changed());
        assert_eq!(all(&mut lines), ["two", "", "12345", "678"]);
    }

    #[test]
    fn what_is_no_file_is_an_error_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        fs::create_dir(&path).unwrap();
        assert!(Lines::open(&path, 5).is_err());
    }
}
