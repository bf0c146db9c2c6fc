//! Where the directories of a user's VMs are.

use std::env;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::process::{Uid, geteuid};

use super::InstanceError;
use super::lock::open_directory;

/// The directory that the user has chosen in place of the usual one.
static CHOSEN: OnceLock<PathBuf> = OnceLock::new();

/// Keeps the VMs of this process and looks for others in `directory`, which is made where its parent exists. It holds
/// for the process; a second call changes nothing.
///
/// # Errors
///
/// Those of finding out where a relative path leads.
pub fn set_runtime_directory(directory: &Path) -> io::Result<()> {
    let absolute = std::path::absolute(directory)?;
    CHOSEN.get_or_init(|| absolute);
    Ok(())
}

/// The directory that [`set_runtime_directory`] has set.
pub fn runtime_directory() -> Option<&'static Path> {
    CHOSEN.get().map(PathBuf::as_path)
}

/// The directory of all of this user's VMs: the chosen one, or in $XDG_RUNTIME_DIR where that is the user's own, else
/// in /run for root and in /tmp for anybody else.
///
/// The variable is not believed blindly: after `sudo -E` it names a directory of the user that root was.
pub(super) fn base() -> PathBuf {
    if let Some(chosen) = CHOSEN.get() {
        return chosen.clone();
    }
    let user = geteuid();
    let given = env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    match given.filter(|path| path.is_absolute() && belongs_to(path, user)) {
        Some(path) => path.join("mvm"),
        None if user.is_root() => PathBuf::from("/run/mvm"),
        None => PathBuf::from(format!("/tmp/mvm-{}", user.as_raw())),
    }
}

/// The directory of what a user's VMs and containers leave, and of images: `$MVM_DATA_DIR`, or for root /var/lib/mvm,
/// or else `mvm` in `$XDG_DATA_HOME` or in `~/.local/share`, which have to be absolute. `None` where there is none of
/// them.
pub fn data_directory() -> Option<PathBuf> {
    let given = env::var_os("MVM_DATA_DIR").filter(|path| !path.is_empty());
    if let Some(given) = given {
        return std::path::absolute(given).ok();
    }
    let of = |name: &str| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let system = || geteuid().is_root().then(|| PathBuf::from("/var/lib/mvm"));
    let own = || {
        let data = of("XDG_DATA_HOME").or_else(|| Some(of("HOME")?.join(".local/share")))?;
        Some(data.join("mvm"))
    };
    system().or_else(own)
}

/// The same directory, which is made where it is not there, for this user alone.
///
/// # Errors
///
/// There is no place for it, or it can't be made.
pub fn make_data_directory() -> io::Result<PathBuf> {
    let directory =
        data_directory().ok_or_else(|| io::Error::other("set HOME or MVM_DATA_DIR to an absolute path"))?;
    if !directory.is_dir() {
        fs::create_dir_all(directory.parent().unwrap_or(&directory))?;
        match DirBuilder::new().mode(0o700).create(&directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    Ok(directory)
}

fn belongs_to(path: &Path, user: Uid) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.is_dir() && metadata.uid() == user.as_raw())
}

/// Makes the directory at `path` where it is missing, for this user alone, and opens it.
pub(super) fn make_and_open(path: &Path) -> Result<OwnedFd, InstanceError> {
    let open = || open_directory(path);
    let directory = match open() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make(path)?;
            open()
        }
        opened => opened,
    };
    let directory = directory.map_err(InstanceError::directory("open", path))?;
    let stat = rustix::fs::fstat(&directory)
        .map_err(|error| InstanceError::directory("look at", path)(error.into()))?;
    check_owner_and_mode(path, stat.st_uid, stat.st_mode)?;
    Ok(directory)
}

/// Makes a directory for this user alone, whatever the process's umask takes away.
pub(super) fn create_private(path: &Path) -> io::Result<()> {
    const MODE: u32 = 0o700;
    DirBuilder::new().mode(MODE).create(path)?;
    // Only where the umask is unusual. Others can't have replaced what they may not even look into.
    if fs::symlink_metadata(path)?.mode() & 0o777 != MODE {
        fs::set_permissions(path, fs::Permissions::from_mode(MODE))?;
    }
    Ok(())
}

/// Makes the directory at `path` where it is missing, for this user alone.
pub(super) fn make(path: &Path) -> Result<(), InstanceError> {
    match create_private(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(InstanceError::directory("make the directory", path)(error))
        }
        _ => check(path),
    }
}

/// Checks that the directory at `path` is one, and belongs to this user: in /tmp, any user could have made it, or a
/// link to somewhere else.
pub(super) fn check(path: &Path) -> Result<(), InstanceError> {
    let metadata = fs::symlink_metadata(path).map_err(InstanceError::directory("look at", path))?;
    if !metadata.is_dir() && metadata.uid() == geteuid().as_raw() {
        let error = io::Error::from(io::ErrorKind::NotADirectory);
        return Err(InstanceError::directory("use", path)(error));
    }
    check_owner_and_mode(path, metadata.uid(), metadata.mode())
}

fn check_owner_and_mode(path: &Path, owner: u32, mode: u32) -> Result<(), InstanceError> {
    if owner != geteuid().as_raw() {
        return Err(InstanceError::NotOurs(path.to_owned()));
    }
    if mode & 0o022 != 0 {
        return Err(InstanceError::OpenToOthers(path.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_directory_is_made_for_its_user_alone_and_found_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("mvm");
        for _ in 0..2 {
            make(&path).unwrap();
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        }
    }

    #[test]
    fn what_others_could_change_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("mvm");
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(make(&path), Err(InstanceError::OpenToOthers(_))));
    }

    #[test]
    fn neither_a_link_nor_a_file_is_taken_for_the_directory() {
        let directory = tempfile::tempdir().unwrap();
        let (target, link) = (directory.path().join("target"), directory.path().join("link"));
        fs::create_dir(&target).unwrap();
        symlink(&target, &link).unwrap();
        fs::write(directory.path().join("file"), "").unwrap();
        for name in ["link", "file"] {
            let error = make(&directory.path().join(name)).unwrap_err();
            assert!(matches!(error, InstanceError::Directory { .. }), "{error}");
        }
    }

    #[test]
    fn what_belongs_to_another_user_is_refused() {
        if !geteuid().is_root() {
            // Only root can change the owner of a directory.
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("mvm");
        fs::create_dir(&path).unwrap();
        std::os::unix::fs::chown(&path, Some(65534), None).unwrap();
        assert!(matches!(make(&path), Err(InstanceError::NotOurs(_))));
        assert!(!belongs_to(&path, geteuid()));
    }
}
