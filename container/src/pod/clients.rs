//! The clients of a pod's keeper: containers that enter the pod and leave it, and the disks that they bring.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use agent_protocol::{Reply, Request};
use instance::keeper::{Tie, TieListener};
use instance::{VolumeDriver, VolumeHold, VolumeName};

use super::disk::{EARLIER, ends, open_disk};
use super::keeper::{Shared, lock, spawn};
use super::slots::{Image, SlotTable};
use super::{FromPod, ToPod};
use crate::connection::{Connection, ConnectionError};
use crate::machine::slot_device;
use crate::mounts::PrepareError;
use vmm::SlotFiles;

/// How long the VM may take to put a disk into a slot or to take one out: longer than the disk's own deadline.
const MOVE: Duration = Duration::from_secs(15);
/// How long the agent may take until nothing uses the disks of a container that has ended: they are written to then.
const RELEASE: Duration = Duration::from_secs(60);
/// How long no client is taken after one that could not be.
const PAUSE: Duration = Duration::from_millis(500);
/// The most clients at a time.
pub(super) const MAX_CLIENTS: usize = 64;

/// The slots, and what the VM says of them.
pub(super) struct Slots {
    pub(super) table: SlotTable,
    pub(super) replies: Receiver<(u64, Option<String>)>,
    pub(super) number: u64,
    /// The volumes that are in slots, or about to be taken out, which no other VM has meanwhile.
    pub(super) holds: BTreeMap<usize, VolumeHold>,
}

impl Slots {
    /// Has the VM move a disk, and waits for that.
    fn ask(&mut self, ask: impl FnOnce(u64) -> io::Result<()>) -> Result<(), String> {
        self.number = self.number.wrapping_add(1);
        ask(self.number).map_err(|error| format!("cannot ask the pod's VM: {error}"))?;
        let deadline = Instant::now() + MOVE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.replies.recv_timeout(left) {
                Ok((number, failure)) if number == self.number => return failure.map_or(Ok(()), Err),
                // One that came too late for who asked.
                Ok(_) => {}
                Err(_) => return Err("the pod's VM does not answer".into()),
            }
        }
    }
}

impl Shared {
    /// Takes clients, for as long as this process lives.
    pub(super) fn accept(self: Arc<Self>, clients: &TieListener) {
        loop {
            let client = match clients.accept() {
                Ok(client) => client,
                Err(error) => {
                    // Out of descriptors or memory, which nothing tells the end of.
                    tracing::warn!(%error, "the pod takes no container now");
                    std::thread::sleep(PAUSE);
                    continue;
                }
            };
            let this = self.clone();
            if this.clients.fetch_add(1, Ordering::SeqCst) >= MAX_CLIENTS {
                this.clients.fetch_sub(1, Ordering::SeqCst);
                let _ = client.send(&FromPod::Refused(format!("the pod has {MAX_CLIENTS} clients already")));
                continue;
            }
            let served = spawn("client", move || {
                this.serve(&client);
                this.clients.fetch_sub(1, Ordering::SeqCst);
            });
            if let Err(error) = served {
                self.clients.fetch_sub(1, Ordering::SeqCst);
                tracing::warn!(%error, "cannot start a thread for a container");
            }
        }
    }

    /// Serves a client until it is gone, and has its container go with it.
    fn serve(self: &Arc<Self>, client: &Tie) {
        let mut place = Placed::default();
        loop {
            // One with a container may be silent as long as that lives; others would keep the places of those that
            // come.
            let received = match place.container {
                Some(_) => client.receive_with::<ToPod>(),
                None => client.receive_with_by(Instant::now() + self.patience),
            };
            let reply = match received {
                Ok(Some((ToPod::Image { container, image, ends }, files))) => {
                    self.place_image(&mut place, container, &image, SlotFiles { files, ends })
                }
                Ok(Some((ToPod::Changes { ends }, files))) => self.place_changes(&mut place, files, ends),
                Ok(Some((ToPod::Volume { name }, _))) => self
                    .place_volume(&mut place, &name)
                    .map_or_else(FromPod::Refused, |(device, sectors)| FromPod::Device { device, sectors }),
                Ok(Some((ToPod::Leave, _))) => {
                    let left = self.leave(std::mem::take(&mut place));
                    left.map_or_else(FromPod::Refused, |()| FromPod::Left)
                }
                Ok(Some((ToPod::End, _))) => {
                    self.end_soon();
                    FromPod::Ending
                }
                Ok(None) => break,
                Err(error) if error.kind() == io::ErrorKind::TimedOut => break,
                Err(error) => {
                    tracing::warn!(%error, "a client of the pod says what is not understood");
                    break;
                }
            };
            if client.send(&reply).is_err() {
                break;
            }
        }
        if let Err(problem) = self.leave(place) {
            tracing::warn!("{problem}");
        }
    }

    fn place_image(&self, place: &mut Placed, container: String, image: &str, files: SlotFiles) -> FromPod {
        if !container.bytes().all(|byte| byte.is_ascii_alphanumeric()) || container.is_empty() {
            return FromPod::Refused(format!("{container:?} is not the ID of a container"));
        }
        {
            let mut members = lock(&self.members);
            if members.is_ending {
                return FromPod::Ending;
            }
            if place.container.is_some() || !members.containers.insert(container.clone()) {
                return FromPod::Refused(format!("container {container} is in the pod already"));
            }
        }
        place.container = Some(container);
        self.changed.notify_all();
        let sectors = sectors(&files.ends);
        let mut slots = lock(&self.slots);
        let slot = match slots.table.take_image(image) {
            None => return FromPod::Refused(no_slot(slots.table.len())),
            Some(Image::There(slot, sectors)) => {
                place.image = Some(slot);
                return FromPod::Device { device: slot_device(slot), sectors };
            }
            Some(Image::New(slot)) => slot,
        };
        match slots.ask(|number| self.vm.insert(number, slot, true, &files)) {
            Ok(()) => {
                slots.table.has_image(slot, image, sectors);
                place.image = Some(slot);
                FromPod::Device { device: slot_device(slot), sectors }
            }
            Err(problem) => {
                slots.table.free(slot);
                FromPod::Refused(format!("cannot put the image into the pod's VM: {problem}"))
            }
        }
    }

    fn place_changes(&self, place: &mut Placed, files: Vec<OwnedFd>, ends: Vec<u64>) -> FromPod {
        if place.container.is_none() || place.changes.is_some() {
            return FromPod::Refused("a container has one disk for changes, and an image before".into());
        }
        let (sectors, files) = (sectors(&ends), SlotFiles { files, ends });
        let mut slots = lock(&self.slots);
        let Some(slot) = slots.table.take() else { return FromPod::Refused(no_slot(slots.table.len())) };
        match slots.ask(|number| self.vm.insert(number, slot, false, &files)) {
            Ok(()) => {
                slots.table.has_changes(slot);
                place.changes = Some(slot);
                FromPod::Device { device: slot_device(slot), sectors }
            }
            Err(problem) => {
                slots.table.free(slot);
                FromPod::Refused(format!("cannot put the disk for changes into the pod's VM: {problem}"))
            }
        }
    }

    /// Puts a volume into the VM, unless it is there; its device and sectors.
    fn place_volume(&self, place: &mut Placed, name: &VolumeName) -> Result<(String, u64), String> {
        if place.container.is_none() {
            return Err("a container has an image before its volumes".into());
        }
        let deadline = Instant::now() + EARLIER;
        let mut slots = lock(&self.slots);
        loop {
            if let Some((slot, sectors)) = slots.table.join_volume(name) {
                place.volumes.push(slot);
                return Ok((slot_device(slot), sectors));
            }
            if !slots.holds.values().any(|hold| hold.volume.record.name == *name) {
                break;
            }
            // It is about to be taken out: two disks with one file system would destroy it.
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(format!("volume {name} is still being written by a container that has ended"));
            }
            slots = self.freed.wait_timeout(slots, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        let said = |error: &dyn std::error::Error| devices::log::chain(error);
        let hold = self.volumes.hold(name).map_err(|error| said(&error))?;
        if hold.volume.record.driver != VolumeDriver::Local {
            return Err(said(&PrepareError::VolumeNotInPod(name.clone())));
        }
        let disk = open_disk(&hold.volume.content()).map_err(|error| said(&error))?;
        let files = disk.parts().into_iter().map(|part| part.file.try_clone_to_owned());
        let files = files
            .collect::<io::Result<_>>()
            .map_err(|error| format!("cannot open volume {name}: {error}"))?;
        let files = SlotFiles { files, ends: ends(&disk) };
        let sectors = sectors(&files.ends);
        let slot = slots.table.take().ok_or_else(|| no_slot(slots.table.len()))?;
        if let Err(problem) = slots.ask(|number| self.vm.insert(number, slot, false, &files)) {
            slots.table.free(slot);
            return Err(format!("cannot put volume {name} into the pod's VM: {problem}"));
        }
        slots.table.has_volume(slot, name, sectors);
        slots.holds.insert(slot, hold);
        place.volumes.push(slot);
        Ok((slot_device(slot), sectors))
    }

    /// Ends a container, and takes its disks out once nothing uses them.
    fn leave(&self, place: Placed) -> Result<(), String> {
        let Some(container) = place.container else { return Ok(()) };
        let emptied: Vec<usize> = {
            let mut slots = lock(&self.slots);
            let used = [place.image, place.changes].into_iter().flatten().chain(place.volumes);
            used.filter(|slot| slots.table.leave(*slot)).collect()
        };
        let disks = emptied.iter().map(|slot| slot_device(*slot)).collect();
        // Where it fails the disks stay, as the guest may use them.
        let released = self.release(&container, disks);
        let result = released.and_then(|()| {
            let mut slots = lock(&self.slots);
            emptied.iter().try_for_each(|slot| {
                slots.ask(|number| self.vm.eject(number, *slot))?;
                slots.table.free(*slot);
                slots.holds.remove(slot);
                self.freed.notify_all();
                Ok(())
            })
        });
        let mut members = lock(&self.members);
        members.containers.remove(&container);
        self.changed.notify_all();
        if members.is_ending {
            // The disks go with the VM, which writes them before.
            return Ok(());
        }
        result.map_err(|problem| {
            format!("cannot take the disks of container {container} out of the pod: {problem}")
        })
    }

    fn release(&self, container: &str, disks: Vec<String>) -> Result<(), String> {
        let said = |error: ConnectionError| devices::log::chain(&error);
        let mut control = Connection::open(&self.vsock).map_err(said)?;
        control.send(&Request::Release { container: container.to_owned(), disks }).map_err(said)?;
        match control.receive_within(RELEASE).map_err(said)? {
            Reply::Done => Ok(()),
            Reply::Failed(failure) => Err(failure.message),
            other => Err(said(ConnectionError::Unexpected(format!("{other:?}")))),
        }
    }
}

/// Where a client's container has its disks.
#[derive(Default)]
struct Placed {
    container: Option<String>,
    image: Option<usize>,
    changes: Option<usize>,
    volumes: Vec<usize>,
}

fn sectors(ends: &[u64]) -> u64 {
    ends.last().copied().unwrap_or(0) / 512
}

fn no_slot(count: usize) -> String {
    format!(
        "the pod's VM has no place for another disk: it has {count}, one for each image in use, for each container's \
        changes and for each volume; end a container, or use --storage-opt memory, or --tmpfs in place of a volume"
    )
}
