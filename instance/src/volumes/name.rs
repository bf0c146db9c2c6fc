//! What a volume is called.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Not a name of a volume.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "invalid volume name {shown:?}: use 2 to {most} letters, digits, _, . and -, the first a letter or a digit; the \
    path of a folder begins with / or ./",
    shown = shortened(.0),
    most = VolumeName::MAX
)]
pub struct VolumeNameError(String);

fn shortened(text: &str) -> String {
    if text.chars().count() <= 80 { text.to_owned() } else { text.chars().take(79).chain(['…']).collect() }
}

/// A volume's name, as docker's: 2 to [`VolumeName::MAX`] letters, digits, `_`, `.` and `-`, the first a letter or a
/// digit. It is the name of a directory too.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VolumeName(String);

impl VolumeName {
    /// The most characters of a name, which is the most that a file's name has.
    pub const MAX: usize = 255;

    /// A new name of 64 random digits, as docker gives it to a volume for which the user has none.
    ///
    /// # Errors
    ///
    /// Those of the system's random numbers.
    pub fn random() -> std::io::Result<Self> {
        let mut bytes = [0; 32];
        let mut filled = 0;
        while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            filled += rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::empty())?;
        }
        Ok(Self(bytes.iter().map(|byte| format!("{byte:02x}")).collect()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for VolumeName {
    type Err = VolumeNameError;

    fn from_str(text: &str) -> Result<Self, VolumeNameError> {
        let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
        let first_is_good = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        if first_is_good && text.bytes().all(good) && (2..=Self::MAX).contains(&text.len()) {
            Ok(Self(text.to_owned()))
        } else {
            Err(VolumeNameError(text.to_owned()))
        }
    }
}

impl fmt::Display for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for VolumeName {
    type Error = VolumeNameError;

    fn try_from(text: String) -> Result<Self, VolumeNameError> {
        text.parse()
    }
}

impl From<VolumeName> for String {
    fn from(name: VolumeName) -> Self {
        name.0
    }
}
