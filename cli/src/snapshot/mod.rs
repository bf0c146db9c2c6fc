//! `mvm snapshot`.

mod manifest;
mod open;
mod place;

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use instance::api::{Drive, SnapshotCreate};
use instance::{Client, Kind, Running, time};
use serde_json::Value;
use vmm::disk_name;

pub use self::open::{check, open};

use self::manifest::{Manifest, SavedDisk};
use self::place::Place;
use crate::process::ExitCode;
use crate::targets::{self, Failure};
use crate::{chain, complain, events, exit_code};

/// Bytes in a sector: a guest does not see the rest of a disk that is not a multiple of it.
const SECTOR: u64 = 512;

const EXAMPLES: &str = "\
Examples:
  mvm snapshot web ./web.snap
  mvm restore ./web.snap --name web2";

/// How long a VM may take to be saved: as long as its memory takes to be written.
const PATIENCE: Duration = Duration::from_secs(15 * 60);

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
        let manifest = |files| Manifest::new(config, disks, time::now().to_string(), files);
        place.keep(manifest)?;
        events::note_of(id, "checkpoint", &[("checkpoint", &self.directory.to_string_lossy())]);
        Ok(())
    }
}

/// The options of a VM, and its disks as they are.
fn describe(vm: &Running) -> Result<(Value, Vec<SavedDisk>), String> {
    let mut client = targets::client(vm).map_err(|failure| chain(&failure))?;
    let mut config: Value = client.get("/vm/config").map_err(|error| chain(&error))?;
    if let Some(members) = config.as_object_mut() {
        // Whose they are is another VM's.
        ["id", "name", "directory"].iter().for_each(|key| drop(members.remove(*key)));
        members.retain(|_, value| !value.is_null());
    }
    let config_of = manifest::options(&config)?;
    let mut saved = Vec::new();
    for (index, disk) in (0..).zip(manifest::disks(&config_of)) {
        let path = disk.path.display();
        if !disk.read_only {
            return Err(format!(
                "its disk {path} can be written to, and what is on it would not be saved: boot the VM with that disk \
                 `readonly`, or its root in an --initrd"
            ));
        }
        let own = SavedDisk::of(&disk.path).map_err(|error| format!("cannot look at {path}: {error}"))?;
        let drive = format!("/drives/{}", disk_name(index));
        let Drive { size_bytes, .. } = client.get(&drive).map_err(|error| chain(&error))?;
        if own.bytes != 0 && size_bytes != own.bytes / SECTOR * SECTOR {
            return Err(format!(
                "its disk {path} is made of several files, as an image's are, or is not as long any more: such a VM \
                 cannot be saved yet"
            ));
        }
        saved.push(own);
    }
    Ok((config, saved))
}
