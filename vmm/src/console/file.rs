//! The file of `--console FILE`.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Stat, fstat, lstat};
use serde::{Deserialize, Serialize};

/// The most bytes of the file. Then it gets the suffix [`OLD`], in place of an older one, and a new one begins.
const LIMIT: u64 = 64 << 20;
const OLD: &str = ".1";
/// How much more it has at most where another process makes the new one.
const SPARE: u64 = 1 << 20;
/// How often that is asked.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Which file it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileIdentity {
    device: u64,
    inode: u64,
}

impl FileIdentity {
    fn of(stat: &Stat) -> Self {
        Self { device: stat.st_dev, inode: stat.st_ino }
    }
}

/// Who may do what with a file.
pub fn mode_of(stat: &Stat) -> u32 {
    stat.st_mode & 0o777
}

/// Another process, which makes a new file where this one may not. It is not waited for.
pub trait ConsoleKeeper: Send {
    /// Asks for a new file in place of `file`.
    fn ask(&self, file: FileIdentity);
    /// The file, once it is there.
    fn take(&self) -> Option<File>;
}

/// An open file, which may be a FIFO or a terminal. A regular file is bounded.
pub struct ConsoleFile {
    file: File,
    /// `None` for what is not a regular file.
    regular: Option<Regular>,
}

struct Regular {
    /// Without symbolic links, which stay as they are.
    path: PathBuf,
    length: u64,
    limit: u64,
    /// It could not be renamed, which was logged.
    failed: bool,
    /// Who makes a new one, where this process may not.
    keeper: Option<Box<dyn ConsoleKeeper>>,
    /// When that was asked to.
    asked: Option<Instant>,
}

impl ConsoleFile {
    /// Opens the file at `path` to append to it, so that it has the output of a VM that is started again, too.
    ///
    /// # Errors
    ///
    /// Those of opening it.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Self::with_limit(path, LIMIT)
    }

    fn with_limit(path: &Path, limit: u64) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).create(true).open(path)?;
        let metadata = file.metadata()?;
        let regular = if metadata.is_file() {
            let path = fs::canonicalize(path)?;
            Some(Regular { path, length: metadata.len(), limit, failed: false, keeper: None, asked: None })
        } else {
            None
        };
        Ok(Self { file, regular })
    }

    /// The same, whose next files are made by `keeper`.
    pub(super) fn kept_by(mut self, keeper: Box<dyn ConsoleKeeper>) -> Self {
        if let Some(regular) = &mut self.regular {
            regular.keeper = Some(keeper);
        }
        self
    }

    /// Makes room for `count` bytes.
    ///
    /// # Errors
    ///
    /// There is none: the file can't be renamed, or no other be made.
    pub(super) fn make_room(&mut self, count: usize) -> io::Result<()> {
        let Some(regular) = &mut self.regular else { return Ok(()) };
        if regular.length == 0 || regular.length.saturating_add(count as u64) <= regular.limit {
            return Ok(());
        }
        let result = match regular.ask(&self.file) {
            Some(Ok(None)) => return Ok(()),
            Some(Ok(Some(file))) => Ok(file),
            Some(Err(error)) => Err(error),
            None => fstat(&self.file)
                .map_err(io::Error::from)
                .and_then(|file| begin_anew(&regular.path, FileIdentity::of(&file), mode_of(&file))),
        };
        if let Err(error) = &result
            && !std::mem::replace(&mut regular.failed, true)
        {
            let path = regular.path.display();
            tracing::warn!(%error, %path, "the console's file is full and cannot be renamed: output is left out");
        }
        self.file = result?;
        regular.failed = false;
        regular.length = 0;
        Ok(())
    }

    /// Counts bytes that were written.
    pub(super) fn written(&mut self, count: usize) {
        if let Some(regular) = &mut self.regular {
            regular.length = regular.length.saturating_add(count as u64);
        }
    }
}

impl Regular {
    /// The keeper's next file, for which it is asked; `None` within where it is not there yet and the file may grow on.
    /// `None` without a keeper.
    fn ask(&mut self, file: &File) -> Option<io::Result<Option<File>>> {
        let keeper = self.keeper.as_ref()?;
        if let Some(new) = keeper.take() {
            self.asked = None;
            return Some(Ok(Some(new)));
        }
        if self.asked.is_none_or(|asked| asked.elapsed() >= ASK_AGAIN) {
            self.asked = Some(Instant::now());
            match fstat(file) {
                Ok(stat) => keeper.ask(FileIdentity::of(&stat)),
                Err(error) => return Some(Err(error.into())),
            }
        }
        if self.length <= self.limit.saturating_add(SPARE) {
            return Some(Ok(None));
        }
        Some(Err(io::Error::other("the process that keeps the VM does not answer")))
    }
}

/// Renames `file`, which is at `path`, and begins another one there, with its mode. Where it is not there any more, the
/// new one has `mode`.
///
/// # Errors
///
/// Those of the system calls.
pub fn begin_anew(path: &Path, file: FileIdentity, mode: u32) -> io::Result<File> {
    let there = lstat(path).ok().filter(|there| FileIdentity::of(there) == file);
    // Another program may have renamed it already.
    if there.is_some() {
        let mut old = path.as_os_str().to_owned();
        old.push(OLD);
        fs::rename(path, old)?;
    }
    let mode = there.as_ref().map_or(mode, mode_of);
    OpenOptions::new().append(true).create(true).mode(mode).open(path)
}

impl AsFd for ConsoleFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// For tests: a descriptor that has no path.
#[cfg(test)]
impl From<std::os::fd::OwnedFd> for ConsoleFile {
    fn from(fd: std::os::fd::OwnedFd) -> Self {
        Self { file: fd.into(), regular: None }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn append(file: &mut ConsoleFile, text: &str) -> io::Result<()> {
        file.make_room(text.len())?;
        file.file.write_all(text.as_bytes())?;
        file.written(text.len());
        Ok(())
    }

    #[test]
    fn a_file_and_the_one_before_it_are_bounded_and_have_the_latest_output() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console");
        fs::write(&path, "of the last VM\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let mut file = ConsoleFile::with_limit(&link, 100).unwrap();
        let mut all = "of the last VM\n".to_owned();
        for line in 0..100 {
            let line = format!("line {line}\n");
            append(&mut file, &line).unwrap();
            all.push_str(&line);
        }
        let [old, new] = ["console.1", "console"].map(|name| {
            let text = fs::read_to_string(directory.path().join(name)).unwrap();
            assert!(text.len() <= 100);
            text
        });
        assert!(all.ends_with(&format!("{old}{new}")));
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(fs::read_link(&link).unwrap(), path, "a link stays");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 3);
    }

    #[test]
    fn a_file_that_another_program_has_renamed_is_not_renamed_again() {
        let directory = tempfile::tempdir().unwrap();
        let [path, moved, old] = ["console", "moved", "console.1"].map(|name| directory.path().join(name));
        let mut file = ConsoleFile::with_limit(&path, 10).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        append(&mut file, "12345678").unwrap();
        fs::rename(&path, &moved).unwrap();
        append(&mut file, "9abc").unwrap();
        assert_eq!(mode_of(&lstat(&path).unwrap()), 0o640);
        assert_eq!(fs::read_to_string(&moved).unwrap(), "12345678");
        assert_eq!(fs::read_to_string(&path).unwrap(), "9abc");
        assert!(!old.exists());
    }

    #[test]
    fn a_file_that_cannot_be_renamed_stops_to_grow() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console");
        // A directory with something in it can't be replaced.
        fs::create_dir_all(directory.path().join("console.1/x")).unwrap();
        let mut file = ConsoleFile::with_limit(&path, 10).unwrap();
        append(&mut file, "12345678").unwrap();
        for _ in 0..3 {
            append(&mut file, "9abc").unwrap_err();
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "12345678");
    }

    /// A keeper that makes a file when the test says so.
    #[derive(Clone, Default)]
    struct Slow(std::sync::Arc<std::sync::Mutex<(Vec<FileIdentity>, Option<File>)>>);

    impl ConsoleKeeper for Slow {
        fn ask(&self, file: FileIdentity) {
            self.0.lock().unwrap().0.push(file);
        }

        fn take(&self) -> Option<File> {
            self.0.lock().unwrap().1.take()
        }
    }

    #[test]
    fn a_keeper_makes_the_next_file_and_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console");
        let keeper = Slow::default();
        let mut file = ConsoleFile::with_limit(&path, 10).unwrap().kept_by(Box::new(keeper.clone()));
        append(&mut file, "12345678").unwrap();
        for _ in 0..SPARE / 8 + 1 {
            append(&mut file, "12345678").unwrap();
        }
        append(&mut file, "left out").unwrap_err();
        let asked = keeper.0.lock().unwrap().0.clone();
        assert!(!asked.is_empty() && asked.iter().all(|file| *file == asked[0]));
        keeper.0.lock().unwrap().1 = Some(begin_anew(&path, asked[0], 0o600).unwrap());
        append(&mut file, "9abc").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "9abc");
        assert!(directory.path().join("console.1").metadata().unwrap().len() > SPARE);
    }
}
