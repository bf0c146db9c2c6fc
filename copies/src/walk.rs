//! A tree, read directory by directory: each is open while what is in it is read, and none is kept in memory.

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, openat, statat};
use rustix::io::Errno;

use crate::MAX_PATH;
use crate::error::{PackError, Shown};

/// How a file of a tree is opened to be read: what is swapped in its place does not block, and no link is followed.
pub const READ: OFlags = OFlags::RDONLY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY)
    .union(OFlags::CLOEXEC);

/// How a directory is.
pub const DIRECTORY: OFlags = READ.union(OFlags::DIRECTORY);

struct Level {
    directory: Dir,
    /// The length of its path.
    length: usize,
}

/// A walk through a tree.
pub struct Walk {
    levels: Vec<Level>,
    /// Of the entry that was found last.
    path: Vec<u8>,
    /// Where its name begins.
    name: usize,
}

/// What is found in a tree.
pub enum Step {
    /// An entry; a directory may be [`entered`](Walk::enter).
    Entry(Stat),
    /// All of a directory was found.
    Left,
}

/// The kind of a file.
pub fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

impl Walk {
    /// A walk through `directory`, whose path is `path`.
    ///
    /// # Errors
    ///
    /// Those of reading it.
    pub fn new(directory: OwnedFd, path: &[u8]) -> Result<Self, PackError> {
        let mut walk = Self { levels: Vec::new(), path: path.to_vec(), name: 0 };
        walk.push(directory)?;
        Ok(walk)
    }

    fn push(&mut self, directory: OwnedFd) -> Result<(), PackError> {
        let directory = Dir::new(directory).map_err(PackError::file("read", &self.path))?;
        self.levels.push(Level { directory, length: self.path.len() });
        Ok(())
    }

    /// The path of what was found last, or of the directory that was left.
    pub fn path(&self) -> &[u8] {
        &self.path
    }

    /// Its name.
    pub fn name(&self) -> &[u8] {
        self.path.get(self.name..).unwrap_or_default()
    }

    /// The directory in which it was found.
    pub fn directory(&self) -> Option<BorrowedFd<'_>> {
        self.levels.last().and_then(|level| level.directory.fd().ok())
    }

    /// What comes next; `None` at the end.
    ///
    /// # Errors
    ///
    /// Those of reading directories.
    pub fn next(&mut self) -> Result<Option<Step>, PackError> {
        loop {
            let Some(level) = self.levels.last_mut() else { return Ok(None) };
            self.path.truncate(level.length);
            let Some(entry) = level.directory.read() else {
                self.levels.pop();
                return Ok((!self.levels.is_empty()).then_some(Step::Left));
            };
            let entry = entry.map_err(PackError::file("read", &self.path))?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            if !self.path.is_empty() {
                self.path.push(b'/');
            }
            self.name = self.path.len();
            self.path.extend_from_slice(name);
            if self.path.len() > MAX_PATH {
                return Err(PackError::TooLong(Shown(&self.path).to_string()));
            }
            let found = level.directory.fd().and_then(|fd| statat(fd, name, AtFlags::SYMLINK_NOFOLLOW));
            match found {
                Ok(stat) => return Ok(Some(Step::Entry(stat))),
                // It was removed meanwhile.
                Err(Errno::NOENT) => {}
                Err(error) => return Err(PackError::file("look at", &self.path)(error)),
            }
        }
    }

    /// Opens what was found last.
    pub fn open(&self, flags: OFlags) -> Result<OwnedFd, Errno> {
        let directory = self.directory().ok_or(Errno::NOENT)?;
        openat(directory, self.name(), flags, Mode::empty())
    }

    /// Goes on with what is in `directory`, which was found last.
    ///
    /// # Errors
    ///
    /// Those of reading it.
    pub fn enter(&mut self, directory: OwnedFd) -> Result<(), PackError> {
        self.push(directory)
    }
}
