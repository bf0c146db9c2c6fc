//! The VM of a container.

use std::net::Ipv4Addr;
use std::path::Path;

use vmm::{
    ConsoleConfig, DiskConfig, MemorySize, NetBackend, NetConfig, Sandbox, ShareConfig, UserAddresses,
    VmConfig, VsockConfig,
};

use crate::assets::Assets;
use crate::image::Image;
use crate::options::{NetworkOption, RunOptions, Volume};

/// Bytes of memory of a container without a limit.
const DEFAULT_MEMORY: u64 = 1 << 30;
/// The most vCPUs of a container without a limit.
const DEFAULT_CPUS: u32 = 4;
/// What a container's VM has beyond the container's limit: for the kernel and the agent, and 1/16 of the limit for the
/// kernel's descriptions of pages and its caches.
const OVERHEAD: u64 = 96 << 20;

/// The socket of the VM's vsock device, in its directory.
pub const VSOCK: &str = "vsock.sock";

/// Bytes of memory of a container without a limit on this host: [`DEFAULT_MEMORY`], or half of the host's if that is
/// less.
fn default_memory() -> u64 {
    match vmm::total_memory() {
        0 => DEFAULT_MEMORY,
        total => DEFAULT_MEMORY.min(total / 2),
    }
}

/// vCPUs of a container without a limit on this host.
fn default_cpus() -> u32 {
    let host =
        std::thread::available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(1));
    host.clamp(1, DEFAULT_CPUS)
}

/// vCPUs and bytes of memory of the VM for a container with `options`.
pub fn size(options: &RunOptions) -> (u32, u64) {
    let cpus = options.milli_cpus.map(|milli| u32::try_from(milli.div_ceil(1000)).unwrap_or(u32::MAX));
    let memory =
        options.memory.map_or_else(default_memory, |limit| limit.saturating_add(OVERHEAD + limit / 16));
    (cpus.unwrap_or_else(default_cpus).max(1), memory.next_multiple_of(2 << 20))
}

/// The addresses of a container's network, which no other can see.
pub const ADDRESSES: UserAddresses = UserAddresses {
    guest: Ipv4Addr::new(10, 88, 0, 2),
    prefix: 24,
    router: Ipv4Addr::new(10, 88, 0, 1),
    resolver: Ipv4Addr::new(10, 88, 0, 3),
};

fn network(option: NetworkOption) -> Option<NetConfig> {
    match option {
        NetworkOption::None => None,
        NetworkOption::User { reaches_host } => Some(NetConfig {
            backend: NetBackend::User { reaches_host },
            addresses: Some(ADDRESSES),
            ..NetConfig::user()
        }),
    }
}

/// The tag of the volume with this number.
pub fn volume_tag(number: usize) -> String {
    format!("volume{number}")
}

fn shares(options: &RunOptions) -> Vec<ShareConfig> {
    let share = |(number, volume): (usize, &Volume)| {
        let tag = volume_tag(number).parse().ok()?;
        let (path, read_only) = (volume.path.clone(), volume.read_only);
        Some(ShareConfig { path, tag, read_only, sandbox: Sandbox::default() })
    };
    options.volumes.iter().enumerate().filter_map(share).collect()
}

/// The VM for a container of `image` with `options`, whose directory is `directory`.
pub fn machine(assets: &Assets, image: &Image, options: &RunOptions, directory: &Path) -> VmConfig {
    let disk = |path: &Path, pieces| DiskConfig {
        path: path.to_owned(),
        pieces,
        format: Default::default(),
        read_only: true,
        id: None,
        limits: Default::default(),
    };
    let (first, rest) = match image.disk.split_first() {
        Some((first, rest)) => (first.path.as_path(), rest.to_vec()),
        None => (Path::new(""), Vec::new()),
    };
    let (cpus, memory) = size(options);
    // The kernel says no more than what is wrong; its end is the VM's.
    let cmdline = "console=ttyS0 quiet loglevel=4 panic=-1 root=/dev/vda ro rootfstype=erofs init=/sbin/init";
    VmConfig {
        rootfs: Some(disk(&assets.root, Vec::new())),
        disks: vec![disk(first, rest)],
        vsock: Some(VsockConfig { path: directory.join(VSOCK), cid: VsockConfig::MIN_CID }),
        shares: shares(options),
        nets: network(options.network).into_iter().collect(),
        publish: options.publish.clone(),
        cpus,
        memory: MemorySize::from_bytes(memory),
        cmdline: Some(cmdline.to_owned()),
        console: ConsoleConfig::Off,
        balloon: true,
        ..VmConfig::new(&assets.kernel)
    }
}
