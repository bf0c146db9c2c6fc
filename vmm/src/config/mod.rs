//! What a VM is made of, as plain data. The names are those of the flags of `mvm boot`.

mod console;
mod disk;
mod limit;
mod net;
mod size;
mod words;

use std::path::PathBuf;

use devices::virtio::block::DiskIdError;
use thiserror::Error;

pub use console::ConsoleConfig;
pub use disk::DiskConfig;
pub use limit::{Bandwidth, Rate};
pub use net::{NetBackend, NetConfig, NetConfigError};
pub use size::MemorySize;

/// A whole VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmConfig {
    /// The kernel: an ELF `vmlinux` or a bzImage.
    pub kernel: PathBuf,
    /// An initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// The first disk, which becomes `/dev/vda` and `root=`.
    pub rootfs: Option<DiskConfig>,
    /// Further disks, in order.
    pub disks: Vec<DiskConfig>,
    /// Network devices, in order.
    pub nets: Vec<NetConfig>,
    /// Number of vCPUs, 1 to [`MAX_CPUS`].
    pub cpus: u32,
    /// RAM.
    pub memory: MemorySize,
    /// Kernel arguments added to mvm's own.
    pub append: Option<String>,
    /// Kernel arguments in place of mvm's own.
    pub cmdline: Option<String>,
    /// Where the serial console goes.
    pub console: ConsoleConfig,
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
    #[error("a disk needs a path: PATH[,readonly][,id=NAME][,limit-bandwidth=RATE][,limit-iops=RATE]")]
    DiskPath,
    /// An unknown word behind a disk's path.
    #[error(
        "{0:?} is no option of a disk: there are readonly, id=NAME, limit-bandwidth=RATE and limit-iops=RATE \
         (a comma in a path is written ,,)"
    )]
    DiskOption(String),
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
    /// A network.
    #[error(transparent)]
    Net(#[from] NetConfigError),
    /// An empty console.
    #[error("the console is stdio, off or a file's path")]
    Console,
}

impl VmConfig {
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
        Ok(())
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
