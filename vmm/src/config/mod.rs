//! The configuration of a VM, as plain data. The names are those of the flags of `mvm boot`.

mod console;
mod device_list;
mod disk;
mod gdb;
mod limit;
mod net;
mod pmem;
mod publish;
mod share;
mod size;
mod time_limit;
mod vsock;
mod words;

use std::path::{Component, Path, PathBuf};

use devices::virtio::block::DiskIdError;
use devices::virtio::pmem::PmemMode;
use devices::virtio::vhost_user::{ShareTag, ShareTagError};
use instance::Summary;
use serde::{Serialize, Serializer};
use thiserror::Error;

pub use console::ConsoleConfig;
pub use device_list::{DeviceConfig, DeviceKind, disk_name};
pub use disk::DiskConfig;
pub use gdb::GdbConfig;
pub use limit::{Bandwidth, Rate};
pub use net::{NetBackend, NetConfig, NetConfigError, UserAddresses};
pub use pmem::PmemConfig;
pub(crate) use publish::range;
pub use publish::{Protocol, PublishConfig, PublishError, port_range};
pub use share::{Sandbox, ShareConfig, SharedPart, VhostUserConfig};
pub use size::MemorySize;
pub use time_limit::TimeLimit;
pub use vsock::VsockConfig;

/// A whole VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct VmConfig {
    /// The kernel: an ELF `vmlinux` or a bzImage.
    #[serde(serialize_with = "path_as_text")]
    pub kernel: PathBuf,
    /// An initial RAM disk.
    #[serde(serialize_with = "optional_path_as_text")]
    pub initrd: Option<PathBuf>,
    /// The first disk, which becomes `/dev/vda` and `root=`.
    pub rootfs: Option<DiskConfig>,
    /// Further disks, in order.
    #[serde(rename = "disk")]
    pub disks: Vec<DiskConfig>,
    /// Disks behind those that have no file yet: disks are put into them while the VM runs (see `Vm::slots`).
    #[serde(skip)]
    pub slots: usize,
    /// The disks that are in the first of them from the beginning.
    #[serde(skip)]
    pub in_slots: Vec<DiskConfig>,
    /// Sockets between guest and host.
    pub vsock: Option<VsockConfig>,
    /// Files that the guest has as persistent memory, in order.
    pub pmem: Vec<PmemConfig>,
    /// Whether there is a memory balloon.
    pub balloon: bool,
    /// Folders of the host that the guest can mount.
    #[serde(rename = "share")]
    pub shares: Vec<ShareConfig>,
    /// Devices that other processes serve.
    pub vhost_user: Vec<VhostUserConfig>,
    /// Network devices, in order.
    #[serde(rename = "net")]
    pub nets: Vec<NetConfig>,
    /// Ports of the guest published on the host, through the first user network.
    pub publish: Vec<PublishConfig>,
    /// Number of vCPUs, 1 to [`MAX_CPUS`].
    pub cpus: u32,
    /// RAM.
    pub memory: MemorySize,
    /// Kernel arguments added to mvm's own.
    pub append: Option<String>,
    /// Kernel arguments in place of mvm's own.
    pub cmdline: Option<String>,
    /// What the console is and where it goes.
    pub console: ConsoleConfig,
    /// Whether the guest can run VMs of its own.
    pub nested: bool,
    /// Whether the guest sees the processor's performance counters.
    pub pmu: bool,
    /// Where the VM waits for a debugger before its first instruction.
    pub gdb: Option<GdbConfig>,
    /// How long the VM may run before it is asked to power off.
    pub timeout: Option<TimeLimit>,
    /// How long the guest may take to power off before the VM is ended by force.
    pub stop_timeout: TimeLimit,
    /// How its process is confined.
    #[serde(skip)]
    pub jail: jail::Mode,
    /// The users of whom it becomes one, where root runs it; the default ones if `None`.
    #[serde(skip)]
    pub jail_ids: Option<instance::IdRange>,
    /// Whether the host's processors are limited for it, to the vCPUs and what its devices need besides.
    #[serde(skip)]
    pub limits_cpus: bool,
}

impl VmConfig {
    /// The same with paths from the root, where those of this one begin in `directory`.
    #[must_use]
    pub fn in_directory(&self, directory: &Path) -> Self {
        let mut config = self.clone();
        let place = |path: &mut PathBuf| *path = directory.join(&*path);
        place(&mut config.kernel);
        config.initrd.iter_mut().for_each(place);
        config.rootfs.iter_mut().chain(&mut config.disks).map(|disk| &mut disk.path).for_each(place);
        config.pmem.iter_mut().map(|pmem| &mut pmem.path).for_each(place);
        config.shares.iter_mut().map(|share| &mut share.path).for_each(place);
        config.vsock.iter_mut().map(|vsock| &mut vsock.path).for_each(place);
        config
    }
}

/// A path as text; bytes that are not UTF-8 are lost.
fn path_as_text<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    path.to_string_lossy().serialize(serializer)
}

#[allow(clippy::ref_option, reason = "serde calls it so")]
fn optional_path_as_text<S: Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
    path.as_deref().map(Path::to_string_lossy).serialize(serializer)
}

/// The most vCPUs a VM can have: as many as the interrupt controllers of its architecture can tell apart.
pub const MAX_CPUS: u32 = 254;

/// What is wrong with a value; the message names the value and says what to write instead.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ConfigError {
    /// Not a size.
    #[error("invalid size {0:?}: use a number with K, M, G or T, as in 512M or 2G")]
    NotASize(String),
    /// A size of more than 64 bits.
    #[error("{0:?} is too large: a size has at most 64 bits")]
    SizeOverflow(String),
    /// Too little RAM.
    #[error(
        "{0} of memory is too small: a guest needs at least {minimum}{hint}",
        minimum = MemorySize::MIN,
        hint = bytes_hint(*.0)
    )]
    MemoryTooSmall(MemorySize),
    /// RAM that is not a multiple of a page.
    #[error("{0} of memory is not a multiple of 4K, the size of a page")]
    MemoryUnaligned(MemorySize),
    /// Not a time, or too long a one.
    #[error("invalid time {0:?}: use seconds, as in 90, or a number with ms, s, m, h or d, as in 5m")]
    TimeLimit(String),
    /// No vCPU, or too many.
    #[error("invalid CPU count {0}: use 1 to {MAX_CPUS}")]
    Cpus(u32),
    /// A disk without a path.
    #[error("no path: write PATH[,readonly][,format=raw][,id=NAME][,limit-bandwidth=RATE][,limit-iops=RATE]")]
    DiskPath,
    /// An unknown option of a disk.
    #[error(
        "unknown disk option {0:?}; valid options: readonly (or ro), format=raw, id=NAME, limit-bandwidth=RATE, \
         limit-iops=RATE (write a comma in a path as ,,)"
    )]
    DiskOption(String),
    /// A disk image that is not raw.
    #[error(
        "unknown disk format {0:?}: mvm reads raw images (format=raw); `qemu-img convert -O raw` makes one"
    )]
    DiskFormat(String),
    /// A file that two devices would use, one of them to write.
    #[error("disk {} is given twice; devices can share a file only where all have `,readonly`", .0.display())]
    FileTwice(PathBuf),
    /// An invalid serial number of a disk.
    #[error(transparent)]
    DiskId(#[from] DiskIdError),
    /// A rate that is not a number.
    #[error("invalid rate {0:?}: use a number a second, as in 1000, or 1000:5000 with a burst")]
    NotARate(String),
    /// A limit that lets nothing pass.
    #[error("a limit of {0:?} would let nothing pass: leave the option out for no limit")]
    ZeroLimit(String),
    /// A word in place of a socket's path.
    #[error(
        "{0:?} does not look like a path: --vsock takes a Unix socket's path, as in ./vsock.sock, and the guest's CID \
         behind it, as in ./vsock.sock,cid=3"
    )]
    VsockNotAPath(String),
    /// A socket device without a path.
    #[error("no path: write PATH[,cid=N], with the path of a Unix socket")]
    VsockPath,
    /// A CID that is not a guest's.
    #[error("invalid CID {0:?}: use a number from {min} to {max}", min = VsockConfig::MIN_CID, max = VsockConfig::MAX_CID)]
    VsockCid(String),
    /// An unknown option of a socket device.
    #[error("unknown vsock option {0:?}; valid option: cid=N (write a comma in a path as ,,)")]
    VsockOption(String),
    /// Persistent memory without a path.
    #[error("no path: write PATH[,readonly|,cow][,format=raw]")]
    PmemPath,
    /// An unknown option of persistent memory, or conflicting ones.
    #[error(
        "unknown pmem option {0:?}; valid options: format=raw, and readonly (or ro) or cow, not both (write a comma in a \
         path as ,,)"
    )]
    PmemOption(String),
    /// A share without a folder or without a tag.
    #[error("invalid share {0:?}: write HOSTDIR:PATH, where PATH is where the guest mounts it")]
    ShareColon(String),
    /// An unknown option of a share.
    #[error("unknown share option {0:?}; valid options: readonly (or ro), rw, sandbox=namespace|chroot|none")]
    ShareOption(String),
    /// A tag that a guest could not use.
    #[error(transparent)]
    ShareTag(#[from] ShareTagError),
    /// Two shares with the same tag.
    #[error("two shares have the PATH {0}: give each its own")]
    ShareTwice(ShareTag),
    /// Not the description of a vhost-user device.
    #[error("invalid vhost-user device {0:?}: write fs=SOCKET,tag=TAG")]
    VhostUser(String),
    /// A network.
    #[error(transparent)]
    Net(#[from] NetConfigError),
    /// A published port.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// Neither a kind of console nor a path.
    #[error(
        "unknown console {0:?}: use stdio, virtio, off, or a file's path with a slash or a dot, as in ./{0}"
    )]
    Console(String),
    /// Neither a port, an address nor a path.
    #[error(
        "invalid GDB address {0:?}: use a port, an IP address with a port as in 127.0.0.1:1234, or a path"
    )]
    Gdb(String),
}

/// Says what a number without a unit means, where `size` looks as if it was meant in MiB.
fn bytes_hint(size: MemorySize) -> String {
    match size.bytes() {
        0 => String::new(),
        bytes @ ..65536 => format!(" (a number without a unit counts bytes; for MiB write {bytes}M)"),
        _ => String::new(),
    }
}

/// Whether `text` is meant as a path, not as a word: it has a slash or a dot.
fn looks_like_a_path(text: &str) -> bool {
    text.contains(['/', '.'])
}

impl VmConfig {
    /// The Unix sockets that the VM listens on, beside those of its directory.
    pub fn sockets(&self) -> Vec<PathBuf> {
        let vsock = self.vsock.as_ref().map(|vsock| vsock.path.clone());
        let gdb = match &self.gdb {
            Some(GdbConfig::Unix(path)) => Some(path.clone()),
            _ => None,
        };
        vsock.into_iter().chain(gdb).collect()
    }

    /// A VM of `kernel` with one vCPU, 512 MiB, a console on standard input and output, and nothing else.
    pub fn new(kernel: impl Into<PathBuf>) -> Self {
        Self {
            kernel: kernel.into(),
            initrd: None,
            rootfs: None,
            disks: Vec::new(),
            slots: 0,
            in_slots: Vec::new(),
            nets: Vec::new(),
            publish: Vec::new(),
            vsock: None,
            shares: Vec::new(),
            vhost_user: Vec::new(),
            pmem: Vec::new(),
            balloon: false,
            cpus: 1,
            memory: MemorySize::from_mib(512),
            append: None,
            cmdline: None,
            console: ConsoleConfig::default(),
            nested: false,
            pmu: false,
            gdb: None,
            timeout: None,
            stop_timeout: TimeLimit::from_secs(10),
            jail: jail::Mode::default(),
            jail_ids: None,
            limits_cpus: false,
        }
    }

    /// Checks what can be checked without touching the host.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the first invalid value.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.cpus == 0 || self.cpus > MAX_CPUS {
            return Err(ConfigError::Cpus(self.cpus));
        }
        if self.memory < MemorySize::MIN {
            return Err(ConfigError::MemoryTooSmall(self.memory));
        }
        if !self.memory.bytes().is_multiple_of(4096) {
            return Err(ConfigError::MemoryUnaligned(self.memory));
        }
        self.check_files()?;
        let mut seen = Vec::new();
        for tag in self.share_tags() {
            if seen.contains(&tag) {
                return Err(ConfigError::ShareTwice(tag.clone()));
            }
            seen.push(tag);
        }
        if !self.publish.is_empty() && !self.nets.iter().any(NetConfig::is_user) {
            return Err(PublishError::NoUser.into());
        }
        publish::check(&self.publish)?;
        Ok(())
    }

    /// Checks that no file is used twice, unless by readers only.
    fn check_files(&self) -> Result<(), ConfigError> {
        let disks = self.rootfs.iter().chain(&self.disks).chain(&self.in_slots);
        let disks = disks.map(|disk| (&disk.path, !disk.read_only));
        let pmem = self.pmem.iter().map(|pmem| (&pmem.path, pmem.mode == PmemMode::Shared));
        let mut seen: Vec<(PathBuf, bool)> = Vec::new();
        for (path, writes) in disks.chain(pmem) {
            // Without "." in it. Links to the same file are found by the lock on it.
            let plain: PathBuf = path.components().filter(|part| *part != Component::CurDir).collect();
            if seen.iter().any(|(other, other_writes)| *other == plain && (writes || *other_writes)) {
                return Err(ConfigError::FileTwice(path.clone()));
            }
            seen.push((plain, writes));
        }
        Ok(())
    }

    /// The tags of all shares, in the order of their devices.
    pub fn share_tags(&self) -> impl Iterator<Item = &ShareTag> {
        let served = self.vhost_user.iter().map(|VhostUserConfig::Fs { tag, .. }| tag);
        self.shares.iter().map(|share| &share.tag).chain(served)
    }
}

/// The part of a configuration that a VM's record has.
impl From<&VmConfig> for Summary {
    fn from(config: &VmConfig) -> Self {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        Self {
            cpus: config.cpus,
            memory: config.memory.bytes(),
            kernel: text(&config.kernel),
            rootfs: config.rootfs.as_ref().map(|disk| text(&disk.path)),
            stop_timeout_ms: u64::try_from(config.stop_timeout.duration().as_millis()).ok(),
        }
    }
}

/// Each value is written in a config file just as on the command line.
macro_rules! serde_as_text {
    ($($type:ty),*) => {$(
        impl TryFrom<String> for $type {
            type Error = ConfigError;

            fn try_from(text: String) -> Result<Self, ConfigError> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(value: $type) -> Self {
                value.to_string()
            }
        }
    )*};
}

use serde_as_text;
