//! What is kept of VMs and containers beyond their end, until it is removed: a record, the exit code and the output.
//!
//! ```text
//! $MVM_DATA_DIR/instances/    or in ~/.local/share/mvm, for root in /var/lib/mvm; 0700; its lock is held while one is
//! │                           added or removed
//! ├── names/web -> 3f0c…      a name belongs to one of them, whether it runs or not
//! └── 3f0c9a51b2e7/           0700; its lock is held by the process that keeps it, for as long as it runs
//!     ├── record.json         what it is, see [`Entry`]
//!     ├── name                its name, where that was changed
//!     ├── order.json          what was asked for, so that another process can start it again; 0600
//!     ├── visitor.json        the process that has it for a while without starting it
//!     ├── end.json            how it ended, see [`End`]; empty before
//!     ├── health.json         how it is, where its health is checked
//!     ├── stopped             is there where a user has stopped it
//!     ├── output.log          its latest output, and output.log.1 what was before
//!     └── mvm.log             what mvm said of one that ran in the background
//! ```
//!
//! A directory without a record is what is left of one that was being made or removed by a process that was killed.

mod entry;
mod keep;
#[cfg(test)]
mod tests;

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

pub use self::entry::{End, Entry, EntryError, Kept, Kind, Phase, write_health};
pub use self::keep::Keep;

use self::entry::{NAME, STOPPED, has_record, remove_files, remove_record, write_order, write_record};
use serde::Serialize;

use crate::lock::DirectoryLock;
use crate::registry::{NAMES, Registry, find_among, remove_links};
use crate::{InstanceError, VmId, VmName, VolumeName, Volumes, place, written};

/// How many directories one looks at that is added, for remains of others: few enough to cost nothing.
const SWEPT_AT_START: usize = 8;

/// All that is kept of a user's.
pub struct Archive {
    base: PathBuf,
}

impl Archive {
    /// That of this process's user.
    ///
    /// # Errors
    ///
    /// [`InstanceError::NoDataDirectory`].
    pub fn of_user() -> Result<Self, InstanceError> {
        let data = place::data_directory().ok_or(InstanceError::NoDataDirectory)?;
        Ok(Self { base: data.join("instances") })
    }

    /// Makes a place for `entry`, whose lock this process holds then.
    ///
    /// # Errors
    ///
    /// [`InstanceError::NameKept`] and those of the file system; nothing is left behind.
    pub fn add(&self, entry: Entry) -> Result<Keep, InstanceError> {
        let adding = self.lock()?;
        self.sweep(SWEPT_AT_START);
        if let Some(name) = &entry.name
            && let Some(id) = self.owner_of(name)
        {
            return Err(self.name_kept(name, &id));
        }
        let directory = self.directory(&entry.id);
        place::create_private(&directory).map_err(InstanceError::directory("make", &directory))?;
        let (id, name) = (entry.id.clone(), entry.name.clone());
        // A record is never without its name: what is listed can be removed by it, whenever this process is killed.
        let made = DirectoryLock::wait(&directory)
            .map_err(InstanceError::directory("lock", &directory))
            .and_then(|lock| self.link(name.as_ref(), &id).map(|()| lock))
            .and_then(|lock| {
                Keep::create(entry, directory.clone(), lock)
                    .map_err(InstanceError::directory("write to", &directory))
            });
        if made.is_err() {
            name.iter().for_each(|name| self.unlink(name, &id));
            let _ = remove_files(&directory);
        }
        drop(adding);
        made
    }

    /// Makes a place for `entry`, which is not started yet: its name belongs to nothing that runs either.
    ///
    /// # Errors
    ///
    /// As [`Self::add`], and [`InstanceError::NameTaken`].
    pub fn create(&self, entry: Entry) -> Result<Keep, InstanceError> {
        if let Some(name) = &entry.name
            && let Some(id) = Registry::of_user().owner_of(name)
        {
            return Err(InstanceError::NameTaken { name: name.clone(), id: id.to_string() });
        }
        self.add(entry)
    }

    /// An ID that nothing has which is kept.
    ///
    /// # Errors
    ///
    /// [`InstanceError::Directory`].
    pub fn new_id(&self) -> Result<VmId, InstanceError> {
        loop {
            let id = VmId::random().map_err(InstanceError::directory("draw a random ID for", &self.base))?;
            if !self.directory(&id).exists() {
                return Ok(id);
            }
        }
    }

    /// Takes what is kept of `id`, so that this process keeps it from now on; `None` where another one does.
    ///
    /// # Errors
    ///
    /// [`InstanceError::NotFound`], and those of the record and of the file system.
    pub fn take(&self, id: &VmId) -> Result<Option<Keep>, InstanceError> {
        let directory = self.directory(id);
        let lock = match DirectoryLock::attempt(&directory) {
            Ok(Some(lock)) => lock,
            Ok(None) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(InstanceError::NotFound(id.to_string()));
            }
            Err(error) => return Err(InstanceError::directory("lock", directory)(error)),
        };
        let entry = match self.read(id) {
            // It was removed meanwhile.
            Err(_) if !has_record(&directory) => return Err(InstanceError::NotFound(id.to_string())),
            read => read?.entry,
        };
        let taken = Keep::take(entry, directory.clone(), lock);
        taken.map(Some).map_err(InstanceError::directory("write to", directory))
    }

    /// Takes what is kept of `id` with the lock that `descriptor` has, from [`Keep::lock_descriptor`].
    ///
    /// # Errors
    ///
    /// [`InstanceError::NotFound`] where the descriptor is another's, and those of the record and of the file system.
    pub fn adopt(&self, id: &VmId, descriptor: OwnedFd) -> Result<Keep, InstanceError> {
        let directory = self.directory(id);
        let lock = DirectoryLock::adopt(descriptor).filter(|lock| lock.is_at(&directory));
        let lock = lock.ok_or_else(|| InstanceError::NotFound(id.to_string()))?;
        let entry = self.read(id)?.entry;
        Keep::take(entry, directory.clone(), lock).map_err(InstanceError::directory("write to", directory))
    }

    /// Gives `id` another name, whether it runs or not.
    ///
    /// # Errors
    ///
    /// [`InstanceError::NameKept`], [`InstanceError::NameTaken`], and those of the record and of the file system.
    pub fn rename(&self, id: &VmId, name: &VmName) -> Result<(), InstanceError> {
        let _lock = self.lock()?;
        let kept = self.read(id)?;
        if let Some(owner) = self.owner_of(name) {
            return Err(self.name_kept(name, &owner));
        }
        let directory = self.directory(id);
        // What may find no space on the disk comes first, and the name is another one when all is there that finds it.
        let new = directory.join("name.new");
        let renamed = written::write_whole(&new, name.as_str().as_bytes())
            .map_err(InstanceError::directory("write to", &directory))
            .and_then(|()| self.link(Some(name), id))
            .and_then(|()| Registry::of_user().rename(id, kept.entry.name.as_ref(), name))
            .and_then(|()| {
                fs::rename(&new, directory.join(NAME))
                    .map_err(InstanceError::directory("write to", &directory))
            });
        match &renamed {
            Ok(()) => kept.entry.name.iter().for_each(|earlier| self.unlink(earlier, id)),
            Err(_) => {
                let _ = fs::remove_file(&new);
                self.unlink(name, id);
            }
        }
        renamed
    }

    /// Removes the link of `name`, where it is that of `id`.
    fn unlink(&self, name: &VmName, id: &VmId) {
        let link = self.base.join(NAMES).join(name.as_str());
        if fs::read_link(&link).is_ok_and(|target| target.as_os_str() == id.as_str()) {
            let _ = fs::remove_file(link);
        }
    }

    /// Keeps what is asked for from now on of `id`, whether it runs or not.
    ///
    /// # Errors
    ///
    /// [`InstanceError::NotFound`], [`InstanceError::Directory`].
    pub fn set_order(&self, id: &VmId, order: &impl Serialize) -> Result<(), InstanceError> {
        let _lock = self.lock()?;
        let directory = self.directory(id);
        let entry = self.read(id)?.entry;
        write_order(&directory, &entry, order).map_err(InstanceError::directory("write to", directory))
    }

    /// Changes the record of `id`, whether it runs or not.
    ///
    /// # Errors
    ///
    /// Those of the record and of the file system.
    pub fn change(&self, id: &VmId, change: impl FnOnce(&mut Entry)) -> Result<(), InstanceError> {
        let _lock = self.lock()?;
        let directory = self.directory(id);
        let mut entry = self.read(id)?.entry;
        change(&mut entry);
        write_record(&directory, &entry).map_err(InstanceError::directory("write to", directory))
    }

    /// Notes that a user has stopped `id`, or has started it.
    ///
    /// # Errors
    ///
    /// [`InstanceError::Directory`].
    pub fn set_stopped(&self, id: &VmId, is_stopped: bool) -> Result<(), InstanceError> {
        let path = self.directory(id).join(STOPPED);
        let done = if is_stopped { fs::write(&path, "") } else { fs::remove_file(&path) };
        match done {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(InstanceError::directory("write to", path)(error))
            }
            _ => Ok(()),
        }
    }

    /// Whether a user has stopped `id` since it was started.
    pub fn is_stopped(&self, id: &VmId) -> bool {
        self.directory(id).join(STOPPED).exists()
    }

    fn link(&self, name: Option<&VmName>, id: &VmId) -> Result<(), InstanceError> {
        let Some(name) = name else { return Ok(()) };
        let names = self.base.join(NAMES);
        place::make(&names)?;
        let link = names.join(name.as_str());
        // It is free, as `owner_of` said.
        let _ = fs::remove_file(&link);
        symlink(id.as_str(), &link).map_err(InstanceError::directory("make", link))
    }

    /// Which of those that are kept has `name`. One whose keeper was killed before it removed it has none any more, and
    /// a link to one with another name is what a process left that was killed while it renamed it.
    pub fn owner_of(&self, name: &VmName) -> Option<VmId> {
        let target = fs::read_link(self.base.join(NAMES).join(name.as_str())).ok()?;
        let id: VmId = target.to_str()?.parse().ok()?;
        let is_its = |kept: &Kept| !kept.is_left() && kept.entry.name.as_ref() == Some(name);
        match self.read(&id) {
            Ok(kept) => is_its(&kept).then_some(id),
            // One that can't be read keeps its name.
            Err(_) => has_record(&self.directory(&id)).then_some(id),
        }
    }

    /// That `name` belongs to `owner`.
    pub(crate) fn name_kept(&self, name: &VmName, owner: &VmId) -> InstanceError {
        let is_pod = self.read(owner).is_ok_and(|kept| kept.entry.kind == Kind::Pod);
        let removal = if is_pod { "mvm pod rm" } else { "mvm rm" };
        InstanceError::NameKept { name: name.clone(), id: owner.to_string(), removal }
    }

    /// All that are kept, the oldest first, and what is wrong with those that can't be read.
    ///
    /// # Errors
    ///
    /// [`InstanceError`] where the directory is not the user's own or can't be read.
    pub fn all(&self) -> Result<(Vec<Kept>, Vec<InstanceError>), InstanceError> {
        let (mut all, mut damaged) = (Vec::new(), Vec::new());
        let mut has_remains = false;
        for id in self.ids()? {
            match self.read(&id) {
                Ok(kept) if kept.is_left() => has_remains = true,
                Ok(kept) => all.push(kept),
                Err(_) if !has_record(&self.directory(&id)) => has_remains = true,
                Err(error) => damaged.push(error),
            }
        }
        // Who is not waited for may remove it as well.
        if has_remains && let Ok(Some(_lock)) = DirectoryLock::attempt(&self.base) {
            self.sweep(usize::MAX);
        }
        all.sort_by_cached_key(|kept| (kept.entry.created, kept.entry.id.clone()));
        Ok((all, damaged))
    }

    /// All that are kept: for what is removed only where none of them uses it.
    ///
    /// # Errors
    ///
    /// As [`all`](Self::all), and one of them can't be read: what it uses is not known.
    pub fn all_readable(&self) -> Result<Vec<Kept>, InstanceError> {
        let (all, damaged) = self.all()?;
        damaged.into_iter().next().map_or(Ok(all), Err)
    }

    /// The one that `word` means: an ID, a name, or the beginning of just one ID.
    ///
    /// # Errors
    ///
    /// [`InstanceError::NotFound`], [`InstanceError::Ambiguous`] and what else can be wrong with a record.
    pub fn find(&self, word: &str) -> Result<Kept, InstanceError> {
        let ids = self.ids()?;
        let named = word.parse().ok().and_then(|name| self.owner_of(&name));
        let id = match named {
            Some(id) => id,
            None => find_among(word, ids.into_iter().filter(|id| has_record(&self.directory(id))))?,
        };
        match self.read(&id) {
            // It was removed meanwhile.
            Err(_) if !has_record(&self.directory(&id)) => Err(InstanceError::NotFound(word.into())),
            read => read,
        }
    }

    /// Removes what is kept of `id`, and its anonymous volumes if `with_volumes`; returns false where it runs.
    ///
    /// # Errors
    ///
    /// [`InstanceError::Directory`].
    pub fn remove(&self, id: &VmId, with_volumes: bool) -> Result<bool, InstanceError> {
        let _lock = self.lock()?;
        let directory = self.directory(id);
        match DirectoryLock::attempt(&directory) {
            Ok(Some(_free)) => {
                let volumes = self.read(id).map(|kept| kept.entry.volumes).unwrap_or_default();
                self.remove_unused(id)?;
                if with_volumes {
                    self.remove_volumes(&volumes);
                }
                Ok(true)
            }
            Ok(None) => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
            Err(error) => Err(InstanceError::directory("lock", directory)(error)),
        }
    }

    /// Removes `keep`, which this process has kept until now, with its anonymous volumes, which this process holds no
    /// more.
    ///
    /// # Errors
    ///
    /// [`InstanceError::Directory`].
    pub fn remove_own(&self, keep: &Keep) -> Result<(), InstanceError> {
        let _lock = self.lock()?;
        self.remove_unused(&keep.entry.id)?;
        self.remove_volumes(&keep.entry.volumes);
        Ok(())
    }

    /// Who of those that are kept uses the volume `name`.
    ///
    /// # Errors
    ///
    /// As [`all_readable`](Self::all_readable).
    pub fn users_of(&self, name: &VolumeName) -> Result<Vec<Kept>, InstanceError> {
        let mut all = self.all_readable()?;
        all.retain(|kept| kept.entry.volumes.contains(name));
        Ok(all)
    }

    /// Removes those of `names` that are anonymous and that no other container uses.
    pub fn remove_volumes(&self, names: &[VolumeName]) {
        let Some(volumes) = self.base.parent().map(Volumes::beside) else { return };
        for name in names {
            if volumes.find(name).is_ok_and(|volume| volume.record.is_anonymous)
                && let Err(error) =
                    volumes.remove(name, || !self.users_of(name).is_ok_and(|users| users.is_empty()))
            {
                tracing::warn!(error = &error as &dyn std::error::Error, "cannot remove an anonymous volume");
            }
        }
    }

    fn remove_unused(&self, id: &VmId) -> Result<(), InstanceError> {
        let directory = self.directory(id);
        // Without a record it is nothing any more; with its directory there, what is left is found by the next process.
        remove_record(&directory)
            .and_then(|()| {
                remove_links(&self.base.join(NAMES), id);
                remove_files(&directory)
            })
            .map_err(InstanceError::directory("remove", directory))
    }

    /// Removes what killed processes left: what was to be removed with its end, and what has no record. It looks at no
    /// more than `most` directories. Only who has the lock of the base directory calls it.
    fn sweep(&self, most: usize) {
        for id in self.ids().unwrap_or_default().into_iter().take(most) {
            let directory = self.directory(&id);
            let is_over = |kept: &Kept| kept.entry.removes && !kept.is_created() && !kept.is_saved();
            let kept = self.read(&id).ok().filter(is_over);
            if (kept.is_some() || !has_record(&directory))
                && let Ok(Some(_free)) = DirectoryLock::attempt(&directory)
                && self.remove_unused(&id).is_ok()
            {
                self.remove_volumes(&kept.map(|kept| kept.entry.volumes).unwrap_or_default());
            }
        }
    }

    /// The archive in `base`.
    #[cfg(test)]
    fn at(base: PathBuf) -> Self {
        Self { base }
    }

    /// The lock of the base directory, which is made where it is missing.
    fn lock(&self) -> Result<DirectoryLock, InstanceError> {
        if let Some(parent) = self.base.parent() {
            fs::create_dir_all(parent).map_err(InstanceError::directory("make", parent))?;
        }
        let directory = place::make_and_open(&self.base)?;
        DirectoryLock::wait_for(directory).map_err(InstanceError::directory("lock", &self.base))
    }

    fn read(&self, id: &VmId) -> Result<Kept, InstanceError> {
        Kept::read(self.directory(id), id).map_err(|source| InstanceError::Kept { id: id.clone(), source })
    }

    /// Where what is kept of `id` is.
    pub fn directory(&self, id: &VmId) -> PathBuf {
        self.base.join(id.as_str())
    }

    fn ids(&self) -> Result<Vec<VmId>, InstanceError> {
        match fs::read_dir(&self.base) {
            Ok(entries) => {
                let id_of = |entry: fs::DirEntry| entry.file_name().to_str()?.parse().ok();
                Ok(entries.flatten().filter_map(id_of).collect())
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(InstanceError::directory("read", &self.base)(error)),
        }
    }
}
