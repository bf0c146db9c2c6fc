//! The directories of all of a user's VMs.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::directory::{CONSOLE_SOCKET, CONTROL_SOCKET};
use super::identity::begins_an_id;
use super::lock::DirectoryLock;
use super::record::Record;
use super::{InstanceError, VmId, VmName, cgroup, place, written};

/// The directory of names.
pub(super) const NAMES: &str = "names";
/// The file of the name that a VM was given while it ran.
const RENAMED: &str = "name";
/// How many directories a VM looks at when it starts, for remains of others: enough to remove more than it can leave
/// behind itself, few enough to cost nothing.
const SWEPT_AT_START: usize = 8;

/// How long a VM may be without a record while its directory is made or removed, and how often that is looked at.
const MOMENT: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(2);

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
        let ids = self.ids()?;
        let id = match word.parse().ok().and_then(|name| self.owner_of(&name)) {
            Some(id) => id,
            None => {
                let lives = |id: &VmId| DirectoryLock::is_held(&self.directory(id));
                find_among(word, ids.into_iter().filter(lives))?
            }
        };
        match self.read(&id) {
            // It has ended meanwhile.
            Err(_) if !DirectoryLock::is_held(&self.directory(&id)) => {
                Err(InstanceError::NotFound(word.into()))
            }
            read => read,
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
        remove_links(&self.base.join(NAMES), id);
        cgroup::end_left(&directory, id);
        match fs::remove_dir_all(&directory) {
            // Its keeper was killed, and the VM's process has not quite ended: another one comes by.
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, "cannot remove {}", directory.display());
            }
            _ => tracing::info!(%id, "removed what a killed VM left behind"),
        }
    }

    /// Gives `id` the name `name`, in place of `earlier`, if it runs.
    pub(super) fn rename(
        &self,
        id: &VmId,
        earlier: Option<&VmName>,
        name: &VmName,
    ) -> Result<(), InstanceError> {
        if !self.base.is_dir() {
            return Ok(());
        }
        let _lock = self.lock()?;
        if let Some(owner) = self.owner_of(name) {
            return Err(InstanceError::NameTaken { name: name.clone(), id: owner.to_string() });
        }
        let directory = self.directory(id);
        if !DirectoryLock::is_held(&directory) {
            return Ok(());
        }
        let link = self.make_names()?.join(name.as_str());
        // It was that of one that has ended.
        let _ = fs::remove_file(&link);
        symlink(id.as_str(), &link).map_err(InstanceError::directory("make", link))?;
        // Who removes the directory removes the name. It is written in one step: what is there of it is read as a name.
        written::replace_for_now(&directory.join(RENAMED), "name.new", name.as_str().as_bytes())
            .map_err(InstanceError::directory("write to", &directory))?;
        if let Some(earlier) = earlier.filter(|earlier| self.link_of(earlier).as_ref() == Some(id)) {
            let _ = fs::remove_file(self.base.join(NAMES).join(earlier.as_str()));
        }
        Ok(())
    }

    /// The running VM that has `name`. A link to one with another name is what a process left that was killed while it
    /// renamed it.
    pub(super) fn owner_of(&self, name: &VmName) -> Option<VmId> {
        let id = self.link_of(name)?;
        let directory = self.directory(&id);
        let own = renamed(&directory).or_else(|| Record::read(&directory, &id).ok()?.name);
        let is_its = own.is_none_or(|own| own == *name);
        (is_its && DirectoryLock::is_held(&directory)).then_some(id)
    }

    /// Where the link of `name` points, if that could be a VM's directory.
    fn link_of(&self, name: &VmName) -> Option<VmId> {
        let target = fs::read_link(self.base.join(NAMES).join(name.as_str())).ok()?;
        target.to_str()?.parse().ok()
    }

    fn read(&self, id: &VmId) -> Result<Running, InstanceError> {
        let directory = self.directory(id);
        let deadline = Instant::now() + MOMENT;
        loop {
            match Record::read(&directory, id) {
                Ok(record) => return Ok(Running { record, directory }),
                // Its keeper has the lock before the record is there, and after it was removed.
                Err(source)
                    if source.is_missing()
                        && Instant::now() < deadline
                        && DirectoryLock::is_held(&directory) =>
                {
                    std::thread::sleep(LOOK);
                }
                Err(source) => return Err(InstanceError::Record { id: id.clone(), source }),
            }
        }
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

/// The name that the VM in `directory` was given while it ran.
pub(super) fn renamed(directory: &Path) -> Option<VmName> {
    // This user alone writes there.
    fs::read_to_string(directory.join(RENAMED)).ok()?.parse().ok()
}

/// Removes the links in `names` that lead to `id`: its name, and another one that a process left which was killed while
/// it renamed it.
pub(super) fn remove_links(names: &Path, id: &VmId) {
    for entry in fs::read_dir(names).into_iter().flatten().flatten() {
        if fs::read_link(entry.path()).is_ok_and(|target| target.as_os_str() == id.as_str()) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// The one of `ids` that `word` is, or is the beginning of.
pub(super) fn find_among(word: &str, ids: impl Iterator<Item = VmId>) -> Result<VmId, InstanceError> {
    let mut matches =
        ids.filter(|id| !word.is_empty() && begins_an_id(word) && id.as_str().starts_with(word));
    match (matches.next(), matches.next()) {
        (Some(id), None) => Ok(id),
        (None, _) => Err(InstanceError::NotFound(word.into())),
        (Some(_), Some(_)) => Err(InstanceError::Ambiguous(word.into())),
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
