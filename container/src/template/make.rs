//! How a template is made: a VM boots until its agent is ready, and is saved.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use instance::api::{SnapshotCreate, VmUpdate, WantedState};
use instance::{Client, Identity, VmId};
use vmm::{DiskConfig, Order, SharedPart, Snapshot, Split, VmConfig, VmProcess};

use super::awake::rest;
use super::root::Root;
use super::{
    CHANGES, Digest, Key, MANIFEST, MEMORY, Manifest, STATE, Shape, TOUCHED, TemplateError, files, host,
    make_directory, touched,
};
use crate::assets::Assets;
use crate::options::RunOptions;
use crate::run::LAST_WORDS;
use crate::session::Listener;
use crate::visit::{Ended, connect, listen};

/// How long the VM may take to be saved.
const SAVE: Duration = Duration::from_secs(300);

/// A VM that a template is made of, or looked at with.
pub(super) struct Making {
    pub(super) vm: Arc<VmProcess>,
    pub(super) id: VmId,
    /// In place of folders, of which those that go on have others.
    empty: Option<PathBuf>,
}

impl Making {
    /// Starts a VM of `shape` in `directory`, which goes on from a `snapshot`, with these disks in its slots, or boots.
    /// Its process calls `leave` before anything else, and does not have `own`, which is given back. This process has one
    /// thread yet.
    pub(super) fn start<T>(
        directory: &Path,
        (assets, shape, options): (&Assets, Shape, &RunOptions),
        in_slots: Vec<DiskConfig>,
        snapshot: Option<Snapshot>,
        leave: impl FnOnce(),
        own: T,
    ) -> Result<(Self, T), TemplateError> {
        let id = VmId::random().map_err(host("draw a random ID"))?;
        let identity = Identity { id: Some(id.clone()), name: None, directory: Some(directory.to_owned()) };
        // It must not be in the VM's directory, which a share hides.
        let empty = shape.has_share.then(|| directory.with_extension("empty"));
        empty.as_deref().map(make_directory).transpose().map_err(host("make a directory"))?;
        let part = |path: &PathBuf| SharedPart { name: "0".into(), path: path.clone(), read_only: true };
        let parts: Vec<_> = empty.iter().map(part).collect();
        let machine = shape.machine(assets, options, directory, Vec::new(), &parts);
        let config = VmConfig { in_slots, ..machine };
        let split = Split { until_open: Box::new(()), leave: Box::new(leave) };
        let (log, user, start) = (None, None, Instant::now());
        let order = Order { config: &config, identity: &identity, log, user, snapshot, split, start };
        let (vm, _, own) =
            VmProcess::start_for(order, None, own).map_err(host("make a process for the template's VM"))?;
        Ok((Self { vm: Arc::new(vm), id, empty }, own))
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        self.vm.kill();
        self.vm.wait(LAST_WORDS);
        self.empty.iter().for_each(|empty| drop(fs::remove_dir(empty)));
    }
}

/// Boots a VM of `shape` until its agent is ready, and saves it in `directory`, with the digests of its files.
pub(super) fn fill(
    directory: &Path,
    assets: &Assets,
    shape: Shape,
    options: &RunOptions,
    digest: Digest<'_>,
) -> Result<(), TemplateError> {
    let key = Key::new(assets, shape, None).map_err(host("look at what templates are made of"))?;
    let agent = Listener::open(directory).map_err(host("make a socket for the agent"))?;
    let (making, agent) = Making::start(directory, (assets, shape, options), Vec::new(), None, || {}, agent)?;
    let ended = listen(&making.vm).map_err(host("start a thread"));
    let saved = ended.and_then(|ended| save_booted(directory, shape, &ended, &agent).map(|()| ended));
    drop(making);
    // The next process is made by one without other threads.
    saved?.wait();
    drop(agent);
    clear(directory)?;
    look(directory, (assets, shape, None), options)?;
    finish(directory, key, digest)
}

/// Notes which pages of what was saved in `directory` a VM uses at once.
pub(super) fn look(
    directory: &Path,
    (assets, shape, root): (&Assets, Shape, Option<&Root>),
    options: &RunOptions,
) -> Result<(), TemplateError> {
    match touched::look(directory, (assets, shape, root), options) {
        Ok(touched) => write(directory, TOUCHED, &touched::encode(&touched)),
        Err(error) => {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "cannot see which pages VMs of the template use at once: they take longer");
            Ok(())
        }
    }
}

/// Makes what was saved in `directory` a template.
pub(super) fn finish(directory: &Path, key: Key, digest: Digest<'_>) -> Result<(), TemplateError> {
    clear(directory)?;
    let digests = files(&key).iter().map(|name| digest(&mut File::open(directory.join(name))?));
    let digests = digests.collect::<io::Result<_>>().map_err(host("read a template's files"))?;
    let manifest = serde_json::to_vec_pretty(&Manifest { key, digests })
        .map_err(|error| host("write a template")(error.into()))?;
    write(directory, MANIFEST, &manifest)
}

/// Removes all but the template's files from its directory.
pub(super) fn clear(directory: &Path) -> Result<(), TemplateError> {
    for entry in fs::read_dir(directory).map_err(host("read a template's directory"))?.flatten() {
        if ![STATE, MEMORY, TOUCHED, CHANGES].iter().any(|name| entry.file_name() == **name) {
            let _ = fs::remove_file(entry.path());
        }
    }
    Ok(())
}

fn save_booted(directory: &Path, shape: Shape, ended: &Ended, agent: &Listener) -> Result<(), TemplateError> {
    let mut connection = connect(agent, ended)?;
    if shape.has_share {
        rest(&mut connection)?;
    }
    drop(connection);
    save(directory)
}

fn client(directory: &Path) -> Result<Client, TemplateError> {
    Ok(Client::connect_with_limit(&directory.join(instance::CONTROL_SOCKET), SAVE)?)
}

/// Has the VM stand still.
pub(super) fn pause(directory: &Path) -> Result<(), TemplateError> {
    client(directory)?.send("PATCH", "/vm", &VmUpdate { state: WantedState::Paused })?;
    Ok(())
}

/// Saves the VM.
pub(super) fn save(directory: &Path) -> Result<(), TemplateError> {
    let create = |name| create(directory, name).map_err(host("write a template"));
    let (state, memory) = (create(STATE)?, create(MEMORY)?);
    let files = [state.as_fd(), memory.as_fd()];
    let request = ("PUT", "/snapshot/create");
    client(directory)?.send_with_files(request, &SnapshotCreate::default(), &files)?;
    Ok(())
}

/// Makes a file that its owner can't write to by its name.
pub(super) fn create(directory: &Path, name: &str) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(0o400).open(directory.join(name))
}

/// Makes such a file with this content.
pub(super) fn write(directory: &Path, name: &str, content: &[u8]) -> Result<(), TemplateError> {
    create(directory, name).and_then(|mut file| file.write_all(content)).map_err(host("write a template"))
}
