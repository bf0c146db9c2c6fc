//! Control groups (cgroup v2): one for each container.

use std::fs::{self, File};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use agent_protocol::{Resources, Usage};
use rustix::time::{ClockId, clock_gettime};

use crate::error::{During, Result};
use crate::system::set;

/// Where they are mounted.
pub const TOP: &str = "/sys/fs/cgroup";
/// The group of all containers together.
pub const CONTAINERS: &str = "/sys/fs/cgroup/containers";
/// Bytes of memory that all containers together leave to the agent and the kernel: its programs' own pages would go
/// first where a container takes all there is, and each command would wait for them to be read again.
const RESERVE: u64 = 24 << 20;
/// The period of processor quotas, in microseconds.
const PERIOD: u64 = 100_000;

/// Has groups in the group at `path` control what the kernel can.
pub fn enable_controllers(path: &str) {
    let Ok(controllers) = fs::read_to_string(format!("{path}/cgroup.controllers")) else { return };
    let enabled = format!("{path}/cgroup.subtree_control");
    let each = || controllers.split_whitespace().map(|controller| format!("+{controller}"));
    if fs::write(&enabled, each().collect::<Vec<_>>().join(" ")).is_err() {
        // One that cannot be enabled is missed by the container that asks for a limit.
        each().for_each(|controller| drop(fs::write(&enabled, controller)));
    }
}

/// Makes the group of all containers, where groups are mounted.
///
/// # Errors
///
/// Those of mkdir(2), and of write(2) where the kernel can't limit memory.
pub fn make_containers() -> Result<()> {
    enable_controllers(TOP);
    fs::create_dir(CONTAINERS).during("make the control group of containers")?;
    let memory = rustix::system::sysinfo();
    let all = u64::from(memory.mem_unit).saturating_mul(memory.totalram);
    set(&format!("{CONTAINERS}/memory.max"), &all.saturating_sub(RESERVE).to_string())?;
    enable_controllers(CONTAINERS);
    Ok(())
}

/// The group of a container; it is removed with it.
pub struct Cgroup {
    path: String,
}

impl Cgroup {
    /// Makes the group `id` in the group at `parent` with these limits.
    pub fn new(parent: &str, id: &str, resources: &Resources) -> Result<Self> {
        let path = format!("{parent}/{id}");
        fs::create_dir(&path).during(format!("make the control group {path}"))?;
        let group = Self { path };
        group.limit(resources)?;
        Ok(group)
    }

    /// Sets what `resources` names.
    pub fn limit(&self, resources: &Resources) -> Result<()> {
        let Resources { memory, cpu_quota, cpu_weight, cpus, pids, memory_low } = resources;
        if let Some(bytes) = memory {
            self.set("memory.max", &bytes.to_string())?;
            // All of a container's processes end when one has to, unless it handles that itself.
            self.set("memory.oom.group", "0")?;
        }
        if let Some(bytes) = memory_low {
            self.set("memory.low", &bytes.to_string())?;
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
            let most = if *most == u64::MAX { "max".to_owned() } else { most.to_string() };
            self.set("pids.max", &most)?;
        }
        Ok(())
    }

    fn set(&self, name: &str, value: &str) -> Result<()> {
        set(&format!("{}/{name}", self.path), value)
    }

    /// Where it is.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Kills all processes in it.
    pub fn kill(&self) {
        let _ = fs::write(format!("{}/cgroup.kill", self.path), "1");
    }

    /// Removes it, with groups that the container has made; false where a process has not quite ended.
    pub fn remove(&self) -> bool {
        remove(std::path::Path::new(&self.path))
    }

    /// The directory, for a process to be made in the group.
    pub fn directory(&self) -> io::Result<OwnedFd> {
        Ok(File::open(&self.path)?.into())
    }

    /// What its processes use; zeros for what the kernel does not say.
    pub fn usage(&self) -> Usage {
        let read = |name: &str| fs::read_to_string(format!("{}/{name}", self.path)).unwrap_or_default();
        let number = |name: &str| read(name).trim().parse().unwrap_or(0);
        let field = |name: &str, field: &str| {
            let text = read(name);
            let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(' '));
            line.and_then(|number| number.parse().ok()).unwrap_or(0)
        };
        let time = clock_gettime(ClockId::Boottime);
        let seconds = u64::try_from(time.tv_sec).unwrap_or(0).saturating_mul(1_000_000);
        Usage {
            cpu: field("cpu.stat", "usage_usec"),
            at: seconds.saturating_add(u64::try_from(time.tv_nsec).unwrap_or(0) / 1000),
            memory: number("memory.current"),
            cache: field("memory.stat", "inactive_file"),
            pids: number("pids.current"),
        }
    }

    /// The IDs of its processes, one a line.
    pub fn processes(&self) -> String {
        fs::read_to_string(format!("{}/cgroup.procs", self.path)).unwrap_or_default()
    }

    /// The file of its state.
    pub fn events(&self) -> io::Result<OwnedFd> {
        Ok(File::open(format!("{}/cgroup.events", self.path))?.into())
    }

    /// Has its processes stand still, or go on.
    pub fn freeze(&self, freezes: bool) -> Result<()> {
        self.set("cgroup.freeze", if freezes { "1" } else { "0" })
    }

    /// Whether no process can be added to it.
    pub fn is_full(&self) -> bool {
        let number = |name: &str| {
            let text = fs::read_to_string(format!("{}/{name}", self.path)).ok()?;
            text.trim().parse::<u64>().ok()
        };
        // Without a limit the text is no number.
        number("pids.current").zip(number("pids.max")).is_some_and(|(current, most)| current >= most)
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
        // It fails where a process has not quite ended.
        self.kill();
        self.remove();
    }
}

/// Whether the processes of a group stand still, by the file of its state.
pub fn is_frozen(events: BorrowedFd<'_>) -> io::Result<bool> {
    let mut text = [0; 256];
    let count = rustix::io::pread(events, &mut text, 0)?;
    let text = String::from_utf8_lossy(text.get(..count).unwrap_or_default()).into_owned();
    Ok(text.lines().any(|line| line == "frozen 1"))
}

/// Removes the group at `path` with those in it.
fn remove(path: &std::path::Path) -> bool {
    if fs::remove_dir(path).is_ok() || !path.exists() {
        return true;
    }
    let mut found = vec![path.to_owned()];
    let mut looked_at = 0;
    while let Some(directory) = found.get(looked_at).cloned() {
        looked_at += 1;
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        let groups = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        found.extend(groups.map(|entry| entry.path()));
    }
    // The deepest first.
    found.iter().rev().all(|directory| fs::remove_dir(directory).is_ok())
}
