//! The disk that takes a container's changes: a sparse file with an ext4, made of a template. The agent grows the file
//! system to the size of the file. What a guest has written is never read here.

use std::fs::{self, File, OpenOptions, remove_file};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use crate::assets::Assets;

/// The name of the file.
const FILE: &str = "changes.ext4";
/// That of one that is being made.
const NEW: &str = "changes.ext4.new";
/// What the file of templates starts with; `tools/changes-templates` describes it.
const MAGIC: &[u8] = b"mvm-ext4";

/// The disk for a container's changes in `directory`: that of its earlier lives, or a new one of those in the file
/// `templates`.
///
/// # Errors
///
/// Those of [`create`]. `InvalidData` where something else than a file has its name.
pub fn open_or_create(templates: &Path, directory: &Path, size: u64) -> io::Result<PathBuf> {
    let path = directory.join(FILE);
    match fs::symlink_metadata(&path) {
        Ok(metadata) if metadata.is_file() => Ok(path),
        Ok(_) => Err(io::Error::new(io::ErrorKind::InvalidData, format!("{} is not a file", path.display()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => create(templates, directory, size),
        Err(error) => Err(error),
    }
}

/// Where the disk for the changes of a container is that `directory` is kept in.
pub fn path(directory: &Path) -> PathBuf {
    directory.join(FILE)
}

/// Makes the disk for a container's changes in `directory`, which is the caller's alone, and returns its path. `size`
/// is that of the disk in bytes; the file takes as much space as is written.
///
/// # Errors
///
/// `InvalidData` if the templates are damaged, `InvalidInput` if each is larger than
/// `size`; others are those of the host's file system. No file is left then.
fn create(templates: &Path, directory: &Path, size: u64) -> io::Result<PathBuf> {
    let (path, new) = (directory.join(FILE), directory.join(NEW));
    // What a process that was killed has left.
    let _ = remove_file(&new);
    create_of(templates, &new, size).and_then(|()| fs::rename(&new, &path)).map(|()| path)
}

/// Makes such a disk at `path`, where there is nothing.
///
/// # Errors
///
/// It cannot be written, or the templates are damaged or have none for this size.
pub fn create_at(assets: &Assets, path: &Path, size: u64) -> io::Result<()> {
    create_of(&assets.changes, path, size)
}

fn create_of(templates: &Path, path: &Path, size: u64) -> io::Result<()> {
    let templates = fs::read(templates)?;
    let template = largest(&templates, size)?;
    // O_EXCL follows no link.
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let write = |piece: &Piece<'_>| file.write_all_at(piece.content, piece.offset);
    let made = template.iter().try_for_each(write).and_then(|()| file.set_len(size));
    if made.is_err() {
        let _ = remove_file(path);
    }
    made
}

/// The most bytes of a disk that is made a template: a file system that next to nothing was written to.
const MOST: u64 = 64 << 20;
/// By how many bytes a disk is read, and left out where they are zeros.
const BLOCK: usize = 4096;

/// Writes what is on `disk` to `out`, as a file of templates that has this one.
///
/// # Errors
///
/// `FileTooLarge` where there is more on it than a new file system has; others are those of the host's file system.
pub fn write_template(disk: &File, out: &File) -> io::Result<()> {
    let size = disk.metadata()?.len();
    let (mut out, mut written, mut end) = (BufWriter::new(out), 0_u64, 0);
    out.write_all(MAGIC)?;
    loop {
        let start = match seek(disk, SeekFrom::Data(end)) {
            Ok(start) => start,
            // What follows is a hole.
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        end = seek(disk, SeekFrom::Hole(start))?;
        written = written.saturating_add(end.saturating_sub(start));
        if written > MOST {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let mut content = vec![0; usize::try_from(end.saturating_sub(start)).map_err(io::Error::other)?];
        disk.read_exact_at(&mut content, start)?;
        for (offset, block) in (start..).step_by(BLOCK).zip(content.chunks(BLOCK)) {
            if block.iter().any(|byte| *byte != 0) {
                for number in [size, offset, block.len() as u64] {
                    out.write_all(&number.to_le_bytes())?;
                }
                out.write_all(block)?;
            }
        }
    }
    out.flush()
}

/// A part of a template.
struct Piece<'a> {
    /// The size of the template in bytes.
    size: u64,
    offset: u64,
    content: &'a [u8],
}

/// The largest template that is not larger than `size`.
fn largest(templates: &[u8], size: u64) -> io::Result<Vec<Piece<'_>>> {
    let all = pieces(templates).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, "the templates of disks (changes.templates) are damaged")
    })?;
    let best = all.iter().map(|piece| piece.size).filter(|template| *template <= size).max();
    let best = best.ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("no template for a disk of {size} bytes: it has to be larger"),
        )
    })?;
    Ok(all.into_iter().filter(|piece| piece.size == best).collect())
}

/// The pieces of all templates; `None` if they are damaged.
fn pieces(templates: &[u8]) -> Option<Vec<Piece<'_>>> {
    let mut rest = templates.strip_prefix(MAGIC)?;
    let mut pieces = Vec::new();
    while !rest.is_empty() {
        let size = number(&mut rest)?;
        let offset = number(&mut rest)?;
        let length = number(&mut rest)?;
        let (content, behind) = rest.split_at_checked(usize::try_from(length).ok()?)?;
        rest = behind;
        if offset.checked_add(length)? > size {
            return None;
        }
        pieces.push(Piece { size, offset, content });
    }
    Some(pieces)
}

/// Takes a number from the front.
fn number(rest: &mut &[u8]) -> Option<u64> {
    let (bytes, behind) = rest.split_first_chunk()?;
    *rest = behind;
    Some(u64::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use rstest::rstest;

    use super::*;

    fn record(size: u64, offset: u64, content: &[u8]) -> Vec<u8> {
        let numbers = [size, offset, content.len() as u64].map(u64::to_le_bytes).concat();
        [&numbers, content].concat()
    }

    #[test]
    fn a_disk_that_was_written_to_becomes_a_template() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let disk = File::options().read(true).write(true).create_new(true).open(path("disk")).unwrap();
        let size = 16 << 20;
        disk.set_len(size).unwrap();
        for (offset, content) in [(1024, &b"superblock"[..]), (3 << 20, &[0; 9000]), (size - 4, b"last")] {
            disk.write_all_at(content, offset).unwrap();
        }
        let templates = File::create_new(path("templates")).unwrap();
        write_template(&disk, &templates).unwrap();
        assert!(templates.metadata().unwrap().len() < 10_000);
        let made = open_or_create(&path("templates"), directory.path(), size).unwrap();
        assert!(fs::read(made).unwrap() == fs::read(path("disk")).unwrap());
        // One with more than a file system that is new.
        disk.set_len(MOST + 2 * size).unwrap();
        let piece = vec![1; 1 << 20];
        (0..=MOST >> 20).for_each(|piece_at| disk.write_all_at(&piece, piece_at << 20).unwrap());
        let error = write_template(&disk, &templates).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
    }

    /// Templates of 1 MiB and of 16 MiB.
    fn templates() -> Vec<u8> {
        let small = record(1 << 20, 1024, b"small");
        [MAGIC, &small, &record(16 << 20, 1024, b"large"), &record(16 << 20, (16 << 20) - 3, b"end")].concat()
    }

    fn assets(directory: &Path, templates: &[u8]) -> Assets {
        let changes = directory.join("templates");
        fs::write(&changes, templates).unwrap();
        Assets { kernel: "".into(), root: "".into(), changes }
    }

    fn read(file: &File, offset: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![9; length];
        file.read_exact_at(&mut bytes, offset).unwrap();
        bytes
    }

    #[rstest]
    #[case(1 << 20, b"small", b"\0\0\0")]
    #[case((16 << 20) - 1, b"small", b"\0\0")]
    #[case(16 << 20, b"large", b"end")]
    #[case(20 << 30, b"large", b"end")]
    fn a_disk_is_made_of_the_largest_template(#[case] size: u64, #[case] start: &[u8], #[case] end: &[u8]) {
        let directory = tempfile::tempdir().unwrap();
        let path = create(&assets(directory.path(), &templates()).changes, directory.path(), size).unwrap();
        let (file, metadata) = (File::open(&path).unwrap(), path.metadata().unwrap());
        assert_eq!((metadata.len(), metadata.permissions().mode() & 0o7777), (size, 0o600));
        assert!(metadata.blocks() * 512 < 1 << 20, "{} blocks", metadata.blocks());
        assert_eq!(read(&file, 1022, 2), [0, 0]);
        assert_eq!(read(&file, 1024, start.len()), start);
        let last = size.min(16 << 20) - end.len() as u64;
        assert_eq!(read(&file, last, end.len()), end);
    }

    #[test]
    fn what_is_there_is_kept_and_links_are_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let assets = assets(directory.path(), &templates());
        for name in [FILE, NEW] {
            symlink(directory.path().join("elsewhere"), directory.path().join(name)).unwrap();
        }
        let error = open_or_create(&assets.changes, directory.path(), 1 << 20).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        fs::remove_file(directory.path().join(FILE)).unwrap();
        let path = open_or_create(&assets.changes, directory.path(), 1 << 20).unwrap();
        fs::write(&path, "written").unwrap();
        assert_eq!(open_or_create(&assets.changes, directory.path(), 16 << 20).unwrap(), path);
        assert_eq!(fs::read(&path).unwrap(), b"written");
        assert!(!directory.path().join("elsewhere").exists());
    }

    #[rstest]
    #[case(templates(), (1 << 20) - 1, "no template for a disk of 1048575 bytes")]
    #[case(Vec::new(), 1 << 20, "damaged")]
    #[case(b"mvm-ext5".to_vec(), 1 << 20, "damaged")]
    #[case(templates().split_last().unwrap().1.to_vec(), 1 << 20, "damaged")]
    #[case([MAGIC, &record(1, 1, b"x")].concat(), 1 << 20, "damaged")]
    #[case([MAGIC, &record(1, u64::MAX, b"x")].concat(), 1 << 20, "damaged")]
    #[case(MAGIC.to_vec(), 1 << 20, "no template")]
    fn others_are_refused(#[case] templates: Vec<u8>, #[case] size: u64, #[case] says: &str) {
        let directory = tempfile::tempdir().unwrap();
        let error =
            create(&assets(directory.path(), &templates).changes, directory.path(), size).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
        assert!(!directory.path().join(FILE).exists());
    }
}
