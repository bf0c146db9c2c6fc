//! What the host asks for.

use agent_protocol::{
    Adoption, Container, Exec, Failure, FailureKind, GUEST, MAX_EXECS, PodContainer, Preparation, Reply,
    Request, Stream,
};

use super::Server;
use crate::adopt;
use crate::awake::{awake, rest};
use crate::container::{self, First};
use crate::error::{Result, failure};
use crate::guest;
use crate::mounts;
use crate::network;
use crate::pod::Pod;
use crate::process::{Role, Running};
use crate::processes;
use crate::pty;
use crate::streams::ConnectionId;
use crate::system;
use crate::volumes;

impl Server {
    pub(super) fn handle(&mut self, id: ConnectionId, request: Request) {
        if let Some(failure) = guest::refuse(&request).filter(|_| self.is_service) {
            return self.answer(id, &Reply::Failed(failure));
        }
        let reply = match request {
            Request::Start(container) => match self.start(id, &container, First::Runs) {
                Ok(()) => return,
                Err(failure) => Reply::Failed(failure),
            },
            Request::Exec { container, id: name, exec } => match self.exec(id, &container, &name, &exec) {
                Ok(()) => return,
                Err(failure) => Reply::Failed(failure),
            },
            Request::Attach { container, stream, position } => {
                return self.attach(id, container, stream, position);
            }
            Request::Wait { container } => match self.wait_for(id, &container) {
                Ok(()) => return,
                Err(failure) => Reply::Failed(failure),
            },
            Request::Signal { container, signal } => match self.signal(&container, signal) {
                Ok(()) => Reply::Done,
                Err(failure) => Reply::Failed(failure),
            },
            Request::Resize { container, size } => {
                if let Some(terminal) =
                    self.processes.get(&container).and_then(|running| running.terminal.as_ref())
                {
                    let _ = pty::set_size(terminal, size);
                }
                return;
            }
            Request::PowerOff => {
                // With them their mounts go, which writes those of disks as they are to be found again.
                self.processes.clear();
                system::power_off()
            }
            Request::Usage { container } => match self.home(&container) {
                Some(home) => Reply::Usage(home.cgroup.usage()),
                None => Reply::Failed(unknown(&container)),
            },
            Request::Update { container, resources } => {
                let updated = self.home(&container).ok_or_else(|| unknown(&container));
                match updated.and_then(|home| home.cgroup.limit(&resources)) {
                    Ok(()) => Reply::Done,
                    Err(failure) => Reply::Failed(failure),
                }
            }
            Request::Processes { container } => match self.home(&container) {
                Some(home) => Reply::Processes(processes::list(&home.cgroup.processes()), system::uptime()),
                None => Reply::Failed(unknown(&container)),
            },
            Request::Hold(container) => match self.start(id, &container, First::Holds) {
                Ok(()) => return,
                Err(failure) => Reply::Failed(failure),
            },
            Request::Copy { container, what } => match self.copy(id, &container, &what) {
                Ok(()) => return,
                Err(failure) => Reply::Failed(failure),
            },
            Request::Pod(pod) => match self.make_pod(&pod) {
                Ok(()) => Reply::Done,
                Err(failure) => Reply::Failed(failure),
            },
            Request::StartInPod(container) => match self.start_in_pod(id, &container) {
                Ok(()) => return,
                Err(failure) => Reply::Failed(failure),
            },
            Request::Release { container, disks } => {
                if let Some(Role::First(home)) = self.processes.get(&container).map(|running| &running.role) {
                    home.cgroup.kill();
                }
                self.sockets.remove(&container);
                match self.departures.add(container, disks, id) {
                    Ok(()) => return,
                    Err(failure) => Reply::Failed(failure),
                }
            }
            Request::Freeze { container, freezes } => match self.freeze(id, &container, freezes) {
                Ok(()) => return,
                Err(failure) => Reply::Failed(failure),
            },
            Request::IsFrozen { container } => {
                self.is_frozen(&container).map_or_else(Reply::Failed, Reply::Frozen)
            }
            Request::Awake(awakening) => match awake(&awakening, std::mem::take(&mut self.resting)) {
                Ok(()) => Reply::Done,
                Err(failure) => Reply::Failed(failure),
            },
            Request::Rest => match rest(&mut self.resting) {
                Ok(()) => Reply::Done,
                Err(failure) => Reply::Failed(failure),
            },
            Request::Adopt(adoption) => match self.adopt(&adoption) {
                Ok(()) => Reply::Done,
                Err(failure) => Reply::Failed(failure),
            },
            Request::Prepare(preparation) => match self.prepare(*preparation) {
                Ok(()) => Reply::Done,
                Err(failure) => Reply::Failed(failure),
            },
        };
        self.answer(id, &reply);
    }

    /// Mounts the root of a container that is still to come.
    fn prepare(&mut self, preparation: Preparation) -> Result<()> {
        if self.prepared.is_some() || self.pod.is_some() || !self.processes.is_empty() {
            return Err(failure("there is a root, a pod, or a container, in this VM".into()));
        }
        mounts::prepare(&preparation)?;
        self.prepared = Some(preparation);
        Ok(())
    }

    /// Starts a container.
    pub(super) fn start(&mut self, control: ConnectionId, container: &Container, first: First) -> Result<()> {
        if !is_plain(&container.id) || self.processes.contains_key(&container.id) {
            return Err(failure(format!("cannot use {:?} as a container's ID", container.id)));
        }
        if let Some(network) = container.network.as_ref().filter(|_| !self.has_network) {
            network::set_up(network)?;
            self.has_network = true;
        }
        self.sockets.add(container)?;
        let prepared = self.prepared.take();
        let fits = prepared.as_ref().map(|prepared| mounts::is_for(prepared, container));
        let (first, is_of_no_use) = match (first, fits) {
            (First::Runs, Some(true)) => (First::RunsInPrepared, false),
            (first, fits) => (first, fits.is_some()),
        };
        if is_of_no_use {
            mounts::forget_prepared()?;
        }
        let started = container::start(container, first);
        if first == First::RunsInPrepared {
            // The container's process has its own: as long as these are there, nothing is written as it is to be found
            // again.
            mounts::forget_prepared()?;
        }
        let (started, home) = started?;
        let running = Running::new(started, Role::First(Box::new(home)), control);
        self.processes.insert(container.id.clone(), running);
        Ok(())
    }

    /// Makes a container of this VM another one.
    fn adopt(&mut self, adoption: &Adoption) -> Result<()> {
        let Adoption { container, id, .. } = adoption;
        // One that goes on later keeps its ID.
        if !is_plain(id) || id != container && self.processes.contains_key(id) {
            return Err(failure(format!("cannot use {id:?} as a container's ID")));
        }
        let running = self.processes.get(container).ok_or_else(|| unknown(container))?;
        let Role::First(home) = &running.role else { return Err(unknown(container)) };
        if let Some(pid) = running.pid {
            adopt::rename(home, pid, adoption)?;
        }
        let Some(mut running) = self.processes.remove(container) else { return Err(unknown(container)) };
        running.begin_anew();
        self.processes.insert(id.clone(), running);
        for running in self.processes.values_mut() {
            if let Role::Further(name) = &mut running.role
                && name == container
            {
                name.clone_from(id);
            }
        }
        self.sockets.rename(container, id);
        Ok(())
    }

    pub(super) fn make_pod(&mut self, pod: &agent_protocol::Pod) -> Result<()> {
        if self.pod.is_some() || self.prepared.is_some() || !self.processes.is_empty() {
            return Err(failure("there is a pod, a root, or a container, in this VM".into()));
        }
        self.pod = Some(Pod::new(pod, self.has_network)?);
        self.has_network = true;
        Ok(())
    }

    pub(super) fn start_in_pod(&mut self, control: ConnectionId, started: &PodContainer) -> Result<()> {
        let container = &started.container;
        if !is_plain(&container.id) || self.processes.contains_key(&container.id) {
            return Err(failure(format!("cannot use {:?} as a container's ID", container.id)));
        }
        let pod = self.pod.as_mut().ok_or_else(|| failure("there is no pod in this VM".into()))?;
        volumes::mount_for_pod(container)?;
        self.sockets.add(container)?;
        pod.add(&container.id, &started.names)?;
        let (started, home) = container::start_in(pod, started)?;
        let role = Role::First(Box::new(home));
        let running = Running::new(started, role, control).in_pod();
        self.processes.insert(container.id.clone(), running);
        Ok(())
    }

    /// Reports containers of the pod that have ended.
    pub(super) fn release(&mut self) {
        if self.departures.is_empty() {
            return;
        }
        let processes = &mut self.processes;
        let take = |container: &str| {
            let is_further =
                |running: &Running| matches!(&running.role, Role::Further(name) if name == container);
            let is_alive = |(name, running): (&String, &Running)| {
                running.pid.is_some() && (name == container || is_further(running))
            };
            if processes.iter().any(is_alive) {
                return (false, None);
            }
            processes.retain(|_, running| !is_further(running));
            let role = processes.remove(container).map(|running| running.role);
            (true, if let Some(Role::First(home)) = role { Some(home) } else { None })
        };
        for waiter in self.departures.advance(self.pod.as_mut(), take) {
            self.answer(waiter, &Reply::Done);
        }
    }

    pub(super) fn exec(
        &mut self,
        control: ConnectionId,
        container: &str,
        id: &str,
        exec: &Exec,
    ) -> Result<()> {
        if !is_plain(id) || self.processes.contains_key(id) {
            return Err(failure(format!("cannot use {id:?} as a process's ID")));
        }
        let is_of = |running: &&Running| matches!(&running.role, Role::Further(name) if name == container);
        let is_full = self.processes.values().filter(is_of).count() >= MAX_EXECS;
        let started = if self.is_service && container == GUEST {
            if is_full {
                return Err(failure(format!(
                    "the guest runs {MAX_EXECS} commands of the host's, which is the most"
                )));
            }
            guest::exec(exec)?
        } else {
            let first = self.processes.get(container).ok_or_else(|| unknown(container))?;
            let Role::First(home) = &first.role else { return Err(unknown(container)) };
            if !first.is_command() || home.is_held {
                return Err(failure(format!("container {container} is not running")));
            }
            if home.is_paused {
                return Err(failure(format!("container {container} is paused: `mvm unpause` it first")));
            }
            if is_full {
                return Err(failure(format!(
                    "container {container} runs {MAX_EXECS} commands beside its own, which is the most"
                )));
            }
            home.exec(exec)?
        };
        let running = Running::new(started, Role::Further(container.to_owned()), control);
        self.processes.insert(id.to_owned(), running);
        Ok(())
    }

    /// Makes connection `id` that of a stream, which goes on from where the host is.
    pub(super) fn attach(&mut self, id: ConnectionId, name: String, stream: Stream, position: u64) {
        let attached = self.processes.get_mut(&name).ok_or_else(|| unknown(&name));
        let before = match attached.and_then(|running| running.attach(id, stream, position)) {
            Ok((before, position)) => {
                self.answer(id, &Reply::Attached { position });
                before
            }
            Err(failure) => return self.answer(id, &Reply::Failed(failure)),
        };
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.stream = Some((name, stream));
        }
        if let Some(before) = before {
            self.connections.remove(&before);
        }
    }

    /// Has the end of a process be told on connection `id`.
    pub(super) fn wait_for(&mut self, id: ConnectionId, name: &str) -> Result<()> {
        let running = self.processes.get_mut(name).ok_or_else(|| unknown(name))?;
        running.control = id;
        if let Some(exit) = running.exit {
            self.answer(id, &Reply::Exited(exit));
        }
        Ok(())
    }

    pub(super) fn signal(&mut self, name: &str, number: u8) -> Result<()> {
        self.processes.get(name).ok_or_else(|| unknown(name))?.signal(name, number)
    }
}

/// Whether `id` can be an ID: it becomes part of paths.
fn is_plain(id: &str) -> bool {
    !id.is_empty() && id.len() <= 64 && id.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

pub(super) fn unknown(name: &str) -> Failure {
    Failure { kind: FailureKind::Other, message: format!("there is no container {name}") }
}
