//! Disks that are put into a running VM's slots, and taken out.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};

use instance::keeper::Tie;

use super::messages::{FromVm, ToVm};
use crate::{BlockHandle, Disk, Part, WeakBlockHandle};

/// How many requests for slots wait at most.
const WAITING: usize = 64;

/// What is asked of the VM's slots while it runs.
pub(super) type SlotRequest = (ToVm, Vec<OwnedFd>);

/// The slots of a VM, once it is built.
pub(super) type Slots = Arc<OnceLock<Vec<WeakBlockHandle>>>;

/// Serves requests for slots, on a thread that lives as long as the process.
pub(super) fn serve_slots(slots: Slots, tie: Arc<Tie>) -> io::Result<SyncSender<SlotRequest>> {
    let (sender, requests) = sync_channel::<SlotRequest>(WAITING);
    devices::spawn("slots", move || {
        for (request, files) in requests {
            let (number, done) = match request {
                ToVm::Insert { number, slot, read_only, ends } => {
                    (number, slot_of(&slots, slot).and_then(|slot| insert(&slot, read_only, &ends, files)))
                }
                ToVm::Eject { number, slot } => {
                    let eject = |slot: BlockHandle| slot.eject().map_err(|error| devices::log::chain(&error));
                    (number, slot_of(&slots, slot).and_then(eject))
                }
                ToVm::End { .. } | ToVm::Log => continue,
            };
            // The keeper has gone, if this fails.
            let _ = tie.send(&FromVm::Slot { number, failure: done.err() });
        }
    })?;
    Ok(sender)
}

fn slot_of(slots: &Slots, slot: usize) -> Result<BlockHandle, String> {
    let handle = slots.get().ok_or("the VM is not built yet")?.get(slot).ok_or("there is no such slot")?;
    handle.upgrade().ok_or_else(|| "the VM has ended".to_owned())
}

fn insert(slot: &BlockHandle, read_only: bool, ends: &[u64], files: Vec<OwnedFd>) -> Result<(), String> {
    if ends.len() != files.len() {
        return Err("files of the disk are missing".into());
    }
    let starts = [0].into_iter().chain(ends.iter().copied());
    let parts =
        files.into_iter().zip(starts.zip(ends)).map(|(file, (start, end))| Part { file, start, end: *end });
    let disk = Disk::of_parts(parts.collect(), read_only).map_err(|error| devices::log::chain(&error))?;
    slot.insert(disk).map_err(|error| devices::log::chain(&error))
}
