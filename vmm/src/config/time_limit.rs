//! How long something may take.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{ConfigError, serde_as_text};

/// A time in whole milliseconds, at most [`TimeLimit::MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TimeLimit(Duration);

/// Suffixes and their milliseconds; longer ones before those that they end with.
const UNITS: [(&str, u64); 5] = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

impl TimeLimit {
    /// The longest, about 31 years.
    pub const MAX: Self = Self(Duration::from_secs(1_000_000_000));

    /// A limit of so many seconds.
    pub const fn from_secs(seconds: u32) -> Self {
        Self(Duration::from_secs(seconds as u64))
    }

    /// The time.
    pub const fn duration(self) -> Duration {
        self.0
    }
}

impl FromStr for TimeLimit {
    type Err = ConfigError;

    /// Reads seconds, as in `90` or `1.5`, or a number with `ms`, `s`, `m`, `h` or `d`.
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let error = || ConfigError::TimeLimit(text.to_owned());
        let found = UNITS.iter().find_map(|(suffix, unit)| Some((text.strip_suffix(suffix)?, *unit)));
        let (number, unit) = found.unwrap_or((text, 1000));
        let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
        let is_number = |digits: &str| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        // More digits than nine are less than a millisecond of any unit that has one.
        if !is_number(whole) || !is_number(fraction) || fraction.len() > 9 {
            return Err(error());
        }
        let whole = whole.parse::<u64>().ok().and_then(|whole| whole.checked_mul(unit));
        let scale = fraction.bytes().fold(1, |scale, _| scale * 10);
        let part = fraction.parse::<u64>().map_err(|_| error())? * unit / scale;
        let milliseconds = whole.and_then(|whole| whole.checked_add(part)).ok_or_else(error)?;
        Some(Self(Duration::from_millis(milliseconds))).filter(|limit| *limit <= Self::MAX).ok_or_else(error)
    }
}

/// In the largest unit that needs no fraction: it reads back as the same.
impl fmt::Display for TimeLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let milliseconds = self.0.as_millis();
        if milliseconds.is_multiple_of(1000) {
            write!(f, "{}s", milliseconds / 1000)
        } else {
            write!(f, "{milliseconds}ms")
        }
    }
}

serde_as_text!(TimeLimit);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("0", 0)]
    #[case("90", 90_000)]
    #[case("1.5", 1500)]
    #[case("10s", 10_000)]
    #[case("250ms", 250)]
    #[case("0.0005s", 0)]
    #[case("1.5m", 90_000)]
    #[case("2h", 7_200_000)]
    #[case("1d", 86_400_000)]
    fn times_are_read(#[case] text: &str, #[case] milliseconds: u64) {
        assert_eq!(text.parse::<TimeLimit>().unwrap().duration(), Duration::from_millis(milliseconds));
    }

    #[rstest]
    #[case("")]
    #[case("s")]
    #[case("-1")]
    #[case("+1")]
    #[case("1.")]
    #[case(".5")]
    #[case("1e3")]
    #[case("ten")]
    #[case("10 s")]
    #[case("10x")]
    #[case("1.0000000001")]
    #[case("1000000001")]
    #[case("99999999999999999999")]
    #[case("999999999999999999d")]
    fn what_is_not_a_time_is_refused(#[case] text: &str) {
        let error = text.parse::<TimeLimit>().unwrap_err();
        assert_eq!(error, ConfigError::TimeLimit(text.to_owned()));
        assert!(error.to_string().contains("90"), "{error}");
    }

    proptest! {
        #[test]
        fn a_time_reads_back_as_written(milliseconds in 0..1_000_000_000_000_u64) {
            let limit = TimeLimit(Duration::from_millis(milliseconds));
            prop_assert_eq!(limit.to_string().parse(), Ok(limit));
        }

        #[test]
        fn no_text_makes_it_panic(text in "[0-9.smhd]{0,24}") {
            let _ = text.parse::<TimeLimit>();
        }
    }
}
