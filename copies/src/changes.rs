//! What a container has changed, as the upper directory of an overlay file system has it.

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, major, minor, openat, openat2,
    readlinkat, statat,
};
use rustix::io::Errno;
use tar::EntryType;

use crate::attributes;
use crate::error::PackError;
use crate::header::Head;
use crate::pack::{PackOptions, Packed, Packer, Place};
use crate::walk::{DIRECTORY, Step, Walk, kind};

/// What became of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// It was added.
    Added,
    /// It was changed, or something below it was.
    Changed,
    /// It was deleted.
    Deleted,
}

/// A path that was changed.
pub struct Change<'a> {
    /// What became of it.
    pub kind: ChangeKind,
    /// Its path, without a slash in front.
    pub path: &'a [u8],
    /// A directory that hides what the lower one has in it.
    is_opaque: bool,
    /// Where it is, unless it was deleted.
    file: Option<(BorrowedFd<'a>, &'a [u8], &'a Stat)>,
}

/// A link that every container has, as with docker, unless its image has something else there: its path, and where it
/// leads.
pub const MTAB: (&str, &str) = ("etc/mtab", "/proc/mounts");

/// The upper directory of an overlay, and the lower one.
pub struct Changes<'a> {
    /// What has the changes.
    pub upper: BorrowedFd<'a>,
    /// What was changed.
    pub lower: BorrowedFd<'a>,
    /// Paths, without a slash in front, that were made to mount on: they are no changes as long as they are empty. One
    /// of them may be the link [`MTAB`].
    pub mounted: &'a [Vec<u8>],
}

/// A directory on the way to what was found last.
struct Parent {
    path: Vec<u8>,
    directory: OwnedFd,
    stat: Stat,
    kind: ChangeKind,
    is_opaque: bool,
    is_reported: bool,
}

/// What reports changes.
type Report<'a> = dyn FnMut(&Change<'_>) -> Result<(), PackError> + 'a;

fn report_parents(parents: &mut [Parent], report: &mut Report<'_>) -> Result<(), PackError> {
    for parent in parents.iter_mut().filter(|parent| !parent.is_reported) {
        parent.is_reported = true;
        let Parent { path, directory, stat, kind, is_opaque, .. } = parent;
        let file = Some((directory.as_fd(), &b"."[..], &*stat));
        report(&Change { kind: *kind, path, is_opaque: *is_opaque, file })?;
    }
    Ok(())
}

/// Whether it is [`MTAB`] as it was made.
fn is_mtab(path: &[u8], (directory, name, stat): (BorrowedFd<'_>, &[u8], &Stat)) -> bool {
    path == MTAB.0.as_bytes()
        && kind(stat) == FileType::Symlink
        && readlinkat(directory, name, Vec::new()).is_ok_and(|target| target.as_bytes() == MTAB.1.as_bytes())
}

impl Changes<'_> {
    /// Calls `report` for each change; a directory's comes before what is in it, in no order else.
    ///
    /// # Errors
    ///
    /// Those of reading the directories, and of `report`.
    pub fn each(
        &self,
        report: &mut dyn FnMut(&Change<'_>) -> Result<(), PackError>,
    ) -> Result<(), PackError> {
        let top = openat(self.upper, ".", DIRECTORY, Mode::empty()).map_err(PackError::file("open", b"/"))?;
        let stat = fstat(&top).map_err(PackError::file("look at", b"/"))?;
        if self.in_lower(b".").is_some_and(|lower| !has_same_owner_and_mode(&lower, &stat)) {
            let file = Some((top.as_fd(), &b"."[..], &stat));
            report(&Change { kind: ChangeKind::Changed, path: b".", is_opaque: false, file })?;
        }
        let mut walk = Walk::new(top, b"")?;
        let mut parents: Vec<Parent> = Vec::new();
        while let Some(step) = walk.next()? {
            let Step::Entry(stat) = step else {
                parents.pop();
                continue;
            };
            let path = walk.path();
            if is_whiteout(&stat) {
                report_parents(&mut parents, report)?;
                report(&Change { kind: ChangeKind::Deleted, path, is_opaque: false, file: None })?;
                continue;
            }
            let lower = self.in_lower(path);
            let is_mounted = lower.is_none() && self.mounted.iter().any(|mounted| mounted == path);
            if kind(&stat) == FileType::Directory {
                let opened = match walk.open(DIRECTORY) {
                    Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                    opened => opened.map_err(PackError::file("open", path))?,
                };
                let parent = self.parent(path, opened, stat, lower, is_mounted)?;
                let again = openat(&parent.directory, ".", DIRECTORY, Mode::empty());
                let again = again.map_err(PackError::file("open", path))?;
                let is_changed = parent.is_reported;
                parents.push(Parent { is_reported: false, ..parent });
                if is_changed {
                    report_parents(&mut parents, report)?;
                }
                walk.enter(again)?;
                continue;
            }
            let file = walk.directory().map(|directory| (directory, walk.name(), &stat));
            if is_mounted && (stat.st_size == 0 || file.is_some_and(|file| is_mtab(path, file))) {
                continue;
            }
            report_parents(&mut parents, report)?;
            let change_kind = if lower.is_some() { ChangeKind::Changed } else { ChangeKind::Added };
            report(&Change { kind: change_kind, path, is_opaque: false, file })?;
        }
        Ok(())
    }

    /// A directory; its `is_reported` says that it is a change of its own.
    fn parent(
        &self,
        path: &[u8],
        directory: OwnedFd,
        stat: Stat,
        lower: Option<Stat>,
        is_mounted: bool,
    ) -> Result<Parent, PackError> {
        let below = |mounted: &Vec<u8>| {
            let slash = mounted.iter().rposition(|byte| *byte == b'/');
            slash.is_some_and(|slash| mounted.get(..slash) == Some(path))
        };
        // What was made in it to mount on has changed its time.
        let has_mounted = self.mounted.iter().any(below);
        let lower = lower.filter(|lower| self::kind(lower) == FileType::Directory);
        let is_opaque = lower.is_some() && attributes::is_opaque(directory.as_fd());
        let is_own = match &lower {
            Some(lower) => {
                let has_same_time =
                    (lower.st_mtime, lower.st_mtime_nsec) == (stat.st_mtime, stat.st_mtime_nsec);
                is_opaque || !has_same_owner_and_mode(lower, &stat) || !has_same_time && !has_mounted
            }
            None => !is_mounted,
        };
        let kind = if lower.is_some() { ChangeKind::Changed } else { ChangeKind::Added };
        Ok(Parent { path: path.to_vec(), directory, stat, kind, is_opaque, is_reported: is_own })
    }

    fn in_lower(&self, path: &[u8]) -> Option<Stat> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let found = openat2(self.lower, path, flags, Mode::empty(), resolve).ok()?;
        fstat(found).ok()
    }

    /// The names that a directory of the lower one has and `upper`, which hides them all, has not.
    ///
    /// # Errors
    ///
    /// Those of reading the directory.
    pub fn hidden(
        &self,
        change: &Change<'_>,
        report: &mut dyn FnMut(&[u8]) -> Result<(), PackError>,
    ) -> Result<(), PackError> {
        let Some((upper, ..)) = change.file.filter(|_| change.is_opaque) else { return Ok(()) };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let Ok(lower) = openat2(self.lower, change.path, DIRECTORY, Mode::empty(), resolve) else {
            return Ok(());
        };
        let entries = Dir::new(lower).map_err(PackError::file("read", change.path))?;
        for entry in entries {
            let entry = entry.map_err(PackError::file("read", change.path))?;
            let name = entry.file_name();
            let is_there = statat(upper, name, AtFlags::SYMLINK_NOFOLLOW).is_ok();
            if !is_there && !matches!(name.to_bytes(), b"." | b"..") {
                report(&[change.path, b"/", name.to_bytes()].concat())?;
            }
        }
        Ok(())
    }
}

fn is_whiteout(stat: &Stat) -> bool {
    kind(stat) == FileType::CharacterDevice && (major(stat.st_rdev), minor(stat.st_rdev)) == (0, 0)
}

fn has_same_owner_and_mode(one: &Stat, other: &Stat) -> bool {
    (one.st_mode, one.st_uid, one.st_gid) == (other.st_mode, other.st_uid, other.st_gid)
}

/// Writes the changes to `out` as a layer of an image (OCI image specification, "Image Layer Filesystem Changeset").
///
/// # Errors
///
/// [`PackError`]. The stream has no end then.
pub fn pack_changes(changes: &Changes<'_>, out: &mut impl Write) -> Result<Packed, PackError> {
    let mut packer = Packer::new(out, PackOptions::default());
    changes.each(&mut |change| {
        let (parent, name) = match change.path.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => change.path.split_at(slash.saturating_add(1)),
            None => change.path.split_at(0),
        };
        let Some((directory, found, stat)) = change.file else {
            return packer.write_head(&marker(&[parent, b".wh.", name].concat()));
        };
        packer.add(&Place { directory, name: found, path: change.path }, stat)?;
        if change.is_opaque {
            packer.write_head(&marker(&[change.path, b"/.wh..wh..opq"].concat()))?;
        }
        Ok(())
    })?;
    packer.finish()
}

/// An empty file whose name says something of others.
fn marker(path: &[u8]) -> Head<'_> {
    Head {
        kind: EntryType::Regular,
        path,
        link: b"",
        mode: 0,
        uid: 0,
        gid: 0,
        mtime: (0, 0),
        device: (0, 0),
        attributes: Vec::new(),
        size: 0,
        sparse: None,
    }
}
