//! Removes what a guest may have made of a volume: directories of any depth and mode, with few open files and little
//! memory.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, openat, renameat, unlinkat};
use rustix::io::Errno;

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Removes the directory at `path` and all that is in it. No link is followed. A directory in one of its directories is
/// moved up first, so that it does not matter how deep they are.
///
/// # Errors
///
/// `NotFound` where nothing is there, and those of the system calls.
pub(super) fn remove_tree(path: &Path) -> io::Result<()> {
    let name = path.as_os_str().as_bytes();
    let top = open(CWD, name)?;
    let mut moved = 0_u64;
    // Each turn removes something.
    while clear(top.as_fd(), |directory| take_apart(top.as_fd(), directory, &mut moved))? {}
    Ok(unlinkat(CWD, name, AtFlags::REMOVEDIR)?)
}

/// Removes the entries of `directory`, where `full` gets those that are directories with something in them. Whether
/// there was an entry.
fn clear(directory: BorrowedFd<'_>, mut full: impl FnMut(&[u8]) -> Result<(), Errno>) -> Result<bool, Errno> {
    let mut has_some = false;
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if matches!(name, b"." | b"..") {
            continue;
        }
        has_some = true;
        match unlinkat(directory, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => continue,
            Err(Errno::ISDIR) => {}
            Err(error) => return Err(error),
        }
        match unlinkat(directory, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::NOTEMPTY | Errno::EXIST) => full(name)?,
            Err(error) => return Err(error),
        }
    }
    Ok(has_some)
}

/// Empties the directory `name` of `top`: what it has in it is removed, or moved to `top`.
fn take_apart(top: BorrowedFd<'_>, name: &[u8], moved: &mut u64) -> Result<(), Errno> {
    let directory = open(top, name)?;
    clear(directory.as_fd(), |inner| {
        let mut is_allowed = false;
        loop {
            let place = format!(".removed-{moved}");
            *moved = moved.wrapping_add(1);
            match renameat(&directory, inner, top, &*place) {
                // The guest has made something of this name.
                Err(Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR) => {}
                // To move a directory is to write to it.
                Err(Errno::ACCESS) if !is_allowed => {
                    allow(directory.as_fd(), inner)?;
                    is_allowed = true;
                }
                renamed => return renamed,
            }
        }
    })?;
    match unlinkat(top, name, AtFlags::REMOVEDIR) {
        // What came while it was read is seen by the next turn.
        Ok(()) | Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Opens a directory that may be read, written and searched then.
fn open(parent: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    let writable = |directory: &OwnedFd| {
        rustix::fs::accessat(
            directory,
            ".",
            rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK,
            AtFlags::EACCESS,
        )
    };
    match openat(parent, name, DIRECTORY, Mode::empty()) {
        Ok(directory) if writable(&directory) != Err(Errno::ACCESS) => Ok(directory),
        Ok(_) | Err(Errno::ACCESS) => {
            allow(parent, name)?;
            openat(parent, name, DIRECTORY, Mode::empty())
        }
        Err(error) => Err(error),
    }
}

/// Gives this user all rights to a directory of theirs.
fn allow(parent: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = openat(parent, name, flags, Mode::empty())?;
    // chmod(2) follows the last link, which is that of the directory itself.
    rustix::fs::chmod(format!("/proc/self/fd/{}", directory.as_raw_fd()), Mode::RWXU)
}
