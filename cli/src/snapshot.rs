//! `mvm snapshot`.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use instance::api::SnapshotCreate;
use instance::{Client, Kind, Running, time};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use vmm::{DiskConfig, SavedVm, Snapshot, VmConfig};

use crate::options::BootOptions;
use crate::process::ExitCode;
use crate::targets::{self, Failure};
use crate::{chain, complain, events, exit_code};

const EXAMPLES: &str = "\
Examples:
  mvm snapshot web ./web.snap
  mvm restore ./web.snap --name web2";

/// How long a VM may take to be saved: as long as its memory takes to be written.
const PATIENCE: Duration = Duration::from_secs(15 * 60);
/// The most bytes of a manifest, and of a state.
const MAX_MANIFEST: u64 = 1 << 20;
const MAX_STATE: u64 = 64 << 20;
/// The version of the directory's format.
const FORMAT: u32 = 1;

/// The files of a snapshot.
const MANIFEST: &str = "manifest.json";
const STATE: &str = "state";
const MEMORY: &str = "memory";

/// Arguments of `mvm snapshot`.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub struct SnapshotCommand {
    /// The VM: its ID, the beginning of that, or its name
    #[arg(value_name = "VM")]
    vm: String,

    /// The directory that is made for it
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

/// What a snapshot is of. A snapshot is used by who has made it: its paths are those of this host.
#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    format: u32,
    /// The mvm that has written it.
    mvm_version: String,
    created: String,
    /// The VM's options, as in a configuration file.
    config: Value,
    /// Its disks, which must not have changed.
    disks: Vec<Facts>,
}

/// What tells whether a file is as it was.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Facts {
    path: PathBuf,
    bytes: u64,
    /// When it was last changed, in nanoseconds since 1970.
    changed: i128,
}

impl Facts {
    fn of(path: &Path) -> io::Result<Self> {
        let metadata = fs::metadata(path)?;
        let changed = i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
        Ok(Self { path: path.to_owned(), bytes: metadata.len(), changed })
    }
}

impl SnapshotCommand {
    /// Saves the VM.
    pub fn run(self) -> ExitCode {
        match self.save() {
            Ok(()) => exit_code::SUCCESS.into(),
            Err(message) => {
                complain(&message);
                exit_code::FAILURE.into()
            }
        }
    }

    fn save(&self) -> Result<(), String> {
        let failure = |failure: Failure| targets::message(&self.vm, &failure);
        let vm = targets::find(&instance::Registry::of_user(), &self.vm).map_err(failure)?;
        let id = vm.record.id.as_str();
        if targets::kept(id).is_ok_and(|kept| kept.entry.kind != Kind::Vm) {
            return Err(format!("{}: containers cannot be saved yet, only VMs of `mvm boot`", self.vm));
        }
        let place = Place::new(&self.directory)?;
        let (config, disks) = describe(&vm).map_err(|message| format!("{}: {message}", self.vm))?;
        let mut client = Client::connect_with_limit(&vm.control_socket(), PATIENCE)
            .map_err(|error| format!("{}: {}", self.vm, chain(&error)))?;
        let files = [place.state.as_fd(), place.memory.as_fd()];
        client
            .send_with_files(("PUT", "/snapshot/create"), &SnapshotCreate::default(), &files)
            .map_err(|error| format!("{}: {}", self.vm, chain(&error)))?;
        let manifest = Manifest {
            format: FORMAT,
            mvm_version: env!("CARGO_PKG_VERSION").into(),
            created: time::now().to_string(),
            config,
            disks,
        };
        place.keep(&manifest)?;
        events::note_of(id, "checkpoint", &[("checkpoint", &self.directory.to_string_lossy())]);
        Ok(())
    }
}

/// The options of a VM, and its disks as they are.
fn describe(vm: &Running) -> Result<(Value, Vec<Facts>), String> {
    let mut client = targets::client(vm).map_err(|failure| chain(&failure))?;
    let mut config: Value = client.get("/vm/config").map_err(|error| chain(&error))?;
    if let Some(members) = config.as_object_mut() {
        // Whose they are is another VM's.
        ["id", "name", "directory"].iter().for_each(|key| drop(members.remove(*key)));
        members.retain(|_, value| !value.is_null());
    }
    let config_of = options(&config)?;
    let facts = disks(&config_of).map(|disk| match disk.read_only {
        true => {
            Facts::of(&disk.path).map_err(|error| format!("cannot look at {}: {error}", disk.path.display()))
        }
        false => Err(format!(
            "its disk {} can be written to, and what is on it would not be saved: boot the VM with that disk \
             `readonly`, or its root in an --initrd",
            disk.path.display()
        )),
    });
    let facts = facts.collect::<Result<_, _>>()?;
    Ok((config, facts))
}

fn disks(config: &VmConfig) -> impl Iterator<Item = &DiskConfig> {
    config.rootfs.iter().chain(&config.disks)
}

/// The configuration that is in a manifest.
fn options(config: &Value) -> Result<VmConfig, String> {
    let options = BootOptions::deserialize(config).map_err(|error| format!("invalid options: {error}"))?;
    options.into_config()
}

/// Where a snapshot is made. Its files have no names until they are whole, so that nothing is left of one that is not.
struct Place {
    directory: PathBuf,
    state: File,
    memory: File,
}

impl Place {
    fn new(directory: &Path) -> Result<Self, String> {
        let shown = directory.display();
        if fs::symlink_metadata(directory).is_ok() {
            return Err(format!("{shown} is there already: name a directory that is not"));
        }
        let parent = match directory.parent() {
            Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
            Some(parent) => parent,
            None => return Err(format!("{shown} cannot be made: name a directory in another one")),
        };
        let file = || {
            let mut options = OpenOptions::new();
            options.read(true).write(true).mode(0o600).custom_flags(libc::O_TMPFILE);
            options.open(parent).map_err(|error| format!("cannot write to {}: {error}", parent.display()))
        };
        Ok(Self { directory: directory.to_owned(), state: file()?, memory: file()? })
    }

    /// Gives the files their names, with the manifest last.
    fn keep(self, manifest: &Manifest) -> Result<(), String> {
        let failed = |doing: &'static str| {
            let shown = self.directory.display().to_string();
            move |error: io::Error| format!("cannot {doing} {shown}: {error}")
        };
        fs::DirBuilder::new().mode(0o700).create(&self.directory).map_err(failed("make"))?;
        let kept = self.fill(manifest).map_err(failed("write the snapshot to"));
        if kept.is_err() {
            let _ = fs::remove_dir_all(&self.directory);
        }
        kept
    }

    fn fill(&self, manifest: &Manifest) -> io::Result<()> {
        for (file, name) in [(&self.state, STATE), (&self.memory, MEMORY)] {
            file.set_permissions(Permissions::from_mode(0o400))?;
            file.sync_all()?;
            let own = format!("/proc/self/fd/{}", file.as_raw_fd());
            let (flags, cwd) = (rustix::fs::AtFlags::SYMLINK_FOLLOW, rustix::fs::CWD);
            rustix::fs::linkat(cwd, own, cwd, self.directory.join(name), flags)?;
        }
        let mut options = OpenOptions::new();
        let mut file =
            options.write(true).create_new(true).mode(0o400).open(self.directory.join(MANIFEST))?;
        file.write_all(&serde_json::to_vec_pretty(manifest)?)?;
        file.sync_all()?;
        File::open(&self.directory)?.sync_all()
    }
}

/// The snapshot in `directory`, with the configuration of its VM.
///
/// # Errors
///
/// What is wrong with it, on one line.
pub fn open(directory: &Path) -> Result<(VmConfig, Snapshot), String> {
    let failed = |name: &str, error: &dyn std::fmt::Display| {
        format!("cannot restore {}: {name}: {error}", directory.display())
    };
    let read = |name: &str, most| {
        let mut content = Vec::new();
        let file = File::open(directory.join(name)).map_err(|error| failed(name, &error))?;
        file.take(most + 1).read_to_end(&mut content).map_err(|error| failed(name, &error))?;
        match content.len() as u64 <= most {
            true => Ok(content),
            false => Err(failed(name, &format!("it has more than {} MiB", most >> 20))),
        }
    };
    let manifest = read(MANIFEST, MAX_MANIFEST)?;
    let invalid = |error: &dyn std::fmt::Display| failed(MANIFEST, error);
    let manifest: Manifest = serde_json::from_slice(&manifest).map_err(|error| invalid(&error))?;
    if manifest.format != FORMAT {
        let (format, version) = (manifest.format, &manifest.mvm_version);
        let known =
            format!("its format has version {format}, and this mvm knows {FORMAT}: use mvm {version}");
        return Err(invalid(&known));
    }
    let config = options(&manifest.config).map_err(|error| invalid(&error))?;
    let now: Vec<_> = disks(&config).map(|disk| Facts::of(&disk.path)).collect();
    for (before, now) in manifest.disks.iter().zip(now) {
        let path = before.path.display();
        match now {
            Ok(now) if now == *before => {}
            Ok(_) => {
                return Err(invalid(&format!(
                    "the disk {path} has changed since: a guest that knows its old content would damage it"
                )));
            }
            Err(error) => return Err(invalid(&format!("the disk {path}: {error}"))),
        }
    }
    let state = SavedVm::decode(&read(STATE, MAX_STATE)?).map_err(|error| failed(STATE, &chain(&error)))?;
    let memory = File::open(directory.join(MEMORY)).map_err(|error| failed(MEMORY, &error))?;
    Ok((config, Snapshot { state, memory }))
}
