//! The directory of this process's VM.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use super::archive::Archive;
use super::lock::DirectoryLock;
use super::place::create_private;
use super::record::Format;
use super::registry::{NAMES, Registry, remove_links, renamed};
use super::removal::RemovalWatch;
use super::{Identity, InstanceError, Process, Record, Summary, VmId, VmName, cgroup};

/// The name of the control socket in a VM's directory.
pub const CONTROL_SOCKET: &str = "control.sock";
/// The name of the console's socket in a VM's directory.
pub const CONSOLE_SOCKET: &str = "console.sock";
/// The longest name of a file in a VM's directory that is a socket.
const LONGEST_SOCKET: &str = CONSOLE_SOCKET;
/// The bytes of a socket's address that are its path, without the zero behind it (unix(7)).
const MAX_SOCKET_PATH: usize = 107;

/// The directory of a VM that this process runs, or is about to. It goes when this is dropped; that of a process
/// which is killed is removed by the next `mvm` that comes by.
pub struct Instance {
    id: VmId,
    name: Option<VmName>,
    record: Record,
    path: PathBuf,
    base: PathBuf,
    lock: DirectoryLock,
    /// Its removal has been reported, or is this process's own doing.
    removal_reported: Arc<AtomicBool>,
    /// Another process has it.
    is_left: bool,
}

impl Instance {
    /// Makes a directory for the VM that `identity` names and `summary` describes, among those of this user.
    ///
    /// # Errors
    ///
    /// [`InstanceError`]; nothing is left behind.
    pub fn claim(identity: &Identity, summary: Summary) -> Result<Self, InstanceError> {
        if let Some(name) = &identity.name
            && let Ok(archive) = Archive::of_user()
            && let Some(id) = archive.owner_of(name)
            && identity.id.as_ref() != Some(&id)
        {
            return Err(archive.name_kept(name, &id));
        }
        Self::claim_at(Registry::of_user(), identity, summary)
    }

    pub(super) fn claim_at(
        registry: Registry,
        identity: &Identity,
        summary: Summary,
    ) -> Result<Self, InstanceError> {
        let process = Process::own()?;
        let (base, adding) = registry.lock()?;
        registry.sweep_some(&adding);
        let (id, path) = make_directory(base, identity.id.as_ref())?;
        let lock = DirectoryLock::wait(&path).map_err(InstanceError::directory("lock", &path))?;
        let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let record = Record {
            format: Format::default(),
            id: id.clone(),
            name: identity.name.clone(),
            process,
            vm_process: None,
            created,
            config: summary,
        };
        // From here on dropping it removes the directory.
        let mut instance = Self {
            id,
            name: None,
            record,
            path,
            base: base.to_owned(),
            lock,
            removal_reported: Arc::default(),
            is_left: false,
        };
        let written = instance.record.write(&instance.path);
        written.map_err(InstanceError::directory("write to", &instance.path))?;
        if let Some(name) = &identity.name {
            instance.take_name(&registry, name)?;
        }
        drop(adding);
        Ok(instance)
    }

    /// The VM's ID.
    pub fn id(&self) -> &VmId {
        &self.id
    }

    /// Who the VM is: with an ID and a directory, whatever was asked for.
    pub fn identity(&self) -> Identity {
        Identity { id: Some(self.id.clone()), name: self.name.clone(), directory: Some(self.path.clone()) }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A watch that notices when the directory is removed while the VM runs.
    ///
    /// # Errors
    ///
    /// Those of inotify: the user has as many instances as the system allows.
    pub fn watch_removal(&self) -> io::Result<RemovalWatch> {
        RemovalWatch::new(&self.path, self.removal_reported.clone())
    }

    /// Notes that the VM runs in the process `pid`, a child of this one.
    ///
    /// # Errors
    ///
    /// /proc does not say when it started, or the record can't be written.
    pub fn set_vm_process(&mut self, pid: i32) -> Result<(), InstanceError> {
        self.record.vm_process = Some(Process::child_of(&self.record.process, pid)?);
        self.record.write(&self.path).map_err(InstanceError::directory("write to", &self.path))
    }

    /// Leaves the directory to the process that this one is a copy of.
    pub fn leave(mut self) {
        self.is_left = true;
    }

    /// Makes `name` this VM's. Only who has the lock of the base directory calls it.
    fn take_name(&mut self, registry: &Registry, name: &VmName) -> Result<(), InstanceError> {
        let link = registry.make_names()?.join(name.as_str());
        // The second attempt is for a name whose VM has ended.
        for _ in 0..2 {
            match symlink(self.id.as_str(), &link) {
                Ok(()) => {
                    self.name = Some(name.clone());
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    if let Some(id) = registry.owner_of(name) {
                        return Err(InstanceError::NameTaken { name: name.clone(), id: id.to_string() });
                    }
                    fs::remove_file(&link).map_err(InstanceError::directory("remove", &link))?;
                }
                Err(error) => return Err(InstanceError::directory("make", &link)(error)),
            }
        }
        Err(InstanceError::directory("make", &link)(io::ErrorKind::AlreadyExists.into()))
    }
}

impl Instance {
    /// Removes the link from the VM's name, where it is still this VM's.
    fn remove_name(&self) -> io::Result<()> {
        if renamed(&self.path).is_some() {
            remove_links(&self.base.join(NAMES), &self.id);
            return Ok(());
        }
        let Some(name) = &self.name else { return Ok(()) };
        let link = self.base.join(NAMES).join(name.as_str());
        if fs::read_link(&link).is_ok_and(|target| target.as_os_str() == self.id.as_str()) {
            fs::remove_file(link)?;
        }
        Ok(())
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if self.is_left {
            return;
        }
        // Before anything is removed, so that the watch does not report what happens here.
        let reported = self.removal_reported.swap(true, Ordering::SeqCst);
        // Where it was removed while the VM ran, another VM may have got the name since, and the ID as well.
        let is_there = self.lock.is_at(&self.path);
        // Before the directory, so that a name which can be found has a VM.
        let mut removed = if is_there || !self.path.exists() { self.remove_name() } else { Ok(()) };
        // Nearly always that is all there is, and takes fewer calls than to look for more.
        self.lock.remove_some_entries();
        if is_there {
            removed = removed.and_then(|()| match fs::remove_dir(&self.path) {
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
                    fs::remove_dir_all(&self.path)
                }
                removed => removed,
            });
        }
        if !is_there {
            if !reported {
                tracing::warn!(
                    "{} was removed while the VM ran, so that other commands did not find the VM",
                    self.path.display()
                );
            }
        } else if let Err(error) = removed {
            tracing::warn!(%error, "cannot remove {}", self.path.display());
        }
    }
}

/// Makes the directory of a new VM: that of the ID that was asked for, or a random one that is not in use.
fn make_directory(base: &Path, asked: Option<&VmId>) -> Result<(VmId, PathBuf), InstanceError> {
    loop {
        let id = match asked {
            Some(id) => id.clone(),
            None => VmId::random().map_err(InstanceError::directory("draw a random ID for a VM in", base))?,
        };
        let path = base.join(id.as_str());
        if path.as_os_str().len() + 1 + LONGEST_SOCKET.len() > MAX_SOCKET_PATH {
            return Err(InstanceError::PathTooLong(path.join(LONGEST_SOCKET)));
        }
        match create_private(&path) {
            Ok(()) => return Ok((id, path)),
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(InstanceError::directory("make the directory", path)(error));
            }
            Err(_) if asked.is_some() && DirectoryLock::is_held(&path) => {
                return Err(InstanceError::IdTaken(id));
            }
            // The remains of a VM with the same ID; the lock keeps others from using the name.
            Err(_) if asked.is_some() => {
                cgroup::end_left(&path, &id);
                fs::remove_dir_all(&path).map_err(InstanceError::directory("remove", &path))?;
            }
            Err(_) => {}
        }
    }
}
