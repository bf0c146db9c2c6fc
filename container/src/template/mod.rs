//! Templates: VMs that were saved when their agent was ready. A container's VM goes on from one, and so does not wait
//! for the guest's kernel.
//!
//! A template has no container and no disk but the agent's root. What a container has is put into slots of the VM that
//! goes on, which are there in the order in which a VM that boots has its disks, so that their devices have the same
//! names. Of such a template others are made, each for containers of one image: see [`Root`].
//!
//! ```text
//! $MVM_DATA_DIR/templates/       0700; `lock` is held while one is made
//! └── 1c-1024m-user/             for VMs of one size
//!     ├── manifest.json          what it was made of: [`Key`]
//!     ├── state                  0400, as the memory
//!     ├── memory
//!     └── touched                which pages of it a VM uses as soon as it goes on
//! ```

mod awake;
mod make;
mod root;
mod shape;
mod touched;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use instance::{ClientError, InstanceError};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;
use vmm::{SavedVm, Snapshot, SnapshotError};

pub use self::awake::awake;
pub use self::root::{Root, SLOTS_OF_ROOT};
pub use self::shape::{Shape, as_saved};

use self::root::RootKey;
use crate::assets::Assets;
use crate::connection::ConnectionError;
use crate::options::RunOptions;
use crate::run::RunError;

/// The version of a template's files.
const FORMAT: u32 = 1;
/// How many templates of each level are kept; those that were not used for longest go.
const MOST: usize = 8;
/// The most bytes of a manifest, and of a state.
const MAX_MANIFEST: u64 = 64 << 10;
const MAX_STATE: u64 = 64 << 20;
/// The same of what says which pages are used at once.
const MAX_TOUCHED: u64 = 256 << 10;
/// How often a lock is tried.
const LOOK: Duration = Duration::from_millis(20);
const MANIFEST: &str = "manifest.json";
const STATE: &str = "state";
const MEMORY: &str = "memory";
const TOUCHED: &str = "touched";
const CHANGES: &str = "changes.templates";
const LOCK: &str = "lock";

/// What tells whether a file is as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Facts {
    path: PathBuf,
    inode: (u64, u64),
    bytes: u64,
    /// When it was last changed, in seconds and nanoseconds since 1970.
    changed: (i64, i64),
}

impl Facts {
    fn of(path: &Path) -> io::Result<Self> {
        let data = fs::metadata(path)?;
        Ok(Self {
            path: path.to_owned(),
            inode: (data.dev(), data.ino()),
            bytes: data.len(),
            changed: (data.mtime(), data.mtime_nsec()),
        })
    }
}

/// What a template was made of. It is of use as long as all of it is the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Key {
    format: u32,
    shape: Shape,
    /// The root that is mounted in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    root: Option<RootKey>,
    /// mvm itself, and what the guest is made of.
    files: [Facts; 3],
    /// The host's kernel.
    host: String,
    /// What the processor says that it is, and can.
    processor: Vec<u32>,
}

impl Key {
    fn new(assets: &Assets, shape: Shape, root: Option<&Root>) -> io::Result<Self> {
        let program = Path::new("/proc/self/exe");
        let system = rustix::system::uname();
        Ok(Self {
            format: FORMAT,
            shape,
            root: root.map(|root| root.key(assets)).transpose()?,
            files: [Facts::of(program)?, Facts::of(&assets.kernel)?, Facts::of(&assets.root)?],
            host: format!("{} {}", system.release().to_string_lossy(), system.version().to_string_lossy()),
            processor: vmm::processor_identity(),
        })
    }
}

/// Those that have digests, in a template with this key.
fn files(key: &Key) -> &'static [&'static str] {
    if key.root.is_some() { &[STATE, MEMORY, CHANGES] } else { &[STATE, MEMORY] }
}

/// What a container's VM goes on from.
#[derive(Debug)]
pub struct Template {
    /// What the VM has in common with others.
    pub shape: Shape,
    /// Its state and memory.
    pub snapshot: Snapshot,
    /// The templates of the disk for changes, if the container's root is mounted.
    pub changes: Option<File>,
}

impl Template {
    /// The file of templates with the disk for changes, by a path that leads to it whatever takes the place of the
    /// template's directory; `None` if the container's root is not mounted.
    pub fn templates_of_disk(&self) -> Option<PathBuf> {
        self.changes.as_ref().map(|file| PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd())))
    }
}

/// Why there is no template.
#[derive(Debug, Error)]
pub enum TemplateError {
    /// Where templates are.
    #[error(transparent)]
    Directory(#[from] InstanceError),
    /// Its VM, or the host.
    #[error(transparent)]
    Vm(#[from] RunError),
    /// Its agent.
    #[error(transparent)]
    Agent(#[from] ConnectionError),
    /// It can't be saved.
    #[error("cannot save the template's VM")]
    Save(#[from] ClientError),
    /// Its state can't be used.
    #[error("cannot use the template's state")]
    State(#[from] SnapshotError),
}

/// A template's manifest.
#[derive(Serialize, Deserialize)]
struct Manifest {
    #[serde(flatten)]
    key: Key,
    /// Of its state and of its memory, by who has them made.
    digests: Vec<String>,
}

/// What gives the digest of a file's content.
pub type Digest<'a> = &'a dyn Fn(&mut File) -> io::Result<String>;

/// What a look at all of a template has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verified {
    /// It is as it was made.
    Whole,
    /// It is another version's: it is not used.
    Unknown,
    /// This file of it is not as it was made, or can't be read.
    Altered(&'static str),
}

fn host(doing: &'static str) -> impl FnOnce(io::Error) -> TemplateError {
    move |source| TemplateError::Vm(RunError::Host { doing, source })
}

/// Waits until what is in the files of `directory` is on the disk.
fn sync_files(directory: &Path) -> io::Result<()> {
    fs::read_dir(directory)?.try_for_each(|entry| File::open(entry?.path())?.sync_data())
}

/// The templates of a user.
pub struct Templates {
    base: PathBuf,
}

/// One of them, as it is listed.
#[derive(Clone, Debug, Serialize)]
pub struct Listed {
    /// The name of its directory.
    pub name: String,
    /// What its VMs have in common; `None` where it is damaged, or another version's.
    pub shape: Option<Shape>,
    /// The ID of the image that it is for; `None` for those that are for all.
    pub image: Option<String>,
    /// Bytes on the disk.
    pub bytes: u64,
    /// When it was last used.
    pub used: SystemTime,
}

impl Templates {
    /// Those of this process's user.
    ///
    /// # Errors
    ///
    /// [`InstanceError::NoDataDirectory`].
    pub fn of_user() -> Result<Self, InstanceError> {
        let data = instance::data_directory().ok_or(InstanceError::NoDataDirectory)?;
        Ok(Self { base: data.join("templates") })
    }

    /// The template for VMs of `shape`, with this `root`, made with `assets` on this host; `None` where there is none,
    /// or one of something else.
    ///
    /// # Errors
    ///
    /// [`TemplateError`]: it is damaged.
    pub fn open(
        &self,
        assets: &Assets,
        shape: Shape,
        root: Option<&Root>,
    ) -> Result<Option<Template>, TemplateError> {
        // One directory, whatever takes its place meanwhile.
        let opened = match File::open(self.base.join(name_of(shape, root))) {
            Ok(opened) => opened,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(host("read a template")(error)),
        };
        let directory = PathBuf::from(format!("/proc/self/fd/{}", opened.as_raw_fd()));
        let Some(manifest) =
            read(&directory.join(MANIFEST), MAX_MANIFEST).map_err(host("read a template"))?
        else {
            return Ok(None);
        };
        let key = Key::new(assets, shape, root).map_err(host("look at what templates are made of"))?;
        if !serde_json::from_slice(&manifest).is_ok_and(|made_of: Key| made_of == key) {
            return Ok(None);
        }
        let (Some(state), Some(memory)) = (
            read(&directory.join(STATE), MAX_STATE).map_err(host("read a template"))?,
            File::open(directory.join(MEMORY)).ok(),
        ) else {
            return Ok(None);
        };
        let changes = root.map(|_| File::open(directory.join(CHANGES))).transpose();
        let Ok(changes) = changes else { return Ok(None) };
        // By which it is known which were not used for long.
        let _ = opened.set_modified(SystemTime::now());
        let state = SavedVm::decode(&state)?;
        state.check_memory(&memory)?;
        // Without it, it takes longer.
        let touched = read(&directory.join(TOUCHED), MAX_TOUCHED).ok().flatten().unwrap_or_default();
        let snapshot = Snapshot { touched: touched::decode(&touched), ..Snapshot::new(state, memory) };
        Ok(Some(Template { shape, snapshot, changes }))
    }

    /// Makes the template for VMs of `shape`; with a `root`, the one in which that is mounted, for which the other one
    /// is made first if it is missing. Another process that makes one is waited for, up to `patience`. Returns whether
    /// it is made; `digest` gives the digests of its files. This process has one thread yet.
    ///
    /// # Errors
    ///
    /// [`TemplateError`]; nothing is left behind.
    pub fn make(
        &self,
        assets: &Assets,
        (shape, root): (Shape, Option<&Root>),
        options: &RunOptions,
        patience: Duration,
        digest: Digest<'_>,
    ) -> Result<bool, TemplateError> {
        if let Some(data) = self.base.parent() {
            fs::create_dir_all(data).map_err(host("make the directory of templates"))?;
        }
        make_directory(&self.base).map_err(host("make the directory of templates"))?;
        let lock = self.lock().map_err(host("lock the directory of templates"))?;
        let deadline = Instant::now() + patience;
        while flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            if Instant::now() >= deadline {
                return Ok(false);
            }
            // A lock of flock(2) is not waited for with a deadline but so.
            std::thread::sleep(LOOK);
        }
        let first = |new: &Path| make::fill(new, assets, shape, options, digest);
        if let Some(root) = root {
            let open = || self.open(assets, shape, None).ok().flatten();
            let opened = match open() {
                None => self.place(&name_of(shape, None), first).map(|()| open())?,
                opened => opened,
            };
            let gone = || host("make a template")(io::ErrorKind::NotFound.into());
            let from = opened.ok_or_else(gone)?.snapshot;
            self.place(&name_of(shape, Some(root)), |new| {
                root::fill(new, (assets, shape, root), from, options, digest)
            })?;
        } else {
            self.place(&name_of(shape, None), first)?;
        }
        self.forget(MOST);
        Ok(true)
    }

    /// Has a template made in a new directory, which is called `name` when it is whole.
    fn place(
        &self,
        name: &str,
        fill: impl FnOnce(&Path) -> Result<(), TemplateError>,
    ) -> Result<(), TemplateError> {
        let new = self.base.join("new");
        // What a killed process has left.
        let _ = fs::remove_dir_all(&new);
        make_directory(&new).map_err(host("make a template's directory"))?;
        let made = fill(&new).and_then(|()| {
            // After a crash of the host, a name can be there without what is in its files.
            sync_files(&new).map_err(host("write a template"))?;
            let place = self.base.join(name);
            let _ = fs::remove_dir_all(&place);
            fs::rename(&new, place).map_err(host("name a template"))
        });
        if made.is_err() {
            let _ = fs::remove_dir_all(&new);
        }
        made
    }

    /// All of them, the last used first.
    pub fn all(&self) -> Vec<Listed> {
        let entries = fs::read_dir(&self.base).into_iter().flatten().flatten();
        let mut all: Vec<_> = entries.filter_map(|entry| listed(&entry.path())).collect();
        all.sort_by_key(|template| std::cmp::Reverse(template.used));
        all
    }

    /// Looks at all of each template, with what has given the digests when it was made.
    pub fn verify(&self, digest: Digest<'_>) -> Vec<(Listed, Verified)> {
        let looked = |template: Listed| {
            let verified = verify(&self.base.join(&template.name), digest);
            (template, verified)
        };
        self.all().into_iter().map(looked).collect()
    }

    /// Removes all but the `kept` of each level that were used last, and those of images that are gone; returns what it
    /// has removed. VMs that run from one have its memory as long as they run.
    pub fn forget(&self, kept: usize) -> Vec<Listed> {
        let (of_images, others): (Vec<_>, Vec<_>) =
            self.all().into_iter().partition(|template| template.image.is_some());
        let (of_images, mut gone): (Vec<_>, Vec<_>) =
            of_images.into_iter().partition(|template| !self.is_gone(&template.name));
        gone.extend(of_images.into_iter().skip(kept).chain(others.into_iter().skip(kept)));
        gone.iter().for_each(|template| self.remove(&template.name));
        gone
    }

    /// Whether the image of the template `name` is not there any more.
    fn is_gone(&self, name: &str) -> bool {
        key_in(&self.base.join(name)).and_then(|key| key.root).is_some_and(|root| root.is_gone())
    }

    /// Removes the template for VMs of `shape` with this `root`, as one that can't be used.
    pub fn discard(&self, shape: Shape, root: Option<&Root>) {
        self.remove(&name_of(shape, root));
    }

    fn remove(&self, name: &str) {
        let directory = self.base.join(name);
        // Without its manifest it is none any more.
        let _ = fs::remove_file(directory.join(MANIFEST));
        let _ = fs::remove_dir_all(directory);
    }

    fn lock(&self) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600).open(self.base.join(LOCK))
    }
}

/// The name of a template's directory.
fn name_of(shape: Shape, root: Option<&Root>) -> String {
    root.map_or_else(|| shape.name(), |root| format!("{}-{}", shape.name(), root.name()))
}

/// What the template in `directory` was made of.
fn key_in(directory: &Path) -> Option<Key> {
    let manifest = read(&directory.join(MANIFEST), MAX_MANIFEST).ok().flatten()?;
    serde_json::from_slice(&manifest).ok()
}

fn listed(directory: &Path) -> Option<Listed> {
    let data = fs::symlink_metadata(directory).ok().filter(fs::Metadata::is_dir)?;
    let path = directory.join(MANIFEST);
    // Without it it is none, or not made yet; with one that can't be read it is damaged.
    fs::symlink_metadata(&path).ok()?;
    let made_of = key_in(directory);
    let bytes = [STATE, MEMORY, CHANGES].iter().filter_map(|name| fs::metadata(directory.join(name)).ok());
    Some(Listed {
        name: directory.file_name()?.to_str()?.to_owned(),
        shape: made_of.as_ref().map(|key| key.shape),
        image: made_of.and_then(|key| key.root).map(|root| root.image().to_owned()),
        bytes: bytes.map(|data| data.blocks().saturating_mul(512)).sum(),
        used: data.modified().ok()?,
    })
}

/// Whether the files in `directory` are as its manifest says.
fn verify(directory: &Path, digest: Digest<'_>) -> Verified {
    let Ok(Some(manifest)) = read(&directory.join(MANIFEST), MAX_MANIFEST) else {
        return Verified::Altered(MANIFEST);
    };
    let Ok(Manifest { digests, key }) = serde_json::from_slice(&manifest) else {
        return if is_others(&manifest) { Verified::Unknown } else { Verified::Altered(MANIFEST) };
    };
    let mut files = files(&key).iter().zip(digests.iter().map(Some).chain(std::iter::repeat(None)));
    let altered = files.find(|(name, digest_then)| {
        let now = File::open(directory.join(name)).and_then(|mut file| digest(&mut file));
        !now.is_ok_and(|now| *digest_then == Some(&now))
    });
    altered.map_or(Verified::Whole, |(name, _)| Verified::Altered(name))
}

fn make_directory(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        made => made,
    }
}

/// What is in a file of at most so many bytes; `None` where it is not there, or has more.
fn read(path: &Path, most: u64) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let mut content = Vec::new();
    file.take(most.saturating_add(1)).read_to_end(&mut content)?;
    Ok((content.len() as u64 <= most).then_some(content))
}

/// Whether a manifest that this mvm can't read is that of another version: it has another format, or no digests yet.
fn is_others(manifest: &[u8]) -> bool {
    let Ok(manifest) = serde_json::from_slice::<Value>(manifest) else { return false };
    let format = manifest.get("format").and_then(Value::as_u64);
    format.is_some_and(|format| format != u64::from(FORMAT) || manifest.get("digests").is_none())
}

#[cfg(test)]
mod tests;
