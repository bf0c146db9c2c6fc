//! Disks.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use devices::virtio::block::{DiskId, ImageFormat, Piece};
use devices::virtio::rate_limit::RateLimits;
use serde::{Deserialize, Serialize};

use super::limit::{Bandwidth, Rate};
use super::words::{double_commas, split_at_single_commas};
use super::{ConfigError, serde_as_text};

/// A disk of the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DiskConfig {
    /// A raw image or a block device.
    pub path: PathBuf,
    /// Further files that a read-only disk is composed of, behind the first. They have no text form.
    pub pieces: Vec<Piece>,
    /// Whether an image of another format is refused.
    pub format: ImageFormat,
    /// Whether the guest may only read it.
    pub read_only: bool,
    /// The serial number that the guest reads (see [`DiskId`]).
    pub id: Option<String>,
    /// How much the guest may read and write, both together.
    pub limits: RateLimits,
}

impl FromStr for DiskConfig {
    type Err = ConfigError;

    /// Reads `PATH[,readonly][,format=raw][,id=NAME][,limit-bandwidth=RATE][,limit-iops=RATE]`.
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let mut words = split_at_single_commas(text).into_iter();
        let path = words.next().filter(|path| !path.is_empty()).ok_or(ConfigError::DiskPath)?;
        let mut disk = Self {
            path: path.into(),
            pieces: Vec::new(),
            format: ImageFormat::Detect,
            read_only: false,
            id: None,
            limits: RateLimits::default(),
        };
        for word in words {
            match word.split_once('=') {
                None if word == "readonly" || word == "ro" => disk.read_only = true,
                Some(("format", "raw")) => disk.format = ImageFormat::Raw,
                Some(("format", format)) => return Err(ConfigError::DiskFormat(format.to_owned())),
                Some(("id", id)) => {
                    DiskId::new(id)?;
                    disk.id = Some(id.to_owned());
                }
                Some(("limit-bandwidth", rate)) => {
                    disk.limits.bandwidth = Some(rate.parse::<Bandwidth>()?.0);
                }
                Some(("limit-iops", rate)) => disk.limits.operations = Some(rate.parse::<Rate>()?.0),
                _ => return Err(ConfigError::DiskOption(word)),
            }
        }
        Ok(disk)
    }
}

impl fmt::Display for DiskConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", double_commas(&self.path.to_string_lossy()))?;
        if self.read_only {
            write!(f, ",readonly")?;
        }
        if self.format == ImageFormat::Raw {
            write!(f, ",format=raw")?;
        }
        if let Some(id) = &self.id {
            write!(f, ",id={id}")?;
        }
        if let Some(limit) = self.limits.bandwidth {
            write!(f, ",limit-bandwidth={}", Bandwidth(limit))?;
        }
        if let Some(limit) = self.limits.operations {
            write!(f, ",limit-iops={}", Rate(limit))?;
        }
        Ok(())
    }
}

serde_as_text!(DiskConfig);

#[cfg(test)]
mod tests {
    use devices::virtio::rate_limit::Limit;
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn disk(path: &str, read_only: bool, id: Option<&str>) -> DiskConfig {
        DiskConfig {
            path: path.into(),
            pieces: Vec::new(),
            format: ImageFormat::Detect,
            read_only,
            id: id.map(str::to_owned),
            limits: RateLimits::default(),
        }
    }

    #[rstest]
    #[case("a.img", disk("a.img", false, None))]
    #[case("a.img,readonly", disk("a.img", true, None))]
    #[case("a.img,ro", disk("a.img", true, None))]
    #[case("a.img,format=raw", DiskConfig { format: ImageFormat::Raw, ..disk("a.img", false, None) })]
    #[case("a.img,id=x-y,readonly", disk("a.img", true, Some("x-y")))]
    #[case("a,,b.img,readonly", disk("a,b.img", true, None))]
    fn disks_are_read(#[case] text: &str, #[case] expected: DiskConfig) {
        assert_eq!(text.parse(), Ok(expected));
    }

    #[rstest]
    #[case("", ConfigError::DiskPath)]
    #[case(",readonly", ConfigError::DiskPath)]
    #[case("a.img,rw", ConfigError::DiskOption("rw".into()))]
    #[case("a.img,format=qcow2", ConfigError::DiskFormat("qcow2".into()))]
    #[case("a.img,", ConfigError::DiskOption("".into()))]
    #[case("a.img,readonly=yes", ConfigError::DiskOption("readonly=yes".into()))]
    fn a_disk_that_is_not_well_formed_is_refused(#[case] text: &str, #[case] expected: ConfigError) {
        assert_eq!(text.parse::<DiskConfig>(), Err(expected));
    }

    #[rstest]
    #[case("a.img,id=")]
    #[case("a.img,id=123456789012345678901")]
    #[case("a.img,id=é")]
    fn an_invalid_id_is_refused(#[case] text: &str) {
        assert!(matches!(text.parse::<DiskConfig>(), Err(ConfigError::DiskId(_))));
    }

    proptest! {
        #[test]
        fn a_disk_reads_back_as_written(path in "[a-z,./ ]{1,12}", raw: bool, read_only: bool, id in proptest::option::of("[a-z0-9._-]{1,20}"), bandwidth: Option<u64>, operations: Option<u64>) {
            let limit = |count: Option<u64>| {
                let count = count.and_then(std::num::NonZeroU64::new)?;
                Some(Limit { per_second: count, burst: count })
            };
            let limits = RateLimits { bandwidth: limit(bandwidth), operations: limit(operations) };
            let format = if raw { ImageFormat::Raw } else { ImageFormat::Detect };
            let disk = DiskConfig { path: path.into(), pieces: Vec::new(), format, read_only, id, limits };
            prop_assert_eq!(disk.to_string().parse(), Ok(disk));
        }
    }
}
