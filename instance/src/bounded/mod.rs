//! A file that keeps what was written last.

mod lines;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

pub use self::lines::{Changes, Lines};

/// A file of a bounded size. When it is full it is renamed, `output.log` to `output.log.1`, that one to `output.log.2`
/// and so on, and a new one begins; the last of them goes.
#[derive(Debug)]
pub struct BoundedFile {
    path: PathBuf,
    file: File,
    length: u64,
    limit: u64,
    /// How many files there are at most.
    count: u32,
}

/// The path of the file that was full so many files ago.
pub fn earlier(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    if number > 0 {
        name.push(format!(".{number}"));
    }
    name.into()
}

impl BoundedFile {
    /// Opens the file at `path`, to append to it. Each of up to `count` files has up to `limit` bytes, both at least 1.
    ///
    /// # Errors
    ///
    /// Those of opening it.
    pub fn open(path: &Path, limit: u64, count: u32) -> io::Result<Self> {
        let file = open(path)?;
        let length = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, length, limit: limit.max(1), count: count.max(1) })
    }

    /// Writes all of `bytes` to one file, whatever its size is then: one that has something in it already is renamed
    /// before it gets too large. Where it fails, for lack of space, none of `bytes` is there.
    ///
    /// # Errors
    ///
    /// Those of writing and of renaming.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let count = bytes.len() as u64;
        if self.length > 0 && self.length.saturating_add(count) > self.limit {
            self.begin_anew()?;
        }
        if let Err(error) = self.file.write_all(bytes) {
            // What comes next does not go on in the middle of this.
            let _ = self.file.set_len(self.length);
            return Err(error);
        }
        self.length = self.length.saturating_add(count);
        Ok(())
    }

    fn begin_anew(&mut self) -> io::Result<()> {
        let numbered = |number| earlier(&self.path, number);
        if self.count == 1 {
            match fs::remove_file(&self.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        for number in (0..self.count.saturating_sub(1)).rev() {
            match fs::rename(numbered(number), numbered(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        self.file = open(&self.path)?;
        self.length = 0;
        Ok(())
    }
}

/// Opens a file of output to read it; what is no file, as a FIFO, is an error at once.
///
/// # Errors
///
/// Those of open(2), and `InvalidData`.
pub fn open_output(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "what is kept of the output is no file"));
    }
    Ok(file)
}

fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o600).custom_flags(libc::O_NOFOLLOW).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_have_the_latest_output_and_no_more_than_they_may() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        for count in 1..4 {
            let mut file = BoundedFile::open(&path, 100, count).unwrap();
            for number in 0..200 {
                file.write(format!("{number:09}\n").as_bytes()).unwrap();
            }
            let files: Vec<_> = (0..5).map(|number| fs::read_to_string(earlier(&path, number))).collect();
            let all: String = files.iter().rev().flatten().map(String::as_str).collect();
            assert!(all.ends_with("000000199\n"));
            let there = files.iter().flatten().count();
            assert_eq!(there, usize::try_from(count).unwrap());
            assert!(files.iter().flatten().all(|file| file.len() <= 100));
            assert!(all.len() >= 100 * (there - 1));
        }
    }

    #[test]
    fn a_file_is_appended_to_and_one_long_write_is_not_cut() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        BoundedFile::open(&path, 10, 2).unwrap().write(b"abc").unwrap();
        let mut file = BoundedFile::open(&path, 10, 2).unwrap();
        file.write(b"def").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"abcdef");
        file.write(&[b'x'; 50]).unwrap();
        assert_eq!(fs::read(&path).unwrap().len(), 50);
        assert_eq!(fs::read(earlier(&path, 1)).unwrap(), b"abcdef");
    }
}
