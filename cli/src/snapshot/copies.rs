//! Copies of disks that can be written to: into a snapshot, and from there for each VM that starts from it.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, copy_file_range, flock, fstatvfs, ioctl_ficlone};
use rustix::io::Errno;
use vmm::{ImageFormat, VmConfig, disk_name};

use super::manifest;
use super::place::{scratch, unnamed};

/// How much is copied at a time where the kernel does not copy.
const PIECE: usize = 1 << 20;
const PAGE: usize = 4096;
/// What pages are compared with.
const ZEROS: [u8; PAGE] = [0; PAGE];

/// A disk of a running VM, open to be copied.
pub struct Source {
    file: File,
    /// Its length in bytes.
    pub bytes: u64,
}

impl Source {
    /// The disk at `path`, which a VM has open to write to.
    ///
    /// # Errors
    ///
    /// Why it can't be copied, on one line.
    pub fn open(path: &Path) -> Result<Self, String> {
        let shown = path.display();
        let failed = |error: io::Error| format!("cannot read the disk {shown}: {error}");
        // What is no disk might block.
        let mut options = OpenOptions::new();
        let mut file = options.read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(failed)?;
        let kind = file.metadata().map_err(failed)?.file_type();
        // The VM has it locked for itself.
        let is_the_vms = (kind.is_file() || kind.is_block_device())
            && flock(&file, FlockOperation::NonBlockingLockShared) == Err(Errno::WOULDBLOCK);
        if !is_the_vms {
            return Err(format!("{shown} is not the disk that the VM has open: the file was replaced"));
        }
        let bytes = file.seek(SeekFrom::End(0)).map_err(failed)?;
        Ok(Self { file, bytes })
    }

    /// Bytes that a copy takes on a file system without reflinks, as far as that is known.
    fn allocated(&self) -> u64 {
        self.file.metadata().map_or(0, |metadata| metadata.blocks().saturating_mul(512).min(self.bytes))
    }
}

/// A disk that is being copied.
pub struct Copying {
    from: Source,
    to: File,
    /// For messages.
    shown: PathBuf,
}

impl Copying {
    /// To a new file without a name in `directory`, which is tried at once where that costs nothing.
    ///
    /// # Errors
    ///
    /// The file can't be made, or there is no room; on one line.
    pub fn new(from: Source, shown: &Path, directory: &Path) -> Result<Self, String> {
        let advice = "name a directory on another file system";
        Self::with_advice(from, shown, (unnamed(directory)?, directory), advice)
    }

    /// The same to the file `to`, which is in `directory`, of which the user has named no other.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn to(from: Source, shown: &Path, to: File, directory: &Path) -> Result<Self, String> {
        Self::with_advice(from, shown, (to, directory), "make room there")
    }

    /// The same; where there is no room, `advice` is what to do.
    fn with_advice(
        from: Source,
        shown: &Path,
        (to, directory): (File, &Path),
        advice: &str,
    ) -> Result<Self, String> {
        let copying = Self { from, to, shown: shown.to_owned() };
        copying.check_room(directory).map_err(|message| format!("{message}: {advice}")).map(|()| copying)
    }

    /// Checks that there is room for the copy, where it takes any. A reflink writes out what the disk has in the page
    /// cache, so that the next one takes less time.
    fn check_room(&self, directory: &Path) -> Result<(), String> {
        if ioctl_ficlone(&self.to, &self.from.file).is_ok() {
            return Ok(());
        }
        let needed = self.from.allocated();
        let free = fstatvfs(&self.to).map_or(u64::MAX, |room| room.f_bavail.saturating_mul(room.f_frsize));
        if needed <= free {
            return Ok(());
        }
        let (shown, directory) = (self.shown.display(), directory.display());
        Err(format!(
            "the disk {shown} has {} MiB, and there are {} MiB free in {directory}",
            needed.div_ceil(1 << 20),
            free >> 20
        ))
    }

    /// Copies the disk, which is not written to meanwhile.
    ///
    /// # Errors
    ///
    /// On one line.
    pub fn copy(&self) -> Result<(), String> {
        let copied = copy(&self.from.file, &self.to, self.from.bytes);
        copied.map_err(|error| format!("cannot copy the disk {}: {error}", self.shown.display()))
    }

    /// Its length.
    pub fn bytes(&self) -> u64 {
        self.from.bytes
    }

    /// The copy.
    pub fn into_file(self) -> File {
        self.to
    }
}

/// Makes `to` a copy of the `bytes` of `from`: one that shares its blocks where the file system can (a reflink), else
/// one with holes where that has holes.
pub fn copy(from: &File, to: &File, bytes: u64) -> io::Result<()> {
    let length = rustix::fs::seek(from, rustix::fs::SeekFrom::End(0))?;
    if length != bytes {
        return Err(io::Error::other(format!("it has {length} bytes now, and not {bytes}")));
    }
    // It may have blocks of an earlier try, and holes are not written.
    to.set_len(0)?;
    if ioctl_ficlone(to, from).is_err() {
        to.set_len(bytes)?;
        copy_data(from, to, bytes)?;
    }
    Ok(())
}

fn copy_data(from: &File, to: &File, bytes: u64) -> io::Result<()> {
    use rustix::fs::{SeekFrom, seek};
    let mut place = 0;
    while place < bytes {
        let start = match seek(from, SeekFrom::Data(place)) {
            Ok(start) => start.min(bytes),
            Err(Errno::NXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let end = seek(from, SeekFrom::Hole(start))?.min(bytes);
        copy_range(from, to, start..end)?;
        place = end;
    }
    Ok(())
}

/// Has the kernel copy `range`, or copies it where it can't.
fn copy_range(from: &File, to: &File, range: std::ops::Range<u64>) -> io::Result<()> {
    let (mut at, end) = (range.start, range.end);
    while at < end {
        let left = usize::try_from(end - at).unwrap_or(usize::MAX).min(1 << 30);
        let (mut read, mut written) = (at, at);
        match copy_file_range(from, Some(&mut read), to, Some(&mut written), left) {
            Ok(0) => return read_range(from, to, at..end),
            Ok(count) => at += count as u64,
            Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM | Errno::BADF) => {
                return read_range(from, to, at..end);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Reads and writes `range`, but for pages of zeros.
fn read_range(from: &File, to: &File, range: std::ops::Range<u64>) -> io::Result<()> {
    let mut buffer = vec![0; PIECE];
    let mut at = range.start;
    while at < range.end {
        let most = usize::try_from(range.end - at).unwrap_or(usize::MAX).min(PIECE);
        let piece = buffer.get_mut(..most).ok_or(io::ErrorKind::InvalidInput)?;
        from.read_exact_at(piece, at)?;
        for page in piece.chunks(PAGE) {
            if !ZEROS.starts_with(page) {
                to.write_all_at(page, at)?;
            }
            at += page.len() as u64;
        }
    }
    Ok(())
}

/// A disk of a VM that was saved, of which each VM that starts from it has its own copy.
pub struct Saved {
    /// Which of the VM's disks it is.
    pub index: usize,
    /// Its content.
    pub file: File,
    /// Its length.
    pub bytes: u64,
    /// Where it is, for messages and lists.
    pub shown: PathBuf,
    /// Where a copy is made without --disks: the file system may let them share blocks.
    pub beside: PathBuf,
    /// The file belongs to this VM alone, and is its disk as it is.
    pub is_own: bool,
}

impl Saved {
    /// A file without a name, in `directory` or beside this one, with the content.
    fn copy(&self, directory: Option<&Path>) -> Result<File, String> {
        let file = self.file.try_clone();
        let file = file.map_err(|error| format!("cannot read {}: {error}", self.shown.display()))?;
        if self.is_own {
            return Ok(file);
        }
        let source = Source { file, bytes: self.bytes };
        let copying = match directory {
            Some(directory) => make(directory).and_then(|()| Copying::new(source, &self.shown, directory))?,
            None => {
                let to = scratch(&self.beside)
                    .map_err(|message| format!("{message}: use `mvm restore --disks DIR`"))?;
                let advice = "make room there, or use `mvm snapshot` and `mvm restore --disks DIR`";
                Copying::with_advice(source, &self.shown, (to, &self.beside), advice)?
            }
        };
        copying.copy().map(|()| copying.into_file())
    }
}

/// The private copies of a restored VM's disks. Those without a name go with this and the VM; those with one stay from
/// [`keep`](Self::keep) on, and are removed before.
#[derive(Default)]
pub struct PrivateDisks {
    files: Vec<File>,
    named: Vec<PathBuf>,
}

impl PrivateDisks {
    /// Copies `saved` for a VM of `config`, which gets their paths: to files called as the guest calls them in
    /// `directory`, which is made where it is not there, or to files without names beside those of the snapshot.
    ///
    /// # Errors
    ///
    /// On one line; nothing is left.
    pub fn of(saved: &[Saved], directory: Option<&Path>, config: &mut VmConfig) -> Result<Self, String> {
        let mut own = Self::default();
        for disk in saved {
            own.files.push(disk.copy(directory)?);
        }
        // All of them, before one has a name: a copy that is interrupted leaves nothing.
        let files = std::mem::take(&mut own.files);
        for (Saved { index, .. }, file) in saved.iter().zip(&files) {
            let path = match directory {
                Some(directory) => own.name(file, &directory.join(format!("{}.img", disk_name(*index))))?,
                None => PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd())),
            };
            if let Some(disk) = manifest::disks_mut(config).nth(*index) {
                // What the guest has written may look like another format: it is its disk's content.
                (disk.path, disk.format) = (path, ImageFormat::Raw);
            }
        }
        own.files = files;
        Ok(own)
    }

    /// Gives `file` the name `path`, which is not there yet.
    fn name(&mut self, file: &File, path: &Path) -> Result<PathBuf, String> {
        super::place::name(file, path).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => {
                format!("{} is there already: name another directory with --disks", path.display())
            }
            _ => format!("cannot make {}: {error}", path.display()),
        })?;
        self.named.push(path.to_owned());
        // The VM is not told where this process is.
        std::path::absolute(path).map_err(|error| format!("cannot make {}: {error}", path.display()))
    }

    /// Files with names stay: the VM runs.
    pub fn keep(&mut self) {
        self.named.clear();
    }
}

impl Drop for PrivateDisks {
    fn drop(&mut self) {
        for path in &self.named {
            let _ = fs::remove_file(path);
        }
    }
}

fn make(directory: &Path) -> Result<(), String> {
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(format!("cannot make {}: {error}", directory.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        // Each has files of some MiB.
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn a_copy_has_the_content_and_the_holes(
            length in 1..3_000_000_u64,
            writes in proptest::collection::vec((0..3_000_000_u64, 1..9000_usize, any::<u8>()), 0..6),
        ) {
            let from = tempfile::tempfile().unwrap();
            for (place, count, byte) in writes {
                from.write_all_at(&vec![byte; count], place).unwrap();
            }
            from.set_len(length).unwrap();
            let content = |file: &File| {
                let mut content = vec![1; usize::try_from(length).unwrap()];
                file.read_exact_at(&mut content, 0).unwrap();
                content
            };
            for by_hand in [false, true] {
                let to = tempfile::tempfile().unwrap();
                if by_hand {
                    to.set_len(length).unwrap();
                    read_range(&from, &to, 0..length).unwrap();
                } else {
                    to.write_all_at(&[3; 10_000], 0).unwrap();
                    copy(&from, &to, length).unwrap();
                }
                prop_assert!(content(&from) == content(&to));
                prop_assert!(to.metadata().unwrap().blocks() <= from.metadata().unwrap().blocks() + 16);
            }
        }
    }

    #[test]
    fn a_file_that_has_become_shorter_is_no_copy() {
        let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        from.write_all_at(&[7; 5000], 0).unwrap();
        assert!(copy(&from, &to, 9000).is_err());
    }

    #[test]
    fn a_file_that_no_vm_has_is_not_taken_for_a_disk() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(Source::open(file.path()).err().unwrap().contains("was replaced"));
        let vm = File::open(file.path()).unwrap();
        flock(&vm, FlockOperation::NonBlockingLockExclusive).unwrap();
        assert_eq!(Source::open(file.path()).ok().unwrap().bytes, 0);
    }
}
