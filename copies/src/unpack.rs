//! From a stream to a tree.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};

use erofs::{Entry, EntryKind, Segment, Stream};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Uid, chownat, fstat, ftruncate, linkat, makedev, mknodat, openat,
    seek, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::{Errno, write};

use crate::attributes::Attributes;
use crate::error::{Shown, UnpackError};
use crate::place::{Metadata, Place, parts, times};
use crate::walk::kind;

/// How many bytes of a file are written at a time.
const CHUNK: usize = 128 << 10;

/// Whose the files are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Owner {
    /// That of who makes them. They have no set-id bits and capabilities, and others can't use device nodes: it is not
    /// this user who says what is in them.
    #[default]
    Own,
    /// What the stream says.
    Kept,
    /// This user and group.
    Set(u32, u32),
}

/// How a stream is unpacked.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// Links on the way to an entry are followed, as in a root directory of which none leads out.
    pub follows_links: bool,
    /// Whose the files are.
    pub owner: Owner,
    /// Device nodes are made. Otherwise they are counted.
    pub makes_devices: bool,
    /// All entries are this one or below it.
    pub only: Option<Vec<u8>>,
}

/// What was unpacked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Entries.
    pub entries: u64,
    /// Device nodes that were not made.
    pub devices: u64,
}

/// Makes the files of the stream `input` in `directory`. What is there stays, and directories become one; a file
/// replaces another one, and neither a directory a file nor a file a directory. The caller has set the mask of file
/// modes to 0, and no other thread works with it.
///
/// # Errors
///
/// [`UnpackError`]. What was made before stays.
pub fn unpack(directory: BorrowedFd<'_>, input: impl Read, rules: &Rules) -> Result<Unpacked, UnpackError> {
    let mut unpacker = Unpacker {
        place: Place::new(directory, rules.follows_links),
        rules,
        unpacked: Unpacked::default(),
        buffer: vec![0; CHUNK],
    };
    let mut stream = Stream::new(input);
    while let Some(entry) = stream.next()? {
        if entry.kind != EntryKind::Other {
            unpacker.add(entry, &mut stream)?;
        }
    }
    unpacker.place.leave(0)?;
    Ok(unpacker.unpacked)
}

struct Unpacker<'a> {
    place: Place<'a>,
    rules: &'a Rules,
    unpacked: Unpacked,
    buffer: Vec<u8>,
}

impl Unpacker<'_> {
    fn add<R: Read>(&mut self, mut entry: Entry, stream: &mut Stream<R>) -> Result<(), UnpackError> {
        let mut path = std::mem::take(&mut entry.path);
        if path.ends_with(b"/") {
            path.pop();
        }
        let parts = parts(&path)?;
        self.check(&parts, &path)?;
        self.unpacked.entries = self.unpacked.entries.saturating_add(1);
        // The directory itself stays as it is.
        let Some((&name, parents)) = parts.split_last() else { return Ok(()) };
        self.place.go_to(parents)?;
        if entry.kind == EntryKind::Directory {
            let metadata = self.metadata(&mut entry);
            return self.place.enter(name, metadata, &path);
        }
        self.make_room(name, &path)?;
        match entry.kind {
            EntryKind::HardLink => self.link(name, &entry.link, &path),
            EntryKind::Symlink => self.symlink(name, &entry, &path),
            EntryKind::Character | EntryKind::Block | EntryKind::Fifo => self.node(name, &entry, &path),
            _ => self.file(name, entry, stream, &path),
        }
    }

    /// Whether these parts were asked for.
    fn check(&self, parts: &[&[u8]], path: &[u8]) -> Result<(), UnpackError> {
        match &self.rules.only {
            Some(only) if parts.first() != Some(&&only[..]) => {
                Err(UnpackError::Unexpected(Shown(path).to_string()))
            }
            _ => Ok(()),
        }
    }

    fn owner(&self, entry: &Entry) -> Option<(u32, u32)> {
        match self.rules.owner {
            Owner::Own => None,
            Owner::Kept => Some((entry.uid, entry.gid)),
            Owner::Set(uid, gid) => Some((uid, gid)),
        }
    }

    /// The bits of its mode that a file gets.
    fn mode(&self, entry: &Entry) -> u32 {
        let mode = u32::from(entry.permissions);
        match (self.rules.owner, entry.kind) {
            (Owner::Kept | Owner::Set(..), _) | (Owner::Own, EntryKind::Directory) => mode,
            (Owner::Own, EntryKind::Character | EntryKind::Block) => mode & 0o700,
            (Owner::Own, _) => mode & 0o1777,
        }
    }

    /// Those of its attributes that a file gets: capabilities of a program are as set-id bits.
    fn attributes(&self, mut attributes: Attributes) -> Attributes {
        if self.rules.owner == Owner::Own {
            attributes.retain(|(name, _)| name != b"security.capability");
        }
        attributes
    }

    fn metadata(&self, entry: &mut Entry) -> Metadata {
        Metadata {
            mode: self.mode(entry),
            owner: self.owner(entry),
            mtime: entry.mtime,
            attributes: self.attributes(std::mem::take(&mut entry.xattrs)),
        }
    }

    /// Removes what is called `name`, unless it is a directory.
    fn make_room(&self, name: &[u8], path: &[u8]) -> Result<(), UnpackError> {
        let directory = self.place.directory();
        match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Ok(()),
            Ok(stat) if kind(&stat) == FileType::Directory => {
                Err(UnpackError::OverDirectory(Shown(path).to_string()))
            }
            Ok(_) => match unlinkat(directory, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => Ok(()),
                Err(error) => Err(UnpackError::file("replace", path)(error)),
            },
            Err(error) => Err(UnpackError::file("look at", path)(error)),
        }
    }

    fn link(&self, name: &[u8], target: &[u8], path: &[u8]) -> Result<(), UnpackError> {
        let missing =
            || UnpackError::HardLink { path: Shown(path).to_string(), target: Shown(target).to_string() };
        let parts = parts(target)?;
        self.check(&parts, target)?;
        let (&old, parents) = parts.split_last().ok_or_else(missing)?;
        let directory = self.place.find(parents).map_err(|_| missing())?;
        match linkat(&directory, old, self.place.directory(), name, AtFlags::empty()) {
            Err(Errno::NOENT) => Err(missing()),
            linked => linked.map_err(UnpackError::file("make the link", path)),
        }
    }

    /// Gives its owner and time to what is not opened.
    fn finish(&self, name: &[u8], entry: &Entry, path: &[u8]) -> Result<(), UnpackError> {
        let directory = self.place.directory();
        if let Some((uid, gid)) = self.owner(entry) {
            let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
            chownat(directory, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(UnpackError::file("set the owner of", path))?;
        }
        utimensat(directory, name, &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(UnpackError::file("set the time of", path))
    }

    fn symlink(&self, name: &[u8], entry: &Entry, path: &[u8]) -> Result<(), UnpackError> {
        symlinkat(&entry.link[..], self.place.directory(), name)
            .map_err(UnpackError::file("make the link", path))?;
        self.finish(name, entry, path)
    }

    fn node(&mut self, name: &[u8], entry: &Entry, path: &[u8]) -> Result<(), UnpackError> {
        let kind = match entry.kind {
            EntryKind::Fifo => FileType::Fifo,
            _ if !self.rules.makes_devices => {
                self.unpacked.devices = self.unpacked.devices.saturating_add(1);
                return Ok(());
            }
            EntryKind::Character => FileType::CharacterDevice,
            _ => FileType::BlockDevice,
        };
        let device = if kind == FileType::Fifo { 0 } else { makedev(entry.device.0, entry.device.1) };
        let mode = Mode::from_raw_mode(self.mode(entry) & 0o777);
        mknodat(self.place.directory(), name, kind, mode, device).map_err(UnpackError::file("make", path))?;
        self.finish(name, entry, path)
    }

    fn file<R: Read>(
        &mut self,
        name: &[u8],
        mut entry: Entry,
        stream: &mut Stream<R>,
        path: &[u8],
    ) -> Result<(), UnpackError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // No other process reads it before its mode is set.
        let file = openat(self.place.directory(), name, flags, Mode::RUSR | Mode::WUSR)
            .map_err(UnpackError::file("make", path))?;
        let whole = [Segment { start: 0, length: entry.size }];
        for segment in entry.segments.as_deref().unwrap_or(&whole) {
            if segment.start > 0 {
                seek(&file, rustix::fs::SeekFrom::Start(segment.start))
                    .map_err(UnpackError::file("write", path))?;
            }
            self.copy(file.as_fd(), segment.length, stream, path)?;
        }
        let length = fstat(&file).map_err(UnpackError::file("look at", path))?.st_size;
        if u64::try_from(length).is_ok_and(|length| length < entry.size) {
            ftruncate(&file, entry.size).map_err(UnpackError::file("set the size of", path))?;
        }
        let metadata = self.metadata(&mut entry);
        metadata.apply(file.as_fd(), path)
    }

    fn copy<R: Read>(
        &mut self,
        file: BorrowedFd<'_>,
        length: u64,
        stream: &mut Stream<R>,
        path: &[u8],
    ) -> Result<(), UnpackError> {
        let mut left = length;
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(CHUNK);
            let count = stream.read_data(self.buffer.get_mut(..most).unwrap_or_default())?;
            if count == 0 {
                let error = io::Error::from(io::ErrorKind::UnexpectedEof);
                return Err(erofs::StreamError::Read(error).into());
            }
            write_all(file, self.buffer.get(..count).unwrap_or_default())
                .map_err(UnpackError::file("write", path))?;
            left = left.saturating_sub(u64::try_from(count).unwrap_or(left));
        }
        Ok(())
    }
}

fn write_all(file: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match write(file, bytes) {
            Ok(0) => return Err(Errno::IO),
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
