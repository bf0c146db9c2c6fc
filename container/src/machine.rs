//! The VM of a container.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use vmm::{
    ConsoleConfig, DeviceKind, DiskConfig, ImageFormat, MemorySize, PublishConfig, Sandbox, ShareConfig,
    SharedPart, VmConfig, VsockConfig,
};

use crate::assets::Assets;
use crate::image::Image;
use crate::mounts::Prepared;
use crate::network;
use crate::options::{RunOptions, Storage};
use crate::spec::storage;

/// Bytes of memory of a container without a limit.
const DEFAULT_MEMORY: u64 = 1 << 30;
/// The most vCPUs of a container without a limit.
const DEFAULT_CPUS: u32 = 4;
/// What a container's VM has beyond the container's limit: for the kernel and the agent, and 1/16 of the limit for the
/// kernel's descriptions of pages and its caches.
pub const OVERHEAD: u64 = 96 << 20;

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

/// Processors of the host.
fn host_cpus() -> u32 {
    // Reading the limits of control groups takes a dozen system calls.
    static HOST: OnceLock<u32> = OnceLock::new();
    *HOST.get_or_init(|| {
        let host = std::thread::available_parallelism();
        host.map_or(1, |count| u32::try_from(count.get()).unwrap_or(1))
    })
}

/// vCPUs that `--cpus` asks for.
fn asked_cpus(options: &RunOptions) -> Option<u32> {
    options.milli_cpus.map(|milli| u32::try_from(milli.div_ceil(1000)).unwrap_or(u32::MAX))
}

/// Processors that a container with `options` can name: the host's, or those of `--cpus` where they are more.
pub fn available_cpus(options: &RunOptions) -> u32 {
    host_cpus().max(asked_cpus(options).unwrap_or(1))
}

/// vCPUs and bytes of memory of the VM for a container with `options`.
pub fn size(options: &RunOptions) -> (u32, u64) {
    let cpus = asked_cpus(options).unwrap_or_else(|| host_cpus().clamp(1, DEFAULT_CPUS));
    // A processor keeps its number, and so those before it are there too.
    let least = options.cpu_set.as_ref().map_or(1, |set| set.last().saturating_add(1));
    let memory =
        options.memory.map_or_else(default_memory, |limit| limit.saturating_add(OVERHEAD + limit / 16));
    (cpus.max(least), memory.next_multiple_of(2 << 20))
}

/// The tag by which the VM mounts the tree of folders and files of the host.
pub const SHARE_TAG: &str = "mounts";

/// How many volumes can be disks of the VM for a container with `options`, which has folders or files of the host if it
/// `shares`.
pub fn room_for_volumes(options: &RunOptions, shares: bool) -> usize {
    // The agent's root, the image, vsock, balloon and random numbers.
    let own = 5;
    let changes = usize::from(storage(options) != Storage::Memory);
    let network = usize::from(network::device(options).is_some());
    vmm::MAX_DEVICES.saturating_sub(own + changes + network + usize::from(shares))
}

/// The folders and files of the host, which one process serves. They hide `directory`, the VM's, from it.
fn share(parts: &[SharedPart], directory: &Path) -> Option<ShareConfig> {
    let tag = SHARE_TAG.parse().ok().filter(|_| !parts.is_empty())?;
    let (path, parts) = (directory.to_owned(), parts.to_vec());
    Some(ShareConfig { path, parts, tag, read_only: false, sandbox: Sandbox::default() })
}

/// Disks that containers of a pod can have: of the 18 devices of a VM, its root, network, sockets, balloon, source of
/// random numbers and folders of the host take six.
pub const SLOTS: usize = 12;

/// The guest's block device that is the slot with that index: behind the agent's root.
pub fn slot_device(slot: usize) -> String {
    format!("/dev/{}", DeviceKind::Block.id(slot.saturating_add(1)))
}

/// The VM for a pod with `options`, whose directory is `directory` and which has `parts` of the host.
pub fn pod_machine(
    assets: &Assets,
    options: &RunOptions,
    directory: &Path,
    publish: Vec<PublishConfig>,
    parts: &[SharedPart],
) -> VmConfig {
    let mounts = Prepared { parts: parts.to_vec(), ..Prepared::default() };
    let of_container = machine(assets, &Image::default(), options, directory, None, &mounts, publish);
    VmConfig { disks: Vec::new(), slots: SLOTS, ..of_container }
}

/// The VM for a container of `image` with `options`, whose directory is `directory`. `changes` is the disk that takes
/// its changes, if it has one; `mounts` is what it has besides; `publish` are its published ports.
pub fn machine(
    assets: &Assets,
    image: &Image,
    options: &RunOptions,
    directory: &Path,
    changes: Option<&Path>,
    mounts: &Prepared,
    publish: Vec<PublishConfig>,
) -> VmConfig {
    let disk = |path: &Path, pieces| DiskConfig {
        path: path.to_owned(),
        pieces,
        format: ImageFormat::Detect,
        read_only: true,
        id: None,
        limits: Default::default(),
    };
    // What a guest wrote says nothing of the format.
    let writable =
        |path: &Path| DiskConfig { read_only: false, format: ImageFormat::Raw, ..disk(path, Vec::new()) };
    let changes = changes.into_iter().chain(mounts.disks.iter().map(PathBuf::as_path)).map(writable);
    let (first, rest) = match image.disk.split_first() {
        Some((first, rest)) => (first.path.as_path(), rest.to_vec()),
        None => (Path::new(""), Vec::new()),
    };
    let (cpus, memory) = size(options);
    // The kernel says no more than what is wrong; its end is the VM's.
    // The kernel makes a dummy interface of its own accord, which no container has.
    let cmdline = "console=ttyS0 quiet loglevel=4 panic=-1 root=/dev/vda ro rootfstype=erofs init=/sbin/init \
    dummy.numdummies=0";
    VmConfig {
        rootfs: Some(disk(&assets.root, Vec::new())),
        disks: [disk(first, rest)].into_iter().chain(changes).collect(),
        vsock: Some(VsockConfig { path: directory.join(VSOCK), cid: VsockConfig::MIN_CID }),
        shares: share(&mounts.parts, directory).into_iter().collect(),
        nets: network::device(options).into_iter().collect(),
        publish,
        cpus,
        memory: MemorySize::from_bytes(memory),
        cmdline: Some(cmdline.to_owned()),
        console: ConsoleConfig::Off,
        balloon: true,
        jail: options.jail,
        jail_ids: options.jail_ids,
        limits_cpus: options.milli_cpus.is_some(),
        ..VmConfig::new(&assets.kernel)
    }
}
