//! What a VM is made of, as plain data. The names are those of the flags of `mvm boot`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use devices::virtio::block::{DiskId, DiskIdError};
use serde::{Deserialize, Serialize};
use thiserror::Error;

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
    #[error("a disk needs a path: PATH[,readonly][,id=NAME]")]
    DiskPath,
    /// An unknown word behind a disk's path.
    #[error("{0:?} is no option of a disk: there are readonly and id=NAME (a comma in a path is written ,,)")]
    DiskOption(String),
    /// A disk's serial number that a driver could not read.
    #[error(transparent)]
    DiskId(#[from] DiskIdError),
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

/// An amount of memory in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MemorySize(u64);

/// Suffixes and what they multiply by, the largest first.
const UNITS: [(char, u64); 4] = [('T', 1 << 40), ('G', 1 << 30), ('M', 1 << 20), ('K', 1 << 10)];

impl MemorySize {
    /// The least that a VM can have.
    pub const MIN: Self = Self(16 << 20);

    /// A size in bytes.
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// A size in MiB.
    pub const fn from_mib(mib: u32) -> Self {
        Self((mib as u64) << 20)
    }

    /// The size in bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for MemorySize {
    type Err = ConfigError;

    /// Reads `512M`, `2G`, `2GiB`, `65536K`, or a number of bytes.
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let not_a_size = || ConfigError::NotASize(text.to_owned());
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, suffix) = text.split_at_checked(digits).ok_or_else(not_a_size)?;
        if number.is_empty() {
            return Err(not_a_size());
        }
        let suffix = suffix.to_ascii_uppercase();
        let unit = match suffix.strip_suffix("IB").or_else(|| suffix.strip_suffix('B')).unwrap_or(&suffix) {
            "" => 1,
            unit => {
                let unit = UNITS.iter().find(|(name, _)| unit.chars().eq([*name]));
                unit.ok_or_else(not_a_size)?.1
            }
        };
        let number = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
        number.map(Self).ok_or_else(|| ConfigError::SizeOverflow(text.to_owned()))
    }
}

impl fmt::Display for MemorySize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match UNITS.iter().find(|(_, unit)| self.0 >= *unit && self.0.is_multiple_of(*unit)) {
            Some((name, unit)) => write!(f, "{}{name}", self.0 / unit),
            None => write!(f, "{} bytes", self.0),
        }
    }
}

/// A disk of the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DiskConfig {
    /// A raw image or a block device.
    pub path: PathBuf,
    /// The guest may only read it.
    pub read_only: bool,
    /// The serial number that the guest reads (see [`DiskId`]).
    pub id: Option<String>,
}

impl FromStr for DiskConfig {
    type Err = ConfigError;

    /// Reads `PATH[,readonly][,id=NAME]`.
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let mut words = split_at_single_commas(text).into_iter();
        let path = words.next().filter(|path| !path.is_empty()).ok_or(ConfigError::DiskPath)?;
        let mut disk = Self { path: path.into(), read_only: false, id: None };
        for word in words {
            match word.split_once('=') {
                None if word == "readonly" => disk.read_only = true,
                Some(("id", id)) => {
                    DiskId::new(id)?;
                    disk.id = Some(id.to_owned());
                }
                _ => return Err(ConfigError::DiskOption(word)),
            }
        }
        Ok(disk)
    }
}

impl fmt::Display for DiskConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.to_string_lossy().replace(',', ",,"))?;
        if self.read_only {
            write!(f, ",readonly")?;
        }
        if let Some(id) = &self.id {
            write!(f, ",id={id}")?;
        }
        Ok(())
    }
}

/// Splits at commas; a doubled comma stands for one that does not split, as in QEMU's options.
fn split_at_single_commas(text: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        if character == ',' && characters.next_if_eq(&',').is_none() {
            words.push(String::new());
        } else if let Some(word) = words.last_mut() {
            word.push(character);
        }
    }
    words
}

/// Where the serial console goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ConsoleConfig {
    /// To standard output, and from standard input.
    #[default]
    Stdio,
    /// Nowhere.
    Off,
    /// To the end of a file.
    File(PathBuf),
}

impl FromStr for ConsoleConfig {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        match text {
            "stdio" => Ok(Self::Stdio),
            "off" => Ok(Self::Off),
            "" => Err(ConfigError::Console),
            path => Ok(Self::File(path.into())),
        }
    }
}

impl fmt::Display for ConsoleConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdio => f.write_str("stdio"),
            Self::Off => f.write_str("off"),
            Self::File(path) => write!(f, "{}", path.display()),
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

serde_as_text!(MemorySize, DiskConfig, ConsoleConfig);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("16M", 16 << 20)]
    #[case("2G", 2 << 30)]
    #[case("2g", 2 << 30)]
    #[case("2GiB", 2 << 30)]
    #[case("2GB", 2 << 30)]
    #[case("1T", 1 << 40)]
    #[case("65536K", 64 << 20)]
    #[case("1048576", 1 << 20)]
    fn sizes_are_read(#[case] text: &str, #[case] bytes: u64) {
        assert_eq!(text.parse(), Ok(MemorySize(bytes)));
    }

    #[rstest]
    #[case("")]
    #[case("M")]
    #[case("-1M")]
    #[case("1.5G")]
    #[case("1 G")]
    #[case("1X")]
    #[case("1GG")]
    #[case("1é")]
    fn what_is_no_size_is_refused(#[case] text: &str) {
        assert_eq!(text.parse::<MemorySize>(), Err(ConfigError::NotASize(text.to_owned())));
    }

    #[rstest]
    #[case("99999999999999999999")]
    #[case("99999999T")]
    fn sizes_beyond_64_bits_are_refused(#[case] text: &str) {
        assert_eq!(text.parse::<MemorySize>(), Err(ConfigError::SizeOverflow(text.to_owned())));
    }

    fn disk(path: &str, read_only: bool, id: Option<&str>) -> DiskConfig {
        DiskConfig { path: path.into(), read_only, id: id.map(str::to_owned) }
    }

    #[rstest]
    #[case("a.img", disk("a.img", false, None))]
    #[case("a.img,readonly", disk("a.img", true, None))]
    #[case("a.img,id=x-y,readonly", disk("a.img", true, Some("x-y")))]
    #[case("a,,b.img,readonly", disk("a,b.img", true, None))]
    fn disks_are_read(#[case] text: &str, #[case] expected: DiskConfig) {
        assert_eq!(text.parse(), Ok(expected));
    }

    #[rstest]
    #[case("", ConfigError::DiskPath)]
    #[case(",readonly", ConfigError::DiskPath)]
    #[case("a.img,ro", ConfigError::DiskOption("ro".into()))]
    #[case("a.img,", ConfigError::DiskOption("".into()))]
    #[case("a.img,readonly=yes", ConfigError::DiskOption("readonly=yes".into()))]
    fn what_is_no_disk_is_refused(#[case] text: &str, #[case] expected: ConfigError) {
        assert_eq!(text.parse::<DiskConfig>(), Err(expected));
    }

    #[rstest]
    #[case("a.img,id=")]
    #[case("a.img,id=123456789012345678901")]
    #[case("a.img,id=é")]
    fn an_id_that_no_guest_could_read_is_refused(#[case] text: &str) {
        assert!(matches!(text.parse::<DiskConfig>(), Err(ConfigError::DiskId(_))));
    }

    proptest! {
        #[test]
        fn a_size_reads_back_as_written(bytes in any::<u64>()) {
            let written = MemorySize(bytes).to_string();
            let text = written.strip_suffix(" bytes").unwrap_or(&written);
            prop_assert_eq!(text.parse(), Ok(MemorySize(bytes)));
        }

        #[test]
        fn a_disk_reads_back_as_written(path in "[a-z,./ ]{1,12}", read_only: bool, id in proptest::option::of("[a-z0-9._-]{1,20}")) {
            let disk = DiskConfig { path: path.into(), read_only, id };
            prop_assert_eq!(disk.to_string().parse(), Ok(disk));
        }
    }
}
