//! Where an entry goes: the directories on the way to it, which stay open as long as what follows is below them.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, fchmod, fchown, futimens, mkdirat,
    openat, statat,
};
use rustix::io::Errno;

use crate::MAX_PATH;
use crate::attributes::{self, Attributes};
use crate::error::{Shown, UnpackError};
use crate::walk::{DIRECTORY, kind};

/// What is set of a file besides its data.
pub struct Metadata {
    pub mode: u32,
    /// Where it is not that of who makes it.
    pub owner: Option<(u32, u32)>,
    pub mtime: (i64, u32),
    pub attributes: Attributes,
}

/// The times that are set: no file has another time of its last access than of its last change.
pub fn times((seconds, nanoseconds): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() };
    Timestamps { last_access: time, last_modification: time }
}

impl Metadata {
    /// Gives it to an open file. The owner comes first: a new one takes set-id bits and capabilities away.
    pub fn apply(&self, file: BorrowedFd<'_>, path: &[u8]) -> Result<(), UnpackError> {
        if let Some((uid, gid)) = self.owner {
            fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
                .map_err(UnpackError::file("set the owner of", path))?;
        }
        attributes::write(file, &self.attributes);
        fchmod(file, Mode::from_raw_mode(self.mode & 0o7777))
            .map_err(UnpackError::file("set the mode of", path))?;
        futimens(file, &times(self.mtime)).map_err(UnpackError::file("set the time of", path))
    }
}

struct Level {
    name: Vec<u8>,
    directory: OwnedFd,
    /// What the directory gets when nothing more goes into it.
    metadata: Option<Metadata>,
}

/// The directory that a stream is for, and the directories on the way to its latest entry.
pub struct Place<'a> {
    top: BorrowedFd<'a>,
    levels: Vec<Level>,
    follows_links: bool,
}

/// The parts of a path of a stream's, which may be absolute and have `.` and `..` in it.
pub fn parts(path: &[u8]) -> Result<Vec<&[u8]>, UnpackError> {
    if path.contains(&0) || path.len() > MAX_PATH {
        return Err(UnpackError::Name(Shown(path).to_string()));
    }
    let mut parts = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                let above = parts.pop();
                above.ok_or_else(|| UnpackError::Outside(Shown(path).to_string()))?;
            }
            part => parts.push(part),
        }
    }
    Ok(parts)
}

impl<'a> Place<'a> {
    pub fn new(top: BorrowedFd<'a>, follows_links: bool) -> Self {
        Self { top, levels: Vec::new(), follows_links }
    }

    /// The directory that was gone to last.
    pub fn directory(&self) -> BorrowedFd<'_> {
        self.levels.last().map_or(self.top, |level| level.directory.as_fd())
    }

    /// The path of the directory that was gone to last.
    fn path(&self) -> Vec<u8> {
        let names: Vec<&[u8]> = self.levels.iter().map(|level| &level.name[..]).collect();
        names.join(&b'/')
    }

    /// Goes to the directory with these parts. Those that are missing are made.
    pub fn go_to(&mut self, parts: &[&[u8]]) -> Result<(), UnpackError> {
        let same = self.levels.iter().zip(parts).take_while(|(level, part)| level.name == **part).count();
        self.leave(same)?;
        for part in parts.iter().skip(same) {
            let directory = self.open(part, true)?;
            self.levels.push(Level { name: part.to_vec(), directory, metadata: None });
        }
        Ok(())
    }

    /// The directory with these parts, where it is there.
    pub fn find(&self, parts: &[&[u8]]) -> Result<OwnedFd, Errno> {
        let mut directory = openat(self.top, ".", DIRECTORY, Mode::empty())?;
        for part in parts {
            directory = openat(&directory, *part, self.flags(), Mode::empty())?;
        }
        Ok(directory)
    }

    fn flags(&self) -> OFlags {
        if self.follows_links { DIRECTORY.difference(OFlags::NOFOLLOW) } else { DIRECTORY }
    }

    /// Opens a directory of the one that was gone to; one that is missing is made, where `makes` says so.
    fn open(&self, name: &[u8], makes: bool) -> Result<OwnedFd, UnpackError> {
        let path = || {
            let names = self.levels.iter().map(|level| &level.name[..]).chain([name]);
            names.collect::<Vec<_>>().join(&b'/')
        };
        let open = || openat(self.directory(), name, self.flags(), Mode::empty());
        let opened = match open() {
            Err(Errno::NOENT) if makes => match mkdirat(self.directory(), name, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => open(),
                Err(error) => return Err(UnpackError::file("make", &path())(error)),
            },
            opened => opened,
        };
        opened.map_err(|error| UnpackError::file("open", &path())(error))
    }

    /// Makes a directory in the one that was gone to, or takes the one that is there, and goes to it. It gets
    /// `metadata` when nothing more goes into it.
    pub fn enter(&mut self, name: &[u8], metadata: Metadata, path: &[u8]) -> Result<(), UnpackError> {
        match mkdirat(self.directory(), name, Mode::from_raw_mode(0o700 | metadata.mode & 0o777)) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let stat = statat(self.directory(), name, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(UnpackError::file("look at", path))?;
                if kind(&stat) != FileType::Directory {
                    return Err(UnpackError::OverFile(Shown(path).to_string()));
                }
            }
            Err(error) => return Err(UnpackError::file("make", path)(error)),
        }
        let directory = openat(self.directory(), name, DIRECTORY, Mode::empty())
            .map_err(UnpackError::file("open", path))?;
        self.levels.push(Level { name: name.to_vec(), directory, metadata: Some(metadata) });
        Ok(())
    }

    /// Leaves all but the first `count` directories.
    pub fn leave(&mut self, count: usize) -> Result<(), UnpackError> {
        while self.levels.len() > count {
            let path = self.path();
            if let Some(Level { directory, metadata: Some(metadata), .. }) = self.levels.pop() {
                metadata.apply(directory.as_fd(), &path)?;
            }
        }
        Ok(())
    }
}
