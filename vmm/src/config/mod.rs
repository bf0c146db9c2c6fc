//! What a VM is made of, as plain data. The names are those of the flags of `mvm boot`.

mod console;
mod disk;
mod gdb;
mod limit;
mod net;
mod pmem;
mod publish;
mod share;
mod size;
mod vsock;
mod words;

use std::path::{Path, PathBuf};

use devices::virtio::block::DiskIdError;
use devices::virtio::vhost_user::{ShareTag, ShareTagError};
use instance::Summary;
use serde::{Serialize, Serializer};
use thiserror::Error;

pub use console::ConsoleConfig;
pub use disk::DiskConfig;
pub use gdb::GdbConfig;
pub use limit::{Bandwidth, Rate};
pub use net::{NetBackend, NetConfig, NetConfigError};
pub use pmem::PmemConfig;
pub(crate) use publish::range;
pub use publish::{Protocol, PublishConfig, PublishError};
pub use share::{Sandbox, ShareConfig, VhostUserConfig};
pub use size::MemorySize;
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
    /// Ports of the host that lead to the guest, by the first network of the kind user.
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
    /// Where a debugger finds the VM, which waits for it before the first instruction.
    pub gdb: Option<GdbConfig>,
}

/// A path for people to read; one that is no UTF-8 loses the bytes that are not.
fn path_as_text<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    path.to_string_lossy().serialize(serializer)
}

#[allow(clippy::ref_option, reason = "serde calls it so")]
fn optional_path_as_text<S: Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
    path.as_deref().map(Path::to_string_lossy).serialize(serializer)
}

/// The most vCPUs a VM can have: an APIC ID has 8 bits, 255 means all of them, and the I/O APIC takes one.
pub const MAX_CPUS: u32 = 254;

/// What is wrong with a value; the message names the value and how to mend it.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ConfigError {
    /// Not a size.
    #[error("{0:?} is not a size: write a number with K, M, G or T, as in 512M or 2G")]
    NotASize(String),
    /// More bytes than 64 bits count.
    #[error("{0:?} is more memory than any machine has")]
    SizeOverflow(String),
    /// Too little RAM.
    #[error("{0} of memory is too small: a guest needs at least {minimum}", minimum = MemorySize::MIN)]
    MemoryTooSmall(MemorySize),
    /// RAM in parts of a page.
    #[error("{0} of memory is not a multiple of 4K, the size of a page")]
    MemoryUnaligned(MemorySize),
    /// No vCPU, or too many.
    #[error("{0} CPUs cannot be had: give 1 to {MAX_CPUS}")]
    Cpus(u32),
    /// A disk without a path.
    #[error(
        "a disk needs a path: PATH[,readonly][,format=raw][,id=NAME][,limit-bandwidth=RATE][,limit-iops=RATE]"
    )]
    DiskPath,
    /// An unknown word behind a disk's path.
    #[error(
        "unknown disk option {0:?}; valid options: readonly, format=raw, id=NAME, limit-bandwidth=RATE, \
         limit-iops=RATE (a comma in a path is written ,,)"
    )]
    DiskOption(String),
    /// A disk image that is not raw.
    #[error(
        "unknown disk format {0:?}: mvm reads raw images (format=raw); `qemu-img convert -O raw` makes one"
    )]
    DiskFormat(String),
    /// A disk's serial number that a driver could not read.
    #[error(transparent)]
    DiskId(#[from] DiskIdError),
    /// A rate that is no number.
    #[error(
        "{0:?} is no rate: write how many there may be in a second, as in 1000, or 1000:5000 with a burst"
    )]
    NotARate(String),
    /// A limit that lets nothing pass.
    #[error("a limit of {0:?} would let nothing pass: leave it out where there is to be no limit")]
    ZeroLimit(String),
    /// A socket device without a path.
    #[error("vsock needs the path of a Unix socket: PATH[,cid=N]")]
    VsockPath,
    /// A CID that no guest can have.
    #[error("{0:?} is no CID of a guest: give a number from {min} to {max}", min = VsockConfig::MIN_CID, max = VsockConfig::MAX_CID)]
    VsockCid(String),
    /// An unknown word behind the path of a socket device.
    #[error("{0:?} is no option of vsock: there is cid=N (a comma in a path is written ,,)")]
    VsockOption(String),
    /// Persistent memory without a path.
    #[error("persistent memory needs a path: PATH[,readonly|,cow][,format=raw]")]
    PmemPath,
    /// An unknown word behind the path of persistent memory, or one too many.
    #[error(
        "unknown pmem option {0:?}; valid options: readonly or cow, format=raw (a comma in a path is written ,,)"
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
    /// An empty console.
    #[error("the console is stdio, virtio, off or a file's path")]
    Console,
    /// No place for a debugger.
    #[error(
        "{0:?} is no place for GDB: give a port, an IP address with a port as in 127.0.0.1:1234, or a path"
    )]
    Gdb(String),
}

impl VmConfig {
    /// A VM of `kernel` with one vCPU, 512 MiB, a console on standard input and output, and nothing else.
    pub fn new(kernel: impl Into<PathBuf>) -> Self {
        Self {
            kernel: kernel.into(),
            initrd: None,
            rootfs: None,
            disks: Vec::new(),
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
            gdb: None,
        }
    }

    /// Checks what can be checked without touching the host.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the first value that can't work.
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
        let mut seen = Vec::new();
        for tag in self.share_tags() {
            if seen.contains(&tag) {
                return Err(ConfigError::ShareTwice(tag.clone()));
            }
            seen.push(tag);
        }
        let is_user = |net: &NetConfig| matches!(net.backend, NetBackend::User { .. });
        if !self.publish.is_empty() && !self.nets.iter().any(is_user) {
            return Err(PublishError::NoUser.into());
        }
        publish::check(&self.publish)?;
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
