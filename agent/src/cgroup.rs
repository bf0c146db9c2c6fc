//! Control groups (cgroup v2): one for each container.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;

use agent_protocol::Resources;

use crate::error::{During, Result};
use crate::system::set;

/// Where they are mounted.
pub const TOP: &str = "/sys/fs/cgroup";
/// The period of processor quotas, in microseconds.
const PERIOD: u64 = 100_000;

/// Has containers' groups control what the kernel can.
pub fn enable_controllers() {
    let Ok(controllers) = fs::read_to_string(format!("{TOP}/cgroup.controllers")) else { return };
    for controller in controllers.split_whitespace() {
        // One that cannot be enabled is missed by the container that asks for a limit.
        let _ = fs::write(format!("{TOP}/cgroup.subtree_control"), format!("+{controller}"));
    }
}

/// The group of a container; it is removed with it.
pub struct Cgroup {
    path: String,
}

impl Cgroup {
    /// Makes the group of container `id` with these limits.
    pub fn new(id: &str, resources: &Resources) -> Result<Self> {
        let path = format!("{TOP}/{id}");
        fs::create_dir(&path).during(format!("make the control group {path}"))?;
        let group = Self { path };
        group.limit(resources)?;
        Ok(group)
    }

    fn limit(&self, resources: &Resources) -> Result<()> {
        let Resources { memory, cpu_quota, cpu_weight, cpus, pids } = resources;
        if let Some(bytes) = memory {
            self.set("memory.max", &bytes.to_string())?;
            // All of a container's processes end when one has to, unless it handles that itself.
            self.set("memory.oom.group", "0")?;
        }
        if let Some(quota) = cpu_quota {
            self.set("cpu.max", &format!("{quota} {PERIOD}"))?;
        }
        if let Some(weight) = cpu_weight {
            self.set("cpu.weight", &weight.to_string())?;
        }
        if let Some(cpus) = cpus {
            self.set("cpuset.cpus", cpus)?;
        }
        if let Some(most) = pids {
            self.set("pids.max", &most.to_string())?;
        }
        Ok(())
    }

    fn set(&self, name: &str, value: &str) -> Result<()> {
        set(&format!("{}/{name}", self.path), value)
    }

    /// The directory, for a process to be made in the group.
    pub fn directory(&self) -> io::Result<OwnedFd> {
        Ok(File::open(&self.path)?.into())
    }

    /// Whether the kernel has killed a process of the group for lack of memory.
    pub fn was_out_of_memory(&self) -> bool {
        let events = fs::read_to_string(format!("{}/memory.events", self.path)).unwrap_or_default();
        let kills = events.lines().find_map(|line| line.strip_prefix("oom_kill "));
        kills.is_some_and(|count| count != "0")
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Both fail where the container has made groups of its own, which stay empty.
        let _ = fs::write(format!("{}/cgroup.kill", self.path), "1");
        let _ = fs::remove_dir(&self.path);
    }
}
