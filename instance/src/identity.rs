//! By what a VM is called.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use thiserror::Error;

/// What is wrong with an ID or a name; the message says what a good one looks like.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum IdentityError {
    /// Not an ID.
    #[error("invalid ID {0:?}: use {digits} hexadecimal digits in lower case", digits = VmId::DIGITS)]
    Id(String),
    /// Not a name.
    #[error(
        "invalid name {0:?}: use 1 to {most} letters, digits, _, . and -, the first a letter or a digit",
        most = VmName::MAX
    )]
    Name(String),
    /// A name that is an ID.
    #[error("invalid name {0:?}: it could be the ID of a VM")]
    NameIsAnId(String),
}

/// Which VM it is, as opposed to what it is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Identity {
    /// The VM's ID; `None` as long as it has no directory.
    pub id: Option<VmId>,
    /// The VM's name.
    pub name: Option<VmName>,
    /// The VM's directory, with its control socket, the socket of its console and the console's latest output;
    /// a VM without a directory has none of these.
    #[serde(skip)]
    pub directory: Option<PathBuf>,
}

/// A VM's ID: 12 hexadecimal digits in lower case.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VmId(String);

/// A VM's name: 1 to [`VmName::MAX`] letters, digits, `_`, `.` and `-`, the first a letter or a digit. It is never
/// the same as an ID, so that a word means one VM.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VmName(String);

impl VmId {
    /// How many digits an ID has.
    pub const DIGITS: usize = 12;

    /// The ID whose digits are those of `bytes`.
    pub fn from_bytes(bytes: [u8; Self::DIGITS / 2]) -> Self {
        Self(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// A random ID.
    ///
    /// # Errors
    ///
    /// Those of getrandom(2).
    pub fn random() -> io::Result<Self> {
        let mut bytes = [0; Self::DIGITS / 2];
        // So few bytes are never cut short (getrandom(2)).
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
        Ok(Self::from_bytes(bytes))
    }

    /// The ID as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl VmName {
    /// The most characters of a name.
    pub const MAX: usize = 64;

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whether `text` could be the beginning of an ID, or a whole one.
pub(super) fn begins_an_id(text: &str) -> bool {
    text.len() <= VmId::DIGITS && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

impl FromStr for VmId {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        if text.len() == Self::DIGITS && begins_an_id(text) {
            Ok(Self(text.to_owned()))
        } else {
            Err(IdentityError::Id(text.to_owned()))
        }
    }
}

impl FromStr for VmName {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
        let first_is_good = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        if !first_is_good || !text.bytes().all(good) || text.len() > Self::MAX {
            return Err(IdentityError::Name(text.to_owned()));
        }
        if text.parse::<VmId>().is_ok() {
            return Err(IdentityError::NameIsAnId(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for VmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for VmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Both are written as text: in a record, in a configuration file, on the command line.
macro_rules! serde_as_text {
    ($($type:ty),*) => {$(
        impl TryFrom<String> for $type {
            type Error = IdentityError;

            fn try_from(text: String) -> Result<Self, IdentityError> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(value: $type) -> Self {
                value.0
            }
        }
    )*};
}

serde_as_text!(VmId, VmName);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("a")]
    #[case("7")]
    #[case("web-1.example_x")]
    #[case("cafe")]
    #[case("0123456789abc")]
    fn names_are_taken(#[case] text: &str) {
        assert_eq!(text.parse::<VmName>().unwrap().as_str(), text);
    }

    #[rstest]
    #[case("")]
    #[case("-rf")]
    #[case(".")]
    #[case("..")]
    #[case("_x")]
    #[case("a/b")]
    #[case("a b")]
    #[case("a\n")]
    #[case("é")]
    fn what_is_no_name_is_refused(#[case] text: &str) {
        assert_eq!(text.parse::<VmName>(), Err(IdentityError::Name(text.to_owned())));
    }

    #[test]
    fn a_name_is_not_too_long_and_never_an_id() {
        assert!("x".repeat(64).parse::<VmName>().is_ok());
        assert!("x".repeat(65).parse::<VmName>().is_err());
        assert_eq!("0123456789ab".parse::<VmName>(), Err(IdentityError::NameIsAnId("0123456789ab".into())));
    }

    #[rstest]
    #[case("0123456789a")]
    #[case("0123456789abc")]
    #[case("0123456789AB")]
    #[case("0123456789ag")]
    #[case("../../../etc")]
    fn what_is_no_id_is_refused(#[case] text: &str) {
        assert_eq!(text.parse::<VmId>(), Err(IdentityError::Id(text.to_owned())));
    }

    proptest! {
        #[test]
        fn an_id_reads_back_as_written(bytes: [u8; 6]) {
            let id = VmId::from_bytes(bytes);
            prop_assert_eq!(id.to_string().parse(), Ok(id));
        }

        /// A name becomes a file's name and a word of a shell's line.
        #[test]
        fn no_name_leaves_its_directory(text in any::<String>()) {
            if text.parse::<VmName>().is_ok() {
                prop_assert!(!text.contains('/') && !text.starts_with(['.', '-']) && text.is_ascii());
            }
        }
    }
}
