//! What the containers of a pod share, and what is left of them when they have ended.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use agent_protocol::Pod as Wanted;
use rustix::mount::{MountFlags, mount};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::thread::{
    CapabilitySet, CapabilitySets, ThreadNameSpaceType, move_into_link_name_space,
    move_into_thread_name_spaces,
};

use crate::cgroup::{self, Cgroup};
use crate::child;
use crate::container::{Home, clone_into};
use crate::disk;
use crate::error::{During, Result, failure};
use crate::init;
use crate::mounts::Layers;
use crate::network;
use crate::streams::ConnectionId;
use crate::system::RUN;

/// Where a container has the shared memory of the pod, and where that is.
pub const SHM: &str = "/dev/shm";
pub const SHM_SOURCE: &str = "/run/pod-shm";
/// The same for the file of names.
pub const HOSTS: &str = "/etc/hosts";
pub const HOSTS_SOURCE: &str = "/run/pod-hosts";
/// What its first process has in place of a root directory.
const EMPTY: &str = "/run/pod-empty";

/// How often what an ended container leaves is looked at: the kernel unmounts and removes by itself, without an event.
pub const AGAIN: Duration = Duration::from_millis(5);
/// The most containers that leave at a time.
const MAX_LEAVING: usize = 64;

/// A pod.
pub struct Pod {
    cgroup: Cgroup,
    /// Its first process, which keeps the namespaces. It is PID 1 where processes are shared.
    first: OwnedFd,
    shares_processes: bool,
    hosts: String,
    /// The names of the containers, by their IDs.
    names: BTreeMap<String, Vec<String>>,
}

impl Pod {
    /// Makes what is `wanted`. The network is set up where it `has_network` not yet.
    pub fn new(wanted: &Wanted, has_network: bool) -> Result<Self> {
        if let Some(network) = wanted.network.as_ref().filter(|_| !has_network) {
            network::set_up(network)?;
        }
        let cgroup = Cgroup::new(cgroup::CONTAINERS, "pod", &wanted.resources)?;
        cgroup::enable_controllers(cgroup.path());
        // Processes are in the groups of containers alone, but for the first one.
        let top = fs::File::open(cgroup::TOP).during("open a control group")?.into();
        fs::create_dir(EMPTY).during("make an empty directory")?;
        let own = if wanted.shares_processes { libc::CLONE_NEWPID } else { 0 };
        let namespaces = libc::CLONE_NEWIPC | libc::CLONE_NEWUTS | libc::CLONE_NEWNS | own;
        let Some(pid) = clone_into(&top, namespaces).during("make a process")? else {
            // The copy of this process; nothing else of it is used.
            rest()
        };
        let first = pidfd_open(pid, PidfdFlags::empty()).during("open a process")?;
        spare(pid);
        name_host(first.as_fd(), &wanted.hostname)?;
        fs::create_dir(SHM_SOURCE).during("make a directory")?;
        let options =
            std::ffi::CString::new(format!("mode=1777,size={}", wanted.shm_size)).unwrap_or_default();
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount("shm", SHM_SOURCE, "tmpfs", flags, &*options).during("mount shared memory")?;
        let (hosts, names) = (wanted.hosts.clone(), BTreeMap::new());
        let pod = Self { cgroup, first, shares_processes: wanted.shares_processes, hosts, names };
        pod.write_hosts()?;
        Ok(pod)
    }

    /// The control group of its containers.
    pub fn cgroup(&self) -> &str {
        self.cgroup.path()
    }

    /// The process whose namespaces its containers join.
    pub fn first(&self) -> BorrowedFd<'_> {
        self.first.as_fd()
    }

    /// Its containers see each other's processes.
    pub fn shares_processes(&self) -> bool {
        self.shares_processes
    }

    /// Adds the names of a container.
    pub fn add(&mut self, container: &str, names: &[String]) -> Result<()> {
        self.names.insert(container.to_owned(), names.to_vec());
        self.write_hosts()
    }

    /// Takes them away.
    fn remove(&mut self, container: &str) {
        if self.names.remove(container).is_some() {
            // Memory is full, if it fails: the names stay.
            let _ = self.write_hosts();
        }
    }

    /// Writes the file of names in place, as containers have mounts of it.
    fn write_hosts(&self) -> Result<()> {
        let mut text = self.hosts.clone();
        for names in self.names.values() {
            text.push_str(&format!("127.0.0.1\t{}\n", names.join(" ")));
        }
        fs::write(HOSTS_SOURCE, text).during("write the names of containers")
    }
}

/// What the pod's first process does: it keeps namespaces, and reaps where it is PID 1. It has no rights, no files and
/// no directory, for who may trace it.
fn rest() -> ! {
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
    let bare = rustix::process::chroot(EMPTY)
        .and_then(|()| rustix::process::chdir("/"))
        .and_then(|()| rustix::thread::set_no_new_privs(true))
        .and_then(|()| rustix::thread::set_capabilities(None, sets));
    if bare.is_err() {
        // SAFETY: it ends the process, without what the copy of the agent would do at its end.
        unsafe { libc::_exit(1) }
    }
    init::rest()
}

/// The kernel kills others for lack of memory, and not this process.
fn spare(pid: Pid) {
    let _ = fs::write(format!("/proc/{}/oom_score_adj", pid.as_raw_nonzero()), "-1000");
}

/// Gives the namespace of `first` its host name.
pub fn name_host(first: BorrowedFd<'_>, name: &str) -> Result<()> {
    let own = fs::File::open("/proc/self/ns/uts").during("open a namespace")?;
    move_into_thread_name_spaces(first, ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME)
        .during("join a container's names")?;
    let named = rustix::system::sethostname(name.as_bytes()).during("set the host name");
    move_into_link_name_space(own.as_fd(), None).during("leave a container's names")?;
    named
}

/// Drops `layers` in a process of its own: the last who has them writes what is mounted to its disk, for which other
/// containers are not to wait.
fn drop_elsewhere(layers: Option<Layers>) {
    let Some(layers) = layers else { return };
    let Ok((reader, writer)) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC) else { return };
    // SAFETY: this process has one thread, so that no lock is held by another one in the copy, which makes system calls
    // alone and ends. Where none is made the layers are dropped here.
    if unsafe { libc::fork() } == 0 {
        child::close_others([layers.changes.as_fd(), layers.image.as_fd(), reader.as_fd()]);
        // It ends when this process has dropped its own.
        let _ = rustix::io::read(&reader, &mut [0; 1]);
        // SAFETY: it ends the process, without what the copy of the agent would do at its end.
        unsafe { libc::_exit(0) }
    }
    drop((layers, writer));
}

/// A container that has ended, or is about to, until nothing uses its disks.
struct Leaving {
    container: String,
    disks: Vec<String>,
    /// Who waits for it.
    waiter: ConnectionId,
    /// What is left of it once its first process was reaped.
    home: Option<Box<Home>>,
}

/// Containers that leave.
#[derive(Default)]
pub struct Departures(Vec<Leaving>);

impl Departures {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Has `waiter` hear of it when nothing uses `disks` for `container` any more.
    pub fn add(&mut self, container: String, disks: Vec<String>, waiter: ConnectionId) -> Result<()> {
        let is_id = container.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if !is_id
            || self.0.len() >= MAX_LEAVING
            || self.0.iter().any(|leaving| leaving.container == container)
        {
            return Err(failure(format!(
                "container {container} is on its way out already, or too many others are"
            )));
        }
        self.0.push(Leaving { container, disks, waiter, home: None });
        Ok(())
    }

    /// Does what can be done; who waits for what is done. `take` gives what is left of a container once all of its
    /// processes were reaped, and whether that is so.
    pub fn advance(
        &mut self,
        pod: Option<&mut Pod>,
        mut take: impl FnMut(&str) -> (bool, Option<Box<Home>>),
    ) -> Vec<ConnectionId> {
        let mut done = Vec::new();
        let mut gone = Vec::new();
        self.0.retain_mut(|leaving| {
            if leaving.home.is_none() {
                let (is_over, home) = take(&leaving.container);
                if !is_over {
                    return true;
                }
                leaving.home = home.map(|mut home| {
                    // The last of what keeps the root's layers mounted.
                    drop_elsewhere(home.layers.take());
                    home
                });
            }
            if leaving.home.as_ref().is_some_and(|home| !home.cgroup.remove())
                || !leaving.disks.iter().all(|device| disk::is_free(device))
            {
                return true;
            }
            // Nothing is mounted there in this namespace.
            let _ = fs::remove_dir_all(format!("{RUN}/{}", leaving.container));
            gone.push(std::mem::take(&mut leaving.container));
            done.push(leaving.waiter);
            false
        });
        if let Some(pod) = pod {
            gone.iter().for_each(|container| pod.remove(container));
        }
        done
    }
}
