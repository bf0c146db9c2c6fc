//! The keeper of a pod.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicUsize;
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Builder;
use std::time::{Duration, Instant};

use agent_protocol::{Pod, Reply, Request};
use instance::keeper::TieListener;
use instance::{ENDING, Instance, Keep, Signals, Volumes};
use rustix::event::{PollFd, PollFlags, poll};
use vmm::PublishConfig;

use super::clients::Slots;
use super::slots::SlotTable;
use super::{PodOptions, SOCKET};
use crate::assets::Assets;
use crate::connection::{Connection, ConnectionError};
use crate::machine::{SLOTS, VSOCK, pod_machine};
use crate::mounts::PodFolders;
use crate::run::{LAST_WORDS, RunError};
use crate::session::{Listener, POWER_OFF, READY};
use crate::template::{self, Template};
use vmm::{FromVm, Order, Split, VmEnd, VmProcess};

/// How long a pod's VM runs without a container.
const IDLE: Duration = Duration::from_secs(10);
/// How long a client without a container in the pod may take for what it asks next.
const FIRST: Duration = Duration::from_secs(30);
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
    /// It goes on from a template.
    is_warm: bool,
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
    /// `keep` what is kept of it; it goes on from a `template`, or boots. This process has one thread yet.
    ///
    /// # Errors
    ///
    /// [`RunError`]; of the VM nothing is left behind.
    pub fn start(
        plan: PodPlan<'_>,
        instance: Instance,
        keep: Keep,
        split: Split<'_>,
        template: Option<Template>,
    ) -> Result<Self, RunError> {
        let PodPlan { assets, options, publish, folders, volumes } = plan;
        let pod = options.of_agent()?;
        let host = |doing| move |source| RunError::Host { doing, source };
        let (directory, publish, parts) = (instance.path(), publish.to_vec(), &folders.parts);
        let is_warm = template.is_some();
        let (config, snapshot) = match template {
            None => (pod_machine(assets, &options.options, directory, publish, parts), None),
            Some(Template { shape, snapshot, .. }) => {
                (shape.machine(assets, &options.options, directory, publish, parts), Some(snapshot))
            }
        };
        let agent = Listener::open(instance.path()).map_err(host("make a socket for the agent"))?;
        let clients =
            TieListener::bind(&instance.path().join(SOCKET)).map_err(host("make a socket for the pod"))?;
        let (identity, log, user, start) = (instance.identity(), None, None, Instant::now());
        let order = Order { config: &config, identity: &identity, log, user, snapshot, split, start };
        let (vm, instance, (keep, agent, clients)) =
            VmProcess::start_for(order, Some(instance), (keep, agent, clients))
                .and_then(|(vm, instance, own)| Ok((vm, instance.ok_or(io::ErrorKind::NotFound)?, own)))
                .map_err(host("make a process for the VM"))?;
        let (vm, continues, volumes) = (Arc::new(vm), options.continues, volumes.clone());
        Ok(Self { vm, instance, keep, agent, is_warm, clients, pod, continues, volumes })
    }

    /// Serves the pod until it ends. `on_started` is called when containers can be started in it.
    pub fn run(self, signals: Option<Signals>, on_started: Box<dyn FnOnce() + Send>) -> PodLeft {
        let Self { vm, instance, mut keep, agent, is_warm, clients, pod, continues, volumes } = self;
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
        let (runs, is_running) = sync_channel(1);
        let agent = match is_warm {
            true => Agent::Warm(is_running),
            false => Agent::Connects(agent),
        };
        let started = shared.clone().start(agent, clients, pod, continues, signals, on_started);
        let failed = Arc::new(Mutex::new(None));
        let result = match started {
            Ok(ready) => {
                let result = listen(&shared, &to_slots, &runs);
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

/// Where the agent is.
enum Agent {
    /// It connects when the guest has booted.
    Connects(Listener),
    /// It listens, in a VM that goes on from a template, once this says that it runs.
    Warm(Receiver<()>),
}

/// Listens to the VM until its end, and says when it `runs`.
fn listen(
    shared: &Arc<Shared>,
    slots: &SyncSender<(u64, Option<String>)>,
    runs: &SyncSender<()>,
) -> Result<(), RunError> {
    loop {
        match shared.vm.receive() {
            Some(FromVm::Pressed) => shared.end_soon(),
            Some(FromVm::Slot { number, failure }) => drop(slots.try_send((number, failure))),
            Some(FromVm::Built) => drop(runs.try_send(())),
            Some(FromVm::Printed) => {}
            Some(FromVm::Ended(end)) if end.is_power_off() => return Ok(()),
            Some(FromVm::Ended(end)) => return Err(RunError::VmEnded(end)),
            Some(FromVm::Failed(failure)) => return Err(RunError::Vm(failure.text)),
            None => {
                let code = shared.vm.wait(LAST_WORDS).unwrap_or(0);
                let text = vmm::end_without_a_word(code);
                let signal = shared.vm.ended_by();
                return Err(RunError::VmEnded(VmEnd::without_a_word(signal, text)));
            }
        }
    }
}

/// Which containers there are.
#[derive(Default)]
pub(super) struct Members {
    pub(super) containers: BTreeSet<String>,
    /// No more are taken.
    pub(super) is_ending: bool,
}

/// What the threads of a pod's keeper have in common.
pub(super) struct Shared {
    pub(super) vm: Arc<VmProcess>,
    pub(super) vsock: PathBuf,
    pub(super) slots: Mutex<Slots>,
    pub(super) members: Mutex<Members>,
    /// There is another container, or one less.
    pub(super) changed: Condvar,
    /// A slot is free.
    pub(super) freed: Condvar,
    pub(super) volumes: Volumes,
    pub(super) clients: AtomicUsize,
    /// How long a client without a container is waited for.
    pub(super) patience: Duration,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts a thread that lives as long as the process.
pub(super) fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    Builder::new().name(name.into()).stack_size(256 << 10).spawn(run).map(drop)
}

impl Shared {
    /// Starts the threads. What is returned says why the pod does not become ready.
    fn start(
        self: Arc<Self>,
        agent: Agent,
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
            let made = make(&agent, &self.vsock, pod);
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
    pub(super) fn end_soon(self: &Arc<Self>) {
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
fn make(agent: &Agent, vsock: &Path, pod: Pod) -> Result<(), ConnectionError> {
    let mut control = match agent {
        Agent::Connects(listener) => Connection::greet(listener.accept_within(READY)?)?,
        Agent::Warm(is_running) => {
            // Its slots are of use from then on.
            is_running.recv_timeout(READY).map_err(|_| ConnectionError::Silent(READY))?;
            template::awake(vsock, Vec::new(), READY)?
        }
    };
    control.send(&Request::Pod(Box::new(pod)))?;
    match control.receive_within(READY)? {
        Reply::Done => Ok(()),
        Reply::Failed(failure) => Err(ConnectionError::Refused(failure.message)),
        other => Err(ConnectionError::Unexpected(format!("{other:?}"))),
    }
}

#[cfg(test)]
#[path = "keeper_tests.rs"]
mod tests;
