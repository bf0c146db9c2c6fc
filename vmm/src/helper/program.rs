//! How a program is found.

use std::env;
use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::Package;
use crate::Remedy;

/// A program that can be a helper.
#[derive(Debug)]
pub struct Program {
    /// Its name.
    pub name: &'static str,
    /// The environment variable by which the user chooses another one.
    pub variable: &'static str,
    /// Where distributions install it outside of PATH.
    pub places: &'static [&'static str],
    /// Its package.
    pub package: Package,
    /// The part of a line of its log that is shown to the user; an empty one is not shown.
    pub message: fn(&str) -> &str,
}

impl Program {
    /// How to get it on this host, to follow a colon.
    pub fn advice(&self) -> String {
        format!("{}, or set {} to the program's path", self.package.advice(self.name), self.variable)
    }

    /// Commands that get it on this host, where there are any.
    pub fn remedies(&self) -> Vec<Remedy> {
        self.package.remedies(self.name)
    }

    /// The program that the user chose, or the first in PATH, beside this program or where distributions install it.
    pub fn find(&self) -> Option<PathBuf> {
        let own = env::current_exe().ok();
        let beside = own.as_deref().and_then(Path::parent).map(|directory| directory.join(self.name));
        let places: Vec<PathBuf> = beside.into_iter().chain(self.places.iter().map(PathBuf::from)).collect();
        self.find_in(env::var_os(self.variable).as_deref(), env::var_os("PATH").as_deref(), &places)
    }

    fn find_in(&self, named: Option<&OsStr>, search: Option<&OsStr>, places: &[PathBuf]) -> Option<PathBuf> {
        if let Some(named) = named.filter(|named| !named.is_empty()) {
            return Some(named.into());
        }
        let directories = search.map(env::split_paths).into_iter().flatten();
        let in_path = directories
            .filter(|directory| directory.is_absolute())
            .map(|directory| directory.join(self.name));
        in_path.chain(places.iter().cloned()).find(|path| is_executable(path))
    }
}

fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_users_choice_goes_before_path_and_path_before_the_usual_places() {
        const PACKAGE: Package = Package { since: &[], otherwise: "", build: None };
        const HELPER: Program =
            Program { name: "helper", variable: "", places: &[], package: PACKAGE, message: str::trim };
        let find = |named: Option<&OsStr>, search: Option<&OsStr>, places: &[PathBuf]| {
            HELPER.find_in(named, search, places)
        };
        let directory = tempfile::tempdir().unwrap();
        let program = |name: &str, mode| {
            let path = directory.path().join(name).join("helper");
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            path
        };
        let (dull, first, usual) = (program("dull", 0o644), program("first", 0o755), program("usual", 0o755));
        let parent = |path: &Path| path.parent().unwrap().to_owned();
        let search = env::join_paths([parent(&dull), parent(&first), parent(&usual)]).unwrap();
        let places = [usual.clone()];
        assert_eq!(find(Some(OsStr::new("/x")), Some(search.as_os_str()), &places), Some("/x".into()));
        assert_eq!(find(None, Some(search.as_os_str()), &places), Some(first));
        assert_eq!(find(Some(OsStr::new("")), Some(parent(&dull).as_os_str()), &places), Some(usual));
        assert_eq!(find(None, None, &[]), None);
    }
}
