//! A shared folder that is composed of folders and files of the host: a tree of mounts that the process which serves it
//! sees, and no other.
//!
//! A folder in which parts were linked or bound by the user would need root, and a file's directory would show the
//! file's siblings. Here the new process makes namespaces of mounts and, where it is not root, of users, and in there
//! an empty file system with a mount for each part: virtiofsd makes that its root. So one virtiofsd serves all parts,
//! and there is nothing beside a file.

use std::ffi::{CStr, CString};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount, mount_change, mount_remount,
    move_mount, open_tree,
};
use rustix::process::{getegid, geteuid};
use rustix::thread::UnshareFlags;

use super::ShareError;
use crate::SharedPart;

/// Bytes and inodes of the file system with the mounts: it has a directory or an empty file for each.
const OPTIONS: &CStr = c"mode=755,size=64k,nr_inodes=1024";

struct Part {
    source: CString,
    /// Where it is mounted.
    place: CString,
    is_directory: bool,
    read_only: bool,
}

/// A tree to be made in a new process, which can take no memory, as another thread may have been taking some when
/// the process was made.
pub(super) struct Tree {
    root: CString,
    parts: Vec<Part>,
    /// Mounts on their way, with room for one for each part.
    clones: Vec<OwnedFd>,
    /// The lines for uid_map and gid_map, where this user is not root.
    maps: Option<[String; 2]>,
}

impl Tree {
    /// Checks that the parts are there. The tree is mounted on `root`, a directory.
    ///
    /// # Errors
    ///
    /// [`ShareError`] names the part that is not.
    pub(super) fn new(root: &Path, parts: &[SharedPart]) -> Result<Self, ShareError> {
        let c_path = |path: &Path| {
            CString::new(path.as_os_str().as_bytes()).map_err(|_| ShareError::Folder {
                path: path.to_owned(),
                source: io::ErrorKind::InvalidInput.into(),
            })
        };
        let part = |part: &SharedPart| {
            let error = |source| ShareError::Folder { path: part.path.clone(), source };
            let path = part.path.canonicalize().map_err(error)?;
            let metadata = path.metadata().map_err(error)?;
            if !metadata.is_dir() && !metadata.is_file() {
                return Err(ShareError::Kind(part.path.clone()));
            }
            Ok(Part {
                source: c_path(&path)?,
                place: c_path(&root.join(&part.name))?,
                is_directory: metadata.is_dir(),
                read_only: part.read_only,
            })
        };
        let parts = parts.iter().map(part).collect::<Result<Vec<_>, _>>()?;
        let (user, group) = (geteuid(), getegid());
        let maps = [format!("0 {} 1", user.as_raw()), format!("0 {} 1", group.as_raw())];
        Ok(Self {
            root: c_path(root)?,
            clones: Vec::with_capacity(parts.len()),
            parts,
            maps: (!user.is_root()).then_some(maps),
        })
    }

    /// Has the process of `command` make the tree before the program starts. If it can't, the process says why on
    /// standard error and ends, as the program itself would.
    pub(super) fn make_for(mut self, command: &mut Command) {
        let make = move || {
            let Err((step, error)) = self.make() else { return Ok(()) };
            let mut line = [0; 256];
            let room = line.len();
            let mut rest = &mut line[..];
            // It fails if the line is full: the rest is left out.
            let _ =
                writeln!(rest, "sandbox: cannot {step}: {} (error {})", words(error), error.raw_os_error());
            let length = room - rest.len();
            let _ = rustix::io::write(rustix::stdio::stderr(), line.get(..length).unwrap_or_default());
            // SAFETY: it ends the process, which is a copy of this one until the program starts.
            unsafe { libc::_exit(1) }
        };
        // SAFETY: `make` makes system calls, and takes and gives back no memory: the descriptors go where there is
        // room.
        unsafe { command.pre_exec(make) };
    }

    /// Makes the tree; or says at which step it failed.
    fn make(&mut self) -> Result<(), (&'static str, Errno)> {
        let during = |step| move |error| (step, error);
        let mut namespaces = UnshareFlags::NEWNS;
        if self.maps.is_some() {
            namespaces |= UnshareFlags::NEWUSER;
        }
        // SAFETY: the process has one thread, and shares no descriptors.
        unsafe { rustix::thread::unshare_unsafe(namespaces) }
            .map_err(during("make a namespace of users and mounts"))?;
        if let Some([users, groups]) = &self.maps {
            for (file, text) in [
                (c"/proc/self/setgroups", "deny"),
                (c"/proc/self/uid_map", users.as_str()),
                (c"/proc/self/gid_map", groups.as_str()),
            ] {
                let file = rustix::fs::open(file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
                file.and_then(|file| rustix::io::write(file, text.as_bytes()))
                    .map_err(during("map this user to root in a namespace"))?;
            }
        }
        mount_change(c"/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
            .map_err(during("make mounts private"))?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_RECURSIVE
            | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
        // Before the tree may hide some of them.
        for part in &self.parts {
            let clone = open_tree(CWD, &*part.source, flags).map_err(during("bind a folder or file"))?;
            self.clones.push(clone);
        }
        let plain = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount(c"tree", &*self.root, c"tmpfs", plain, OPTIONS).map_err(during("mount a file system"))?;
        for (part, clone) in self.parts.iter().zip(&self.clones) {
            part.mount(clone).map_err(during("mount a folder or file"))?;
        }
        // The guest has nothing to make there.
        make_read_only(&self.root, 0).map_err(during("make the tree read-only"))?;
        self.clones.clear();
        Ok(())
    }
}

impl Part {
    fn mount(&self, clone: &OwnedFd) -> Result<(), Errno> {
        let mode = Mode::from_raw_mode(0o755);
        if self.is_directory {
            rustix::fs::mkdir(&*self.place, mode)?;
        } else {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            rustix::fs::open(&*self.place, flags, mode)?;
        }
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(clone.as_fd(), c"", CWD, &*self.place, flags)?;
        if self.read_only { make_read_only(&self.place, libc::AT_RECURSIVE) } else { Ok(()) }
    }
}

/// Makes the mount at `place` read-only, with those below it as `flags` say.
fn make_read_only(place: &CStr, flags: libc::c_int) -> Result<(), Errno> {
    let attributes =
        libc::mount_attr { attr_set: libc::MOUNT_ATTR_RDONLY, attr_clr: 0, propagation: 0, userns_fd: 0 };
    // SAFETY: path and attributes live until the call returns, and have the size that it gets.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            place.as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error().raw_os_error().map_or(Errno::INVAL, Errno::from_raw_os_error);
    // Linux before 5.12.
    if error == Errno::NOSYS {
        return mount_remount(place, MountFlags::BIND | MountFlags::RDONLY, c"");
    }
    Err(error)
}

/// What these errors say: the system's text would take memory.
fn words(error: Errno) -> &'static str {
    match error {
        Errno::PERM => "operation not permitted",
        Errno::ACCESS => "permission denied",
        Errno::NOENT => "there is no such file",
        Errno::NOSPC => "the system allows no more of them",
        Errno::NOSYS => "the kernel is too old",
        _ => "the system refuses",
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::{Output, Stdio};

    use super::*;
    use crate::ShareConfig;
    use crate::shares::VIRTIOFSD;

    fn part(name: &str, path: &Path, read_only: bool) -> SharedPart {
        SharedPart { name: name.into(), path: path.to_owned(), read_only }
    }

    /// What a shell sees that has the tree of `parts` at `root`.
    fn seen(root: &Path, parts: &[SharedPart], script: &str) -> Output {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script, "sh"]).arg(root).stdin(Stdio::null());
        Tree::new(root, parts).unwrap().make_for(&mut command);
        command.output().unwrap()
    }

    /// Whether this process may make the namespaces.
    fn is_possible() -> bool {
        let directory = tempfile::tempdir().unwrap();
        let output = seen(directory.path(), &[], "true");
        if !output.status.success() {
            eprintln!("skipped: {}", String::from_utf8_lossy(&output.stderr));
        }
        output.status.success()
    }

    #[test]
    fn a_tree_has_its_parts_and_nothing_beside_them() {
        if !is_possible() {
            return;
        }
        let (root, host) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let folder = host.path().join("folder");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("inside"), "in it").unwrap();
        fs::write(host.path().join("file"), "a file").unwrap();
        fs::write(host.path().join("sibling"), "a secret").unwrap();
        std::os::unix::fs::symlink(host.path().join("file"), host.path().join("link")).unwrap();
        let parts = [
            part("0", &folder, false),
            part("1", &host.path().join("file"), false),
            part("2", &folder, true),
            part("3", &host.path().join("link"), true),
        ];
        let script = "cd $1; ls; cat 0/inside 1 3; echo new >0/new; echo more >>1; echo $?
            (echo x >2/x) 2>/dev/null; echo $?; (echo x >>3) 2>/dev/null; echo $?; (echo x >x) 2>/dev/null; echo $?; ls 1/..  2>/dev/null; echo $?";
        let output = seen(root.path(), &parts, script);
        let said = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<_> = said.lines().collect();
        assert_eq!(lines[..4], ["0", "1", "2", "3"], "{errors}");
        assert_eq!(lines[4], "in ita filea file0", "{errors}");
        assert!(
            lines[5..8].iter().all(|code| *code != "0") && lines[8] != "0" && lines.len() == 9,
            "{said}{errors}"
        );
        assert_eq!(fs::read_to_string(folder.join("new")).unwrap(), "new\n");
        assert_eq!(fs::read_to_string(host.path().join("file")).unwrap(), "a filemore\n");
        // Others see none of it.
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    /// What virtiofsd makes its root is the tree: another process sees it there.
    #[test]
    fn virtiofsd_serves_a_tree_and_sees_nothing_else() {
        let root_only = geteuid().is_root();
        if VIRTIOFSD.find().is_none() || !root_only || !is_possible() {
            eprintln!("skipped: there is no virtiofsd, or no right to look at another process's root");
            return;
        }
        let (root, host) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(host.path().join("file"), "a file").unwrap();
        fs::write(host.path().join("sibling"), "a secret").unwrap();
        fs::create_dir(host.path().join("folder")).unwrap();
        let share = ShareConfig {
            parts: vec![
                part("0", &host.path().join("file"), false),
                part("1", &host.path().join("folder"), true),
            ],
            ..format!("{}:mounts", root.path().display()).parse().unwrap()
        };
        let (_device, process) = crate::shares::start(&share).unwrap().into_device().unwrap();
        let process = process.unwrap();
        // The one that serves is its child, as it is the first of its namespace of processes.
        let children = format!("/proc/{0}/task/{0}/children", process.pid());
        let child = fs::read_to_string(children).unwrap();
        let seen = format!("/proc/{}/root", child.trim());
        let mut names: Vec<_> =
            fs::read_dir(&seen).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["0", "1"]);
        assert_eq!(fs::read_to_string(format!("{seen}/0")).unwrap(), "a file");
        assert!(fs::write(format!("{seen}/1/x"), "").is_err());
    }

    #[test]
    fn a_tree_may_lie_in_what_it_shows() {
        if !is_possible() {
            return;
        }
        let host = tempfile::tempdir().unwrap();
        let root = host.path().join("root");
        fs::create_dir(&root).unwrap();
        fs::write(host.path().join("x"), "").unwrap();
        let script = "ls $1; ls $1/0/root | wc -l; ls $1/0";
        let output = seen(&root, &[part("0", host.path(), false)], script);
        assert_eq!(String::from_utf8_lossy(&output.stdout), "0\n0\nroot\nx\n");
    }

    #[test]
    fn parts_that_are_missing_are_named_and_others_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("missing");
        let error = Tree::new(directory.path(), &[part("0", &missing, false)]).err().unwrap();
        assert!(error.to_string().contains("missing"), "{error}");
        let error = Tree::new(directory.path(), &[part("0", Path::new("/dev/null"), false)]).err().unwrap();
        assert!(matches!(error, ShareError::Kind(_)), "{error}");
    }

    #[test]
    fn what_goes_wrong_is_said_in_one_line() {
        if !is_possible() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        // Two of one name can't be.
        let parts = [part("0", directory.path(), false), part("0", directory.path(), false)];
        let output = seen(directory.path(), &parts, "true");
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(said, "sandbox: cannot mount a folder or file: the system refuses (error 17)\n");
    }
}
