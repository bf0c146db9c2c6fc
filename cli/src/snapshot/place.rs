//! Where a snapshot is made.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use image::Digest;

use super::manifest::{Digests, Manifest};
use super::settle::settle;

/// The files of a snapshot.
pub const MANIFEST: &str = "manifest.json";
pub const STATE: &str = "state";
pub const MEMORY: &str = "memory";

/// Where a snapshot is made. Its files have no names until they are whole, so that nothing is left of one that is not.
pub struct Place {
    directory: PathBuf,
    /// Where its files are until then.
    pub parent: PathBuf,
    pub state: File,
    pub memory: File,
    /// Copies of disks, with their names.
    pub disks: Vec<(String, File)>,
}

impl Place {
    /// The place `directory`, which is not there yet.
    ///
    /// # Errors
    ///
    /// Why not, on one line.
    pub fn new(directory: &Path) -> Result<Self, String> {
        let shown = directory.display();
        if fs::symlink_metadata(directory).is_ok() {
            return Err(format!("{shown} is there already: name a directory that is not"));
        }
        let parent = match directory.parent() {
            Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
            Some(parent) => parent,
            None => return Err(format!("{shown} cannot be made: name a directory in another one")),
        };
        let (state, memory) = (unnamed(parent)?, unnamed(parent)?);
        Ok(Self {
            directory: directory.to_owned(),
            parent: parent.to_owned(),
            state,
            memory,
            disks: Vec::new(),
        })
    }

    /// The same once the VM's process has written its files, which it can't change any more then.
    ///
    /// # Errors
    ///
    /// Why not, on one line.
    pub fn settled(self) -> Result<Self, String> {
        let Self { directory, parent, state, memory, disks } = self;
        let own = |file| settle(file, || unnamed(&parent)).map(|settled| settled.file);
        let (state, memory) = (own(state)?, own(memory)?);
        Ok(Self { directory, parent, state, memory, disks })
    }

    /// Gives the files their names, with the manifest last, which is made of their digests.
    ///
    /// # Errors
    ///
    /// Why not, on one line; nothing is left.
    pub fn keep(mut self, manifest: impl FnOnce(Digests) -> Manifest) -> Result<(), String> {
        let failed = |doing: &'static str| {
            let shown = self.directory.display().to_string();
            move |error: io::Error| format!("cannot {doing} {shown}: {error}")
        };
        let (make, write) = (failed("make"), failed("write the snapshot to"));
        let mut digests = || {
            let (state, memory) = (digest(&mut self.state)?, digest(&mut self.memory)?);
            Ok(Digests { state, memory })
        };
        let digests = digests().map_err(&write)?;
        fs::DirBuilder::new().mode(0o700).create(&self.directory).map_err(make)?;
        let kept = self.fill(&manifest(digests)).map_err(write);
        if kept.is_err() {
            let _ = fs::remove_dir_all(&self.directory);
        }
        kept
    }

    fn fill(&self, manifest: &Manifest) -> io::Result<()> {
        let disks = self.disks.iter().map(|(disk, file)| (file, disk.as_str()));
        for (file, own) in [(&self.state, STATE), (&self.memory, MEMORY)].into_iter().chain(disks) {
            file.set_permissions(Permissions::from_mode(0o400))?;
            file.sync_all()?;
            name(file, &self.directory.join(own))?;
        }
        let mut options = OpenOptions::new();
        let mut file =
            options.write(true).create_new(true).mode(0o400).open(self.directory.join(MANIFEST))?;
        file.write_all(&manifest.to_bytes()?)?;
        file.sync_all()?;
        File::open(&self.directory)?.sync_all()
    }
}

/// Gives `file`, which has no name, the name `path`.
pub fn name(file: &File, path: &Path) -> io::Result<()> {
    let own = format!("/proc/self/fd/{}", file.as_raw_fd());
    let (flags, cwd) = (rustix::fs::AtFlags::SYMLINK_FOLLOW, rustix::fs::CWD);
    Ok(rustix::fs::linkat(cwd, own, cwd, path, flags)?)
}

/// A file without a name in `directory`, for this user alone, which gets none.
pub fn scratch(directory: &Path) -> Result<File, String> {
    unnamed(directory).or_else(|failure| {
        // Not all file systems can do without a name.
        let path = directory.join(format!(".scratch-{}", std::process::id()));
        let _ = fs::remove_file(&path);
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create_new(true).mode(0o600).open(&path);
        let _ = fs::remove_file(&path);
        file.map_err(|_| failure)
    })
}

/// A file without a name in `directory`, for this user alone, which can get one.
pub fn unnamed(directory: &Path) -> Result<File, String> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600).custom_flags(libc::O_TMPFILE);
    options.open(directory).map_err(|error| format!("cannot write to {}: {error}", directory.display()))
}

/// The digest of all that is in `file`. What the file system says is a hole is not read.
pub fn digest(file: &mut File) -> io::Result<Digest> {
    file.seek(SeekFrom::Start(0))?;
    Digest::of_all(Sparse { place: 0, data: 0..0, file })
}

/// What is in a file from its beginning on.
struct Sparse<'a> {
    file: &'a File,
    place: u64,
    /// Where there is data next: before it is a hole.
    data: std::ops::Range<u64>,
}

impl Read for Sparse<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        use rustix::fs::{SeekFrom, seek};
        if self.place >= self.data.end {
            let length = self.file.metadata()?.len();
            self.data = match seek(self.file, SeekFrom::Data(self.place)) {
                Ok(start) => start..seek(self.file, SeekFrom::Hole(start))?,
                Err(rustix::io::Errno::NXIO) => length.max(self.place)..length.max(self.place),
                Err(error) => return Err(error.into()),
            };
        }
        let left = |end: u64| usize::try_from(end.saturating_sub(self.place)).unwrap_or(usize::MAX);
        let hole = left(self.data.start).min(buffer.len());
        let count = if hole > 0 {
            buffer.iter_mut().take(hole).for_each(|byte| *byte = 0);
            hole
        } else {
            let most = left(self.data.end).min(buffer.len());
            let part = buffer.get_mut(..most).unwrap_or_default();
            std::os::unix::fs::FileExt::read_at(self.file, part, self.place)?
        };
        self.place = self.place.saturating_add(count as u64);
        Ok(count)
    }
}

/// Bytes of a page.
const PAGE: usize = 4096;

/// The digest of the length of `file` and of its pages that are not all zeros, each with its place in front, eight
/// bytes, little endian. A file that is nearly all holes, as a VM's memory, has it in a moment.
pub fn digest_of_pages(file: &File) -> io::Result<Digest> {
    use rustix::fs::{SeekFrom, seek};
    use rustix::io::Errno;
    use std::os::unix::fs::FileExt;
    let length = file.metadata()?.len();
    let (mut next, mut data, mut page) = (0, 0..0, vec![0; PAGE]);
    // The next one that is not all zeros.
    let mut more = || -> io::Result<Option<Vec<u8>>> {
        while next < length {
            if next >= data.end {
                data = match seek(file, SeekFrom::Data(next)) {
                    Ok(start) => start..seek(file, SeekFrom::Hole(start))?,
                    Err(Errno::NXIO) => return Ok(None),
                    Err(error) => return Err(error.into()),
                };
                next = data.start / PAGE as u64 * PAGE as u64;
            }
            let place = next;
            next += PAGE as u64;
            let most = usize::try_from(length - place).unwrap_or(PAGE).min(PAGE);
            let page = page.get_mut(..most).unwrap_or_default();
            file.read_exact_at(page, place)?;
            if page.iter().any(|byte| *byte != 0) {
                return Ok(Some([&place.to_le_bytes()[..], page].concat()));
            }
        }
        Ok(None)
    };
    let pieces = std::iter::from_fn(|| more().transpose());
    Digest::of_all(Pieces { pieces, left: io::Cursor::new(length.to_le_bytes().to_vec()) })
}

/// Pieces behind each other.
struct Pieces<I> {
    pieces: I,
    left: io::Cursor<Vec<u8>>,
}

impl<I: Iterator<Item = io::Result<Vec<u8>>>> Read for Pieces<I> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.left.read(buffer)? {
                0 if !buffer.is_empty() => match self.pieces.next() {
                    Some(piece) => self.left = io::Cursor::new(piece?),
                    None => return Ok(0),
                },
                count => return Ok(count),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        // Each has files of some MiB.
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn a_digest_is_that_of_the_file_with_its_holes(
            length in 0..400_000_u64,
            writes in proptest::collection::vec((0..400_000_u64, 1..9000_usize), 0..6),
        ) {
            let mut file = tempfile::tempfile().unwrap();
            file.set_len(length).unwrap();
            for (place, count) in writes {
                file.write_all_at(&vec![7; count], place).unwrap();
            }
            let mut all = Vec::new();
            file.seek(SeekFrom::Start(0)).unwrap();
            file.read_to_end(&mut all).unwrap();
            prop_assert_eq!(digest(&mut file).unwrap(), Digest::of(&all));
            let mut pages = (all.len() as u64).to_le_bytes().to_vec();
            for (number, page) in all.chunks(PAGE).enumerate().filter(|(_, page)| page.iter().any(|byte| *byte != 0)) {
                pages.extend(((number * PAGE) as u64).to_le_bytes());
                pages.extend(page);
            }
            prop_assert_eq!(digest_of_pages(&file).unwrap(), Digest::of(&pages));
        }
    }
}
