//! Sizes of memory.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{ConfigError, serde_as_text};

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

    /// The size as one word that reads back as the same.
    pub(super) fn word(self) -> String {
        match self.unit() {
            Some((name, unit)) => format!("{}{name}", self.0 / unit),
            None => self.0.to_string(),
        }
    }

    /// The largest unit of which it is a multiple.
    fn unit(self) -> Option<&'static (char, u64)> {
        UNITS.iter().find(|(_, unit)| self.0 >= *unit && self.0.is_multiple_of(*unit))
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
        f.write_str(&self.word())?;
        if self.unit().is_none() { f.write_str(" bytes") } else { Ok(()) }
    }
}

serde_as_text!(MemorySize);

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

    proptest! {
        #[test]
        fn a_size_reads_back_as_written(bytes in any::<u64>()) {
            let written = MemorySize(bytes).to_string();
            let text = written.strip_suffix(" bytes").unwrap_or(&written);
            prop_assert_eq!(text.parse(), Ok(MemorySize(bytes)));
        }
    }
}
