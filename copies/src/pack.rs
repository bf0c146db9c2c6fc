//! From a tree to a stream.

use std::collections::HashMap;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Mode, SeekFrom, Stat, fstat, major, minor, openat, readlinkat, seek, statat,
};
use rustix::io::{Errno, read};
use tar::EntryType;

use crate::attributes;
use crate::error::PackError;
use crate::header::{Head, finish, pad};
use crate::walk::{DIRECTORY, READ, Step, Walk, kind};

/// How many bytes of a file are read at a time.
const CHUNK: usize = 128 << 10;
/// The most files with several names whose other names become links; those of others become files.
const MAX_LINKS: usize = 1 << 16;
/// The most bytes of their names.
const MAX_LINK_NAMES: usize = 8 << 20;
/// The most pieces of a sparse file: what follows is one piece.
const MAX_SEGMENTS: usize = 4096;
/// A file with less in its holes is not a sparse one.
const LEAST_HOLES: u64 = 64 << 10;

/// How a tree is packed.
#[derive(Clone, Copy, Debug, Default)]
pub struct PackOptions {
    /// Holes of files stay holes (GNU tar's format 1.0). Programs that read images do not understand that.
    pub sparse: bool,
}

/// What was packed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packed {
    /// Entries.
    pub entries: u64,
    /// Sockets, which a stream can't have.
    pub sockets: u64,
    /// Files that got shorter while they were read, and end with zeros.
    pub cut: u64,
}

/// Writes what is called `name` in `directory` to `out`, with all that is below it. In the stream it is called `shown`.
/// With `.` as its name it is the directory itself; with an empty `shown`, it is left out, and what is in it is called
/// by its path alone.
///
/// # Errors
///
/// [`PackError`]. The stream has no end then.
pub fn pack(
    directory: BorrowedFd<'_>,
    name: &[u8],
    shown: &[u8],
    options: PackOptions,
    out: &mut impl Write,
) -> Result<Packed, PackError> {
    let stat =
        statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).map_err(PackError::file("look at", shown))?;
    let mut packer = Packer::new(out, options);
    let entry = Place { directory, name, path: shown };
    let opened = if shown.is_empty() {
        Some(openat(directory, name, DIRECTORY, Mode::empty()).map_err(PackError::file("open", b"/"))?)
    } else {
        packer.add(&entry, &stat)?
    };
    if let Some(opened) = opened {
        let mut walk = Walk::new(opened, shown)?;
        while let Some(step) = walk.next()? {
            let (Step::Entry(stat), Some(directory)) = (step, walk.directory()) else { continue };
            let entry = Place { directory, name: walk.name(), path: walk.path() };
            if let Some(opened) = packer.add(&entry, &stat)? {
                walk.enter(opened)?;
            }
        }
    }
    packer.finish()
}

/// Where a file is, and its path in the stream.
pub struct Place<'a> {
    pub directory: BorrowedFd<'a>,
    pub name: &'a [u8],
    pub path: &'a [u8],
}

/// A stream that is written.
pub struct Packer<'a, W> {
    out: &'a mut W,
    options: PackOptions,
    packed: Packed,
    /// The first names of files that have several, by device and inode.
    links: HashMap<(u64, u64), Vec<u8>>,
    link_names: usize,
    buffer: Vec<u8>,
}

impl<'a, W: Write> Packer<'a, W> {
    pub fn new(out: &'a mut W, options: PackOptions) -> Self {
        let buffer = vec![0; CHUNK];
        Self { out, options, packed: Packed::default(), links: HashMap::new(), link_names: 0, buffer }
    }

    /// Adds one file, which was found to be `stat`. A directory is returned, to go on with what is in it.
    pub fn add(&mut self, entry: &Place<'_>, stat: &Stat) -> Result<Option<OwnedFd>, PackError> {
        let path = entry.path;
        match kind(stat) {
            FileType::RegularFile => self.add_file(entry).map(|()| None),
            FileType::Directory => {
                let opened = match openat(entry.directory, entry.name, DIRECTORY, Mode::empty()) {
                    // It was removed, or is another kind of file by now.
                    Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
                    opened => opened.map_err(PackError::file("open", path))?,
                };
                let stat = fstat(&opened).map_err(PackError::file("look at", path))?;
                let head = Head {
                    attributes: attributes::read(opened.as_fd()),
                    ..head(EntryType::Directory, path, &stat)
                };
                self.write_head(&head)?;
                Ok(Some(opened))
            }
            FileType::Symlink => {
                let link = match readlinkat(entry.directory, entry.name, Vec::new()) {
                    Err(Errno::NOENT | Errno::INVAL) => return Ok(None),
                    link => link.map_err(PackError::file("read", path))?,
                };
                self.write_head(&Head { link: link.to_bytes(), ..head(EntryType::Symlink, path, stat) })?;
                Ok(None)
            }
            FileType::Socket => {
                self.packed.sockets = self.packed.sockets.saturating_add(1);
                Ok(None)
            }
            other => {
                let kind = match other {
                    FileType::CharacterDevice => EntryType::Char,
                    FileType::BlockDevice => EntryType::Block,
                    FileType::Fifo => EntryType::Fifo,
                    _ => return Ok(None),
                };
                let device =
                    if kind == EntryType::Fifo { (0, 0) } else { (major(stat.st_rdev), minor(stat.st_rdev)) };
                self.write_head(&Head { device, ..head(kind, path, stat) })?;
                Ok(None)
            }
        }
    }

    /// Adds an entry without data.
    pub fn write_head(&mut self, head: &Head<'_>) -> Result<(), PackError> {
        self.packed.entries = self.packed.entries.saturating_add(1);
        head.write(self.out).map_err(PackError::Write)
    }

    fn add_file(&mut self, entry: &Place<'_>) -> Result<(), PackError> {
        let path = entry.path;
        let file = match openat(entry.directory, entry.name, READ, Mode::empty()) {
            Err(Errno::NOENT | Errno::LOOP | Errno::NXIO) => return Ok(()),
            file => file.map_err(PackError::file("open", path))?,
        };
        let stat = fstat(&file).map_err(PackError::file("look at", path))?;
        if kind(&stat) != FileType::RegularFile {
            return Ok(());
        }
        let id = (stat.st_dev, stat.st_ino);
        if let Some(first) = self.links.get(&id).filter(|_| stat.st_nlink > 1) {
            let first = first.clone();
            return self.write_head(&Head { link: &first, ..head(EntryType::Link, path, &stat) });
        }
        if stat.st_nlink > 1
            && self.links.len() < MAX_LINKS
            && self.link_names.saturating_add(path.len()) <= MAX_LINK_NAMES
        {
            self.link_names = self.link_names.saturating_add(path.len());
            self.links.insert(id, path.to_vec());
        }
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let plain = Head {
            size,
            attributes: attributes::read(file.as_fd()),
            ..head(EntryType::Regular, path, &stat)
        };
        let Some(segments) = self.segments(&file, &stat, size) else {
            self.write_head(&plain)?;
            self.copy(file.as_fd(), path, size)?;
            return pad(size, self.out).map_err(PackError::Write);
        };
        self.write_sparse(&file, &plain, &segments)
    }

    /// Writes a file as its map and the pieces that have data.
    fn write_sparse(
        &mut self,
        file: &OwnedFd,
        plain: &Head<'_>,
        segments: &[(u64, u64)],
    ) -> Result<(), PackError> {
        let mut map = format!("{}\n", segments.len());
        for (start, length) in segments {
            map.push_str(&format!("{start}\n{length}\n"));
        }
        let mut map = map.into_bytes();
        map.resize(map.len().next_multiple_of(512), 0);
        let data = segments.iter().fold(0_u64, |sum, (_, length)| sum.saturating_add(*length));
        let stored = data.saturating_add(u64::try_from(map.len()).unwrap_or(u64::MAX));
        let head = Head {
            size: stored,
            sparse: Some(plain.size),
            attributes: plain.attributes.clone(),
            link: b"",
            ..*plain
        };
        self.write_head(&head)?;
        self.out.write_all(&map).map_err(PackError::Write)?;
        for (start, length) in segments {
            seek(file, SeekFrom::Start(*start)).map_err(PackError::file("read", plain.path))?;
            self.copy(file.as_fd(), plain.path, *length)?;
        }
        pad(data, self.out).map_err(PackError::Write)
    }

    /// The pieces of a file that have data, where it has large holes.
    fn segments(&self, file: &OwnedFd, stat: &Stat, size: u64) -> Option<Vec<(u64, u64)>> {
        let allocated = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512);
        if !self.options.sparse || allocated.saturating_add(LEAST_HOLES) > size {
            return None;
        }
        let mut segments = Vec::new();
        let mut position = 0;
        while position < size {
            let start = match seek(file, SeekFrom::Data(position)) {
                // There is nothing but a hole.
                Err(Errno::NXIO) => break,
                start => start.ok()?.min(size),
            };
            let end = if segments.len().saturating_add(1) == MAX_SEGMENTS {
                size
            } else {
                seek(file, SeekFrom::Hole(start)).ok()?.clamp(start, size)
            };
            if end > start {
                segments.push((start, end.saturating_sub(start)));
            }
            // The file may change: each turn goes on.
            position = end.max(position.saturating_add(1));
        }
        // GNU tar takes a file's size from the end of the last piece.
        if segments.last().is_none_or(|(start, length)| start.saturating_add(*length) < size) {
            segments.push((size, 0));
        }
        seek(file, SeekFrom::Start(0)).ok()?;
        Some(segments)
    }

    /// Copies `length` bytes of data, and zeros where the file ends before.
    fn copy(&mut self, file: BorrowedFd<'_>, path: &[u8], length: u64) -> Result<(), PackError> {
        let mut left = length;
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(CHUNK);
            let count = match read(file, self.buffer.get_mut(..most).unwrap_or_default()) {
                Err(Errno::INTR) => continue,
                count => count.map_err(PackError::file("read", path))?,
            };
            if count == 0 {
                self.packed.cut = self.packed.cut.saturating_add(1);
                let mut zeros = io::Read::take(io::repeat(0), left);
                io::copy(&mut zeros, self.out).map_err(PackError::Write)?;
                return Ok(());
            }
            self.out.write_all(self.buffer.get(..count).unwrap_or_default()).map_err(PackError::Write)?;
            left = left.saturating_sub(u64::try_from(count).unwrap_or(left));
        }
        Ok(())
    }

    /// Ends the stream.
    pub fn finish(self) -> Result<Packed, PackError> {
        finish(self.out).map_err(PackError::Write)?;
        self.out.flush().map_err(PackError::Write)?;
        Ok(self.packed)
    }
}

/// What a stream says of a file of this kind, without data.
pub fn head<'a>(kind: EntryType, path: &'a [u8], stat: &Stat) -> Head<'a> {
    Head {
        kind,
        path,
        link: b"",
        mode: stat.st_mode,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0)),
        device: (0, 0),
        attributes: Vec::new(),
        size: 0,
        sparse: None,
    }
}
