//! What VMs that go on from the same template have in common.

use std::path::Path;

use serde::{Deserialize, Serialize};
use vmm::{MemorySize, NetBackend, PublishConfig, VmConfig};

use crate::assets::Assets;
use crate::image::Image;
use crate::machine::{machine, size};
use crate::mounts::Prepared;
use crate::network;
use crate::options::RunOptions;

/// Disks that a container whose VM goes on from a template can have: its image, its changes and volumes.
const SLOTS: usize = 4;

/// What VMs that go on from the same template have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// vCPUs.
    pub cpus: u32,
    /// Bytes of RAM.
    pub memory: u64,
    /// It has a network device.
    pub has_network: bool,
}

impl Shape {
    /// That of the VM of a container with `options` and `mounts`; `None` where that has to boot.
    pub fn of(options: &RunOptions, mounts: &Prepared) -> Option<Self> {
        // The image, and the disk for changes.
        let disks = mounts.disks.len().saturating_add(2);
        let network = network::device(options);
        let is_users =
            network.as_ref().is_none_or(|device| matches!(device.backend, NetBackend::User { .. }));
        if options.cold || !mounts.parts.is_empty() || disks > SLOTS || options.mac.is_some() || !is_users {
            return None;
        }
        let (cpus, memory) = size(options);
        Some(Self { cpus, memory, has_network: network.is_some() })
    }

    /// The name of its template's directory.
    pub fn name(self) -> String {
        let Self { cpus, memory, has_network } = self;
        format!("{cpus}c-{}m-{}", memory >> 20, if has_network { "user" } else { "none" })
    }

    /// The VM with `options`, which has this shape, in `directory`.
    pub fn machine(
        self,
        assets: &Assets,
        options: &RunOptions,
        directory: &Path,
        publish: Vec<PublishConfig>,
    ) -> VmConfig {
        let none = (Image::default(), Prepared::default());
        let config = machine(assets, &none.0, options, directory, None, &none.1, publish);
        let memory = MemorySize::from_bytes(self.memory);
        VmConfig { disks: Vec::new(), slots: SLOTS, cpus: self.cpus, memory, ..config }
    }
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
