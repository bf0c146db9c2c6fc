//! Rates that a device is limited to.

use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;

use devices::virtio::rate_limit::Limit;

use super::{ConfigError, MemorySize};

/// By default a bucket holds what may pass in a tenth of a second: enough to keep a device busy between two wake-ups,
/// too little to be noticed.
const BURSTS_A_SECOND: u64 = 10;

/// Bytes a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bandwidth(pub Limit);

/// Requests or packets a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate(pub Limit);

/// Reads `PER_SECOND[:BURST]`, each by `read`.
fn limit(text: &str, read: impl Fn(&str) -> Result<u64, ConfigError>) -> Result<Limit, ConfigError> {
    let (per_second, burst) = match text.split_once(':') {
        Some((per_second, burst)) => (read(per_second)?, read(burst)?),
        None => {
            let per_second = read(text)?;
            (per_second, (per_second / BURSTS_A_SECOND).max(1))
        }
    };
    let not_zero = |value| NonZeroU64::new(value).ok_or_else(|| ConfigError::ZeroLimit(text.to_owned()));
    Ok(Limit { per_second: not_zero(per_second)?, burst: not_zero(burst)? })
}

impl FromStr for Bandwidth {
    type Err = ConfigError;

    /// Reads `50M` or `50M:200M`.
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        limit(text, |size| Ok(size.parse::<MemorySize>()?.bytes())).map(Self)
    }
}

impl FromStr for Rate {
    type Err = ConfigError;

    /// Reads `1000` or `1000:5000`.
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        limit(text, |count| count.parse().map_err(|_| ConfigError::NotARate(text.to_owned()))).map(Self)
    }
}

impl fmt::Display for Bandwidth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Limit { per_second, burst } = self.0;
        let size = |bytes: NonZeroU64| MemorySize::from_bytes(bytes.get()).word();
        write!(f, "{}:{}", size(per_second), size(burst))
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.0.per_second, self.0.burst)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn limit(per_second: u64, burst: u64) -> Limit {
        Limit { per_second: per_second.try_into().unwrap(), burst: burst.try_into().unwrap() }
    }

    #[test]
    fn rates_are_read_with_and_without_a_burst() {
        assert_eq!("50M".parse(), Ok(Bandwidth(limit(50 << 20, 5 << 20))));
        assert_eq!("50M:1G".parse(), Ok(Bandwidth(limit(50 << 20, 1 << 30))));
        assert_eq!("1000".parse(), Ok(Rate(limit(1000, 100))));
        assert_eq!("3:30".parse(), Ok(Rate(limit(3, 30))));
        assert_eq!("3".parse(), Ok(Rate(limit(3, 1))));
    }

    #[rstest]
    #[case("0")]
    #[case("0:5")]
    #[case("5:0")]
    fn a_limit_of_zero_is_refused(#[case] text: &str) {
        assert_eq!(text.parse::<Rate>(), Err(ConfigError::ZeroLimit(text.to_owned())));
        assert_eq!(text.parse::<Bandwidth>(), Err(ConfigError::ZeroLimit(text.to_owned())));
    }

    #[rstest]
    #[case("")]
    #[case("many")]
    #[case("1:")]
    #[case("1:2:3")]
    #[case("-1")]
    fn invalid_rates_are_refused(#[case] text: &str) {
        assert!(matches!(text.parse::<Rate>(), Err(ConfigError::NotARate(_))), "{text}");
        assert!(text.parse::<Bandwidth>().is_err(), "{text}");
    }

    proptest! {
        #[test]
        fn limits_read_back_as_written(per_second in 1..=u64::MAX, burst in 1..=u64::MAX) {
            let limit = limit(per_second, burst);
            prop_assert_eq!(Rate(limit).to_string().parse(), Ok(Rate(limit)));
            prop_assert_eq!(Bandwidth(limit).to_string().parse(), Ok(Bandwidth(limit)));
        }
    }
}
