//! The files that every container's VM is made of.

use std::env;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Where they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assets {
    /// The guest kernel.
    pub kernel: PathBuf,
    /// The root file system with the agent, an EROFS.
    pub root: PathBuf,
    /// The templates of the disks that take containers' changes.
    pub changes: PathBuf,
}

/// Some are nowhere.
#[derive(Debug, Error)]
#[error("{}: {}", self.found(), self.advice())]
pub struct AssetsError {
    /// What is missing, and the name of its file.
    missing: Vec<(&'static str, &'static str)>,
    searched: Vec<PathBuf>,
}

impl AssetsError {
    /// What is missing, and where it was looked for.
    pub fn found(&self) -> String {
        let missing: Vec<_> =
            self.missing.iter().map(|(what, name)| format!("the {what} ({name})")).collect();
        let searched: Vec<_> = self.searched.iter().map(|path| path.display().to_string()).collect();
        format!("cannot find {} of containers' VMs in {}", list(&missing), searched.join(", "))
    }

    /// What to do about it.
    pub fn advice(&self) -> &'static str {
        if env::var_os("MVM_ASSETS").is_some() {
            return "MVM_ASSETS names the only directory that is searched: correct it, or unset it";
        }
        "run `make install` in mvm's sources, or set MVM_ASSETS to the directory that has them"
    }
}

/// "A", "A and B", "A, B and C".
fn list(words: &[String]) -> String {
    match words {
        [most @ .., before, last] => {
            let most: String = most.iter().map(|word| format!("{word}, ")).collect();
            format!("{most}{before} and {last}")
        }
        words => words.concat(),
    }
}

const KERNEL: &str = "vmlinux";
const ROOT: &str = "agent.erofs";
const CHANGES: &str = "changes.templates";

impl Assets {
    /// Looks in `$MVM_ASSETS`; or else beside the program, in `share/mvm` of its prefix, and in the user's cache.
    ///
    /// # Errors
    ///
    /// [`AssetsError`] says where a file was looked for.
    pub fn find() -> Result<Self, AssetsError> {
        let program = env::current_exe().ok();
        let beside = program.as_deref().and_then(Path::parent);
        let cache = env::var_os("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
            .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cache")));
        let searched = match env::var_os("MVM_ASSETS") {
            Some(directory) => vec![PathBuf::from(directory)],
            None => [
                beside.map(Path::to_owned),
                beside.and_then(Path::parent).map(|prefix| prefix.join("share/mvm")),
                cache.map(|directory| directory.join("mvm/assets")),
            ]
            .into_iter()
            .flatten()
            .collect(),
        };
        Self::find_in(searched)
    }

    /// Looks in these directories, in this order.
    ///
    /// # Errors
    ///
    /// [`AssetsError`].
    pub fn find_in(searched: Vec<PathBuf>) -> Result<Self, AssetsError> {
        let find =
            |name: &str| searched.iter().map(|directory| directory.join(name)).find(|path| path.is_file());
        match (find(KERNEL), find(ROOT), find(CHANGES)) {
            (Some(kernel), Some(root), Some(changes)) => Ok(Self { kernel, root, changes }),
            (kernel, root, changes) => {
                let all = [
                    (kernel.is_none(), "kernel", KERNEL),
                    (root.is_none(), "agent's root", ROOT),
                    (changes.is_none(), "templates of disks", CHANGES),
                ];
                let missing = all.into_iter().filter(|(is_missing, ..)| *is_missing);
                Err(AssetsError { missing: missing.map(|(_, what, name)| (what, name)).collect(), searched })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::write;

    use super::*;

    #[test]
    fn files_are_found_in_the_first_directory_that_has_them() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let searched = vec![one.path().to_owned(), other.path().to_owned()];
        let error = Assets::find_in(searched.clone()).unwrap_err().to_string();
        assert!(
            error.contains("the kernel (vmlinux), the agent's root (agent.erofs) and the templates")
                && error.contains(one.path().to_str().unwrap()),
            "{error}"
        );
        write(other.path().join(KERNEL), "").unwrap();
        let error = Assets::find_in(searched.clone()).unwrap_err().to_string();
        assert!(error.contains("the agent's root (agent.erofs)"), "{error}");
        for directory in [&one, &other] {
            write(directory.path().join(ROOT), "").unwrap();
        }
        let error = Assets::find_in(searched.clone()).unwrap_err().to_string();
        assert!(error.contains("the templates of disks (changes.templates)"), "{error}");
        write(other.path().join(CHANGES), "").unwrap();
        let expected = Assets {
            kernel: other.path().join(KERNEL),
            root: one.path().join(ROOT),
            changes: other.path().join(CHANGES),
        };
        assert_eq!(Assets::find_in(searched).unwrap(), expected);
    }
}
