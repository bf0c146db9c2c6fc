//! What the keeper of a VM or container writes of it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, Mode, OFlags, fallocate, openat};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::entry::{
    END, End, Entry, EntryError, HEALTH, OUTPUT, RECORD, VISITOR, open_in, read_json, read_order,
    write_order, write_record,
};
use crate::lock::DirectoryLock;
use crate::{Process, written};

/// The most bytes of what went wrong, which an agent may have said. As JSON it has up to six times as many.
const MAX_ERROR: usize = 4 << 10;
/// The space on disk that is taken for how it ended.
const END_SPACE: u64 = 4 << 10;
/// That of what mvm itself says of one that runs in the background.
const MESSAGES: &str = "mvm.log";

/// What this process keeps of a VM or container. It stays when this is dropped.
pub struct Keep {
    pub(super) entry: Entry,
    pub(super) directory: PathBuf,
    pub(super) end: File,
    /// Held for as long as it runs.
    lock: DirectoryLock,
}

impl Keep {
    /// Makes the files in `directory`, whose lock is `lock`.
    pub(super) fn create(entry: Entry, directory: PathBuf, lock: DirectoryLock) -> io::Result<Self> {
        let end = new_end(&lock, END)?;
        let keep = Self { entry, directory, end, lock };
        keep.write()?;
        Ok(keep)
    }

    /// Takes over what is in `directory`, whose lock is `lock`.
    pub(super) fn take(entry: Entry, directory: PathBuf, lock: DirectoryLock) -> io::Result<Self> {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let end = openat(lock.directory(), END, flags, Mode::empty())?.into();
        Ok(Self { entry, directory, end, lock })
    }

    /// Begins another life: nothing says any more how the one before ended, but to those who have asked already.
    /// `change` gets the record.
    ///
    /// # Errors
    ///
    /// Those of writing the record.
    pub fn begin(&mut self, change: impl FnOnce(&mut Entry)) -> io::Result<()> {
        let new = "end.json.new";
        let _ = fs::remove_file(self.directory.join(new));
        let end = new_end(&self.lock, new)?;
        // It is that of the life before.
        let _ = fs::remove_file(self.directory.join(HEALTH));
        self.change(change)?;
        fs::rename(self.directory.join(new), self.directory.join(END))?;
        self.end = end;
        Ok(())
    }

    /// Changes the record.
    ///
    /// # Errors
    ///
    /// Those of writing it.
    pub fn change(&mut self, change: impl FnOnce(&mut Entry)) -> io::Result<()> {
        self.reload();
        change(&mut self.entry);
        self.write()
    }

    /// Takes over what others have changed: the limits of a container that runs.
    fn reload(&mut self) {
        if let Ok(entry) = open_in(&self.directory, RECORD).and_then(|file| read_json::<Entry>(&file)) {
            self.entry = entry;
        }
    }

    /// A descriptor of the directory, which has the lock too: another program that this process executes has it with
    /// that.
    ///
    /// # Errors
    ///
    /// Those of dup(2).
    pub fn lock_descriptor(&self) -> io::Result<OwnedFd> {
        self.lock.directory().try_clone()
    }

    /// What was asked for, as it is now.
    ///
    /// # Errors
    ///
    /// [`EntryError`].
    pub fn order<T: DeserializeOwned>(&self) -> Result<T, EntryError> {
        read_order(&self.directory)
    }

    /// Keeps what was asked for, which no other user can read.
    ///
    /// # Errors
    ///
    /// Those of writing it.
    pub fn set_order(&self, order: &impl Serialize) -> io::Result<()> {
        write_order(&self.directory, &self.entry, order)
    }

    fn write(&self) -> io::Result<()> {
        write_record(&self.directory, &self.entry)
    }

    /// What it is.
    pub fn entry(&self) -> &Entry {
        &self.entry
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The file of its output.
    pub fn output(&self) -> PathBuf {
        self.directory.join(OUTPUT)
    }

    /// The file of what mvm says of it in the background.
    pub fn messages(&self) -> PathBuf {
        self.directory.join(MESSAGES)
    }

    /// Notes that this process has it for a while without starting it, or no longer.
    ///
    /// # Errors
    ///
    /// Those of writing it.
    pub fn set_visited(&self, is_visited: bool) -> io::Result<()> {
        let path = self.directory.join(VISITOR);
        if !is_visited {
            return fs::remove_file(path);
        }
        let process = Process::own().map_err(io::Error::other)?;
        written::replace_for_now(&path, "visitor.json.new", &serde_json::to_vec(&process)?)
    }

    /// Notes that its guest or command has begun.
    ///
    /// # Errors
    ///
    /// Those of writing the record.
    pub fn started(&mut self) -> io::Result<()> {
        self.reload();
        self.entry.started = Some(crate::time::now());
        self.write()
    }

    /// Notes how it ended.
    ///
    /// # Errors
    ///
    /// Those of writing it.
    pub fn ended(&mut self, end: &End) -> io::Result<()> {
        let mut end = end.clone();
        if end.error.len() > MAX_ERROR {
            end.error.truncate(end.error.floor_char_boundary(MAX_ERROR));
            end.error.push('…');
        }
        self.end.write_all(&serde_json::to_vec(&end)?)
    }
}

/// A new file for how it ends.
fn new_end(lock: &DirectoryLock, name: &str) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let end: File = openat(lock.directory(), name, flags, Mode::RUSR | Mode::WUSR)?.into();
    // It can be written on a full disk then; not all file systems can do it.
    let _ = fallocate(&end, FallocateFlags::KEEP_SIZE, 0, END_SPACE);
    Ok(end)
}
