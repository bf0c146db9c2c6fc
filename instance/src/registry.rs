//! The directories of all of a user's VMs.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::directory::{CONSOLE_SOCKET, CONTROL_SOCKET};
use super::identity::begins_an_id;
use super::lock::DirectoryLock;
use super::record::Record;
use super::{InstanceError, VmId, VmName, place};

/// The directory of names.
pub(super) const NAMES: &str = "names";
/// How many directories a VM looks at when it starts, for remains of others: enough to remove more than it can leave
/// behind itself, few enough to cost nothing.
const SWEPT_AT_START: usize = 8;

/// All VMs of a user.
pub struct Registry {
    base: PathBuf,
}

/// A VM that runs.
#[derive(Clone, Debug)]
pub struct Running {
    /// Who it is.
    pub record: Record,
    /// Its directory.
    pub directory: PathBuf,
}

impl Running {
    /// Its control socket.
    pub fn control_socket(&self) -> PathBuf {
        self.directory.join(CONTROL_SOCKET)
    }

    /// The socket of its console.
    pub fn console_socket(&self) -> PathBuf {
        self.directory.join(CONSOLE_SOCKET)
    }
}

impl Registry {
    /// The VMs of the user who runs this process.
    pub fn of_user() -> Self {
        Self { base: place::base() }
    }

    #[cfg(test)]
    pub(super) fn at(base: &Path) -> Self {
        Self { base: base.to_owned() }
    }

    /// Makes the base directory where there is none, and waits for the lock on it. Until that is dropped no other
    /// process adds or removes a VM.
    pub(super) fn lock(&self) -> Result<(&Path, DirectoryLock), InstanceError> {
        let directory = place::make_and_open(&self.base)?;
        let lock =
            DirectoryLock::wait_for(directory).map_err(InstanceError::directory("lock", &self.base))?;
        Ok((&self.base, lock))
    }

    /// Makes the directory of names where there is none, and returns it.
    pub(super) fn make_names(&self) -> Result<PathBuf, InstanceError> {
        let names = self.base.join(NAMES);
        place::make(&names)?;
        Ok(names)
    }

    /// The VMs that run, the oldest first, and what is wrong with those that can't be read. Remains of VMs that were
    /// killed are removed.
    ///
    /// # Errors
    ///
    /// [`InstanceError`] where the base directory is not the user's own or can't be read.
    pub fn running(&self) -> Result<(Vec<Running>, Vec<InstanceError>), InstanceError> {
        let (mut running, mut damaged) = (Vec::new(), Vec::new());
        let mut remains = false;
        for id in self.ids()? {
            if !DirectoryLock::is_held(&self.directory(&id)) {
                remains = true;
                continue;
            }
            match self.read(&id) {
                Ok(vm) => running.push(vm),
                // It has ended since.
                Err(_) if !DirectoryLock::is_held(&self.directory(&id)) => {}
                Err(error) => damaged.push(error),
            }
        }
        if remains {
            self.sweep();
        }
        running
            .sort_by_cached_key(|vm| (vm.record.created, vm.record.process.start_time, vm.record.id.clone()));
        Ok((running, damaged))
    }

    /// The VM that `word` means: an ID, a name, or the beginning of just one ID.
    ///
    /// # Errors
    ///
    /// [`InstanceError::NotFound`], [`InstanceError::Ambiguous`] and what else can be wrong with a directory.
    pub fn find(&self, word: &str) -> Result<Running, InstanceError> {
        if let Ok(id) = word.parse::<VmId>() {
            return if self.lives(&id)? { self.read(&id) } else { Err(InstanceError::NotFound(word.into())) };
        }
        let ids = self.ids()?;
        if let Some(id) = word.parse().ok().and_then(|name| self.owner_of(&name)) {
            return self.read(&id);
        }
        let mut matches = Vec::new();
        if !word.is_empty() && begins_an_id(word) {
            for id in ids {
                if id.as_str().starts_with(word) && self.lives(&id)? {
                    matches.push(id);
                }
            }
        }
        match matches.as_slice() {
            [id] => self.read(id),
            [] => Err(InstanceError::NotFound(word.into())),
            _ => Err(InstanceError::Ambiguous(word.into())),
        }
    }

    /// Removes what killed VMs left behind. What can't be removed stays for the next one who comes by.
    pub fn sweep(&self) {
        // Who adds a VM right now has a directory without a lock on it for a moment; then another process sweeps.
        if let Ok(Some(_adding)) = DirectoryLock::attempt(&self.base) {
            for id in self.ids().unwrap_or_default() {
                self.remove_remains(&id);
            }
        }
    }

    /// The same for a few of them. `base` is the lock of the base directory.
    pub(super) fn sweep_some(&self, base: &DirectoryLock) {
        let entries = base.some_entries();
        let ids = entries.iter().filter_map(|name| name.to_str().ok()?.parse().ok());
        for id in ids.take(SWEPT_AT_START) {
            self.remove_remains(&id);
        }
    }

    fn remove_remains(&self, id: &VmId) {
        let directory = self.directory(id);
        let Ok(Some(_lock)) = DirectoryLock::attempt(&directory) else { return };
        let name = Record::read(&directory, id).ok().and_then(|record| record.name);
        if let Some(name) = name.filter(|name| self.link_of(name).as_ref() == Some(id)) {
            let _ = fs::remove_file(self.base.join(NAMES).join(name.as_str()));
        }
        match fs::remove_dir_all(&directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, "cannot remove {}", directory.display());
            }
            _ => tracing::info!(%id, "removed what a killed VM left behind"),
        }
    }

    /// The running VM that has `name`.
    pub(super) fn owner_of(&self, name: &VmName) -> Option<VmId> {
        self.link_of(name).filter(|id| DirectoryLock::is_held(&self.directory(id)))
    }

    /// Where the link of `name` points, if that could be a VM's directory.
    fn link_of(&self, name: &VmName) -> Option<VmId> {
        let target = fs::read_link(self.base.join(NAMES).join(name.as_str())).ok()?;
        target.to_str()?.parse().ok()
    }

    fn lives(&self, id: &VmId) -> Result<bool, InstanceError> {
        match place::check(&self.base) {
            Err(error) if is_missing(&error) => Ok(false),
            checked => checked.map(|()| DirectoryLock::is_held(&self.directory(id))),
        }
    }

    fn read(&self, id: &VmId) -> Result<Running, InstanceError> {
        let directory = self.directory(id);
        let record = Record::read(&directory, id)
            .map_err(|source| InstanceError::Record { id: id.clone(), source })?;
        Ok(Running { record, directory })
    }

    fn directory(&self, id: &VmId) -> PathBuf {
        self.base.join(id.as_str())
    }

    /// The IDs of all directories, whether their VMs run or not.
    fn ids(&self) -> Result<Vec<VmId>, InstanceError> {
        match place::check(&self.base) {
            // This user has not run a VM yet.
            Err(error) if is_missing(&error) => return Ok(Vec::new()),
            checked => checked?,
        }
        let entries = fs::read_dir(&self.base).map_err(InstanceError::directory("read", &self.base))?;
        Ok(entries.flatten().filter_map(|entry| id_of(&entry)).collect())
    }
}

fn id_of(entry: &fs::DirEntry) -> Option<VmId> {
    entry.file_name().to_str()?.parse().ok()
}

fn is_missing(error: &InstanceError) -> bool {
    matches!(error, InstanceError::Directory { source, .. } if source.kind() == io::ErrorKind::NotFound)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
