//! How a template is made: a VM boots until its agent is ready, and is saved.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use instance::api::SnapshotCreate;
use instance::{Client, Identity, VmId};
use vmm::{Order, SharedPart, Split, VmProcess};

use super::awake::rest;
use super::{
    Digest, FILES, Key, MANIFEST, MEMORY, Manifest, STATE, Shape, TOUCHED, TemplateError, host,
    make_directory, touched,
};
use crate::assets::Assets;
use crate::options::RunOptions;
use crate::run::LAST_WORDS;
use crate::session::Listener;
use crate::visit::{Ended, connect, listen};

/// How long the VM may take to be saved.
const SAVE: Duration = Duration::from_secs(300);

/// Boots a VM of `shape` until its agent is ready, and saves it in `directory`, with the digests of its files.
pub(super) fn fill(
    directory: &Path,
    assets: &Assets,
    shape: Shape,
    options: &RunOptions,
    digest: Digest<'_>,
) -> Result<(), TemplateError> {
    let key = Key::new(assets, shape).map_err(host("look at what templates are made of"))?;
    let id = VmId::random().map_err(host("draw a random ID"))?;
    let identity = Identity { id: Some(id), name: None, directory: Some(directory.to_owned()) };
    // In place of folders, of which those that go on have others. It must not be in the VM's directory, which a share
    // hides.
    let empty = directory.with_extension("empty");
    if shape.has_share {
        make_directory(&empty).map_err(host("make a directory"))?;
    }
    let part = SharedPart { name: "0".into(), path: empty.clone(), read_only: true };
    let parts = if shape.has_share { vec![part] } else { Vec::new() };
    let config = shape.machine(assets, options, directory, Vec::new(), &parts);
    let agent = Listener::open(directory).map_err(host("make a socket for the agent"))?;
    let split = Split { until_open: Box::new(()), leave: Box::new(|| {}) };
    let (log, user, snapshot) = (None, None, None);
    let start = Instant::now();
    let order = Order { config: &config, identity: &identity, log, user, snapshot, split, start };
    let (vm, _, agent) =
        VmProcess::start_for(order, None, agent).map_err(host("make a process for the template's VM"))?;
    let vm = Arc::new(vm);
    let ended = listen(&vm).map_err(host("start a thread"));
    let saved = ended.and_then(|ended| save(directory, shape, &ended, &agent).map(|()| ended));
    vm.kill();
    vm.wait(LAST_WORDS);
    let _ = fs::remove_dir(empty);
    // The next process is made by one without other threads.
    saved?.wait();
    drop(agent);
    clear(directory)?;
    // The memory of one that is shared is there from the beginning.
    if !shape.has_share {
        match touched::look(directory, assets, shape, options) {
            Ok(touched) => create(directory, TOUCHED)
                .and_then(|mut file| file.write_all(&touched::encode(&touched)))
                .map_err(host("write a template"))?,
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(
                    error,
                    "cannot see which pages VMs of the template use at once: they take longer"
                );
            }
        }
        clear(directory)?;
    }
    let digests = FILES.iter().map(|name| digest(&mut File::open(directory.join(name))?));
    let digests = digests.collect::<io::Result<_>>().map_err(host("read a template's files"))?;
    let manifest = serde_json::to_vec_pretty(&Manifest { key, digests }).map_err(io::Error::from);
    manifest
        .and_then(|manifest| create(directory, MANIFEST)?.write_all(&manifest))
        .map_err(host("write a template's manifest"))
}

/// Removes all but the template's files from its directory.
fn clear(directory: &Path) -> Result<(), TemplateError> {
    for entry in fs::read_dir(directory).map_err(host("read a template's directory"))?.flatten() {
        if ![STATE, MEMORY, TOUCHED].iter().any(|name| entry.file_name() == **name) {
            let _ = fs::remove_file(entry.path());
        }
    }
    Ok(())
}

fn save(directory: &Path, shape: Shape, ended: &Ended, agent: &Listener) -> Result<(), TemplateError> {
    let mut connection = connect(agent, ended)?;
    if shape.has_share {
        rest(&mut connection)?;
    }
    drop(connection);
    let create = |name| create(directory, name).map_err(host("write a template"));
    let (state, memory) = (create(STATE)?, create(MEMORY)?);
    let mut client = Client::connect_with_limit(&directory.join(instance::CONTROL_SOCKET), SAVE)?;
    let files = [state.as_fd(), memory.as_fd()];
    client.send_with_files(("PUT", "/snapshot/create"), &SnapshotCreate::default(), &files)?;
    Ok(())
}

/// Makes a file that its owner can't write to by its name.
fn create(directory: &Path, name: &str) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(0o400).open(directory.join(name))
}
