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
    /// The minimum of a VM.
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

    /// The size as text that parses to the same size.
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

    /// Reads a number and a unit, as docker and QEMU do: `512M`, `512m`, `512MB`, `512MiB`, `512Mi` and `0.5G` are
    /// the same. Units are powers of 1024 however they are written. A number without a unit counts bytes. What is left
    /// of a fraction of a byte is dropped.
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let not_a_size = || ConfigError::NotASize(text.to_owned());
        let end = text.bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b'.').count();
        let (number, suffix) = text.split_at_checked(end).ok_or_else(not_a_size)?;
        let unit = unit(suffix).ok_or_else(not_a_size)?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
        if whole.is_empty() || fraction.is_empty() || fraction.contains('.') {
            return Err(not_a_size());
        }
        let overflow = || ConfigError::SizeOverflow(text.to_owned());
        let whole =
            whole.parse::<u64>().ok().and_then(|whole| whole.checked_mul(unit)).ok_or_else(overflow)?;
        whole.checked_add(part(fraction, unit)).map(Self).ok_or_else(overflow)
    }
}

/// What `suffix` multiplies by: `K`, `KB`, `KiB` or `Ki` and so on in either case, `B` or nothing for bytes.
fn unit(suffix: &str) -> Option<u64> {
    let suffix = suffix.to_ascii_uppercase();
    if matches!(suffix.as_str(), "" | "B") {
        return Some(1);
    }
    let name = ["IB", "I", "B"].into_iter().find_map(|end| suffix.strip_suffix(end)).unwrap_or(&suffix);
    UNITS.iter().find(|(known, _)| name.chars().eq([*known])).map(|(_, unit)| *unit)
}

/// How many whole bytes the decimal places `digits` are of `unit`, which is at most 2^40.
fn part(digits: &str, unit: u64) -> u64 {
    // Further places are less than a byte of a TiB.
    let digits = digits.bytes().take(18);
    let (count, of) = digits.fold((0_u128, 1_u128), |(count, of), digit| {
        (count * 10 + u128::from(digit.saturating_sub(b'0')), of * 10)
    });
    u64::try_from(count * u128::from(unit) / of).unwrap_or(u64::MAX)
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
    #[case("512m", 512 << 20)]
    #[case("512MB", 512 << 20)]
    #[case("512Mi", 512 << 20)]
    #[case("512mib", 512 << 20)]
    #[case("1g", 1 << 30)]
    #[case("1k", 1 << 10)]
    #[case("100b", 100)]
    #[case("1.5G", 3 << 29)]
    #[case("0.5T", 1 << 39)]
    #[case("0.1K", 102)]
    #[case("1.9999999999999999999999M", (2 << 20) - 1)]
    fn sizes_are_read(#[case] text: &str, #[case] bytes: u64) {
        assert_eq!(text.parse(), Ok(MemorySize(bytes)));
    }

    #[rstest]
    #[case("")]
    #[case("M")]
    #[case("-1M")]
    #[case("1.5.5G")]
    #[case(".5G")]
    #[case("1.G")]
    #[case("1 G")]
    #[case("1iB")]
    #[case("1I")]
    #[case("1KBB")]
    #[case("1X")]
    #[case("1GG")]
    #[case("1é")]
    fn invalid_sizes_are_refused(#[case] text: &str) {
        assert_eq!(text.parse::<MemorySize>(), Err(ConfigError::NotASize(text.to_owned())));
    }

    #[rstest]
    #[case("99999999999999999999")]
    #[case("99999999T")]
    #[case("18446744073709551615.5K")]
    fn sizes_beyond_64_bits_are_refused(#[case] text: &str) {
        assert_eq!(text.parse::<MemorySize>(), Err(ConfigError::SizeOverflow(text.to_owned())));
    }

    proptest! {
        /// The same size, written as users of docker, QEMU, Kubernetes and mvm write it.
        #[test]
        fn all_ways_to_write_a_size_mean_the_same(number in 0..=u64::from(u32::MAX), unit in 0..4_usize, lower: bool) {
            let (name, bytes) = UNITS[unit];
            let expected = number.checked_mul(bytes).map(MemorySize).ok_or(());
            for text in [format!("{number}{name}"), format!("{number}{name}B"), format!("{number}{name}iB"), format!("{number}{name}i"), format!("{number}.0{name}")] {
                let text = if lower { text.to_lowercase() } else { text };
                prop_assert_eq!(text.parse::<MemorySize>().map_err(|_| ()), expected, "{}", text);
            }
            prop_assert_eq!(number.to_string().parse(), Ok(MemorySize(number)));
        }

        /// A fraction is that part of its unit, to the byte.
        #[test]
        fn a_fraction_is_a_part_of_its_unit(whole in 0..1000_u64, thousandths in 0..1000_u64, unit in 0..4_usize) {
            let (name, bytes) = UNITS[unit];
            let size: MemorySize = format!("{whole}.{thousandths:03}{name}").parse().unwrap();
            prop_assert_eq!(size.bytes(), (whole * 1000 + thousandths) * bytes / 1000);
        }

        #[test]
        fn any_text_is_a_size_or_an_error(text in any::<String>()) {
            let _ = text.parse::<MemorySize>();
        }

        #[test]
        fn a_size_reads_back_as_written(bytes in any::<u64>()) {
            let written = MemorySize(bytes).to_string();
            let text = written.strip_suffix(" bytes").unwrap_or(&written);
            prop_assert_eq!(text.parse(), Ok(MemorySize(bytes)));
        }
    }
}
