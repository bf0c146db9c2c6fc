//! What is done for the process of a VM from outside, before it is made and after it has ended: its user and its
//! control group.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{fs, io};

use instance::keeper::{Child, fork_into};
use instance::{Cgroup, CgroupLimits, IdClaim, IdRange, Instance};
use jail::{Ids, Mode, State};
use rustix::process::geteuid;

use super::OVERHEAD;
use crate::{MAX_DEVICES, VmConfig};

/// Memory of the process that serves folders: what the kernel keeps of the files that it has open.
const SHARE_MEMORY: u64 = 1 << 30;
/// Memory of the process that serves a user network: buffers of its sockets.
const NETWORK_MEMORY: u64 = 256 << 20;
/// The kernel's tables of the guest's memory are at most this part of it: page tables of the process, of the guest, and
/// what KVM notes of each page, 1/512 each, and 1/50 for those of a guest's own VMs.
const TABLES: u64 = 32;
/// Threads of the VM's process beside vCPUs and those of devices, and some to spare.
const OWN_THREADS: u64 = 32;
/// Threads of a process that serves a device.
const HELPER_THREADS: u64 = 32;
/// The most threads that the kernel makes for a disk's requests: one for each, or four for each processor.
const DISK_REQUESTS: u64 = 256;
const WORKERS_PER_CPU: u64 = 4;
/// Processors for the threads beside the vCPUs.
const DEVICE_CPUS: u64 = 1;
/// File systems in memory, as statfs(2) names them: tmpfs and ramfs.
const IN_MEMORY: [i64; 2] = [0x0102_1994, 0x8584_58f6];

/// A VM's user and control group. Both are the VM's as long as this is not dropped, or the VM's process has a copy.
pub struct Outside {
    claim: Option<Result<IdClaim, String>>,
    range: IdRange,
    /// None where the process is not confined.
    cgroup: Option<Result<Cgroup, String>>,
    /// This process is the VM's, and in the group.
    is_inside: AtomicBool,
}

impl Outside {
    /// What the VM of `config` gets, whose directory is `instance`; without one it has no control group.
    pub fn prepare(config: &VmConfig, instance: Option<&Instance>) -> Self {
        let range = config.jail_ids.unwrap_or_default();
        if config.jail == Mode::Off {
            return Self { claim: None, range, cgroup: None, is_inside: AtomicBool::default() };
        }
        let is_root = geteuid().is_root();
        let claim = is_root.then(|| range.claim().map_err(|error| devices::log::chain(&error)));
        let make = |instance: &Instance| {
            Cgroup::make(instance.path(), instance.id(), || limits(config)).map_err(|error| error.to_string())
        };
        let without = || Err("the VM has no directory, after which its group is named".to_owned());
        let cgroup = Some(instance.map_or_else(without, make));
        Self { claim, range, cgroup, is_inside: AtomicBool::default() }
    }

    /// Makes the VM's process, as [`fork`](instance::keeper::fork) does, in its control group where the host can.
    ///
    /// # Errors
    ///
    /// Those of `fork`.
    pub fn fork(&self, run: impl FnOnce() -> u8) -> io::Result<Child> {
        let group = self.cgroup.as_ref().and_then(|group| group.as_ref().ok()?.open().ok());
        fork_into(group, |is_inside| {
            self.is_inside.store(is_inside, Ordering::Relaxed);
            run()
        })
    }

    /// Called in the VM's process: it enters its control group. Returns what it becomes next, and the state of the
    /// group.
    pub fn enter(&self) -> (Ids, State) {
        let cgroup = match &self.cgroup {
            Some(Ok(cgroup)) if self.is_inside.load(Ordering::Relaxed) => State::On(cgroup.summary()),
            Some(Ok(cgroup)) => match cgroup.join() {
                Ok(()) => State::On(cgroup.summary()),
                Err(error) => State::Missing(format!("cannot enter the control group: {error}")),
            },
            Some(Err(why)) => State::Missing(why.clone()),
            None => State::Missing("--jail off".into()),
        };
        (self.ids(), cgroup)
    }

    fn ids(&self) -> Ids {
        match &self.claim {
            Some(Ok(claim)) if claim.is_own() => Ids::own(claim.id()),
            Some(Ok(claim)) => {
                let lack = format!(
                    "other VMs have all IDs of jail-ids = \"{}\", so that this one shares {} with others",
                    self.range,
                    claim.id()
                );
                Ids { id: Some(claim.id()), lack: Some(lack) }
            }
            Some(Err(why)) => Ids { id: None, lack: Some(why.clone()) },
            None => Ids { id: None, lack: None },
        }
    }

    /// Whether the kernel ended a process of the VM for lack of memory in its control group.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(&self.cgroup, Some(Ok(cgroup)) if cgroup.is_out_of_memory())
    }

    /// Ends what is left in the control group, and removes it. The VM's process has ended.
    pub fn end(&self) {
        if let Some(Ok(cgroup)) = &self.cgroup {
            cgroup.end();
        }
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        self.end();
    }
}

/// What the processes of the VM of `config` may use together: all that the guest was given, and what they need for it.
fn limits(config: &VmConfig) -> CgroupLimits {
    let memory = config.memory.bytes();
    let networks = count(config.nets.iter().filter(|net| net.is_user()).count());
    let helpers = count(config.shares.len()).saturating_add(networks);
    let disks = count(config.rootfs.iter().len() + config.disks.len() + config.slots);
    let workers = if disks == 0 { 0 } else { DISK_REQUESTS.min(host_cpus().saturating_mul(WORKERS_PER_CPU)) };
    let memory = [
        memory,
        memory / TABLES,
        OVERHEAD,
        count(config.shares.len()).saturating_mul(SHARE_MEMORY),
        networks.saturating_mul(NETWORK_MEMORY),
        files_in_memory(config),
    ];
    CgroupLimits {
        memory: memory.into_iter().fold(0, u64::saturating_add),
        tasks: u64::from(config.cpus)
            .saturating_add(count(MAX_DEVICES))
            .saturating_add(OWN_THREADS)
            .saturating_add(disks.saturating_mul(workers))
            .saturating_add(helpers.saturating_mul(HELPER_THREADS)),
        cpus: config
            .limits_cpus
            .then(|| u64::from(config.cpus).saturating_add(DEVICE_CPUS).saturating_add(helpers)),
    }
}

/// The processors by which the kernel counts its threads: those of the host, whichever of them mvm may use.
fn host_cpus() -> u64 {
    // SAFETY: the call takes a number.
    u64::try_from(unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) }).unwrap_or(1)
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

/// Memory of what the guest writes to files: private copies of persistent memory, and files of file systems in memory,
/// which count for who writes them.
fn files_in_memory(config: &VmConfig) -> u64 {
    let length = |path: &Path| fs::metadata(path).map_or(0, |file| file.len());
    let copied = config.pmem.iter().map(|pmem| length(&pmem.path));
    let disks = config.rootfs.iter().chain(&config.disks).filter(|disk| !disk.read_only);
    let written = disks.filter(|disk| is_in_memory(&disk.path)).map(|disk| length(&disk.path));
    let folders = config.shares.iter().filter(|share| !share.read_only);
    let folders = folders.flat_map(|share| {
        let parts = share.parts.iter().filter(|part| !part.read_only).map(|part| part.path.as_path());
        let whole = share.parts.is_empty().then_some(share.path.as_path());
        parts.chain(whole)
    });
    let folders = folders.filter(|path| is_in_memory(path)).map(size_of_file_system);
    // Which disks come later is not known; they are in the directory for data.
    let data = instance::data_directory().filter(|path| config.slots > 0 && is_in_memory(path));
    let later = data.as_deref().map(size_of_file_system);
    copied.chain(written).chain(folders).chain(later).fold(0, u64::saturating_add)
}

fn is_in_memory(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|stat| IN_MEMORY.contains(&stat.f_type))
}

fn size_of_file_system(path: &Path) -> u64 {
    rustix::fs::statvfs(path).map_or(0, |stat| stat.f_blocks.saturating_mul(stat.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DiskConfig, MemorySize};

    fn config() -> VmConfig {
        VmConfig { memory: MemorySize::from_mib(1024), cpus: 2, ..VmConfig::new("vmlinux") }
    }

    #[test]
    fn a_vm_may_use_its_memory_and_what_it_takes_to_run_it() {
        let CgroupLimits { memory, tasks, cpus } = limits(&config());
        assert_eq!(memory, (1024 + 1024 / 32 + 512) << 20);
        assert_eq!((tasks, cpus), (2 + count(MAX_DEVICES) + OWN_THREADS, None));
        let limited = VmConfig { limits_cpus: true, ..config() };
        assert_eq!(limits(&limited).cpus, Some(3));
        let huge = VmConfig { memory: MemorySize::from_bytes(u64::MAX - 4096), ..config() };
        assert_eq!(limits(&huge).memory, u64::MAX);
    }

    #[test]
    fn processes_that_serve_it_are_counted() {
        let share = "/usr:/usr:ro".parse().unwrap();
        let served = VmConfig {
            shares: vec![share],
            nets: vec!["user".parse().unwrap()],
            limits_cpus: true,
            ..config()
        };
        let (with, without) = (limits(&served), limits(&VmConfig { limits_cpus: true, ..config() }));
        assert_eq!(with.memory - without.memory, SHARE_MEMORY + NETWORK_MEMORY);
        assert_eq!(with.tasks - without.tasks, 2 * HELPER_THREADS);
        assert_eq!((with.cpus, without.cpus), (Some(5), Some(3)));
    }

    #[test]
    fn what_is_written_to_memory_counts_and_what_is_on_disk_does_not() {
        let shm = Path::new("/dev/shm");
        if !is_in_memory(shm) {
            return eprintln!("skipped: /dev/shm is no file system in memory");
        }
        let file = tempfile::NamedTempFile::new_in(shm).unwrap();
        file.as_file().set_len(5 << 20).unwrap();
        let disk = |text: &str| text.parse::<DiskConfig>().unwrap();
        let path = file.path().to_str().unwrap();
        let with = |disks: Vec<DiskConfig>| files_in_memory(&VmConfig { disks, ..config() });
        assert_eq!(with(vec![disk(path)]), 5 << 20);
        assert_eq!(with(vec![disk(&format!("{path},ro"))]), 0);
        let on_disk = tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        on_disk.as_file().set_len(5 << 20).unwrap();
        if !is_in_memory(on_disk.path()) {
            assert_eq!(with(vec![disk(on_disk.path().to_str().unwrap())]), 0);
        }
        let folder = VmConfig { shares: vec!["/dev/shm:/x".parse().unwrap()], ..config() };
        assert_eq!(files_in_memory(&folder), size_of_file_system(shm));
    }

    #[test]
    fn what_is_said_of_an_id_is_what_it_is() {
        let range = IdRange::default();
        let outside = |claim| Outside { claim, range, cgroup: None, is_inside: AtomicBool::default() };
        assert_eq!(outside(None).ids(), Ids { id: None, lack: None });
        let failed = outside(Some(Err("cannot lock".into()))).ids();
        assert_eq!(failed, Ids { id: None, lack: Some("cannot lock".into()) });
    }
}
