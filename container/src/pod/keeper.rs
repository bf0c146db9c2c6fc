//! The keeper of a pod.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Builder;
use std::time::{Duration, Instant};

use agent_protocol::{Pod, Reply, Request};
use instance::keeper::{Tie, TieListener};
use instance::{ENDING, Instance, Keep, Signals, VolumeDriver, VolumeHold, VolumeName, Volumes};
use rustix::event::{PollFd, PollFlags, poll};
use vmm::PublishConfig;

use super::disk::{EARLIER, ends, open_disk};
use super::slots::{Image, SlotTable};
use super::{FromPod, PodOptions, SOCKET, ToPod};
use crate::assets::Assets;
use crate::connection::{Connection, ConnectionError};
use crate::machine::{SLOTS, VSOCK, pod_machine, slot_device};
use crate::mounts::{PodFolders, PrepareError};
use crate::run::{LAST_WORDS, RunError};
use crate::session::{Listener, POWER_OFF};
use crate::vm::{Files, FromVm, Split, VmEnd, VmProcess};

/// How long the guest may take until the pod is ready.
const READY: Duration = Duration::from_secs(120);
/// How long the VM may take to put a disk into a slot or to take one out: longer than the disk's own deadline.
const MOVE: Duration = Duration::from_secs(15);
/// How long the agent may take until nothing uses the disks of a container that has ended: they are written to then.
const RELEASE: Duration = Duration::from_secs(60);
/// How long a pod's VM runs without a container.
const IDLE: Duration = Duration::from_secs(10);
/// How long no client is taken after one that could not be.
const PAUSE: Duration = Duration::from_millis(500);
/// How long a client without a container in the pod may take for what it asks next.
const FIRST: Duration = Duration::from_secs(30);
/// The most clients at a time.
const MAX_CLIENTS: usize = 64;
/// Answers of the VM that wait at most: it is asked one thing at a time, and more are not its own.
const REPLIES: usize = 4;
/// As many signals end the VM, whatever its guest does.
const FORCE: u32 = 3;

/// What a pod is made of.
#[derive(Clone, Copy)]
pub struct PodPlan<'a> {
    /// Kernel and agent of its VM.
    pub assets: &'a Assets,
    /// What the user asks for.
    pub options: &'a PodOptions,
    /// The ports that are published.
    pub publish: &'a [PublishConfig],
    /// What its VM has of the host.
    pub folders: &'a PodFolders,
    /// All volumes.
    pub volumes: &'a Volumes,
}

/// A pod whose VM starts, kept by this process.
pub struct PodKeeper {
    vm: Arc<VmProcess>,
    instance: Instance,
    keep: Keep,
    agent: Listener,
    clients: TieListener,
    pod: Pod,
    continues: bool,
    volumes: Volumes,
}

/// What is left of a pod.
pub struct PodLeft {
    /// How it ended.
    pub result: Result<(), RunError>,
    /// Its VM's directory.
    pub instance: Instance,
    /// What is kept of it.
    pub keep: Keep,
}

impl PodKeeper {
    /// Starts the VM of a pod in a process of its own, which gets what `split` says. `instance` is its directory and
    /// `keep` what is kept of it; this process has one thread yet.
    ///
    /// # Errors
    ///
    /// [`RunError`]; of the VM nothing is left behind.
    pub fn start(
        plan: PodPlan<'_>,
        instance: Instance,
        keep: Keep,
        split: Split<'_>,
    ) -> Result<Self, RunError> {
        let PodPlan { assets, options, publish, folders, volumes } = plan;
        let pod = options.of_agent()?;
        let host = |doing| move |source| RunError::Host { doing, source };
        let config = pod_machine(assets, &options.options, instance.path(), publish.to_vec(), &folders.parts);
        let agent = Listener::open(instance.path()).map_err(host("make a socket for the agent"))?;
        let clients =
            TieListener::bind(&instance.path().join(SOCKET)).map_err(host("make a socket for the pod"))?;
        let (vm, instance, (keep, agent, clients)) =
            VmProcess::start(&config, instance, (keep, agent, clients), split, Instant::now())
                .map_err(host("make a process for the VM"))?;
        let (vm, continues, volumes) = (Arc::new(vm), options.continues, volumes.clone());
        Ok(Self { vm, instance, keep, agent, clients, pod, continues, volumes })
    }

    /// Serves the pod until it ends. `on_started` is called when containers can be started in it.
    pub fn run(self, signals: Option<Signals>, on_started: Box<dyn FnOnce() + Send>) -> PodLeft {
        let Self { vm, instance, mut keep, agent, clients, pod, continues, volumes } = self;
        if let Err(error) = keep.started() {
            tracing::warn!(%error, "cannot note that the pod has started");
        }
        let (to_slots, replies) = sync_channel(REPLIES);
        let slots = Slots { table: SlotTable::new(SLOTS), replies, number: 0, holds: BTreeMap::new() };
        let shared = Arc::new(Shared {
            vm: vm.clone(),
            vsock: instance.path().join(VSOCK),
            slots: Mutex::new(slots),
            members: Mutex::default(),
            changed: Condvar::new(),
            freed: Condvar::new(),
            volumes,
            clients: AtomicUsize::new(0),
            patience: FIRST,
        });
        let started = shared.clone().start(agent, clients, pod, continues, signals, on_started);
        let failed = Arc::new(Mutex::new(None));
        let result = match started {
            Ok(ready) => {
                let result = listen(&shared, &to_slots);
                lock(&shared.members).is_ending = true;
                // Why it never became ready is the reason.
                if let Ok(Err(error)) = ready.try_recv() {
                    *lock(&failed) = Some(error);
                }
                result
            }
            Err(source) => {
                vm.end(None);
                Err(RunError::Host { doing: "start a thread", source })
            }
        };
        vm.wait(LAST_WORDS);
        let result = match lock(&failed).take() {
            Some(error) => Err(RunError::Session(Box::new(error))),
            None => result,
        };
        PodLeft { result, instance, keep }
    }
}

/// Listens to the VM until its end.
fn listen(shared: &Arc<Shared>, slots: &SyncSender<(u64, Option<String>)>) -> Result<(), RunError> {
    loop {
        match shared.vm.receive() {
            Some(FromVm::Pressed) => shared.end_soon(),
            Some(FromVm::Slot { number, failure }) => drop(slots.try_send((number, failure))),
            Some(FromVm::Ended(end)) if end.is_power_off => return Ok(()),
            Some(FromVm::Ended(end)) => return Err(RunError::VmEnded(end)),
            Some(FromVm::Failed(message)) => return Err(RunError::Vm(message)),
            None => {
                let code = shared.vm.wait(LAST_WORDS).unwrap_or(0);
                let text = format!("its process ended with {code}");
                let signal = shared.vm.ended_by();
                return Err(RunError::VmEnded(VmEnd {
                    is_power_off: false,
                    signal,
                    text,
                    timing: Vec::new(),
                }));
            }
        }
    }
}

/// The slots, and what the VM says of them.
struct Slots {
    table: SlotTable,
    replies: Receiver<(u64, Option<String>)>,
    number: u64,
    /// The volumes that are in slots, or about to be taken out, which no other VM has meanwhile.
    holds: BTreeMap<usize, VolumeHold>,
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

/// Which containers there are.
#[derive(Default)]
struct Members {
    containers: BTreeSet<String>,
    /// No more are taken.
    is_ending: bool,
}

/// What the threads of a pod's keeper have in common.
struct Shared {
    vm: Arc<VmProcess>,
    vsock: PathBuf,
    slots: Mutex<Slots>,
    members: Mutex<Members>,
    /// There is another container, or one less.
    changed: Condvar,
    /// A slot is free.
    freed: Condvar,
    volumes: Volumes,
    clients: AtomicUsize,
    /// How long a client without a container is waited for.
    patience: Duration,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts a thread that lives as long as the process.
fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    Builder::new().name(name.into()).stack_size(256 << 10).spawn(run).map(drop)
}

impl Shared {
    /// Starts the threads. What is returned says why the pod does not become ready.
    fn start(
        self: Arc<Self>,
        agent: Listener,
        clients: TieListener,
        pod: Pod,
        continues: bool,
        signals: Option<Signals>,
        on_started: Box<dyn FnOnce() + Send>,
    ) -> io::Result<Receiver<Result<(), ConnectionError>>> {
        let (sender, ready) = channel();
        if let Some(signals) = signals {
            let this = self.clone();
            spawn("signals", move || this.take_signals(&signals))?;
        }
        spawn("pod", move || {
            let made = make(&agent, pod);
            let is_made = made.is_ok();
            let _ = sender.send(made);
            if !is_made {
                return self.vm.end(None);
            }
            on_started();
            let this = self.clone();
            if !continues && let Err(error) = spawn("idle", move || this.end_when_idle()) {
                tracing::warn!(%error, "cannot start a thread: the pod does not end by itself");
            }
            self.accept(&clients);
        })?;
        Ok(ready)
    }

    /// Takes clients, for as long as this process lives.
    fn accept(self: Arc<Self>, clients: &TieListener) {
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
                    self.place_image(&mut place, container, &image, Files { files, ends })
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

    fn place_image(&self, place: &mut Placed, container: String, image: &str, files: Files) -> FromPod {
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
        let (sectors, files) = (sectors(&ends), Files { files, ends });
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
        let files = Files { files, ends: ends(&disk) };
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

    /// Ends the pod once it has been without a container for some time.
    fn end_when_idle(&self) {
        let mut members = lock(&self.members);
        loop {
            while !members.containers.is_empty() {
                members = self.changed.wait(members).unwrap_or_else(PoisonError::into_inner);
            }
            let wait =
                self.changed.wait_timeout_while(members, IDLE, |members| members.containers.is_empty());
            members = wait.unwrap_or_else(PoisonError::into_inner).0;
            if members.containers.is_empty() {
                members.is_ending = true;
                drop(members);
                return self.power_off();
            }
        }
    }

    /// Ends the pod, on a thread of its own.
    fn end_soon(self: &Arc<Self>) {
        if std::mem::replace(&mut lock(&self.members).is_ending, true) {
            return;
        }
        let this = self.clone();
        if spawn("power off", move || this.power_off()).is_err() {
            self.vm.end(None);
        }
    }

    /// Has the guest write everything to its disks and power off.
    fn power_off(&self) {
        let asked = Connection::open(&self.vsock).and_then(|mut control| control.send(&Request::PowerOff));
        match asked {
            Ok(()) => self.vm.end_within(POWER_OFF),
            Err(_) => self.vm.end(None),
        }
    }

    fn take_signals(self: Arc<Self>, signals: &Signals) {
        let mut asked = 0;
        loop {
            let _ = poll(&mut [PollFd::new(signals, PollFlags::IN)], None);
            while let Some(signal) = signals.next() {
                if !ENDING.contains(&signal) {
                    continue;
                }
                asked += 1;
                match asked {
                    1 => self.end_soon(),
                    ..FORCE => {}
                    _ => self.vm.end(Some(signal)),
                }
            }
        }
    }
}

/// Waits for the agent, and has it make the pod.
fn make(agent: &Listener, pod: Pod) -> Result<(), ConnectionError> {
    let mut control = Connection::greet(agent.accept_within(READY)?)?;
    control.send(&Request::Pod(Box::new(pod)))?;
    match control.receive_within(READY)? {
        Reply::Done => Ok(()),
        Reply::Failed(failure) => Err(ConnectionError::Refused(failure.message)),
        other => Err(ConnectionError::Unexpected(format!("{other:?}"))),
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

#[cfg(test)]
#[path = "keeper_tests.rs"]
mod tests;
