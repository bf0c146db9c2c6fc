//! The files that every container's VM is made of.

use std::env;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Where they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assets {
    /// The guest kernel.
    pub kernel: PathBuf,
    /// The root file system with the agent, an EROFS.
    pub root: PathBuf,
}

/// They are nowhere.
#[derive(Debug, Error)]
#[error("{}: {}", self.found(), self.advice())]
pub struct AssetsError {
    what: &'static str,
    name: &'static str,
    searched: Vec<PathBuf>,
}

impl AssetsError {
    /// What is missing, and where it was looked for.
    pub fn found(&self) -> String {
        let Self { what, name, searched } = self;
        let searched: Vec<_> = searched.iter().map(|path| path.display().to_string()).collect();
        format!("cannot find the {what} ({name}) of containers' VMs in {}", searched.join(", "))
    }

    /// What to do about it.
    pub fn advice(&self) -> &'static str {
        "run `make install`, or set MVM_ASSETS to the directory that has it"
    }
}

const KERNEL: &str = "vmlinux";
const ROOT: &str = "agent.erofs";

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
        let (kernel, root) = (find(KERNEL), find(ROOT));
        match (kernel, root) {
            (Some(kernel), Some(root)) => Ok(Self { kernel, root }),
            (None, _) => Err(AssetsError { what: "kernel", name: KERNEL, searched }),
            (_, None) => Err(AssetsError { what: "agent's root", name: ROOT, searched }),
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
            error.contains("the kernel (vmlinux)") && error.contains(one.path().to_str().unwrap()),
            "{error}"
        );
        write(other.path().join(KERNEL), "").unwrap();
        let error = Assets::find_in(searched.clone()).unwrap_err().to_string();
        assert!(error.contains("the agent's root (agent.erofs)"), "{error}");
        for directory in [&one, &other] {
            write(directory.path().join(ROOT), "").unwrap();
        }
        let expected = Assets { kernel: other.path().join(KERNEL), root: one.path().join(ROOT) };
        assert_eq!(Assets::find_in(searched).unwrap(), expected);
    }
}
