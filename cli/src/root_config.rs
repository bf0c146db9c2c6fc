//! What the root file system of a VM is: a disk, or the files of an image.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use container::{OptionsError, Storage};
use serde::Deserialize;
use thiserror::Error;
use vmm::{ConfigError, DiskConfig};

/// What an image begins with.
const IMAGE: &str = "image:";

/// `--rootfs`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum RootConfig {
    /// A disk.
    Disk(DiskConfig),
    /// An image's files.
    Image(ImageRoot),
}

/// An image's files as the root file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageRoot {
    /// The image, as the user calls it.
    pub image: String,
    /// The file that keeps what the guest writes; without one that goes with the VM.
    pub changes: Option<PathBuf>,
    /// Where else it goes, or the size of the file, if the user says so.
    pub storage: Option<Storage>,
}

/// Why it can't be read.
#[derive(Debug, Error)]
pub enum RootError {
    /// The disk.
    #[error(transparent)]
    Disk(#[from] ConfigError),
    /// An image without a name.
    #[error("no image: write image:IMAGE[,changes=FILE][,size=SIZE][,memory], as in image:debian:12")]
    NoImage,
    /// An unknown option.
    #[error(
        "unknown option {0:?} of an image; valid options: changes=FILE, size=SIZE, memory (write a comma in a path as ,,)"
    )]
    Option(String),
    /// A size.
    #[error(transparent)]
    Storage(#[from] OptionsError),
    /// A file for what is in memory.
    #[error("changes=FILE and memory exclude each other: use one of them")]
    Both,
}

impl RootConfig {
    /// The file that it is relative to a configuration's directory.
    pub fn path_mut(&mut self) -> Option<&mut PathBuf> {
        match self {
            Self::Disk(disk) => Some(&mut disk.path),
            Self::Image(root) => root.changes.as_mut(),
        }
    }

    /// The disk.
    pub fn into_disk(self) -> Option<DiskConfig> {
        match self {
            Self::Disk(disk) => Some(disk),
            Self::Image(_) => None,
        }
    }
}

impl FromStr for RootConfig {
    type Err = RootError;

    /// Reads what `--disk` takes, or `image:IMAGE[,changes=FILE][,size=SIZE][,memory]`.
    fn from_str(text: &str) -> Result<Self, RootError> {
        let Some(described) = text.strip_prefix(IMAGE) else { return Ok(Self::Disk(text.parse()?)) };
        // Two commas are one that does not part words.
        let described = described.replace(",,", "\0");
        let mut words = described.split(',').map(|word| word.replace('\0', ","));
        let image = words.next().filter(|image| !image.is_empty()).ok_or(RootError::NoImage)?;
        let mut root = ImageRoot { image, changes: None, storage: None };
        for word in words {
            match word.split_once('=') {
                Some(("changes", file)) if !file.is_empty() => root.changes = Some(file.into()),
                Some(("size", _)) => root.storage = Some(word.parse()?),
                None if word == "memory" => root.storage = Some(Storage::Memory),
                _ => return Err(RootError::Option(word)),
            }
        }
        if root.changes.is_some() && root.storage == Some(Storage::Memory) {
            return Err(RootError::Both);
        }
        Ok(Self::Image(root))
    }
}

impl TryFrom<String> for RootConfig {
    type Error = RootError;

    fn try_from(text: String) -> Result<Self, RootError> {
        text.parse()
    }
}

impl fmt::Display for ImageRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{IMAGE}{}", self.image)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("image:debian:12", "debian:12", None, None)]
    #[case("image:r:5000/a@sha256:0,memory", "r:5000/a@sha256:0", None, Some(Storage::Memory))]
    #[case("image:a,size=0", "a", None, Some(Storage::Memory))]
    #[case("image:a,changes=x,,y,size=1G", "a", Some("x,y"), Some(Storage::Disk(1 << 30)))]
    fn images_are_read(
        #[case] text: &str,
        #[case] image: &str,
        #[case] changes: Option<&str>,
        #[case] storage: Option<Storage>,
    ) {
        let root = ImageRoot { image: image.into(), changes: changes.map(Into::into), storage };
        assert_eq!(text.parse::<RootConfig>().unwrap(), RootConfig::Image(root));
    }

    #[test]
    fn all_else_is_a_disk() {
        let disk = "a.img,readonly".parse::<RootConfig>().unwrap().into_disk();
        assert_eq!(disk, Some("a.img,readonly".parse().unwrap()));
        assert!("./image:x".parse::<RootConfig>().unwrap().into_disk().is_some());
    }

    #[rstest]
    #[case("image:", "no image: write image:IMAGE")]
    #[case("image:,memory", "no image: write image:IMAGE")]
    #[case("image:a,", "unknown option \"\" of an image")]
    #[case("image:a,readonly", "unknown option \"readonly\" of an image; valid options: changes=FILE")]
    #[case("image:a,changes=", "unknown option \"changes=\"")]
    #[case("image:a,size=1", "invalid storage option \"size=1\": write size=SIZE, from 256M to 1T")]
    #[case("image:a,memory,changes=x", "exclude each other")]
    #[case("", "no path")]
    fn others_are_refused(#[case] text: &str, #[case] says: &str) {
        let error = text.parse::<RootConfig>().unwrap_err().to_string();
        assert!(error.contains(says) && !error.contains('\n'), "{error}");
    }
}
