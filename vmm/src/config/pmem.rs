//! Persistent memory.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use devices::virtio::block::ImageFormat;
use devices::virtio::pmem::PmemMode;
use serde::{Deserialize, Serialize};

use super::words::{double_commas, split_at_single_commas};
use super::{ConfigError, serde_as_text};

/// A file that the guest has as persistent memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PmemConfig {
    /// A file or a block device, of a multiple of 2 MiB.
    pub path: PathBuf,
    /// Whether a disk image of another format is refused.
    pub format: ImageFormat,
    /// What the guest may do to it.
    pub mode: PmemMode,
}

impl FromStr for PmemConfig {
    type Err = ConfigError;

    /// Reads `PATH[,readonly|,cow][,format=raw]`.
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let mut words = split_at_single_commas(text).into_iter();
        let path = words.next().filter(|path| !path.is_empty()).ok_or(ConfigError::PmemPath)?;
        let mut pmem = Self { path: path.into(), format: ImageFormat::Detect, mode: PmemMode::Shared };
        for word in words {
            match (word.as_str(), pmem.mode) {
                ("format=raw", _) => pmem.format = ImageFormat::Raw,
                ("readonly" | "ro", PmemMode::Shared) => pmem.mode = PmemMode::ReadOnly,
                ("cow", PmemMode::Shared) => pmem.mode = PmemMode::CopyOnWrite,
                _ => return Err(ConfigError::PmemOption(word)),
            }
        }
        Ok(pmem)
    }
}

impl fmt::Display for PmemConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", double_commas(&self.path.to_string_lossy()))?;
        f.write_str(match self.mode {
            PmemMode::Shared => "",
            PmemMode::ReadOnly => ",readonly",
            PmemMode::CopyOnWrite => ",cow",
        })?;
        f.write_str(if self.format == ImageFormat::Raw { ",format=raw" } else { "" })
    }
}

serde_as_text!(PmemConfig);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("a.img", "a.img", PmemMode::Shared)]
    #[case("a.img,readonly", "a.img", PmemMode::ReadOnly)]
    #[case("a.img,ro", "a.img", PmemMode::ReadOnly)]
    #[case("a,,b.img,cow", "a,b.img", PmemMode::CopyOnWrite)]
    fn persistent_memory_is_read(#[case] text: &str, #[case] path: &str, #[case] mode: PmemMode) {
        assert_eq!(text.parse(), Ok(PmemConfig { path: path.into(), format: ImageFormat::Detect, mode }));
    }

    #[rstest]
    #[case("", ConfigError::PmemPath)]
    #[case(",cow", ConfigError::PmemPath)]
    #[case("a.img,rw", ConfigError::PmemOption("rw".into()))]
    #[case("a.img,", ConfigError::PmemOption("".into()))]
    #[case("a.img,cow,readonly", ConfigError::PmemOption("readonly".into()))]
    fn persistent_memory_that_is_not_well_formed_is_refused(
        #[case] text: &str,
        #[case] expected: ConfigError,
    ) {
        assert_eq!(text.parse::<PmemConfig>(), Err(expected));
    }

    proptest! {
        #[test]
        fn persistent_memory_reads_back_as_written(path in "[a-z,./ ]{1,12}", raw: bool, mode in 0_usize..3) {
            let mode = [PmemMode::Shared, PmemMode::ReadOnly, PmemMode::CopyOnWrite][mode];
            let format = if raw { ImageFormat::Raw } else { ImageFormat::Detect };
            let pmem = PmemConfig { path: path.into(), format, mode };
            prop_assert_eq!(pmem.to_string().parse(), Ok(pmem));
        }
    }
}
