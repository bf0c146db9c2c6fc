//! Where virtiofsd is.

use std::env;
use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The environment variable that names another virtiofsd.
pub const PROGRAM_VARIABLE: &str = "MVM_VIRTIOFSD";
/// Where distributions put it, outside of PATH. Not /usr/lib/qemu: what older versions of QEMU have there goes by the
/// same name, but is another program with other options, and cannot share read-only.
const PLACES: [&str; 2] = ["/usr/libexec/virtiofsd", "/usr/lib/virtiofsd"];

/// The virtiofsd of this host: the one that the user names, or the first in PATH or where distributions put it.
pub fn find_program() -> Option<PathBuf> {
    find(env::var_os(PROGRAM_VARIABLE).as_deref(), env::var_os("PATH").as_deref(), &PLACES)
}

fn find(named: Option<&OsStr>, search: Option<&OsStr>, places: &[&str]) -> Option<PathBuf> {
    if let Some(named) = named.filter(|named| !named.is_empty()) {
        return Some(named.into());
    }
    let directories = search.map(env::split_paths).into_iter().flatten();
    let in_path =
        directories.filter(|directory| directory.is_absolute()).map(|directory| directory.join("virtiofsd"));
    in_path.chain(places.iter().map(PathBuf::from)).find(|path| is_executable(path))
}

fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_named_one_goes_before_path_and_path_before_the_usual_places() {
        let directory = tempfile::tempdir().unwrap();
        let program = |name: &str, mode| {
            let path = directory.path().join(name).join("virtiofsd");
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            path
        };
        let (dull, first, usual) = (program("dull", 0o644), program("first", 0o755), program("usual", 0o755));
        let parent = |path: &Path| path.parent().unwrap().to_owned();
        let search = env::join_paths([parent(&dull), parent(&first), parent(&usual)]).unwrap();
        let places = [usual.to_str().unwrap()];
        assert_eq!(find(Some("/x".as_ref()), Some(&search), &places), Some("/x".into()));
        assert_eq!(find(None, Some(&search), &places), Some(first));
        assert_eq!(find(Some("".as_ref()), Some(parent(&dull).as_os_str()), &places), Some(usual));
        assert_eq!(find(None, None, &[]), None);
    }
}
