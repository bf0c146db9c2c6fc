//! The second level of templates: those for containers of one image, whose root is mounted in them. Such a template is
//! made of the one for the VM's shape; its directory has besides what that has
//!
//! ```text
//! └── changes.templates          what the guest has written to the disk for changes by then
//! ```

use std::fs::File;
use std::path::{Path, PathBuf};

use agent_protocol::{PREPARES, Preparation, Request, Writable};
use serde::{Deserialize, Serialize};
use vmm::{Disk, DiskConfig, Piece, Snapshot};

use super::awake::{done, rest};
use super::make::{Making, clear, create, finish, look, pause, save};
use super::{CHANGES, Digest, Facts, Key, Shape, TemplateError, host, touched};
use crate::assets::Assets;
use crate::changes;
use crate::connection::ConnectionError;
use crate::image::Image;
use crate::machine::{machine, slot_device};
use crate::mounts::Prepared;
use crate::options::{RunOptions, Storage};
use crate::pod::open_disk;
use crate::run::RunError;
use crate::session::START;
use crate::spec::storage;

/// The slots that are in use in such a template: the image's and that for changes.
pub const SLOTS_OF_ROOT: usize = 2;
/// How many of an image's digits are in a template's name.
const DIGITS: usize = 12;

/// The root that containers of one image have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    image: String,
    disk: Vec<Piece>,
    /// They are removed when they end, so that nothing is needed of what they have written.
    removes: bool,
}

/// What a template with a root was made of, besides what others are made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RootKey {
    image: String,
    removes: bool,
    files: Vec<Facts>,
}

impl RootKey {
    /// The image's ID.
    pub(super) fn image(&self) -> &str {
        &self.image
    }

    /// Whether a file of the image is not there any more, or another one.
    pub(super) fn is_gone(&self) -> bool {
        self.files.iter().any(|file| !Facts::of(&file.path).is_ok_and(|now| now == *file))
    }
}

impl Root {
    /// That of a container of `image` with `options`, which is removed when it ends if it `removes`; `None` where it has
    /// a root of its own kind.
    pub fn of(image: &Image, options: &RunOptions, removes: bool) -> Option<Self> {
        let is_common = storage(options) == Storage::default() && !options.privileged;
        let (id, disk) = (image.id.clone(), image.disk.clone());
        (is_common && !disk.is_empty()).then_some(Self { image: id, disk, removes })
    }

    /// The image's ID, and whether the containers are removed when they end.
    pub fn words(&self) -> (&str, bool) {
        (&self.image, self.removes)
    }

    /// What the name of the template ends with.
    pub(super) fn name(&self) -> String {
        let digits = self.image.rsplit(':').next().unwrap_or_default();
        let digits: String = digits.chars().filter(char::is_ascii_alphanumeric).take(DIGITS).collect();
        format!("{digits}{}", if self.removes { "-rm" } else { "" })
    }

    pub(super) fn key(&self, assets: &Assets) -> std::io::Result<RootKey> {
        let files = self.disk.iter().map(|piece| piece.path.as_path()).chain([assets.changes.as_path()]);
        let files = files.map(Facts::of).collect::<std::io::Result<_>>()?;
        Ok(RootKey { image: self.image.clone(), removes: self.removes, files })
    }

    /// What is in the slots of a VM that goes on from the template in `directory`.
    pub(super) fn disks(&self, assets: &Assets, directory: &Path) -> Result<Vec<DiskConfig>, TemplateError> {
        let made = make_disk(&directory.join(CHANGES), directory)?;
        let image = Image { disk: self.disk.clone(), ..Image::default() };
        let options = RunOptions::default();
        let none = Prepared::default();
        Ok(machine(assets, &image, &options, directory, Some(&made), &none, Vec::new()).disks)
    }

    pub(super) fn writable(&self) -> Writable {
        let device = slot_device(1);
        if self.removes { Writable::Scratch(device) } else { Writable::Disk(device) }
    }
}

/// Makes the disk for changes in `directory`, of the one in this file of `templates`.
fn make_disk(templates: &Path, directory: &Path) -> Result<PathBuf, TemplateError> {
    let made = changes::open_or_create(templates, directory, Storage::SIZE);
    made.map_err(host("make a disk for a container's changes"))
}

/// Has a VM go on from `first`, which is for all images, mounts `root` in it, and saves it in `directory`.
pub(super) fn fill(
    directory: &Path,
    (assets, shape, root): (&Assets, Shape, &Root),
    first: Snapshot,
    options: &RunOptions,
    digest: Digest<'_>,
) -> Result<(), TemplateError> {
    let key = Key::new(assets, shape, Some(root)).map_err(host("look at what templates are made of"))?;
    let path = make_disk(&assets.changes, directory)?;
    let disks = Disk::compose(&root.disk).and_then(|image| Ok(vec![image, open_disk(&path)?]));
    let disks = disks.map_err(|error| RunError::Vm(devices::log::chain(&error)))?;
    let (making, ()) =
        Making::start(directory, (assets, shape, options), Vec::new(), Some(first), || {}, ())?;
    let saved = touched::wake(&making.vm, directory, disks).and_then(|mut connection| {
        if !connection.has_version(PREPARES) {
            let version = connection.version();
            return Err(ConnectionError::TooOldFor("templates of images", version, PREPARES).into());
        }
        let (image, writable) = (slot_device(0), root.writable());
        connection.send(&Request::Prepare(Box::new(Preparation { image, writable })))?;
        done(&mut connection, START)?;
        if shape.has_share {
            rest(&mut connection)?;
        }
        drop(connection);
        // What the guest writes to its disk from here on would not be what its memory knows.
        pause(directory)?;
        save(directory)
    });
    drop(making);
    saved?;
    let disk = File::open(&path).map_err(host("read a disk for a container's changes"))?;
    let file = create(directory, CHANGES).map_err(host("write a template"))?;
    changes::write_template(&disk, &file).map_err(host("write a template"))?;
    clear(directory)?;
    look(directory, (assets, shape, Some(root)), options)?;
    finish(directory, key, digest)
}
