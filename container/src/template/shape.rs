//! What VMs that go on from the same template have in common.

use std::path::Path;

use serde::{Deserialize, Serialize};
use vmm::{MemorySize, NetBackend, PublishConfig, SavedVm, SharedPart, VmConfig};

use crate::assets::Assets;
use crate::machine::{SLOTS as POD_SLOTS, pod_machine, size};
use crate::mounts::{PodFolders, Prepared};
use crate::network;
use crate::options::RunOptions;

/// Disks that a container whose VM goes on from a template can have: its image, its changes and volumes.
const MOST_DISKS: usize = 4;
/// Places for them. One is always left, so that no VM with as many disks was booted with what such a container has.
const SLOTS: usize = MOST_DISKS + 1;

/// What VMs that go on from the same template have in common.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// vCPUs.
    pub cpus: u32,
    /// Bytes of RAM.
    pub memory: u64,
    /// It has a network device.
    pub has_network: bool,
    /// It has folders or files of the host, and so RAM that is shared with the process that serves them.
    #[serde(default)]
    pub has_share: bool,
    /// It is the VM of a pod, with slots for the disks of several containers.
    #[serde(default)]
    pub is_pod: bool,
}

impl Shape {
    /// That of the VM of a container with `options` and `mounts`; `None` where that has to boot.
    pub fn of(options: &RunOptions, mounts: &Prepared) -> Option<Self> {
        // The image, and the disk for changes.
        let disks = mounts.disks.len().saturating_add(2);
        Self::of_machine(options, !mounts.parts.is_empty()).filter(|_| disks <= MOST_DISKS)
    }

    /// The same for a pod with `options` and `folders`.
    pub fn of_pod(options: &RunOptions, folders: &PodFolders) -> Option<Self> {
        let shape = Self::of_machine(options, !folders.parts.is_empty())?;
        Some(Self { is_pod: true, ..shape })
    }

    fn of_machine(options: &RunOptions, has_share: bool) -> Option<Self> {
        let network = network::device(options);
        let is_users =
            network.as_ref().is_none_or(|device| matches!(device.backend, NetBackend::User { .. }));
        if options.cold || options.mac.is_some() || !is_users {
            return None;
        }
        let (cpus, memory) = size(options);
        Some(Self { cpus, memory, has_network: network.is_some(), has_share, is_pod: false })
    }

    /// The name of its template's directory.
    pub fn name(self) -> String {
        let Self { cpus, memory, has_network, has_share, is_pod } = self;
        let network = if has_network { "user" } else { "none" };
        let (share, pod) = (if has_share { "-share" } else { "" }, if is_pod { "-pod" } else { "" });
        format!("{cpus}c-{}m-{network}{share}{pod}", memory >> 20)
    }

    /// The VM with `options` and `parts` of the host, which has this shape, in `directory`.
    pub fn machine(
        self,
        assets: &Assets,
        options: &RunOptions,
        directory: &Path,
        publish: Vec<PublishConfig>,
        parts: &[SharedPart],
    ) -> VmConfig {
        let memory = MemorySize::from_bytes(self.memory);
        let slots = if self.is_pod { POD_SLOTS } else { SLOTS };
        let of_pod = pod_machine(assets, options, directory, publish, parts);
        VmConfig { slots, cpus: self.cpus, memory, ..of_pod }
    }
}

/// The VM of `config` as it was `saved`: it has the `size` that it was started with, vCPUs and bytes of memory, whatever
/// the container's limits are now, and one that has gone on from a template has slots in place of its disks. What was
/// saved may be what a guest wants it to be, and says nothing of its size.
pub fn as_saved(config: VmConfig, saved: &SavedVm, (cpus, memory): (u32, u64)) -> VmConfig {
    let config = VmConfig { cpus, memory: MemorySize::from_bytes(memory), ..config };
    if config.rootfs.iter().len() + config.disks.len() == saved.disks() {
        return config;
    }
    let slots = saved.disks().saturating_sub(config.rootfs.iter().len());
    VmConfig { in_slots: config.disks, disks: Vec::new(), slots, ..config }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::NetworkOption;

    fn options(network: &str) -> RunOptions {
        RunOptions { network: network.parse().unwrap(), ..RunOptions::default() }
    }

    #[test]
    fn what_a_template_cannot_have_boots() {
        let none = Prepared::default;
        let shape = Shape::of(&options("none"), &none()).unwrap();
        assert!(!shape.has_network && shape.memory > 0 && shape.cpus > 0);
        assert!(Shape::of(&options("user"), &none()).unwrap().has_network);
        let larger = RunOptions { memory: Some(3 << 30), milli_cpus: Some(2500), ..options("none") };
        let larger = Shape::of(&larger, &none()).unwrap();
        assert!(larger.cpus == 3 && larger.memory > 3 << 30 && larger.name() != shape.name());
        let volumes = |count| Prepared { disks: vec!["disk".into(); count], ..none() };
        assert!(Shape::of(&options("none"), &volumes(2)).is_some());
        assert!(Shape::of(&options("none"), &volumes(3)).is_none());
        let part = SharedPart { name: "0".into(), path: "/x".into(), read_only: true };
        let shared = Shape::of(&options("none"), &Prepared { parts: vec![part], ..none() }).unwrap();
        assert!(shared.has_share && shared.name() == format!("{}-share", shape.name()));
        let pod = Shape::of_pod(&options("none"), &PodFolders::default()).unwrap();
        assert!(pod.is_pod && pod.name() == format!("{}-pod", shape.name()));
        let mac = "02:00:00:00:00:01".parse().ok();
        for options in [
            options("tap=x,ip=10.0.0.2/8"),
            options("bridge=x,ip=10.0.0.2/8"),
            RunOptions { mac, ..options("user") },
            RunOptions { cold: true, ..options("none") },
        ] {
            assert_eq!(Shape::of(&options, &none()), None, "{options:?}");
        }
        assert_eq!(NetworkOption::None, "none".parse().unwrap());
    }
}
