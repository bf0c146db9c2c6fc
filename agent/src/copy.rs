//! Copies of directories with all that is in them.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid, XattrFlags,
    chmodat, chownat, fchmod, fgetxattr, flistxattr, fsetxattr, fstat, futimens, linkat, mkdirat, mknodat,
    openat, openat2, readlinkat, statat, symlinkat, utimensat,
};
use rustix::io::Errno;

/// The most bytes of the names of a file's attributes, and of one attribute's value (xattr(7)).
const MAX_ATTRIBUTES: usize = 64 << 10;

/// Where directories are copied from and to.
struct Copy<'a> {
    from: &'a OwnedFd,
    to: &'a OwnedFd,
    /// Owners that can't be set are an error.
    is_strict: bool,
    /// The first names of files that have several.
    links: HashMap<(u64, u64), PathBuf>,
}

/// Copies all that is in the directory `from` into the empty directory `to`, and what it itself is: modes, owners,
/// times, attributes, hard links. Links are copied as such. Unless it `is_strict`, owners that `to` can't have are left
/// out.
pub fn copy_tree(from: &OwnedFd, to: &OwnedFd, is_strict: bool) -> io::Result<()> {
    let mut copy = Copy { from, to, is_strict, links: HashMap::new() };
    let mut waiting = vec![PathBuf::from(".")];
    let mut directories = Vec::new();
    while let Some(directory) = waiting.pop() {
        copy.entries(&directory, &mut waiting)?;
        directories.push(directory);
    }
    // Their times change with what is put into them, and some can't be written to then.
    for directory in directories.iter().rev() {
        let (from, to) = copy.open(directory)?;
        copy.finish(&from, &to)?;
    }
    Ok(())
}

/// Gives the directory `to` what `from` has beside its content: mode, owner, times, attributes.
pub fn copy_metadata(from: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
    Copy { from, to, is_strict: true, links: HashMap::new() }.finish(from, to)
}

impl Copy<'_> {
    /// Opens a directory on both sides. No link on the way is followed.
    fn open(&self, path: &Path) -> io::Result<(OwnedFd, OwnedFd)> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = |top: &OwnedFd| {
            openat2(top, path, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)
        };
        Ok((open(self.from)?, open(self.to)?))
    }

    /// Copies the entries of a directory; directories are made, and wait for theirs.
    fn entries(&mut self, directory: &Path, waiting: &mut Vec<PathBuf>) -> io::Result<()> {
        let (from, to) = self.open(directory)?;
        for entry in Dir::read_from(&from)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let stat = statat(&from, name, AtFlags::SYMLINK_NOFOLLOW)?;
            let path = directory.join(std::ffi::OsStr::from_bytes(name.to_bytes()));
            if FileType::from_raw_mode(stat.st_mode).is_dir() {
                mkdirat(&to, name, Mode::RWXU)?;
                waiting.push(path);
                continue;
            }
            if stat.st_nlink > 1 {
                if let Some(known) = self.links.get(&(stat.st_dev, stat.st_ino)) {
                    linkat(self.to, known, &to, name, AtFlags::empty())?;
                    continue;
                }
                self.links.insert((stat.st_dev, stat.st_ino), path);
            }
            self.file((&from, &to), name, &stat)?;
        }
        Ok(())
    }

    /// Copies what is no directory.
    fn file(&self, (from, to): (&OwnedFd, &OwnedFd), name: &std::ffi::CStr, stat: &Stat) -> io::Result<()> {
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {
                let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let mut source: File =
                    openat(from, name, OFlags::RDONLY | OFlags::NONBLOCK | flags, Mode::empty())?.into();
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | flags;
                let mut target: File = openat(to, name, flags, Mode::RUSR | Mode::WUSR)?.into();
                io::copy(&mut source, &mut target)?;
                return self.finish(&source.into(), &target.into());
            }
            FileType::Symlink => symlinkat(readlinkat(from, name, Vec::new())?, to, name)?,
            kind => mknodat(to, name, kind, Mode::RUSR, stat.st_rdev)?,
        }
        let owner = chownat(
            to,
            name,
            Some(Uid::from_raw(stat.st_uid)),
            Some(Gid::from_raw(stat.st_gid)),
            AtFlags::SYMLINK_NOFOLLOW,
        );
        self.allow(owner)?;
        if !FileType::from_raw_mode(stat.st_mode).is_symlink() {
            let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
            chmodat(to, name, mode, AtFlags::empty())?;
        }
        Ok(utimensat(to, name, &times(stat), AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Gives a file or directory what it has beside its content. The owner comes before the mode and the attributes,
    /// which it would take away.
    fn finish(&self, from: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
        let stat = fstat(from)?;
        let owner =
            rustix::fs::fchown(to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)));
        self.allow(owner)?;
        fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
        self.attributes(from, to)?;
        Ok(futimens(to, &times(&stat))?)
    }

    fn attributes(&self, from: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
        let mut names = vec![0; MAX_ATTRIBUTES];
        let length = match flistxattr(from, &mut *names) {
            Ok(length) => length,
            Err(Errno::OPNOTSUPP) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let names = names.get(..length).unwrap_or_default();
        for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            let Ok(name) = CString::new(name) else { continue };
            let mut value = vec![0; MAX_ATTRIBUTES];
            let length = fgetxattr(from, &name, &mut *value)?;
            let set = fsetxattr(to, &name, value.get(..length).unwrap_or_default(), XattrFlags::empty());
            self.allow(set)?;
        }
        Ok(())
    }

    /// Passes over what can't be given to a file that other rules are for.
    fn allow(&self, result: rustix::io::Result<()>) -> io::Result<()> {
        match result {
            Err(Errno::PERM | Errno::INVAL | Errno::OPNOTSUPP) if !self.is_strict => Ok(()),
            result => Ok(result?),
        }
    }
}

fn times(stat: &Stat) -> Timestamps {
    let time = |seconds: i64, nanoseconds: u64| Timespec {
        tv_sec: seconds,
        tv_nsec: i64::try_from(nanoseconds).unwrap_or_default(),
    };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::time::{Duration, SystemTime};

    use super::*;

    fn open(path: &Path) -> OwnedFd {
        openat(rustix::fs::CWD, path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap()
    }

    #[test]
    fn all_that_a_directory_has_is_copied() {
        let place = tempfile::tempdir().unwrap();
        let (from, to) = (place.path().join("from"), place.path().join("to"));
        fs::create_dir_all(from.join("sub/deep")).unwrap();
        fs::create_dir(&to).unwrap();
        fs::write(from.join("file"), vec![7; 200_000]).unwrap();
        fs::set_permissions(from.join("file"), fs::Permissions::from_mode(0o4751)).unwrap();
        fs::hard_link(from.join("file"), from.join("sub/again")).unwrap();
        symlink("../../etc/passwd", from.join("sub/link")).unwrap();
        symlink("no such", from.join("dangling")).unwrap();
        mknodat(rustix::fs::CWD, from.join("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        fs::set_permissions(from.join("fifo"), fs::Permissions::from_mode(0o666)).unwrap();
        fs::write(from.join("sub/deep/odd \u{e4}\n name"), "").unwrap();
        let old = SystemTime::UNIX_EPOCH + Duration::new(1_000_000, 5000);
        File::open(from.join("sub")).unwrap().set_modified(old).unwrap();
        fs::set_permissions(from.join("sub/deep"), fs::Permissions::from_mode(0o1555)).unwrap();
        fs::set_permissions(&from, fs::Permissions::from_mode(0o750)).unwrap();
        copy_tree(&open(&from), &open(&to), true).unwrap();
        assert_eq!(fs::read(to.join("file")).unwrap(), vec![7; 200_000]);
        let of = |name: &str| fs::symlink_metadata(to.join(name)).unwrap();
        assert_eq!((of("file").mode() & 0o7777, of("").mode() & 0o7777), (0o4751, 0o750));
        assert_eq!((of("sub/deep").mode() & 0o7777, of("file").nlink()), (0o1555, 2));
        assert_eq!(of("file").ino(), of("sub/again").ino());
        assert_eq!(of("sub").modified().unwrap(), old);
        assert_eq!(fs::read_link(to.join("sub/link")).unwrap(), Path::new("../../etc/passwd"));
        assert!(of("dangling").is_symlink() && of("sub/deep/odd \u{e4}\n name").is_file());
        assert!(FileType::from_raw_mode(of("fifo").mode()) == FileType::Fifo);
        assert_eq!(of("fifo").mode() & 0o7777, 0o666);
    }

    #[test]
    fn owners_and_attributes_are_copied_by_root() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let place = tempfile::tempdir().unwrap();
        let (from, to) = (place.path().join("from"), place.path().join("to"));
        fs::create_dir(&from).unwrap();
        fs::create_dir(&to).unwrap();
        fs::write(from.join("file"), "x").unwrap();
        symlink("x", from.join("link")).unwrap();
        std::os::unix::fs::chown(from.join("file"), Some(33), Some(44)).unwrap();
        std::os::unix::fs::lchown(from.join("link"), Some(5), Some(6)).unwrap();
        std::os::unix::fs::chown(&from, Some(7), Some(8)).unwrap();
        let file = File::open(from.join("file")).unwrap();
        let has_attributes = fsetxattr(&file, c"user.a", b"value", XattrFlags::empty()).is_ok();
        copy_tree(&open(&from), &open(&to), true).unwrap();
        let of = |name: &str| {
            let metadata = fs::symlink_metadata(to.join(name)).unwrap();
            (metadata.uid(), metadata.gid())
        };
        assert_eq!([of("file"), of("link"), of("")], [(33, 44), (5, 6), (7, 8)]);
        if has_attributes {
            let mut value = [0; 5];
            fgetxattr(File::open(to.join("file")).unwrap(), c"user.a", &mut value).unwrap();
            assert_eq!(&value, b"value");
        }
    }
}
