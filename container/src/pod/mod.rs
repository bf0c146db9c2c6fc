//! Pods: several containers in one VM.
//!
//! A pod's keeper has the VM, and no container. Each container has a keeper of its own, which connects to that of the
//! pod to have its disks put into slots of the VM, and to the agent to start it. Where a container's keeper ends, its
//! container does; where the pod's does, the VM and all containers do.

mod clients;
mod disk;
mod keeper;
mod member;
mod slots;

use std::path::{Path, PathBuf};

use agent_protocol::{Pod, Resources};
use instance::VolumeName;
use serde::{Deserialize, Serialize};

pub use self::keeper::{PodKeeper, PodLeft, PodPlan};
pub use self::member::{Member, PodPlace};

pub(crate) use self::disk::{ends, open_disk};

use crate::machine::VSOCK;
use crate::mounts::PodFolder;
use crate::network;
use crate::options::{OptionsError, RunOptions};
use crate::spec;

/// The socket of a pod's keeper, in the VM's directory.
const SOCKET: &str = "pod.sock";

/// What a pod was asked to be. It is kept: what another version of mvm has beyond it is passed over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodOptions {
    /// Its name, which is its host name where none is given.
    pub name: String,
    /// Host name, network, ports, names and limits; what else they have is of no meaning for a pod.
    pub options: RunOptions,
    /// Its containers see each other's processes.
    pub shares_processes: bool,
    /// Its VM runs on without a container.
    pub continues: bool,
    /// Folders and files of the host, and volumes, that its containers can mount.
    pub folders: Vec<PodFolder>,
}

impl PodOptions {
    /// The host name of its containers.
    pub fn hostname(&self) -> &str {
        self.options.hostname.as_deref().unwrap_or(&self.name)
    }

    /// The options of a container of the pod: those that it shares are the pod's.
    pub fn of_container(&self, options: &RunOptions) -> RunOptions {
        let pod = self.options.clone();
        RunOptions {
            hostname: Some(self.hostname().to_owned()),
            domain: pod.domain,
            hosts: pod.hosts,
            network: pod.network,
            publish: Vec::new(),
            publish_all: false,
            mac: None,
            dns: pod.dns,
            dns_search: pod.dns_search,
            dns_options: pod.dns_options,
            ..options.clone()
        }
    }

    /// Adds what all containers of the pod mount to the `options` of one, where that mounts nothing else there.
    pub fn add_mounts(&self, options: &mut RunOptions) {
        let is_there = |target: &str, options: &RunOptions| {
            let mut tmpfs = options.tmpfs.iter();
            options.mounts.iter().any(|own| own.target == target)
                || tmpfs.any(|(own, _)| own.trim_end_matches('/') == target)
        };
        for mount in &self.options.mounts {
            if !is_there(&mount.target, options) {
                options.mounts.push(mount.clone());
            }
        }
    }

    /// The same as the agent gets it.
    fn of_agent(&self) -> Result<Pod, OptionsError> {
        let hostname = self.hostname();
        if !spec::is_name(hostname, b"-.") {
            return Err(OptionsError::Hostname(hostname.to_owned()));
        }
        let options = &self.options;
        let cpu_quota = options.milli_cpus.map(|milli| milli.saturating_mul(100));
        Ok(Pod {
            hostname: hostname.to_owned(),
            network: network::interface(options),
            hosts: network::hosts(hostname, options)?,
            shares_processes: self.shares_processes,
            shm_size: options.shm_size.unwrap_or(spec::SHM_SIZE),
            resources: Resources { memory: options.memory, cpu_quota, ..Resources::default() },
        })
    }

    /// Checks that such a pod can be made.
    ///
    /// # Errors
    ///
    /// [`OptionsError`] names the option that can't be used.
    pub fn check(&self) -> Result<(), OptionsError> {
        self.of_agent().map(drop)
    }
}

/// What a client of a pod's keeper says. The open files of a disk come with the message.
#[derive(Debug, Serialize, Deserialize)]
enum ToPod {
    /// Put the disk of an image into a slot for this container, or use the one that is there.
    Image { container: String, image: String, ends: Vec<u64> },
    /// Put the disk for a container's changes into a slot.
    Changes { ends: Vec<u64> },
    /// Put the disk of a volume into a slot for this container, or use the one that is there. It is there already where
    /// the container has it in another place.
    Volume { name: VolumeName },
    /// The container has ended: take its disks out. Closing the connection does the same.
    Leave,
    /// End the pod.
    End,
}

/// What the keeper answers.
#[derive(Debug, Serialize, Deserialize)]
enum FromPod {
    /// The disk is this block device of the guest.
    Device { device: String, sectors: u64 },
    /// Nothing of the container is left in the VM.
    Left,
    /// The pod's VM is about to end.
    Ending,
    /// It was not done: a line for the user.
    Refused(String),
}

/// Whether `directory` is that of a pod's VM.
pub fn is_pod(directory: &Path) -> bool {
    directory.join(SOCKET).exists()
}

/// The directory of the VM of the pod that the container is in whose directory is `directory`; `None` where it has a VM
/// of its own.
pub fn pod_directory(directory: &Path) -> Option<PathBuf> {
    let target = std::fs::read_link(directory.join(VSOCK)).ok()?;
    target.parent().map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shared_is_that_of_the_pod() {
        let own =
            RunOptions { hostname: Some("own".into()), command: vec!["sh".into()], ..RunOptions::default() };
        let shared = RunOptions {
            hosts: vec![("db".into(), "10.0.0.1".into())],
            network: "user".parse().unwrap(),
            publish: vec!["80".parse().unwrap()],
            memory: Some(1 << 30),
            ..RunOptions::default()
        };
        let pod = PodOptions { name: "web".into(), options: shared, ..PodOptions::default() };
        let merged = pod.of_container(&own);
        assert_eq!((merged.hostname.as_deref(), merged.command), (Some("web"), vec!["sh".to_owned()]));
        assert!(merged.publish.is_empty() && merged.memory.is_none());
        let agent = pod.of_agent().unwrap();
        assert!(agent.hosts.contains("10.88.0.2\tweb\n10.0.0.1\tdb\n"), "{}", agent.hosts);
        assert_eq!((agent.resources.memory, agent.shm_size), (Some(1 << 30), 64 << 20));
        let options = RunOptions { hostname: Some("a b".into()), ..RunOptions::default() };
        assert!(PodOptions { options, ..pod.clone() }.check().is_err());
        // What all containers mount does not replace what one of them has.
        let mount = |text: &str| text.parse::<crate::mounts::ShortMount>().unwrap().mount;
        let all =
            RunOptions { mounts: ["/h:/a", "vol:/b", "wol:/c"].map(mount).into(), ..RunOptions::default() };
        let mut own = RunOptions {
            mounts: vec![mount("own:/b")],
            tmpfs: vec![("/c/".into(), String::new())],
            ..RunOptions::default()
        };
        PodOptions { options: all, ..PodOptions::default() }.add_mounts(&mut own);
        assert_eq!(own.mounts, ["own:/b", "/h:/a"].map(mount));
        let read: PodOptions = serde_json::from_str(r#"{"name":"web","later":1}"#).unwrap();
        assert_eq!((&*read.name, read.continues), ("web", false));
    }

    #[test]
    fn a_container_of_a_pod_is_known_by_its_link() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(pod_directory(directory.path()), None);
        std::os::unix::fs::symlink("/run/mvm/1234/vsock.sock", directory.path().join(VSOCK)).unwrap();
        assert_eq!(pod_directory(directory.path()), Some("/run/mvm/1234".into()));
    }
}
